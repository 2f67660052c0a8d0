// One run of a sandbox: what the daemon holds while its process may be alive. All of it can be made
// anew from the store and the backend (adoption); nothing here says what is true, only how to reach it.
import type { Backend, SandboxPlan } from '../backends/backend.ts';
import type { SandboxId } from '../domain/ids.ts';
import type { EndCause } from '../domain/sandbox.ts';
import type { Agent } from '../guest/agent.ts';
import { AgentLink } from '../guest/link.ts';
import type { LinkedProcess } from '../guest/linked-process.ts';
import type { Exit } from '../guest/messages.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import { HostFiles } from './host-files.ts';
import { KeptPlaces } from './kept-places.ts';

/** An agent answers a dial at once, or it hangs. */
const DIAL_MS = 10_000;
/** Until an agent that has let go tries to come again: as long as nobody lets it in, it tries in vain. */
const RECONNECT_MS = 20;
/** On the sandbox's disk, for a moment. */
const PASSING = '/.hutch-passing';

/** A stream of a client that follows the main process. */
export type Follower = { readonly done: Promise<void> };

/** How the main process ended; `exit` null: its program could not be started. */
export type MainEnd = { readonly exitCode: number; readonly oomKilled: boolean; readonly atMs: number; readonly exit: Exit | null };

export class Run implements Disposable {
  readonly id: SandboxId;
  readonly backend: Backend;
  /** The run's own operation: its signal aborts when nobody cares for the run any more. */
  readonly op: Operation;
  readonly link: AgentLink;
  /** Its memory is on the disk and its process dead: what records that. */
  suspended: ((call: Call) => Promise<void>) | null = null;
  /** Its end, and all that it says, is waited for: from the commit that says it runs, or its adoption, on. */
  isWatched = false;
  /** The snapshot that its sandbox goes back to: that ends this run. */
  restoredTo: string | null = null;
  /** Why we are ending it, from the moment when that began; what a failed try left counts for a while. */
  ending: { readonly cause: EndCause; readonly actor: string; readonly untilMs: number; readonly removes: boolean } | null = null;
  /** Settles when the guest has heard of its main process: from the start on, but for a sandbox that was adopted. */
  mainBegun: Promise<void> = Promise.resolve();
  /** Settles when everything of the main process's log is in the file on the host. */
  mirrored: Promise<void> = Promise.resolve();
  readonly #followers = new Set<Follower>();
  readonly #over: AbortController;
  readonly #main = Promise.withResolvers<void>();
  readonly #death = new AbortController();
  readonly #silence = Promise.withResolvers<void>();
  #plan: SandboxPlan;
  #mainEnd: MainEnd | null = null;
  #uses = 0;
  #touchedMs = performance.now();
  #frozen: Disposable | null = null;
  /** Of clients that were lost. */
  readonly places = new KeptPlaces();
  /** Of clients that read or write large files. */
  readonly hostFiles = new HostFiles();
  #held: { readonly process: LinkedProcess; readonly release: () => void } | null = null;

  constructor(plan: SandboxPlan, backend: Backend, op: Operation, over: AbortController) {
    this.id = plan.id;
    this.#plan = plan;
    this.backend = backend;
    this.op = op;
    this.#over = over;
    this.link = new AgentLink(op, { dial: (dialling) => backend.dialAgent(dialling, this.#plan), dialMs: DIAL_MS });
  }

  get plan(): SandboxPlan {
    return this.#plan;
  }

  /** One that was started for nobody in particular has become somebody's. */
  become(owner: Pick<SandboxPlan, 'name' | 'projectId'>): void {
    this.#plan = { ...this.#plan, ...owner };
  }

  /** Somebody uses it, until that is disposed. */
  use(): Disposable {
    this.#uses += 1;
    return {
      [Symbol.dispose]: () => {
        this.#uses -= 1;
        this.touch();
      },
    };
  }

  touch(): void {
    this.#touchedMs = performance.now();
  }

  /** For how long nobody has used it. A daemon that takes it over begins to count. */
  untouchedMs(): number {
    return this.#uses > 0 ? 0 : performance.now() - this.#touchedMs;
  }

  /** What runs has another shape by now. */
  reshape(shape: SandboxPlan['shape']): void {
    this.#plan = { ...this.#plan, shape };
  }

  /** Resolves when the main process's end is known. */
  get mainEnded(): Promise<void> {
    return this.#main.promise;
  }

  get mainEnd(): MainEnd | null {
    return this.#mainEnd;
  }

  /** Told once; what comes later is the same again. */
  endMain(end: MainEnd): void {
    this.#mainEnd ??= end;
    this.#main.resolve();
  }

  /** Its process is proven dead: what the guest said last is still read, and nobody asks it anything again. */
  died(): void {
    this.#death.abort();
    this.link.end();
    void this.hostFiles.close();
  }

  /** Aborts at its proven death. */
  get death(): AbortSignal {
    return this.#death.signal;
  }

  /** The last event of a guest that is dead has been read. */
  fallSilent(): void {
    this.#silence.resolve();
  }

  /** Resolves when a guest that is dead can say no more of its main process. */
  get silent(): Promise<void> {
    return this.#silence.promise;
  }

  /** Keeps the first stream of the main process for the client that said it would attach, so that it misses no byte. */
  hold(process: LinkedProcess, ms: number): void {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(() => this.takeHeld()?.[Symbol.dispose](), ms);
    const release = (): void => {
      clearTimeout(timer);
      resolve();
    };
    this.#held = { process, release };
    this.follow(promise);
  }

  /** Hands it over; null when there is none, or its time is over. */
  takeHeld(): LinkedProcess | null {
    const held = this.#held;
    this.#held = null;
    held?.release();
    return held?.process ?? null;
  }

  /** Before the guest is frozen: nobody tries to reach it until `thaw`. */
  freeze(): void {
    this.#frozen ??= this.link.hold();
  }

  /**
   * Before it is written down: as `freeze`, and where that cannot be done while its agent is connected, the agent has gone; it
   * comes again by itself.
   */
  async freezeAlone(op: Operation): Promise<void> {
    const { backend } = this;
    if (backend.closeDoor === undefined) return this.freeze();
    const { closeDoor } = backend;
    const held = await this.link.letGo(op, RECONNECT_MS, async (agent) => {
      await settleDeleted(op, agent);
      await closeDoor(op, this.#plan);
    });
    this.#frozen?.[Symbol.dispose]();
    this.#frozen = held;
    // Of its disk, too, which its process takes along.
    await this.hostFiles.close();
  }

  thaw(): void {
    this.#frozen?.[Symbol.dispose]();
    this.#frozen = null;
  }

  get isOver(): boolean {
    return this.#over.signal.aborted;
  }

  /** A client follows the main process until `done`: the guest must not go before all that it gets is out of it. */
  follow(done: Promise<void>): void {
    const follower = { done };
    this.#followers.add(follower);
    void done.finally(() => this.#followers.delete(follower));
  }

  /** Resolves when no client follows the main process any more. */
  async followed(): Promise<void> {
    while (this.#followers.size > 0) await Promise.all([...this.#followers].map((follower) => follower.done));
  }

  /** Lets go of the sandbox; what it runs is left as it is. */
  [Symbol.dispose](): void {
    if (this.isOver) return;
    this.takeHeld()?.[Symbol.dispose]();
    this.places[Symbol.dispose]();
    this.#over.abort();
    this.link.close();
    void this.hostFiles.close();
    this.thaw();
  }
}

/** A kernel in user space holds directories that were deleted until the next file is, and they look like some that are still in use. */
async function settleDeleted(op: Operation, agent: Agent): Promise<void> {
  try {
    await agent.file.write(op, { path: PASSING, mode: 0o600 }, nothing());
    await agent.file.remove(op, { path: PASSING, recursive: false });
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    op.log.debug({ cause }, 'a passing file could not be made');
  }
}

async function* nothing(): AsyncGenerator<Uint8Array> {}
