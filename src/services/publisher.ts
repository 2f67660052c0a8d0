// Published ports: this daemon answers at them and carries each connection through the agent to a port
// inside, in one way for every backend. A port belongs to its sandbox from the start of its creation until it is
// deleted, whether it runs or not; it is answered at for as long as a run of the sandbox lasts.
import { HutchError } from '../domain/errors.ts';
import type { SandboxId } from '../domain/ids.ts';
import { hostSide, PUBLISHED_PORTS_MAX, type PublishedPort, sharePort } from '../domain/published-port.ts';
import { errnoOf } from '../host/errors.ts';
import type { Host, TcpListener, TcpPeer } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { portOwner } from '../host/port-owner.ts';
import type { Store } from '../store/contract.ts';
import { pause } from './pause.ts';
import { relay } from './relay.ts';
import type { Run } from './run.ts';

/** Between tries to get a port back that somebody took while this daemon was away. */
const RETRY_MS = 1_000;
/** Of ports that are chosen for a sandbox: each was free, but may be reserved for one that does not run. */
const CHOICES_MAX = 5;

export type PortState = PublishedPort & {
  /** Why it is not answered at, while the sandbox runs. */
  readonly problem: string | null;
};

/** What is held of one port: listened at, for the run that has it by now. */
type Held = { readonly port: PublishedPort; readonly listener: TcpListener };

export class Publisher {
  readonly #store: Store;
  readonly #host: Host;
  /** As in the store: asked once. */
  #known: Promise<Map<SandboxId, readonly PublishedPort[]>> | null = null;
  readonly #held = new Map<SandboxId, Held[]>();
  readonly #runs = new Map<SandboxId, Run>();
  readonly #problems = new Map<SandboxId, ReadonlyMap<string, string>>();
  /** Answered at while nothing runs: whoever comes wakes it. */
  readonly #attended = new Set<SandboxId>();
  /** Gives the run of one that goes on with a connection; null: it does not. */
  onVisit: (id: SandboxId) => Promise<Run | null> = async () => null;

  constructor({ store, host }: { readonly store: Store; readonly host: Host }) {
    this.#store = store;
    this.#host = host;
  }

  /** Of a sandbox that is not deleted. */
  async of(id: SandboxId): Promise<readonly PublishedPort[]> {
    return (await this.#all()).get(id) ?? [];
  }

  async states(id: SandboxId): Promise<readonly PortState[]> {
    const [problems, isServed] = [this.#problems.get(id), this.#runs.has(id)];
    const problem = (port: PublishedPort): string | null =>
      !isServed || this.#isHeld(id, port) ? null : (problems?.get(hostSide(port)) ?? 'nobody answers there yet');
    return (await this.of(id)).map((port) => ({ ...port, problem: problem(port) }));
  }

  /**
   * Takes them for a sandbox that is about to be made: free ones in place of 0. `commit` writes them down, and refuses
   * one that another sandbox has. @throws HutchError `conflict` when one is taken.
   */
  async reserve<T>(
    op: Operation,
    id: SandboxId,
    wanted: readonly PublishedPort[],
    commit: (ports: readonly PublishedPort[]) => Promise<T>,
  ): Promise<T> {
    if (wanted.length === 0) return await commit([]);
    for (let tries = 1; ; tries += 1) {
      const chosen: PublishedPort[] = [];
      try {
        for (const port of wanted) chosen.push(port.hostPort === 0 ? await this.#hold(op, id, port) : port);
        const committed = await commit(chosen);
        (await this.#all()).set(id, chosen);
        return committed;
      } catch (error) {
        await this.close(id);
        const isChoice = error instanceof HutchError && error.code === 'conflict' && wanted.some(({ hostPort }) => hostPort === 0);
        if (!isChoice || tries === CHOICES_MAX) throw error;
      }
    }
  }

  /**
   * One more, in the sandbox's turn: answered at from now on where it runs, else from its next start on. The same one again is
   * as it was. @throws HutchError `conflict` when it is taken.
   */
  async add(op: Operation, id: SandboxId, run: Run | null, wanted: PublishedPort): Promise<PublishedPort> {
    const before = await this.of(id);
    const same = before.find((port) => hostSide(port) === hostSide(wanted) && port.guestPort === wanted.guestPort);
    if (same !== undefined) return same;
    if (before.length >= PUBLISHED_PORTS_MAX) {
      throw op.error('resource_exhausted', `it has ${PUBLISHED_PORTS_MAX} published ports already`, {
        hint: 'hutch ports rm SANDBOX PORT',
      });
    }
    // The store says whose it is; a port that was named is proven at the start where nothing runs.
    const isReserved = wanted.hostPort !== 0 && [...(await this.#all()).values()].flat().some((port) => sharePort(port, wanted));
    for (let tries = 1; ; tries += 1) {
      const isHeld = !isReserved && (run !== null || wanted.hostPort === 0);
      const port = isHeld ? await this.#hold(op, id, wanted) : wanted;
      try {
        await this.#store.commit(op, [{ change: 'reservePorts', sandboxId: id, ports: [port] }]);
        (await this.#all()).set(id, [...before, port]);
        if (run === null) await this.#letGo(id, [port]);
        else this.#serve(run);
        return port;
      } catch (error) {
        if (isHeld) await this.#letGo(id, [port]); // else whoever has it answers there, maybe this very sandbox
        const isChoice = error instanceof HutchError && error.code === 'conflict' && wanted.hostPort === 0;
        if (!isChoice || tries === CHOICES_MAX) throw error;
      }
    }
  }

  /** Those that match, in the sandbox's turn; their connections end. */
  async remove(op: Operation, id: SandboxId, matches: (port: PublishedPort) => boolean): Promise<readonly PublishedPort[]> {
    const before = await this.of(id);
    const ports = before.filter(matches);
    if (ports.length === 0) return [];
    await this.#store.commit(op, [{ change: 'releasePorts', sandboxId: id, ports }]);
    (await this.#all()).set(
      id,
      before.filter((port) => !ports.includes(port)),
    );
    await this.#letGo(id, ports);
    return ports;
  }

  /** The store has released them. */
  async released(id: SandboxId): Promise<void> {
    await this.close(id);
    (await this.#all()).delete(id);
  }

  /** All of them answer when this returns, until the run is over. @throws HutchError `conflict`, naming who has one of them. */
  async open(op: Operation, run: Run): Promise<void> {
    const ports = await this.of(run.id);
    if (ports.length === 0) return;
    try {
      for (const port of ports) if (!this.#isHeld(run.id, port)) await this.#hold(op, run.id, port);
    } catch (error) {
      await this.close(run.id);
      throw error;
    }
    this.#serve(run);
  }

  /** Those of a sandbox that was found running: what cannot be had now is tried until it can. */
  async adopt(run: Run): Promise<void> {
    if ((await this.of(run.id)).length === 0) return;
    this.#serve(run);
    while (!run.isOver) {
      const problems = new Map<string, string>();
      for (const port of await this.of(run.id)) {
        if (run.isOver || this.#isHeld(run.id, port)) continue;
        try {
          await this.#hold(run.op, run.id, port);
          // Unpublished in the meantime.
          if (!(await this.of(run.id)).includes(port)) await this.#letGo(run.id, [port]);
        } catch (error) {
          if (run.isOver) break;
          problems.set(hostSide(port), error instanceof Error ? error.message : String(error));
        }
      }
      const before = this.#problems.get(run.id)?.size ?? 0;
      this.#problems.set(run.id, problems);
      if (problems.size === 0) break;
      if (before === 0) run.op.log.warn({ sandbox: run.id, problems: [...problems.values()] }, 'published ports cannot be had back yet');
      await pause(run.op, RETRY_MS);
    }
    if (run.isOver) await this.close(run.id);
  }

  /** Its run is about to end, and whoever comes then wakes it. Until that is disposed; for good where the run has ended by then. */
  staying(id: SandboxId): Disposable {
    this.#attended.add(id);
    return {
      [Symbol.dispose]: () => {
        if (this.#runs.has(id)) this.#attended.delete(id);
      },
    };
  }

  /** As `open`, of one that does not run: whoever comes wakes it. */
  async attend(op: Operation, id: SandboxId): Promise<void> {
    const ports = await this.of(id);
    if (ports.length === 0) return;
    this.#attended.add(id);
    for (const port of ports) if (!this.#isHeld(id, port)) await this.#hold(op, id, port);
  }

  async #visit(id: SandboxId, guestPort: number, peer: TcpPeer): Promise<void> {
    try {
      const run = await this.onVisit(id);
      if (run !== null) return await relay(run, guestPort, peer);
    } catch {
      // Why is in the log of the operation that failed.
    }
    peer.resetAndDestroy();
  }

  /** Nobody answers at them any more; they stay reserved. */
  async close(id: SandboxId): Promise<void> {
    const held = this.#held.get(id) ?? [];
    this.#held.delete(id);
    this.#runs.delete(id);
    this.#attended.delete(id);
    this.#problems.delete(id);
    for (const { listener } of held) await listener[Symbol.asyncDispose]();
  }

  async #letGo(id: SandboxId, ports: readonly PublishedPort[]): Promise<void> {
    const isOne = ({ port }: Held): boolean => ports.some((one) => hostSide(one) === hostSide(port));
    const held = this.#held.get(id) ?? [];
    this.#held.set(
      id,
      held.filter((one) => !isOne(one)),
    );
    for (const { listener } of held.filter(isOne)) await listener[Symbol.asyncDispose]();
  }

  #serve(run: Run): void {
    if (this.#runs.get(run.id) === run) return;
    this.#runs.set(run.id, run);
    this.#attended.delete(run.id);
    const onOver = (): void => {
      if (this.#runs.get(run.id) !== run) return;
      if (this.#attended.has(run.id)) this.#runs.delete(run.id);
      else void this.close(run.id);
    };
    if (run.isOver) onOver();
    else run.op.signal.addEventListener('abort', onOver, { once: true });
  }

  #isHeld(id: SandboxId, port: PublishedPort): boolean {
    return this.#held.get(id)?.some((held) => hostSide(held.port) === hostSide(port)) === true;
  }

  async #hold(op: Operation, id: SandboxId, port: PublishedPort): Promise<PublishedPort> {
    const { hostAddress, hostPort, guestPort } = port;
    let listener: TcpListener;
    try {
      listener = await this.#host.listenTcp(op, { host: hostAddress, port: hostPort }, (peer) => {
        const run = this.#runs.get(id);
        if (run !== undefined) void relay(run, guestPort, peer);
        else if (this.#attended.has(id)) void this.#visit(id, guestPort, peer);
        else peer.resetAndDestroy();
      });
    } catch (cause) {
      if (op.signal.aborted) throw cause;
      throw await this.#cannotPublish(op, port, cause);
    }
    const held = { port: { ...port, hostPort: listener.port }, listener };
    this.#held.set(id, [...(this.#held.get(id) ?? []), held]);
    return held.port;
  }

  async #cannotPublish(op: Operation, port: PublishedPort, cause: unknown): Promise<HutchError> {
    const where = hostSide(port);
    const errno = errnoOf(cause);
    if (errno === 'EADDRINUSE') {
      const owner = await portOwner(op, this.#host, port.hostPort).catch(() => null);
      return op.error('conflict', `port ${where} cannot be published: it is taken by ${owner ?? 'a process that is not ours to name'}`, {
        hint: 'end it, or choose another port',
        cause,
      });
    }
    if (errno === 'EADDRNOTAVAIL') {
      return op.error('failed_precondition', `port ${where} cannot be published: this machine has no address ${port.hostAddress}`, {
        hint: 'see: ip addr',
        cause,
      });
    }
    if (errno === 'EACCES' || errno === 'EPERM') {
      return op.error('permission_denied', `port ${where} cannot be published: the daemon may not have it`, {
        hint: 'ports below 1024 are for root',
        cause,
      });
    }
    const why = cause instanceof Error ? cause.message : String(cause);
    return op.error('unavailable', `port ${where} cannot be published: ${why}`, { cause });
  }

  #all(): Promise<Map<SandboxId, readonly PublishedPort[]>> {
    this.#known ??= this.#read().catch((error: unknown) => {
      this.#known = null;
      throw error;
    });
    return this.#known;
  }

  async #read(): Promise<Map<SandboxId, readonly PublishedPort[]>> {
    const known = new Map<SandboxId, PublishedPort[]>();
    for (const { sandboxId, ...port } of await this.#store.query('publishedPorts', {})) {
      known.set(sandboxId, [...(known.get(sandboxId) ?? []), port]);
    }
    return known;
  }
}
