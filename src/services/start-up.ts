// The last part of every start, of a new sandbox and of one that was stopped: from a sandbox that has a disk
// to one that is on record as running and is watched to its end. Until it is on record, `undo` undoes it.
import type { FileSync } from '../domain/file-sync.ts';
import type { Sandbox, SandboxEvent } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { type BringUp, bringUp, type MainStarted, startMain, type Up } from './bring-up.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { putFiles } from './file-sync.ts';
import type { Run } from './run.ts';
import type { Supervisor } from './supervisor.ts';

/** The first stream of the main process waits so long for the client that said it would attach. */
const HELD_MS = 30_000;

export type Started = Extract<SandboxEvent, { type: 'started' }>;

export type StartUp = {
  readonly reason: Started['reason'];
  /** What brought it up already, where it was started ahead. */
  readonly up?: Up;
  /** Files of its owner's, of one that starts for the first time. */
  readonly files?: readonly FileSync[];
  /** Whether its client attaches to the main process next. */
  readonly attach: boolean;
  /** The caller's: emptied once the sandbox is on record as running. */
  readonly undo: AsyncDisposableStack;
  /** The commit that says so. */
  readonly record: (event: Started) => Promise<Sandbox>;
};

export async function startUp(core: Core, supervisor: Supervisor, call: Call, run: Run, what: BringUp, how: StartUp): Promise<Sandbox> {
  const { op } = call;
  const up = how.up ?? (await inPlace(core, op, () => bringUp(op, core.deps.host, run, what)));
  await putFiles(core, op, run, how.files ?? []);
  if (up.started.unprepared === true) core.templates.follow(run, what.boot, () => core.warm.lookAgain());
  const { pid, startTicks } = up.started.evidence;
  const { timeoutMs } = what.sandbox.spec;
  // The main process begins while the disk writes the record: if that fails, both are undone.
  const beginning = startMain(run, what);
  beginning.catch(() => {}); // awaited below
  const sandbox = await how.record({
    type: 'started',
    atMs: up.startedAtMs,
    opId: op.id,
    reason: how.reason,
    deadlineAtMs: timeoutMs === null ? null : up.startedAtMs + timeoutMs,
    evidence: `pid ${pid}, started at tick ${startTicks}`,
  });
  // It is on record as running: from here on nothing is undone, it is watched to its end.
  how.undo.move();
  core.sandboxes.changed(sandbox);
  const main = await beginning.catch((cause: unknown) => {
    supervisor.adopt(run, sandbox);
    throw cause;
  });
  supervisor.watch(run, sandbox);
  return await followMain(supervisor, call, run, sandbox, main, how.attach);
}

export async function inPlace<T>(core: Pick<Core, 'startGate'>, op: Operation, work: () => Promise<T>): Promise<T> {
  using _ = await core.startGate.enter(op);
  return await work();
}

/** What the start of the main process came to: kept for its client, let go of, or an end. */
export async function followMain(
  supervisor: Supervisor,
  call: Call,
  run: Run,
  sandbox: Sandbox,
  main: MainStarted | null,
  attach: boolean,
): Promise<Sandbox> {
  if (main === null) return sandbox;
  if ('process' in main) {
    if (!attach) main.process[Symbol.dispose]();
    else run.hold(main.process, HELD_MS);
    return sandbox;
  }
  return await supervisor.endUnstarted(call, run, sandbox, main);
}
