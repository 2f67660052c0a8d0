// A shape that is not the one on record for a moment: of what runs, while it is given another one, and of a disk, which a start
// has grown and then failed. What was begun is on record first, so that the next daemon takes it back, or takes it over.
import { HutchError } from '../domain/errors.ts';
import type { Intent } from '../domain/records.ts';
import type { Sandbox, SandboxEvent, Shape } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { runOf } from './release.ts';
import type { Run } from './run.ts';

const REVERT_MS = 30_000;

export type Changed = Extract<SandboxEvent, { type: 'changed' }>;

/** In the sandbox's turn: it has the shape when this is over, and is recorded so together with all else of the event; or neither. */
export async function reshapeRunning(core: Core, call: Call, run: Run, { sandbox, shape, event }: Wanted): Promise<Sandbox> {
  const { op } = call;
  const { projectId, id: sandboxId } = sandbox;
  // Killing a daemon takes nothing of it, and after a power failure nothing runs that could have another shape.
  const [intent] = await call.commit(
    [{ change: 'addIntent', kind: 'reshape', projectId, sandboxId, atMs: event.atMs, detail: { event } }],
    'relaxed',
  );
  try {
    await run.backend.reshape?.(op, { ...run.plan, shape }, 'it runs');
    const [after] = await call.commit([
      { change: 'applyEvent', sandboxId, event },
      { change: 'finishIntent', id: intent.id },
    ]);
    run.reshape(shape);
    return after;
  } catch (error) {
    // One limit may hold already, and another not. On record it is as it was: so it is again, or the next start makes it so.
    using late = op.releasing(REVERT_MS);
    try {
      await run.backend.reshape?.(late, run.plan, 'it runs');
      await core.deps.store.commit(late, [{ change: 'finishIntent', id: intent.id }], 'relaxed');
    } catch (cause) {
      op.log.warn({ sandbox: sandboxId, cause }, 'a change that failed was not taken back; the next start of the daemon does it');
    }
    throw error;
  }
}

type Wanted = { readonly sandbox: Sandbox; readonly shape: Shape; readonly event: Changed };

/** At the start of the daemon: the last one died meanwhile, and nobody was told that the change is made. */
export async function finishReshape(core: Core, call: Call, sandbox: Sandbox, intent: Intent): Promise<void> {
  const { op } = call;
  const finished = { change: 'finishIntent', id: intent.id } as const;
  const run = sandbox.openComputeSinceMs === null ? null : await runOf(core, op, sandbox);
  // What does not run gets the shape on record when it is started.
  if (run !== null && (await run.backend.inspect(op, run.plan)).alive) {
    try {
      await run.backend.reshape?.(op, run.plan, 'it runs');
    } catch (cause) {
      // Such as memory that is in use by now.
      if (!(cause instanceof HutchError && cause.code === 'failed_precondition')) throw cause;
      op.log.warn({ sandbox: run.id, cause }, 'a change that was cut short cannot be taken back, and is kept');
      const event = { ...(intent.detail['event'] as Changed), atMs: core.deps.host.nowMs(), opId: op.id };
      const [after] = await call.commit([{ change: 'applyEvent', sandboxId: run.id, event }, finished]);
      run.reshape(after.spec.shape);
      return;
    }
  }
  await core.deps.store.commit(op, [finished], 'relaxed');
}

/** What a start that came to nothing has made of it all the same: disks only grow, so one that was to grow is recorded as grown. */
export function grownBy({ deps }: Core, op: Operation, { id, spec: { shape, pending } }: Sandbox): readonly ApplyChanged[] {
  const { diskMiB, ...rest } = pending ?? {};
  if (diskMiB === undefined) return [];
  const change = { shape: { ...shape, diskMiB }, pending: rest };
  return [{ change: 'applyEvent', sandboxId: id, event: { type: 'changed', atMs: deps.host.nowMs(), opId: op.id, change } }];
}

type ApplyChanged = { readonly change: 'applyEvent'; readonly sandboxId: Sandbox['id']; readonly event: Changed };
