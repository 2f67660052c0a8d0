// A sandbox that stands still for a moment, for something to be written down: it goes on whatever happens meanwhile, also
// when this daemon dies, as that it stands still is on record first.
import type { Intent } from '../domain/records.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { SnapshotContents } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { backendOf } from './deps.ts';
import { catchUp } from './guest-clock.ts';
import { asItWas, letGo } from './let-go.ts';
import { runOf } from './release.ts';
import type { Run } from './run.ts';

const RELEASE_MS = 30_000;

/**
 * In the sandbox's turn. `work` sees to it that it goes on when it is done or fails; one that was paused is then paused again.
 * `what`: of a disk alone nobody has to let go.
 */
export async function inStillness<T>(core: Core, call: Call, sandbox: Sandbox, what: SnapshotContents, work: () => Promise<T>): Promise<T> {
  const { store, host } = core.deps;
  const { projectId, id: sandboxId } = sandbox;
  // Killing a daemon takes nothing of it; after a power failure there is no machine that stands still.
  const [intent] = await store.commit(
    call.op,
    [{ change: 'addIntent', kind: 'still', projectId, sandboxId, atMs: host.nowMs() }],
    'relaxed',
  );
  const run = await runOf(core, call.op, sandbox);
  const leaves = run.backend.closeDoor !== undefined && what !== 'disk';
  try {
    if (leaves) await letGo(call.op, sandbox, run);
    using _still = await run.hostFiles.hold();
    return await work();
  } finally {
    using late = call.op.releasing(RELEASE_MS);
    if (leaves) await asItWas(late, sandbox, run);
    if (sandbox.state === 'running') void catchUp(run.op, host, run);
    await store
      .commit(late, [{ change: 'finishIntent', id: intent.id }], 'relaxed')
      .catch((cause: unknown) => call.op.log.warn({ cause }, 'an intent was left behind'));
  }
}

/** At the start of the daemon: the last one died meanwhile. */
export async function goOnFromStillness(core: Core, call: Call, sandbox: Sandbox, intent: Intent): Promise<void> {
  const { op } = call;
  const isPaused = sandbox.state === 'paused' && backendOf(core.deps, op, sandbox.spec.backend).closeDoor !== undefined;
  if (sandbox.state === 'running' || isPaused) {
    const run = await bootable(core, op, sandbox);
    await run.backend.snapshots
      ?.goOn?.(op, run.plan)
      .catch((cause: unknown) => op.log.error({ sandbox: run.id, cause }, 'a sandbox that stood still cannot go on'));
    const { alive } = await run.backend.inspect(op, run.plan);
    if (alive && isPaused) await run.backend.pause(op, run.plan);
    else if (alive) {
      await run.backend.resume(op, run.plan);
      void catchUp(run.op, core.deps.host, run);
    }
  }
  await core.deps.store.commit(op, [{ change: 'finishIntent', id: intent.id }], 'relaxed');
}

/** One that can also be started. */
async function bootable(core: Core, op: Operation, sandbox: Sandbox): Promise<Run> {
  const backend = backendOf(core.deps, op, sandbox.spec.backend);
  if (backend.snapshots?.goOn === undefined) return await runOf(core, op, sandbox);
  const { deps } = core;
  const boot = await deps.boots.of(op, sandbox.spec, backend.needs);
  const uid = deps.settings.uids === null ? null : await deps.store.query('uid', { sandboxId: sandbox.id });
  return core.runs.open(op, sandbox, boot.files, uid);
}
