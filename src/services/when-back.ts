// Engines of others' that are away when the daemon begins. It begins all the same: what the last one left in them waits, in the
// background, until they answer, and is brought in order then. Until that a sandbox that answers by itself is what it was; one
// that does not is in error, with the reason.
import type { Backend } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import { newOperation, type Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { pause } from './pause.ts';
import type { Run } from './run.ts';
import { ownCaller, type Supervisor } from './supervisor.ts';
import { doubt } from './take-down.ts';

/** An engine that takes longer to say that it is there is not waited for by a daemon that begins. */
const AWAKE_MS = 1_000;
/** Between tries to hear of one that is away. */
const RETRY_MS = { first: 100, most: 2_000 } as const;
/** The agent of a sandbox that lives comes by itself, many times a second. */
const ANSWER_MS = 5_000;

/** By the backend's name: why its engine cannot be asked. */
export type Away = ReadonlyMap<string, HutchError>;

/** Something of one sandbox that waits for its backend's engine. It is done again where that goes away in the middle. */
export type Task = { readonly sandboxId: Sandbox['id'] | null; readonly work: (call: Call) => Promise<void> };

/** Of those backends: nobody asks an engine in which there is nothing of ours. */
export async function enginesAway({ deps }: Core, op: Operation, used: ReadonlySet<string | null>): Promise<Away> {
  const asked = deps.backends.filter(({ name }) => used.has(name));
  const found = await Promise.all(
    asked.map(async (backend) => {
      using limited = op.within(AWAKE_MS, `the engine of the backend ${backend.name}`);
      try {
        await backend.awake?.(limited);
        return null;
      } catch (error) {
        if (op.signal.aborted || !(error instanceof HutchError)) throw error;
        op.log.warn({ backend: backend.name, cause: error }, 'an engine is away: what runs in it is looked at when it is back');
        const sentence = `the engine of the backend ${backend.name} has not answered in ${AWAKE_MS / 1000} s`;
        return [backend.name, limited.signal.aborted ? op.error('unavailable', sentence, { cause: error }) : error] as const;
      }
    }),
  );
  return new Map(found.filter((entry) => entry !== null));
}

/** It has not answered, or not to the end. */
export function isAway(error: unknown): error is HutchError {
  return error instanceof HutchError && (error.code === 'unavailable' || error.code === 'deadline_exceeded');
}

/** In the background, until `signal` aborts: does these as soon as the backend's engine answers, each in its sandbox's turn. */
export function whenBack(core: Core, { backend, signal, tasks }: { backend: Backend; signal: AbortSignal; tasks: readonly Task[] }): void {
  const op = newOperation({ id: core.operations.ownId(), actor: 'daemon', log: core.deps.log, signal });
  const follow = async (): Promise<void> => {
    for (let left = tasks; left.length > 0; ) {
      await untilAwake(op, backend);
      left = await core.operations.run({ verb: 'daemon.reconcile', caller: ownCaller(core), reads: true }, (call) =>
        tryAll(core, call, left),
      );
      // It answers, and yet cannot say: another one than was used, or it went away again.
      if (left.length > 0) await pause(op, RETRY_MS.most);
    }
    op.log.info({ backend: backend.name, count: tasks.length }, 'an engine is back, and what was left in it is in order');
  };
  follow().catch((err: unknown) => {
    if (!signal.aborted)
      op.log.error({ backend: backend.name, err }, 'what an engine that was away had left could not be brought in order');
  });
}

async function untilAwake(op: Operation, backend: Backend): Promise<void> {
  for (let waitMs: number = RETRY_MS.first; ; waitMs = Math.min(waitMs * 2, RETRY_MS.most)) {
    try {
      return await backend.awake?.(op);
    } catch (error) {
      if (op.signal.aborted) throw error;
    }
    await pause(op, waitMs);
  }
}

/** Gives those that could not be done because it is away again. */
async function tryAll(core: Core, call: Call, tasks: readonly Task[]): Promise<readonly Task[]> {
  const left: Task[] = [];
  for (const task of tasks) {
    const { sandboxId, work } = task;
    try {
      await (sandboxId === null ? work(call) : core.turns.take(call.op, sandboxId, () => work(call)));
    } catch (err) {
      if (call.op.signal.aborted) throw err;
      if (isAway(err)) left.push(task);
      else call.op.log.error({ sandbox: sandboxId, err }, 'a sandbox could not be brought in order');
    }
  }
  return left;
}

/**
 * In the background: one whose engine cannot be asked is asked itself. If it answers it is watched as any other that was adopted;
 * else nobody knows whether it runs, and that is what its state says.
 */
export function askItself(core: Core, supervisor: Supervisor, run: Run, sandbox: Sandbox, why: HutchError): void {
  const ask = { verb: 'daemon.reconcile', caller: ownCaller(core), reads: false } as const;
  const asking = core.operations.run(ask, async (call) => {
    const isThere = sandbox.state === 'running' && (await answers(call.op, run));
    await core.turns.take(call.op, sandbox.id, async () => {
      const now = await core.sandboxes.get(call.op, sandbox.id);
      // Its engine may have come back, and somebody else have seen to it.
      if (core.runs.get(sandbox.id) !== run || run.isWatched || now.state !== sandbox.state) return;
      if (isThere) return supervisor.adopt(run, now);
      if (now.state !== 'error') await doubt(core, call, now, `${why.message}; what became of it is known when that answers again`);
    });
  });
  asking.catch((err: unknown) => core.deps.log.warn({ sandbox: sandbox.id, err }, 'a sandbox whose engine is away could not be asked'));
}

async function answers(op: Operation, run: Run): Promise<boolean> {
  using limited = op.within(ANSWER_MS, 'the agent');
  try {
    await run.link.agent(limited);
    return true;
  } catch (error) {
    if (op.signal.aborted || !(error instanceof HutchError)) throw error;
    return false;
  }
}
