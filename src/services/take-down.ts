// From a sandbox that runs to one that does not: its processes are asked to end, then the guest goes,
// and only what is proven dead is recorded as ended. Every end has a cause, an actor and evidence.
import type { ProcessEvidence } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import { stopSignalOf } from '../domain/image.ts';
import { deathTimeMs } from '../domain/ledger.ts';
import type { EndCause, Ended, Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { placesOf } from './deps.ts';
import { programOf } from './ending.ts';
import { waitFor } from './operations.ts';
import type { Run } from './run.ts';
import { reach } from './runs.ts';
import { dropUndo } from './undo.ts';

export type Dead = ProcessEvidence & { readonly alive: false };

export type Wish = {
  readonly cause: EndCause;
  readonly actor: string;
  /** From asking the processes to end until they are killed; null: not asked, killed at once. */
  readonly graceMs: number | null;
  /** It is deleted next, and with it what its run leaves. */
  readonly thenRemoved?: boolean;
  /** One that is to remove itself (`--rm`) does: that it will is recorded with its end, for the case that this daemon dies before. */
  readonly removesItself?: boolean;
};

/** How long an agent may take to say that it has heard. */
const ASK_MS = 5_000;
/** After the grace: killing, syncing and powering off. */
const POWER_OFF_MS = 15_000;
const KILL_MS = 30_000;
/** A sandbox that dies so soon after a try to end it, even a failed one, died of that. */
const ENDING_MS = 60_000;
/** How long the last of the log may take to arrive. */
const LAST_LOG_MS = 2_000;
/** After the proof of death: how long the guest's last word about the main process may take. */
const LAST_WORD_MS = 300;
/** Since its end: its own are the last. */
const EVENTS_LOOKED_AT = 20;

/** In the sandbox's turn. Gives the sandbox as it is then; one that does not run stays as it is. */
export async function takeDown(core: Core, call: Call, run: Run, wish: Wish): Promise<Sandbox> {
  const { op } = call;
  const sandbox = await core.sandboxes.get(op, run.id);
  if (sandbox.openComputeSinceMs === null) return sandbox;
  await run.backend.awake?.(op);
  op.progress({ step: 'stopping' });
  run.ending = {
    cause: wish.cause,
    actor: wish.actor,
    untilMs: performance.now() + (wish.graceMs ?? 0) + ENDING_MS,
    removes: wish.thenRemoved === true,
  };
  // What was written to a volume outlives it, so a guest that mounts some closes them even where nobody waits for its processes.
  const closes = run.plan.volumes !== undefined && run.backend.needs === 'machine';
  const graceMs = wish.graceMs ?? (closes ? 0 : null);
  if (wish.thenRemoved !== true && !sandbox.spec.autoRemove) await core.stats.last(op, run, sandbox, graceMs === null ? 'forced' : 'asked');
  const left = graceMs === null ? null : await leave(core, op, run, sandbox, graceMs);
  const dead = left ?? (await killed(core, call, run, sandbox, wish.graceMs === null ? 'now' : 'gently'));
  run.died();
  await lastWord(op, run, sandbox);
  // Whoever missed its last words looks for them where they are kept of one that is deleted.
  if (isDeletedAtItsEnd(sandbox, wish) && sandbox.spec.main !== null) await keepLastLog(core, op, sandbox);
  const after = await recordEnd(core, call, run, sandbox, dead, wish);
  if (after.state === 'deleted') core.runs.forget(run);
  else if (wish.thenRemoved !== true || after.state !== 'stopped') await release(core, op, run);
  return after;
}

/** `--rm`, and its command has ended: its end and its deletion are one commit, and `clearAway` does the rest. */
function isDeletedAtItsEnd({ spec }: Sandbox, { thenRemoved, removesItself }: Pick<Wish, 'thenRemoved' | 'removesItself'>): boolean {
  return thenRemoved === true && removesItself === true && spec.autoRemove;
}

/** Asks the guest to end; null when it has not in time. */
async function leave(core: Core, op: Operation, run: Run, sandbox: Sandbox, graceMs: number): Promise<Dead | null> {
  try {
    if (sandbox.state === 'paused') await letGoOn(op, run);
    using asking = op.within(ASK_MS, 'asking the guest to shut down');
    const agent = await reach(asking, sandbox.spec.name, run);
    const image = await core.deps.store.query('image', { id: sandbox.spec.imageId });
    await agent.shutdown(asking, { graceMs, ...(image === null ? {} : { signal: stopSignalOf(image.config) }) });
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    op.log.info({ sandbox: run.id, cause }, 'the guest could not be asked to shut down; it is killed');
    return null;
  }
  using limited = op.within(graceMs + POWER_OFF_MS, 'the end of the guest');
  try {
    return await run.backend.ended(limited, run.plan);
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    op.log.info({ sandbox: run.id, cause }, 'the guest has not shut down in time; it is killed');
    return null;
  }
}

async function killed(core: Core, call: Call, run: Run, sandbox: Sandbox, how: 'gently' | 'now'): Promise<Dead> {
  using limited = call.op.releasing(KILL_MS);
  try {
    return await run.backend.kill(limited, run.plan, how);
  } catch (cause) {
    const evidence = await lookAgain(run, limited);
    if (evidence?.alive === false) return evidence;
    // Alive and well: the call has failed, and that is all. What cannot even be looked at is in doubt.
    if (evidence === null)
      await doubt(core, call, sandbox, `its process could not be ended: ${cause instanceof Error ? cause.message : String(cause)}`);
    throw cause;
  }
}

async function lookAgain(run: Run, op: Operation): Promise<ProcessEvidence | null> {
  try {
    return await run.backend.inspect(op, run.plan);
  } catch (cause) {
    op.log.warn({ sandbox: run.id, cause }, 'a sandbox that could not be ended cannot be looked at either');
    return null;
  }
}

/** Thaws a paused guest without a word in the records: it is about to end. */
async function letGoOn(op: Operation, run: Run): Promise<void> {
  await run.backend.resume(op, run.plan);
  run.thaw();
}

/** Waits for what the guest said before it died. */
async function lastWord(op: Operation, run: Run, sandbox: Sandbox): Promise<void> {
  await atMost(op, run.mirrored, LAST_LOG_MS);
  if (sandbox.spec.main !== null && run.mainEnd === null) await atMost(op, Promise.race([run.mainEnded, run.silent]), LAST_WORD_MS);
}

/** Waits for a promise that never rejects, for so long and not longer. */
export async function atMost(op: Operation, promise: Promise<unknown>, ms: number): Promise<void> {
  using limited = op.releasing(ms);
  try {
    await waitFor(limited, promise, 'the guest');
  } catch (error) {
    if (!(error instanceof HutchError && error.code === 'deadline_exceeded')) throw error;
  }
}

/** What the agent ends with when somebody outside of the sandbox asked it to, and nobody else had before. */
const EXIT_TERMINATED = 143;
/** Of a process that SIGKILL ended, as a shell tells it. */
const EXIT_KILLED = 137;
export const STOPPED_OUTSIDE = { cause: 'host-stopped', actor: 'host' } as const;

/**
 * Whether it was not us, nor anybody in it, who asked it to end. Where the agent is what ends, its exit code says so; of a runtime that
 * knows nothing of that, the signal.
 */
export function isStoppedOutside({ proof, exitCode, signal, askedBy }: Dead): boolean {
  if (askedBy !== undefined) return true;
  return (proof === 'engine' || proof === 'exit.json') && (exitCode === EXIT_TERMINATED || signal === 'SIGTERM');
}

/** The commit of an end: state, ledger and event. */
export async function recordEnd(
  core: Core,
  call: Call,
  run: Run | null,
  sandbox: Sandbox,
  dead: Dead,
  how: Pick<Wish, 'cause' | 'actor' | 'thenRemoved' | 'removesItself'> & { readonly bootId?: string },
): Promise<Sandbox> {
  const { host, store } = core.deps;
  const nowMs = host.nowMs();
  // The daemon's last sign of life in the boot that it ran in: a weekend without power is not billed.
  const beat = dead.diedAtMs === null ? await store.query('heartbeat', { bootId: how.bootId ?? host.bootId() }) : null;
  const diedAtMs = deathTimeMs(sandbox, { diedAtMs: dead.diedAtMs, lastBeatMs: beat?.atMs ?? null, nowMs });
  const main = run?.mainEnd ?? null;
  // Its main process was asked to end with all others: that it did is not why. (A runtime that we start ourselves we end by a signal too.)
  const { cause, actor } = how.cause === 'exited' && dead.proof === 'engine' && isStoppedOutside(dead) ? STOPPED_OUTSIDE : how;
  // Out of memory, the whole of it is killed at once: nobody is left to tell of its main process.
  const killed = main === null && dead.oomKilled && sandbox.spec.main !== null;
  const ended: Ended = {
    cause,
    exitCode: main?.exitCode ?? (killed ? EXIT_KILLED : null),
    oomKilled: (main?.oomKilled ?? false) || dead.oomKilled,
    actor,
    // A clock that was stepped back ends nothing before it began.
    atMs: Math.max(sandbox.openComputeSinceMs ?? 0, Math.min(nowMs, main?.atMs ?? diedAtMs)),
  };
  const reason = ['crashed', 'host-stopped', 'host-reboot'].includes(cause) ? 'stop-crash' : 'stop-user';
  const isGone = dead.proof === 'removed';
  const removal =
    isGone || how.removesItself !== true || !sandbox.spec.autoRemove
      ? []
      : ([{ change: 'addIntent', kind: 'delete', projectId: sandbox.projectId, sandboxId: sandbox.id, atMs: nowMs }] as const);
  const { id: sandboxId } = sandbox;
  const ending = {
    change: 'applyEvent',
    sandboxId,
    event: { type: 'ended', atMs: nowMs, opId: call.op.id, reason, ended, diedAtMs, evidence: describeDeath(dead, sandbox.spec.backend) },
    ...(main?.exit === null || main === null
      ? killed
        ? { detail: { signal: 'KILL' } }
        : {}
      : { detail: { signal: main.exit.signal, stdoutBytes: main.exit.stdoutBytes, stderrBytes: main.exit.stderrBytes } }),
  } as const;
  if (!isGone && isDeletedAtItsEnd(sandbox, how)) {
    const event = { type: 'deleted', atMs: nowMs, opId: call.op.id, process: null, diedAtMs } as const;
    // Whoever hears of it may publish the same ports. Its user is freed when nothing of it is left.
    const release = { change: 'releasePorts', sandboxId } as const;
    const [, gone] = await call.commit([ending, { change: 'applyEvent', sandboxId, event }, release, ...removal]);
    await core.publisher.released(sandboxId);
    core.sandboxes.changed(gone);
    return gone;
  }
  const [after] = await call.commit([ending, ...removal]);
  core.sandboxes.changed(after);
  if (isGone) {
    await doubt(core, call, after, 'somebody else removed what it ran in, with everything on its disk; all that is left is to delete it');
    return await core.sandboxes.get(call.op, sandbox.id);
  }
  return after;
}

/** Something is wrong: the sandbox is in error, and goes on being billed unless its end was proven before. */
export async function doubt(core: Core, call: Call, sandbox: Sandbox, cause: string): Promise<void> {
  const event = { type: 'failed', atMs: core.deps.host.nowMs(), opId: call.op.id, cause } as const;
  try {
    const [after] = await call.commit([{ change: 'applyEvent', sandboxId: sandbox.id, event }]);
    core.sandboxes.changed(after);
  } catch (error) {
    call.op.log.error({ sandbox: sandbox.id, err: error }, 'that a sandbox is in error could not be recorded');
  }
}

/** Removes what a run leaves: sockets, rules, cgroups. What stays is removed by the next start of the daemon. */
async function release(core: Core, op: Operation, run: Run): Promise<void> {
  core.runs.forget(run);
  try {
    using late = op.releasing(KILL_MS);
    await run.backend.cleanUp(late, run.plan);
  } catch (cause) {
    op.log.warn({ sandbox: run.id, cause }, 'a stopped sandbox left something behind');
  }
}

export function describeDeath({ proof, exitCode, signal, panic, askedBy }: Dead, backend: string): string {
  if (proof !== 'exit.json' && proof !== 'engine') return proof;
  // Not "exit code": that is the main process's.
  const how = `${proof}: ${programOf(backend)} ended ${signal === null ? `with ${exitCode ?? 'an unknown code'}` : `by signal ${signal}`}`;
  if (askedBy !== undefined) return `${how}; asked to by ${askedBy}`;
  return panic === undefined ? how : `${how}; the guest's kernel panicked: ${panic}`;
}

/**
 * Everything that the sandbox has on the host, then its row. Its process is dead. `ended`: what proves
 * it, where its end was not recorded before.
 */
export async function removeSandbox(
  core: Core,
  call: Call,
  run: Run,
  sandbox: Sandbox,
  end: { readonly intentId: number | null; readonly ended: Dead | null },
): Promise<Sandbox> {
  const { op } = call;
  const { deps } = core;
  op.progress({ step: 'removing' });
  core.runs.forget(run);
  const recorded = end.intentId === null ? removalsOf(core, sandbox) : Promise.resolve([end.intentId]);
  recorded.catch(() => {}); // awaited below
  if (sandbox.spec.autoRemove && sandbox.spec.main !== null) await keepLastLog(core, op, sandbox);
  await removeFromHost(core, op, run);
  const process =
    end.ended === null
      ? null
      : ({
          reason: 'stop-user',
          evidence: describeDeath(end.ended, sandbox.spec.backend),
          ...(end.ended.diedAtMs === null ? {} : { diedAtMs: end.ended.diedAtMs }),
        } as const);
  const intents = await recorded;
  const diedAtMs = await endedBy(core, call, sandbox);
  const died = diedAtMs === null ? {} : { diedAtMs };
  const [after] = await call.commit(
    [
      { change: 'applyEvent', sandboxId: sandbox.id, event: { type: 'deleted', atMs: deps.host.nowMs(), opId: op.id, process, ...died } },
      { change: 'releaseUid', sandboxId: sandbox.id },
      { change: 'releasePorts', sandboxId: sandbox.id },
      ...intents.map((id) => ({ change: 'finishIntent', id }) as const),
    ],
    // What a power loss takes of this is done once more: the intent is on the disk.
    intents.length > 0 ? 'relaxed' : 'durable',
  );
  await core.publisher.released(sandbox.id);
  core.sandboxes.changed(after);
  return after;
}

/** When its process died, where that was this call's doing: both are one change, at one instant. */
async function endedBy({ deps }: Core, { op }: Call, { id: sandboxId }: Sandbox): Promise<number | null> {
  const events = await deps.store.query('lastEvents', { sandboxId, limit: EVENTS_LOOKED_AT });
  const diedAtMs = events.findLast(({ type, opId }) => type === 'sandbox.ended' && opId === op.id)?.detail['diedAtMs'];
  return typeof diedAtMs === 'number' ? diedAtMs : null;
}

/** What one that was deleted at its end still has on the host, and then its user and what says that this is to be done. */
export async function clearAway(core: Core, op: Operation, run: Run, sandbox: Sandbox): Promise<void> {
  const intents = await removalsOf(core, sandbox);
  await removeFromHost(core, op, run);
  const done = intents.map((id) => ({ change: 'finishIntent', id }) as const);
  await core.deps.store.commit(op, [{ change: 'releaseUid', sandboxId: run.id }, ...done], 'relaxed');
}

/** What was kept to undo goes with it. */
async function removeFromHost(core: Core, op: Operation, { backend, plan, id }: Run): Promise<void> {
  await dropUndo(core, op, id, 0);
  core.stats.forget(id);
  const { host, places } = core.deps;
  const mine = placesOf(places, id);
  await backend.remove(op, plan);
  await Promise.all([host.remove(op, mine.dir), host.remove(op, mine.runDir), host.remove(op, mine.logDir)]);
}

/** What says that it is to be deleted: recorded with the end of one that removes itself. */
export async function removalsOf(core: Core, { id, spec }: Sandbox): Promise<readonly number[]> {
  if (!spec.autoRemove) return [];
  const intents = await core.deps.store.query('intents', { sandboxId: id });
  return intents.filter(({ kind }) => kind === 'delete').map((intent) => intent.id);
}

/** Where the log of a sandbox that removed itself stays for a while, for the client that missed its end. */
export function lastLogDir(core: Core, id: string): string {
  return `${core.deps.places.logDir}/ended/${id}`;
}

async function keepLastLog(core: Core, op: Operation, sandbox: Sandbox): Promise<void> {
  const { host, places } = core.deps;
  const { logDir } = placesOf(places, sandbox.id);
  if ((await host.stat(op, logDir)) === null) return;
  await host.makeDir(op, `${places.logDir}/ended`, 0o700);
  await host.rename(op, logDir, lastLogDir(core, sandbox.id));
  await core.logs.moved(sandbox.id, lastLogDir(core, sandbox.id));
}
