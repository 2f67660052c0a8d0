// A port as a virtual machine has it: the agent's side stays open for ever, the host's side comes and
// goes. What was on its way to the host when that went away is given to the next one; what was on its
// way to the agent arrived in part. Cuts fall anywhere, also in the middle of a frame.
import { type Duplex, duplexPair } from 'node:stream';

export class Port implements Disposable {
  readonly #agentSide: Duplex;
  #hostSide: Duplex | null = null;
  #stale: Uint8Array[] = [];
  /** Bytes until the next cut, over both directions. */
  #untilCut = Number.POSITIVE_INFINITY;
  cuts = 0;
  readonly #nextCut: () => number;

  /** `nextCut` says how many bytes each connection carries. */
  constructor(agentSide: Duplex, nextCut: () => number = () => Number.POSITIVE_INFINITY) {
    this.#agentSide = agentSide;
    this.#nextCut = nextCut;
    agentSide.on('error', () => {});
    agentSide.on('data', (chunk: Uint8Array) => this.#toHost(chunk));
    agentSide.pause();
  }

  /** The host connects; an earlier connection of it ends. */
  dial(): Duplex {
    this.cut();
    const [host, hostSide] = duplexPair();
    hostSide.on('error', () => {});
    this.#hostSide = hostSide;
    this.#untilCut = this.#nextCut();
    hostSide.on('data', (chunk: Uint8Array) => this.#toAgent(hostSide, chunk));
    hostSide.on('drain', () => this.#agentSide.resume());
    const gone = () => {
      if (this.#hostSide === hostSide) this.#drop();
    };
    hostSide.on('end', gone).on('close', gone);
    for (const chunk of this.#stale.splice(0)) this.#toHost(chunk);
    if (this.#hostSide !== null) this.#agentSide.resume();
    return host;
  }

  /** The host's side goes away. */
  cut(): void {
    if (this.#hostSide === null) return;
    this.cuts += 1;
    this.#drop();
  }

  [Symbol.dispose](): void {
    this.#drop();
    this.#agentSide.destroy();
  }

  #drop(): void {
    const hostSide = this.#hostSide;
    this.#hostSide = null;
    this.#agentSide.pause();
    hostSide?.end();
    hostSide?.destroy();
  }

  #toHost(chunk: Uint8Array): void {
    const hostSide = this.#hostSide;
    if (hostSide === null) return void this.#stale.push(chunk);
    const passing = Math.min(chunk.byteLength, this.#untilCut);
    if (passing > 0 && !hostSide.write(chunk.subarray(0, passing))) this.#agentSide.pause();
    this.#untilCut -= passing;
    if (this.#untilCut > 0) return;
    if (passing < chunk.byteLength) this.#stale.push(chunk.subarray(passing));
    this.cut();
  }

  #toAgent(hostSide: Duplex, chunk: Uint8Array): void {
    if (this.#hostSide !== hostSide) return;
    const passing = Math.min(chunk.byteLength, this.#untilCut);
    this.#untilCut -= passing;
    if (passing > 0 && !this.#agentSide.write(chunk.subarray(0, passing))) {
      hostSide.pause();
      this.#agentSide.once('drain', () => hostSide.resume());
    }
    if (this.#untilCut <= 0) this.cut();
  }
}
