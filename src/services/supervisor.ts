// Watches every sandbox that runs: for the end of its process, for what its guest reports, for its
// time limit; and copies its main process's log. What it sees becomes an operation of the daemon's own.

import type { OthersPause } from '../backends/backend.ts';
import type { HutchError } from '../domain/errors.ts';
import type { EndCause, Sandbox } from '../domain/sandbox.ts';
import { exitCode, startFailureText } from '../guest/exit-code.ts';
import type { AgentEvent } from '../guest/messages.ts';
import type { Operation } from '../host/operation.ts';
import { MAIN, startMain } from './bring-up.ts';
import type { Call, Caller } from './call.ts';
import type { Core } from './core.ts';
import type { OwnWork } from './deadlines.ts';
import { mirror } from './mirror.ts';
import { watchNetwork } from './network-loss.ts';
import { pause } from './pause.ts';
import type { Run } from './run.ts';
import { atMost, clearAway, type Dead, isStoppedOutside, recordEnd, removeSandbox, STOPPED_OUTSIDE, takeDown } from './take-down.ts';

/** Between tries to reach a guest that does not answer. */
const RETRY_MS = 1_000;
/** Between tries to record an end when the store or the backend fails. */
const RECORD_RETRY_MS = 5_000;
/** Tries of one that removes itself to do so, beside the first. */
const REMOVALS_MAX = 12;
/** The last of the log, after the main process has ended. */
const LAST_LOG_MS = 2_000;
/** The agent ends what the main process left behind within this. */
const AFTER_MAIN_GRACE_MS = 2_000;
/** Longer timers fire at once (Node: 32 bits). */
const TIMER_MS_MAX = 2 ** 31 - 1;

export class Supervisor {
  readonly #core: Core;
  readonly #timers = new Map<Run, NodeJS.Timeout>();

  constructor(core: Core) {
    this.#core = core;
  }

  /** A sandbox that was found running. The daemon before may have died before the guest heard of its main process. */
  adopt(run: Run, sandbox: Sandbox): void {
    this.#beginMain(run, sandbox);
    this.watch(run, sandbox);
    void this.#guarded(run, 'its published ports', () => this.#core.publisher.adopt(run));
  }

  /** From the commit that says it runs on. */
  watch(run: Run, sandbox: Sandbox): void {
    run.isWatched = true;
    run.touch(); // however long its start has taken
    if (sandbox.state === 'paused') run.freeze();
    void this.#guarded(run, 'its end', () => this.#watchProcess(run));
    void this.#guarded(run, 'its guest', () => this.#watchGuest(run));
    void this.#guarded(run, 'its network', () => watchNetwork(this.#core, run));
    const { othersPause } = run.backend;
    if (othersPause !== undefined) void this.#guarded(run, 'whether it is paused', () => this.#watchPauses(run, othersPause));
    this.watchMain(run, sandbox);
    this.#arm(run, sandbox);
    run.op.signal.addEventListener('abort', () => clearTimeout(this.#timers.get(run)), { once: true });
  }

  /** The main process has begun, if it has one: its log is kept. */
  watchMain(run: Run, sandbox: Sandbox): void {
    if (sandbox.spec.main !== null) run.mirrored = this.#guarded(run, 'its log', () => this.#mirror(run, sandbox));
  }

  /** It was given a main process while it ran, and whether that has begun is not known. */
  adoptMain(run: Run, sandbox: Sandbox): void {
    this.#beginMain(run, sandbox);
    this.watchMain(run, sandbox);
  }

  #beginMain(run: Run, sandbox: Sandbox): void {
    if (sandbox.spec.main !== null) run.mainBegun = this.#guarded(run, 'its main process', () => this.#ensureMain(run, sandbox));
  }

  /** The main process has ended: waits until whoever follows it has everything. */
  async #mainEnded(run: Run): Promise<void> {
    await run.followed();
    await atMost(run.op, run.mirrored, LAST_LOG_MS);
    await this.#insist(run, 'daemon.end', async (call) => void (await this.endOfMain(call, run)));
  }

  /** In the sandbox's turn: its main process has ended, so it ends. */
  async endOfMain(call: Call, run: Run): Promise<Sandbox> {
    const sandbox = await this.#core.sandboxes.get(call.op, run.id);
    // With autoRemove nothing of the disk is needed any more.
    const { autoRemove } = sandbox.spec;
    const graceMs = autoRemove ? null : AFTER_MAIN_GRACE_MS;
    const wish = { cause: 'exited', actor: 'guest', graceMs, thenRemoved: autoRemove, removesItself: true } as const;
    const after = await takeDown(this.#core, call, run, wish);
    if (after.state === 'deleted') this.#clearAway(run, after, REMOVALS_MAX);
    return await this.removeIfAsked(call, run, after);
  }

  /** Nobody waits for it: it is deleted, its process is dead, and its name is free. What fails is tried again, at last by the next start. */
  #clearAway(run: Run, sandbox: Sandbox, triesLeft: number): void {
    const ask = { verb: 'daemon.end', caller: ownCaller(this.#core), reads: false } as const;
    const clearing = this.#core.operations.run(ask, async (call) => {
      call.target(run.id);
      await clearAway(this.#core, call.op, run, sandbox);
    });
    clearing.catch((err: unknown) => {
      run.op.log.error({ sandbox: run.id, err, triesLeft }, 'a sandbox that removed itself left something behind');
      if (triesLeft > 0) setTimeout(() => this.#clearAway(run, sandbox, triesLeft - 1), RECORD_RETRY_MS).unref();
    });
  }

  /** After an end: `--rm`. */
  async removeIfAsked(call: Call, run: Run, sandbox: Sandbox): Promise<Sandbox> {
    if (!isRemoved(sandbox)) return sandbox;
    return await removeSandbox(this.#core, call, run, sandbox, { intentId: null, ended: null });
  }

  async #watchProcess(run: Run): Promise<void> {
    for (;;) {
      try {
        const dead = await run.backend.ended(run.op, run.plan);
        return await this.#died(run, dead);
      } catch (cause) {
        if (run.isOver) return;
        run.op.log.warn({ sandbox: run.id, cause }, 'waiting for the end of a sandbox failed; it is tried again');
        await pause(run.op, RETRY_MS);
      }
    }
  }

  /** Nobody here ended it. */
  async #died(run: Run, dead: Dead): Promise<void> {
    run.died();
    await atMost(run.op, run.mirrored, LAST_LOG_MS);
    await this.#insist(run, 'daemon.end', async (call) => {
      const sandbox = await this.#core.sandboxes.get(call.op, run.id);
      if (sandbox.openComputeSinceMs === null) return;
      if (run.suspended !== null) return await run.suspended(call);
      const how = causeOf(run, dead);
      call.op.log.info({ sandbox: run.id, ...how, ...dead }, 'a sandbox has ended by itself');
      const after = await recordEnd(this.#core, call, run, sandbox, dead, { ...how, removesItself: true });
      if (!isRemoved(after)) {
        await run.backend.cleanUp(call.op, run.plan);
        this.#core.runs.forget(run);
      }
      await this.removeIfAsked(call, run, after);
    });
  }

  /** Somebody else pauses it and lets it go on: it is shown, and billed, as what it is. */
  async #watchPauses(run: Run, others: OthersPause): Promise<void> {
    while (!run.isOver) {
      try {
        for await (const _ of others.hints(run.op, run.plan)) {
          // In its turn, so that a pause of ours that is under way is no news; and without an operation where there is none.
          const news = await this.#core.turns.take(run.op, run.id, () => this.#pauseNews(run, run.op, others));
          if (news !== null) await this.#insist(run, 'daemon.pause', (call) => this.#followPause(call, run, others));
        }
      } catch (cause) {
        if (run.isOver) return;
        run.op.log.debug({ sandbox: run.id, cause }, 'whether a sandbox is paused cannot be told; it is asked again');
      }
      await pause(run.op, RETRY_MS);
    }
  }

  async #pauseNews(run: Run, op: Operation, others: OthersPause): Promise<'paused' | 'resumed' | null> {
    const { state } = await this.#core.sandboxes.get(op, run.id);
    if (run.isOver || (state !== 'running' && state !== 'paused')) return null;
    const isPaused = await others.isPaused(op, run.plan);
    if (isPaused === (state === 'paused')) return null;
    return isPaused ? 'paused' : 'resumed';
  }

  /** In the sandbox's turn. */
  async #followPause(call: Call, run: Run, others: OthersPause): Promise<void> {
    const type = await this.#pauseNews(run, call.op, others);
    if (type === null) return;
    if (type === 'resumed') run.thaw();
    const event = { type, atMs: this.#core.deps.host.nowMs(), opId: call.op.id } as const;
    const [after] = await call.commit([{ change: 'applyEvent', sandboxId: run.id, event }]);
    if (type === 'paused') run.freeze();
    this.#core.sandboxes.changed(after);
  }

  async #watchGuest(run: Run): Promise<void> {
    for (;;) {
      try {
        const agent = await run.link.agent(run.op);
        for await (const event of await agent.watchEvents(run.op)) this.#onEvent(run, event);
      } catch (cause) {
        if (run.isOver) return;
        run.op.log.debug({ sandbox: run.id, cause }, 'the guest cannot be heard');
      }
      if (run.death.aborted) return run.fallSilent();
      await pause(run.op, RETRY_MS, run.death);
    }
  }

  #onEvent(run: Run, event: AgentEvent): void {
    const { e, ...facts } = event;
    if (event.e === 'mainExited') {
      if (run.mainEnd !== null) return;
      run.endMain({
        exitCode: exitCode(event),
        oomKilled: event.oomKilled,
        atMs: Math.min(event.endedAtMs, this.#core.deps.host.nowMs()),
        exit: event,
      });
      void this.#guarded(run, 'the end of its main process', () => this.#mainEnded(run));
      return;
    }
    run.op.log.info({ sandbox: run.id, event: e }, 'the guest reported something');
    const { store, host } = this.#core.deps;
    store
      .commit(
        run.op,
        [
          {
            change: 'addEvent',
            type: e === 'oom' ? 'sandbox.oom' : 'sandbox.disk-error',
            atMs: host.nowMs(),
            sandboxId: run.id,
            detail: facts,
          },
        ],
        'relaxed',
      )
      .catch((cause: unknown) => run.op.log.warn({ sandbox: run.id, cause }, 'an event of the guest was not recorded'));
  }

  /** Starts the main process where it was never started: with its id, a start that is repeated changes nothing. */
  async #ensureMain(run: Run, sandbox: Sandbox): Promise<void> {
    while (!run.isOver) {
      try {
        const main = await startMain(run, { sandbox, terminal: undefined });
        if (main === null) return;
        if ('process' in main) return main.process[Symbol.dispose]();
        void this.#guarded(run, 'the end of its main process', () =>
          this.#insist(run, 'daemon.end', async (call) => void (await this.endUnstarted(call, run, sandbox, main))),
        );
        return;
      } catch (cause) {
        if (run.isOver || run.death.aborted) return;
        run.op.log.warn({ sandbox: run.id, cause }, 'whether the main process runs cannot be told; it is tried again');
        await pause(run.op, RETRY_MS, run.death);
      }
    }
  }

  /** In the sandbox's turn: the program of its main process could not be executed, so it ends. */
  async endUnstarted(
    call: Call,
    run: Run,
    sandbox: Sandbox,
    main: { readonly exitCode: number; readonly error: HutchError },
  ): Promise<Sandbox> {
    {
      using used = await this.#core.logs.use(call.op, run.id);
      const { message, hint } = startFailureText(sandbox.spec.main?.argv[0] ?? MAIN, main.error);
      await used.log.note(call.op, sandbox.startCount, `hutch: ${message}\n${hint === undefined ? '' : `hint: ${hint}\n`}`);
    }
    run.endMain({ exitCode: main.exitCode, oomKilled: false, atMs: this.#core.deps.host.nowMs(), exit: null });
    return await this.endOfMain(call, run);
  }

  async #mirror(run: Run, sandbox: Sandbox): Promise<void> {
    await run.mainBegun; // a guest that has not heard of it keeps no log
    using used = await this.#core.logs.use(run.op, run.id);
    await mirror(run.op, run, used.log, { run: sandbox.startCount, atMs: sandbox.openComputeSinceMs ?? sandbox.changedAtMs });
  }

  /** Its time limit was changed. */
  rearm(run: Run, sandbox: Sandbox): void {
    clearTimeout(this.#timers.get(run));
    this.#arm(run, sandbox);
  }

  #arm(run: Run, sandbox: Sandbox): void {
    const deadlineAtMs = sandbox.state === 'running' || sandbox.state === 'paused' ? sandbox.deadlineAtMs : null;
    if (deadlineAtMs === null) return;
    // A clock that was stepped back makes no limit longer than it is.
    const leftMs = Math.min(deadlineAtMs - this.#core.deps.host.nowMs(), sandbox.spec.timeoutMs ?? Number.POSITIVE_INFINITY);
    const waitMs = Math.max(0, leftMs);
    const onTime = (): void => {
      if (run.isOver) return;
      if (waitMs > TIMER_MS_MAX) this.#arm(run, sandbox);
      else void this.#guarded(run, 'its time limit', () => this.#timeUp(run));
    };
    this.#timers.set(run, setTimeout(onTime, Math.min(waitMs, TIMER_MS_MAX)));
  }

  async #timeUp(run: Run): Promise<void> {
    await this.#insist(run, 'daemon.timeout', (call) => this.#endBy(call, run, 'timeout'));
  }

  /** In the sandbox's turn. */
  async endIdle(call: Call, run: Run): Promise<void> {
    await this.#endBy(call, run, 'idle');
  }

  async #endBy(call: Call, run: Run, cause: 'timeout' | 'idle'): Promise<void> {
    const graceMs = this.#core.deps.settings.stopGraceMs;
    const after = await takeDown(this.#core, call, run, { cause, actor: 'daemon', graceMs, removesItself: true });
    await this.removeIfAsked(call, run, after);
  }

  /** In the sandbox's turn, as an operation of the daemon; again when it fails, until the run is over. */
  async #insist(run: Run, verb: OwnWork, work: (call: Call) => Promise<void>): Promise<void> {
    while (!run.isOver) {
      try {
        await this.#core.operations.run({ verb, caller: ownCaller(this.#core), reads: false }, async (call) => {
          call.target(run.id);
          await this.#core.turns.take(call.op, run.id, async () => {
            if (!run.isOver) await work(call);
          });
        });
        return;
      } catch (cause) {
        if (run.isOver) return this.#removeLater(run, cause, REMOVALS_MAX);
        run.op.log.error({ sandbox: run.id, err: cause }, 'the end of a sandbox could not be carried out; it is tried again');
        await pause(run.op, RECORD_RETRY_MS);
      }
    }
  }

  /** Its end is on record, and its run is over: if it was to remove itself, that is what failed. After so many tries the next start does it. */
  #removeLater(run: Run, cause: unknown, triesLeft: number): void {
    if (triesLeft === 0) {
      run.op.log.error({ sandbox: run.id, err: cause }, 'a sandbox could not remove itself; the next start of the daemon does it');
      return;
    }
    const again = async (): Promise<void> => {
      try {
        await this.#core.operations.run({ verb: 'daemon.end', caller: ownCaller(this.#core), reads: false }, async (call) => {
          call.target(run.id);
          await this.#core.turns.take(call.op, run.id, async () => {
            await this.removeIfAsked(call, run, await this.#core.sandboxes.get(call.op, run.id));
          });
        });
      } catch (failure) {
        this.#removeLater(run, failure, triesLeft - 1);
      }
    };
    setTimeout(() => void again(), RECORD_RETRY_MS).unref();
  }

  async #guarded(run: Run, what: string, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (err) {
      if (!run.isOver) run.op.log.error({ sandbox: run.id, what, err }, 'watching a sandbox failed');
    }
  }
}

/** Whether it is deleted now that it has ended: `--rm`. */
function isRemoved(sandbox: Sandbox): boolean {
  return sandbox.spec.autoRemove && sandbox.state === 'stopped';
}

export function ownCaller(core: Pick<Core, 'deps'>): Caller {
  return { actor: 'daemon', keyId: null, projectId: core.deps.store.defaultProjectId };
}

/** Why it ended, as far as its process and its guest tell. */
export function causeOf(run: Run, dead: Dead): { readonly cause: EndCause; readonly actor: string } {
  if (dead.proof === 'boot-id') return { cause: 'host-reboot', actor: 'host' };
  if (isStoppedOutside(dead) && run.ending === null) return STOPPED_OUTSIDE;
  if (run.mainEnd !== null) return { cause: 'exited', actor: 'guest' };
  if (run.ending !== null && performance.now() < run.ending.untilMs) return { cause: run.ending.cause, actor: run.ending.actor };
  // A kernel that panics resets its machine: for the VMM that is an end like any other.
  if (dead.panic !== undefined) return { cause: 'crashed', actor: 'guest' };
  if ((dead.proof === 'exit.json' || dead.proof === 'engine') && dead.exitCode === 0) return { cause: 'guest-shutdown', actor: 'guest' };
  return { cause: 'crashed', actor: 'host' };
}
