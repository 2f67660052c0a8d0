// Whether a snapshot is of a sandbox that is to go back to it: taken of it, or of what it was made from. Going back to a stranger's
// replaces everything that the sandbox has by what another one had, which nobody should get by a mistyped name.
import type { SandboxId } from '../domain/ids.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { Snapshot } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';

/** A lineage that is longer is looked at no further. */
const ANCESTORS_MAX = 1_000;

/** @throws HutchError `failed_precondition` where it is a stranger's. */
export async function requireOwn(core: Core, op: Operation, sandbox: Sandbox, snapshot: Snapshot): Promise<void> {
  if (snapshot.sandboxId === sandbox.id || (await isOfFamily(core, sandbox.id, snapshot))) return;
  const { store } = core.deps;
  const { name } = sandbox.spec;
  const what = snapshot.name ?? snapshot.id;
  const owner = snapshot.sandboxId === null ? null : await store.query('sandbox', { id: snapshot.sandboxId });
  const whose = snapshot.sandboxId === null ? 'came from elsewhere' : `was taken of sandbox ${owner?.spec.name ?? snapshot.sandboxId}`;
  throw op.error('failed_precondition', `snapshot ${what} ${whose}: going back to it would replace all that sandbox ${name} has`, {
    hint: `make another sandbox of it: hutch run --from ${what}; or, if that is what you want: hutch restore --foreign ${name} ${what}`,
  });
}

async function isOfFamily({ deps: { store } }: Core, id: SandboxId, snapshot: Snapshot): Promise<boolean> {
  let at = await store.query('snapshotHead', { sandboxId: id });
  for (let seen = 0; at !== null && seen < ANCESTORS_MAX; seen += 1) {
    if (at.id === snapshot.id || (at.sandboxId !== null && at.sandboxId === snapshot.sandboxId)) return true;
    at = at.parentId === null ? null : await store.query('snapshot', { id: at.parentId });
  }
  // What a fork began with is no snapshot that is kept: its parent is in its first event.
  const [made] = await store.query('events', { sandboxId: id, limit: 1 });
  const source = made?.type === 'sandbox.created' ? made.detail['source'] : null;
  return snapshot.sandboxId !== null && parentOf(source) === snapshot.sandboxId;
}

function parentOf(source: unknown): unknown {
  return typeof source === 'object' && source !== null && 'parentId' in source ? source.parentId : null;
}
