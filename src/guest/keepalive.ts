// Whether the agent still answers. While something waits for it and nothing comes, it is asked; what
// does not answer then is lost. Where nothing waits there is no timer.

export const SILENCE_MS = 10_000;
export const PONG_MS = 5_000;

export type KeepAliveOptions = {
  readonly monotonicMs: () => number;
  readonly silenceMs: number;
  readonly pongMs: number;
  readonly ping: (payload: Uint8Array) => void;
  readonly lost: () => void;
};

export class KeepAlive {
  readonly #options: KeepAliveOptions;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #watching = false;
  #heardAtMs = 0;
  #pingedAtMs: number | null = null;
  #pings = 0;
  readonly #payload = new Uint8Array(8);

  constructor(options: KeepAliveOptions) {
    this.#options = options;
  }

  /** Something waits for the agent, or nothing does. */
  watch(watching: boolean): void {
    if (watching === this.#watching) return;
    this.#watching = watching;
    if (!watching) return;
    this.#heardAtMs = this.#options.monotonicMs();
    if (this.#timer === undefined) this.#arm(this.#options.silenceMs);
  }

  /** A whole frame came. */
  heard(): void {
    this.#heardAtMs = this.#options.monotonicMs();
  }

  /** A PONG came. False when nobody asked for it. */
  pong(payload: Uint8Array): boolean {
    if (this.#pingedAtMs === null || Buffer.compare(payload, this.#payload) !== 0) return false;
    this.#pingedAtMs = null;
    return true;
  }

  stop(): void {
    this.#watching = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #arm(ms: number): void {
    this.#timer = setTimeout(() => {
      // The timers come first after a long stop of this process; what has arrived meanwhile is read before judging.
      this.#timer = undefined;
      setImmediate(() => setImmediate(() => this.#judge()));
    }, ms);
    this.#timer.unref();
  }

  #judge(): void {
    if (this.#timer !== undefined || !this.#watching) return;
    const { silenceMs, pongMs, monotonicMs } = this.#options;
    const nowMs = monotonicMs();
    if (this.#pingedAtMs !== null) {
      // Whatever came since shows life as well as the PONG does.
      const waitedMs = nowMs - Math.max(this.#pingedAtMs, this.#heardAtMs);
      if (waitedMs >= pongMs) this.#options.lost();
      else this.#arm(pongMs - waitedMs);
      return;
    }
    const silentMs = nowMs - this.#heardAtMs;
    if (silentMs < silenceMs) {
      this.#arm(silenceMs - silentMs);
      return;
    }
    this.#pings += 1;
    new DataView(this.#payload.buffer).setUint32(0, this.#pings, true);
    this.#pingedAtMs = nowMs;
    this.#options.ping(this.#payload);
    this.#arm(pongMs);
  }
}
