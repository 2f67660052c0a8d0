// The run of a sandbox that may not be running: for ending it, and for removing what it has.
import type { Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';
import type { Run } from './run.ts';

/** The one that is known, else one that can only be inspected, ended and removed. */
export async function runOf(core: Core, op: Operation, sandbox: Sandbox): Promise<Run> {
  const known = core.runs.get(sandbox.id);
  if (known !== null) return known;
  const uid = core.deps.settings.uids !== null ? await core.deps.store.query('uid', { sandboxId: sandbox.id }) : null;
  return core.runs.open(op, sandbox, { kind: 'gone' }, uid);
}

const RELEASE_MS = 30_000;

/** Removes what a dead run leaves on the host. */
export async function releaseRun(core: Core, op: Operation, run: Run): Promise<void> {
  core.runs.forget(run);
  using late = op.releasing(RELEASE_MS);
  await run.backend.cleanUp(late, run.plan);
}
