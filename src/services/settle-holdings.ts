// What is on record of what snapshots hold of the disk, compared with what is there: after a start, as an older version did not write it
// down and files that were moved to another disk are others, and now and then, as the memory of a template that goes was nobody's.
import { sameHoldings } from '../domain/holding.ts';
import type { Operation } from '../host/operation.ts';
import type { ChangeMap } from '../store/contract.ts';
import type { Core } from './core.ts';
import { findHoldings } from './holdings.ts';
import { snapshotDir } from './snapshots.ts';

/** Of so many what is found is put on record at once. */
const AT_ONCE = 100;

/** Does nothing where all is as it is on record. What cannot be looked at now stays as it is. */
export async function settleAllHoldings(core: Core, op: Operation): Promise<void> {
  const { store, host } = core.deps;
  const other: ChangeMap['settleHoldings']['args']['of'][number][] = [];
  for (const { id, spec } of await store.query('snapshots', {})) {
    try {
      const found = await findHoldings(core, op, spec.backend, snapshotDir(core, id));
      if (found === null || sameHoldings(found.holdings, await store.query('snapshotHoldings', { id }))) continue;
      other.push({ id, holdings: found.holdings });
    } catch (cause) {
      if (op.signal.aborted) throw cause;
      if ((await store.query('snapshot', { id })) === null) continue; // it has just been removed
      op.log.warn({ snapshot: id, cause }, 'what a snapshot takes on the disk is not known now; what is on record stands');
    }
  }
  for (let from = 0; from < other.length; from += AT_ONCE)
    await store.commit(op, [{ change: 'settleHoldings', of: other.slice(from, from + AT_ONCE), atMs: host.nowMs() }], 'relaxed');
}
