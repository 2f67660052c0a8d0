// The tables of leases and labels. A lease keeps a kernel or an image from being removed: until its time is over, or, where it is a
// sandbox's, for as long as that is not deleted. Whether a lease holds is asked of the time and the sandboxes, and kept nowhere.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import { isId, type LeaseId } from '../domain/ids.ts';
import type { Lease } from '../domain/records.ts';
import { idColumn, timeColumn } from './columns.ts';
import { type ChangeMap, PAGE_ROWS_MAX, type QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import type { Tx } from './tx.ts';

export const LABELS_MAX = 64;
/** A lease that is over is shown for so long. */
const OVER_KEPT_MS = 24 * 60 * 60_000;

const HOLDS = `(l.expires_at_ms > ?1 OR EXISTS (SELECT 1 FROM sandboxes s WHERE s.id = l.sandbox_id AND s.state <> 'deleted'))`;

const row = z.object({
  id: idColumn('lse'),
  asset_id: z.string(),
  holder: z.string(),
  sandbox_id: idColumn('sbx').nullable(),
  created_at_ms: timeColumn,
  expires_at_ms: timeColumn,
});

function fromRow(raw: Row): Lease {
  const { id, asset_id, holder, sandbox_id, created_at_ms, expires_at_ms } = row.parse(raw);
  return { id, assetId: asset_id, holder, sandboxId: sandbox_id, createdAtMs: created_at_ms, expiresAtMs: expires_at_ms };
}

export function acquireLease(tx: Tx, { lease }: ChangeMap['acquireLease']['args']): Lease {
  requireAsset(tx.db, lease.assetId);
  const { sandboxId } = lease;
  if (sandboxId !== null && tx.db.get("SELECT 1 FROM sandboxes WHERE id = ? AND state <> 'deleted'", sandboxId) === undefined)
    throw new HutchError({ code: 'not_found', message: `there is no sandbox ${sandboxId}` });
  tx.db.run(
    'INSERT INTO asset_leases (id, asset_id, holder, sandbox_id, created_at_ms, expires_at_ms) VALUES (?, ?, ?, ?, ?, ?)',
    lease.id,
    lease.assetId,
    lease.holder,
    sandboxId,
    lease.createdAtMs,
    lease.expiresAtMs,
  );
  return lease;
}

/** One that is over stays so: what it kept may be gone. */
export function renewLease(tx: Tx, { id, atMs, expiresAtMs }: ChangeMap['renewLease']['args']): Lease {
  const renewed = tx.db.run(`UPDATE asset_leases AS l SET expires_at_ms = ?3 WHERE id = ?2 AND ${HOLDS}`, atMs, id, expiresAtMs);
  if (renewed.changes === 0) throw noLease(id, 'or it is over');
  return fromRow(tx.db.get('SELECT * FROM asset_leases WHERE id = ?', id) ?? {});
}

export function releaseLease(tx: Tx, { id }: ChangeMap['releaseLease']['args']): null {
  if (tx.db.run('DELETE FROM asset_leases WHERE id = ?', id).changes === 0) throw noLease(id, 'or it was released');
  return null;
}

function noLease(id: LeaseId, or: string): HutchError {
  return new HutchError({ code: 'not_found', message: `there is no lease ${id}, ${or}`, hint: 'see: hutch assets ls' });
}

/** Those that hold at that time. */
export function listLeases(db: Db, { atMs }: QueryMap['leases']['args']): readonly Lease[] {
  return db.all(`SELECT l.* FROM asset_leases l WHERE ${HOLDS} ORDER BY l.created_at_ms, l.id`, atMs).map(fromRow);
}

/** @throws HutchError `failed_precondition`, naming its holders, while a lease holds. */
export function refuseLeased(tx: Tx, what: 'image' | 'kernel', id: string): void {
  const held = tx.db
    .all(`SELECT l.* FROM asset_leases l WHERE l.asset_id = ?2 AND ${HOLDS} ORDER BY l.created_at_ms LIMIT 10`, tx.stamp.nowMs, id)
    .map(fromRow);
  if (held.length === 0) return;
  throw new HutchError({
    code: 'failed_precondition',
    message: `${what} ${id} is leased by ${held.map((lease) => `${lease.holder} (${lease.id})`).join(', ')}`,
    hint: `hutch assets release ${held.map((lease) => lease.id).join(' ')}`,
  });
}

export function forgetAsset(tx: Tx, id: string): void {
  tx.db.run('DELETE FROM asset_leases WHERE asset_id = ?', id);
  tx.db.run('DELETE FROM asset_labels WHERE asset_id = ?', id);
}

export function labelAsset(tx: Tx, { id, labels }: ChangeMap['labelAsset']['args']): Readonly<Record<string, string>> {
  requireAsset(tx.db, id);
  for (const [key, value] of Object.entries(labels)) {
    if (value === null) tx.db.run('DELETE FROM asset_labels WHERE asset_id = ? AND key = ?', id, key);
    else
      tx.db.run(
        'INSERT INTO asset_labels (asset_id, key, value) VALUES (?, ?, ?) ON CONFLICT (asset_id, key) DO UPDATE SET value = excluded.value',
        id,
        key,
        value,
      );
  }
  const now = listLabels(tx.db)[id] ?? {};
  if (Object.keys(now).length > LABELS_MAX)
    throw new HutchError({ code: 'invalid_argument', message: `an asset has at most ${LABELS_MAX} labels` });
  return now;
}

export function listLabels(db: Db): Readonly<Record<string, Readonly<Record<string, string>>>> {
  const found: Record<string, Record<string, string>> = {};
  for (const each of db.all('SELECT asset_id, key, value FROM asset_labels ORDER BY asset_id, key')) {
    const own = found[String(each['asset_id'])] ?? {};
    own[String(each['key'])] = String(each['value']);
    found[String(each['asset_id'])] = own;
  }
  return found;
}

/** When a sandbox last had it, tombstones included. Reading it is no use. */
export function assetUses(db: Db): QueryMap['assetUses']['result'] {
  const rows = db.all(
    `SELECT asset, max(at) AS at FROM (
       SELECT image_id AS asset, changed_at_ms AS at FROM sandboxes UNION ALL
       SELECT kernel_id AS asset, changed_at_ms AS at FROM sandboxes WHERE kernel_id IS NOT NULL
     ) GROUP BY asset`,
  );
  return rows.map((each) => ({ id: String(each['asset']), atMs: timeColumn.parse(each['at']) }));
}

export function pruneLeases(tx: Tx, nowMs: number): number {
  return tx.db.run(
    `DELETE FROM asset_leases WHERE id IN (SELECT l.id FROM asset_leases l WHERE NOT ${HOLDS} AND l.expires_at_ms < ?2 LIMIT ?3)`,
    nowMs,
    nowMs - OVER_KEPT_MS,
    PAGE_ROWS_MAX,
  ).changes;
}

function requireAsset(db: Db, id: string): void {
  const table = isId('img', id) ? 'images' : isId('krn', id) ? 'kernels' : null;
  if (table !== null && db.get(`SELECT 1 FROM ${table} WHERE id = ?`, id) !== undefined) return;
  throw new HutchError({ code: 'not_found', message: `there is no asset ${id}`, hint: 'see: hutch assets ls' });
}
