// The table of what snapshots hold of the disk. Always true: what is held at all counts for exactly one of those that hold it, and
// `own_bytes` of a snapshot is the sum of what counts for it. When one goes, what counted for it counts for the oldest of those that
// hold it too, in the same commit, and the ledger's interval of that one ends and begins anew with what it has now.
import * as z from 'zod';
import type { Holding } from '../domain/holding.ts';
import type { SnapshotId } from '../domain/ids.ts';
import type { LedgerDraft } from '../domain/ledger.ts';
import { type Snapshot, snapshotEntry } from '../domain/snapshot.ts';
import { idColumn } from './columns.ts';
import type { QueryMap } from './contract.ts';
import type { Db } from './db.ts';
import { addEvent } from './events.ts';
import type { Tx } from './tx.ts';

const holder = z.object({ snapshot_id: idColumn('snp') });
const OLDEST_FIRST = 'created_at_ms, id';

export function listHoldings(db: Db, { id }: QueryMap['snapshotHoldings']['args']): readonly Holding[] {
  const found = db.all('SELECT holding, bytes FROM snapshot_holdings WHERE snapshot_id = ?', id);
  return found.map((row) => ({ what: String(row['holding']), bytes: Number(row['bytes']) }));
}

/** What of it counts for nobody yet, in bytes. */
export function uncountedBytes(db: Db, holdings: readonly Holding[]): number {
  return holdings.reduce((sum, { what, bytes }) => sum + (countedFor(db, what) === null ? bytes : 0), 0);
}

/**
 * Of one that is on record, and holds nothing yet. `as the newest`: what counts for another goes on to, whatever the clock said.
 * Gives those for which something counts no more, as this one is older.
 */
export function addHoldings(
  db: Db,
  id: SnapshotId,
  how: 'as the newest' | 'by its age',
  holdings: readonly Holding[],
): ReadonlySet<SnapshotId> {
  const lost = new Set<SnapshotId>();
  for (const { what, bytes } of holdings) {
    const other = countedFor(db, what);
    const isOlder = how === 'by its age' && other !== null && isBefore(db, id, other);
    if (isOlder) {
      db.run('UPDATE snapshot_holdings SET counted = 0 WHERE snapshot_id = ? AND holding = ?', other, what);
      lost.add(other);
    }
    const counted = other === null || isOlder ? 1 : 0;
    db.run('INSERT INTO snapshot_holdings (snapshot_id, holding, bytes, counted) VALUES (?, ?, ?, ?)', id, what, bytes, counted);
  }
  return lost;
}

function countedFor(db: Db, what: string): SnapshotId | null {
  const found = db.get('SELECT snapshot_id FROM snapshot_holdings WHERE holding = ? AND counted = 1', what);
  return found === undefined ? null : holder.parse(found).snapshot_id;
}

function isBefore(db: Db, id: SnapshotId, other: SnapshotId): boolean {
  return db.get(`SELECT id FROM snapshots WHERE id IN (?, ?) ORDER BY ${OLDEST_FIRST} LIMIT 1`, id, other)?.['id'] === id;
}

/** It holds nothing any more. Gives those for which something counts now that counted for it. */
export function releaseHoldings(db: Db, id: SnapshotId): ReadonlySet<SnapshotId> {
  const counted = db.all('SELECT holding FROM snapshot_holdings WHERE snapshot_id = ? AND counted = 1', id);
  db.run('DELETE FROM snapshot_holdings WHERE snapshot_id = ?', id);
  const heirs = new Set<SnapshotId>();
  for (const { holding = null } of counted) {
    const heir = db.get(
      `SELECT h.snapshot_id FROM snapshot_holdings h JOIN snapshots s ON s.id = h.snapshot_id
       WHERE h.holding = ? ORDER BY ${OLDEST_FIRST} LIMIT 1`,
      holding,
    );
    if (heir === undefined) continue;
    const { snapshot_id: heirId } = holder.parse(heir);
    db.run('UPDATE snapshot_holdings SET counted = 1 WHERE snapshot_id = ? AND holding = ?', heirId, holding);
    heirs.add(heirId);
  }
  return heirs;
}

export type Recounted = { readonly before: Snapshot; readonly after: Snapshot };

/** Those of them for which more or less counts than is on record, with what is. */
export function recounted(db: Db, snapshots: readonly Snapshot[]): readonly Recounted[] {
  return snapshots.flatMap((before) => {
    const ownBytes = db.number('SELECT coalesce(sum(bytes), 0) FROM snapshot_holdings WHERE snapshot_id = ? AND counted = 1', before.id);
    // Where it has come to lie here twice, it takes more than it did without sharing.
    const apparentBytes = Math.max(before.apparentBytes, ownBytes);
    return ownBytes === before.ownBytes ? [] : [{ before, after: { ...before, ownBytes, apparentBytes } }];
  });
}

/** Puts that on record; the ledger is the caller's, with all else that the change says there. */
export function writeRecounted(tx: Tx, changed: readonly Recounted[], atMs: number): readonly LedgerDraft[] {
  const { db, stamp } = tx;
  return changed.flatMap(({ before, after }) => {
    const { id, name, kind, projectId, sandboxId, ownBytes, apparentBytes } = after;
    db.run('UPDATE snapshots SET own_bytes = ?, apparent_bytes = ?, own_since_ms = ? WHERE id = ?', ownBytes, apparentBytes, atMs, id);
    const detail = { snapshotId: id, ...(name === null ? {} : { name }), kind, ownBytes, wasBytes: before.ownBytes };
    addEvent(tx, { type: 'snapshot.recounted', atMs, projectId, ...(sandboxId === null ? {} : { sandboxId }), detail });
    return [snapshotEntry(before, 'recounted from', atMs, stamp.opId), snapshotEntry(after, 'recounted to', atMs, stamp.opId)];
  });
}

/** When what they have now began: a clock that was stepped back ends nothing before that, and one change has one time. */
export function notBefore(db: Db, snapshots: readonly Snapshot[], atMs: number): number {
  return snapshots.reduce((at, { id }) => Math.max(at, db.number('SELECT own_since_ms FROM snapshots WHERE id = ?', id)), atMs);
}
