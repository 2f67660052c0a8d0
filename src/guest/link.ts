// The way to one sandbox's agent, over as many connections as it takes. It dials when somebody asks,
// gives everybody the same connection while it lasts, and a new one after it is lost. What is under
// way on a lost connection fails with `unavailable`, but for processes: those go on where they were
// (see LinkedProcess).
import type { Duplex } from 'node:stream';
import { type ErrorCode, HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';
import { type Agent, connectAgent } from './agent.ts';
import type { AttachSpec, ProcessSpec } from './agent-process.ts';
import type { ConnectOptions } from './connection.ts';
import { LinkedProcess, type Opening } from './linked-process.ts';
import { delay, heard, reasonOf, shared } from './wait.ts';

/** One attempt to reach the agent, from dialling to its answer. */
export const DIAL_MS = 15_000;
/** So long a lost process stream tries to come back. The agent keeps its place as long. */
export const RESUME_MS = 30_000;
const RETRY_FIRST_MS = 25;
const RETRY_MAX_MS = 1_000;
const ENDED = 'the sandbox has ended';

/** What dialling may fail with that no second attempt changes. */
const FINAL: ReadonlySet<ErrorCode> = new Set([
  'failed_precondition',
  'permission_denied',
  'unauthenticated',
  'invalid_argument',
  'unimplemented',
  'cancelled',
]);

export type LinkOptions = ConnectOptions & {
  /** A new byte stream to the agent. The one before has been destroyed. */
  readonly dial: (op: Operation) => Promise<Duplex>;
  readonly dialMs?: number;
  readonly resumeMs?: number;
};

export class AgentLink implements Disposable {
  readonly #op: Operation;
  readonly #options: LinkOptions;
  readonly #closing = new AbortController();
  #agent: Agent | null = null;
  #dialling: Promise<Agent> | null = null;
  #holds = 0;
  /** Aborts when what it leads to is dead. */
  readonly #death = new AbortController();
  readonly #released = new Set<() => void>();

  /** `op` is the link's own: what it does for all its callers is done in this operation. */
  constructor(op: Operation, options: LinkOptions) {
    this.#op = op;
    this.#options = options;
  }

  /**
   * The agent, connected. While the link is held this waits.
   * @throws HutchError what dialling failed with, or `unavailable` when the link is closed.
   */
  async agent(op: Operation): Promise<Agent> {
    await this.#whenReleased(op);
    this.#refuseWhenClosed(op);
    if (this.#agent !== null && !this.#agent.lost.aborted) return this.#agent;
    if (this.#death.signal.aborted) throw op.error('unavailable', ENDED);
    if (this.#dialling === null) {
      this.#dialling = this.#dial().finally(() => {
        this.#dialling = null;
      });
      this.#dialling.catch(() => {}); // everybody who waits may have given up
    }
    return await shared(op, this.#dialling);
  }

  /** The agent, where that needs no waiting: else `agent` says why. */
  get ready(): Agent | null {
    if (this.#holds > 0 || this.#closing.signal.aborted || this.#agent?.lost.aborted === true) return null;
    return this.#agent;
  }

  /** Starts a process whose stream outlives the connection. A start that is repeated with its id runs once. */
  async start(op: Operation, spec: ProcessSpec): Promise<LinkedProcess> {
    const asked = { id: spec.id, input: spec.stdin === 'pipe', stdoutOffset: 0, stderrOffset: 0 };
    return await this.#linked(op, asked, async (agent) => {
      const { process, started } = await agent.process.start(op, spec);
      return { agent, process, existing: started.existing, ...positions(started) };
    });
  }

  /** Follows a process that runs, from the given offsets on, over as many connections as it takes. */
  async attach(op: Operation, spec: AttachSpec): Promise<LinkedProcess> {
    return await this.#linked(op, spec, async (agent) => {
      const { process, attached } = await agent.process.attach(op, spec);
      return { agent, process, existing: true, ...positions(attached) };
    });
  }

  /**
   * Closes the connection and lets nobody dial until the hold is disposed: for a pause, a checkpoint, a
   * saved snapshot. Process streams wait and go on afterwards.
   */
  hold(): Disposable {
    const agent = this.#agent;
    const held = this.#hold();
    agent?.close();
    return held;
  }

  /**
   * As `hold`, but it is the agent that closes the connection, to come again by itself later: returns when it has. Where the link
   * is held already nobody else reaches the agent meanwhile. `before`: what is to be done with the agent first.
   */
  async letGo(op: Operation, reconnectAfterMs: number, before: (agent: Agent) => Promise<void>): Promise<Disposable> {
    const isHeld = this.#holds > 0;
    const agent = isHeld ? await this.#dial('held') : await this.agent(op);
    try {
      await before(agent);
      await agent.prepareCheckpoint(op, reconnectAfterMs);
    } catch (error) {
      if (isHeld) agent.close();
      throw error;
    }
    const held = this.#hold();
    try {
      await heard<void>(
        op,
        (resolve) => {
          if (agent.lost.aborted) resolve();
          agent.lost.addEventListener('abort', () => resolve(), { once: true });
        },
        () => {},
      );
      return held;
    } catch (error) {
      agent.close();
      held[Symbol.dispose]();
      throw error;
    }
  }

  /** Stands before anybody hears that the connection is lost, and dials. */
  #hold(): Disposable {
    this.#holds += 1;
    this.#agent = null;
    let isHeld = true;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        this.#holds -= 1;
        if (this.#holds === 0) this.#releaseAll();
      },
    };
  }

  /** What it leads to is dead: the connection of now is read to its end, and there is no other. */
  end(): void {
    this.#death.abort();
    this.#releaseAll();
  }

  /** Ends the connection and every stream over it, for good. The sandbox is left as it is. */
  close(): void {
    if (this.#closing.signal.aborted) return;
    this.#closing.abort();
    this.#agent?.close();
    this.#agent = null;
    this.#releaseAll();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * Runs `attempt` with a connected agent, again after each loss of the connection, for at most
   * `resumeMs` in all, not counting the time that the link is held.
   */
  async persist<T>(op: Operation, attempt: (agent: Agent) => Promise<T>): Promise<T> {
    const resumeMs = this.#options.resumeMs ?? RESUME_MS;
    let untilMs = performance.now() + resumeMs;
    for (let retryMs = RETRY_FIRST_MS; ; retryMs = Math.min(retryMs * 2, RETRY_MAX_MS)) {
      if (this.#holds > 0) {
        await this.#whenReleased(op);
        untilMs = performance.now() + resumeMs;
      }
      let agent: Agent | null = null;
      try {
        agent = await this.agent(op);
        return await attempt(agent);
      } catch (error) {
        if (op.signal.aborted || this.#closing.signal.aborted) throw error;
        // An answer of the agent is final; a connection that failed or could not be made is not.
        if (agent !== null && !agent.lost.aborted) throw error;
        if (!(error instanceof HutchError) || FINAL.has(error.code)) throw error;
        if (performance.now() + retryMs > untilMs) throw error;
      }
      await delay(op, retryMs);
    }
  }

  async #linked(op: Operation, asked: AttachSpec, opening: (agent: Agent) => Promise<Opening>): Promise<LinkedProcess> {
    return new LinkedProcess(op, this, asked, await this.persist(op, opening));
  }

  /** `held`: for whoever holds it, and nobody else. */
  async #dial(whose: 'everybody' | 'held' = 'everybody'): Promise<Agent> {
    const op = this.#op;
    using limited = op.within(this.#options.dialMs ?? DIAL_MS, 'reaching the agent of the sandbox');
    try {
      return await this.#dialWithin(op, limited, whose);
    } catch (cause) {
      // The sandbox has ended meanwhile: whoever waits has cancelled nothing.
      if (op.signal.aborted)
        throw op.error('unavailable', 'the way to the agent of this sandbox was closed while it was being reached', { cause });
      // A guest that is frozen or hangs: the caller's own time is not up.
      if (!limited.signal.aborted) throw cause;
      throw op.error('unavailable', 'the agent of the sandbox does not answer', { cause });
    }
  }

  async #dialWithin(op: Operation, limited: Operation, whose: 'everybody' | 'held'): Promise<Agent> {
    const dialled = this.#options.dial(limited);
    let duplex: Duplex;
    try {
      duplex = await this.#unlessDead(limited, dialled);
    } catch (error) {
      // It may still arrive, when nobody wants it any more.
      dialled.then(
        (late) => late.destroy(),
        () => {},
      );
      throw error;
    }
    const agent = await connectAgent(limited, duplex, this.#options);
    if (this.#closing.signal.aborted || (this.#holds > 0 && whose === 'everybody')) {
      agent.close();
      throw op.error('unavailable', 'the way to the agent was closed while it was being reached');
    }
    if (whose === 'everybody') this.#agent = agent;
    return agent;
  }

  /** Nobody waits out the time of a dial that has no other end any more. */
  #unlessDead<T>(op: Operation, promise: Promise<T>): Promise<T> {
    const { signal } = this.#death;
    let onDeath = () => {};
    const waiting = heard<T>(
      op,
      (resolve, reject) => {
        onDeath = () => reject(op.error('unavailable', ENDED));
        signal.addEventListener('abort', onDeath);
        promise.then(resolve, reject);
      },
      () => {},
    );
    return waiting.finally(() => signal.removeEventListener('abort', onDeath));
  }

  #refuseWhenClosed(op: Operation): void {
    if (op.signal.aborted) throw reasonOf(op);
    if (this.#closing.signal.aborted) throw op.error('unavailable', 'the way to the agent of this sandbox is closed');
  }

  #releaseAll(): void {
    for (const released of [...this.#released]) released();
    this.#released.clear();
  }

  async #whenReleased(op: Operation): Promise<void> {
    while (this.#holds > 0 && !this.#death.signal.aborted && !this.#closing.signal.aborted) {
      let released = () => {};
      await heard<void>(
        op,
        (resolve) => {
          released = resolve;
          this.#released.add(released);
        },
        () => void this.#released.delete(released),
      );
    }
  }
}

function positions(reply: { readonly stdoutOffset: number; readonly stderrOffset: number; readonly inputOffset: number }) {
  return { stdoutOffset: reply.stdoutOffset, stderrOffset: reply.stderrOffset, inputOffset: reply.inputOffset };
}
