// What is on record of what snapshots hold of the disk, compared with what is there: after a start, as an older version did not write it
// down and files that were moved to another disk are others, and now and then, as the memory of a template that goes was nobody's.
import { sameHoldings } from '../domain/holding.ts';
import type { Snapshot } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import type { ChangeMap } from '../store/contract.ts';
import type { Core } from './core.ts';
import { backendOf } from './deps.ts';
import { findHoldings } from './holdings.ts';
import { snapshotDir } from './snapshots.ts';

/** Of so many what is found is put on record at once. */
const AT_ONCE = 100;

type Other = ChangeMap['settleHoldings']['args']['of'][number];

/** Does nothing where all is as it is on record. What cannot be looked at now stays as it is. */
export async function settleAllHoldings(core: Core, op: Operation): Promise<void> {
  const { store } = core.deps;
  const other: Other[] = [];
  for (const snapshot of await store.query('snapshots', {})) other.push(...(await otherThanOnRecord(core, op, snapshot)));
  for (let from = 0; from < other.length; from += AT_ONCE) await settle(core, op, other.slice(from, from + AT_ONCE));
}

/** The same of one that a sandbox has just begun with: where its backend keeps more than files, it may keep more of it than before. */
export async function settleHoldings(core: Core, op: Operation, snapshot: Snapshot): Promise<void> {
  if (backendOf(core.deps, op, snapshot.spec.backend).snapshots?.holdings === undefined) return;
  const other = await otherThanOnRecord(core, op, snapshot);
  if (other.length > 0) await settle(core, op, other);
}

async function settle({ deps }: Core, op: Operation, of: readonly Other[]): Promise<void> {
  await deps.store.commit(op, [{ change: 'settleHoldings', of, atMs: deps.host.nowMs() }], 'relaxed');
}

/** None where it is as on record, or cannot be looked at. */
async function otherThanOnRecord(core: Core, op: Operation, { id, spec }: Snapshot): Promise<readonly Other[]> {
  const { store } = core.deps;
  try {
    const found = await findHoldings(core, op, spec.backend, snapshotDir(core, id));
    if (found === null || sameHoldings(found.holdings, await store.query('snapshotHoldings', { id }))) return [];
    return [{ id, holdings: found.holdings }];
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    if ((await store.query('snapshot', { id })) === null) return []; // it has just been removed
    op.log.warn({ snapshot: id, cause }, 'what a snapshot takes on the disk is not known now; what is on record stands');
    return [];
  }
}
