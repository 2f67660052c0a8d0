// What the daemon keeps about itself: settings, heartbeats, and how long old records are kept.
import * as z from 'zod';
import type { Heartbeat } from '../domain/records.ts';
import { pruneLeases } from './assets.ts';
import { DETAIL_BYTES_MAX, jsonColumn, timeColumn, toJson } from './columns.ts';
import { type ChangeMap, PAGE_ROWS_MAX, type QueryMap, REQUEST_LIFETIME_MS } from './contract.ts';
import type { Db } from './db.ts';
import type { Tx } from './tx.ts';

export function setSetting(tx: Tx, { key, value }: ChangeMap['setSetting']['args']): null {
  const text = toJson(value, DETAIL_BYTES_MAX, `setting ${key}`);
  tx.db.run('INSERT INTO settings (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value', key, text);
  return null;
}

export function readSetting(db: Db, key: string): unknown {
  const found = db.get('SELECT value FROM settings WHERE key = ?', key);
  return found === undefined ? null : jsonColumn(z.unknown()).parse(found['value']);
}

/** Boots whose last heartbeat is kept. */
const BOOTS_KEPT = 64;

export function beat(tx: Tx): Heartbeat {
  const { bootId, nowMs, monotonicMs } = tx.stamp;
  tx.db.run(
    `INSERT INTO heartbeats (boot_id, at_ms, monotonic_ms) VALUES (?, ?, ?)
     ON CONFLICT (boot_id) DO UPDATE SET at_ms = excluded.at_ms, monotonic_ms = excluded.monotonic_ms`,
    bootId,
    nowMs,
    monotonicMs,
  );
  tx.db.run('DELETE FROM heartbeats WHERE number <= (SELECT max(number) FROM heartbeats) - ?', BOOTS_KEPT);
  return { bootId, atMs: nowMs, monotonicMs };
}

export function readHeartbeat(db: Db, { bootId, otherThan }: QueryMap['heartbeat']['args']): Heartbeat | null {
  const found =
    bootId === undefined
      ? db.get('SELECT * FROM heartbeats WHERE boot_id IS NOT ? ORDER BY number DESC LIMIT 1', otherThan ?? null)
      : db.get('SELECT * FROM heartbeats WHERE boot_id = ?', bootId);
  if (found === undefined) return null;
  const parsed = z.object({ boot_id: z.string(), at_ms: timeColumn, monotonic_ms: z.number() }).parse(found);
  return { bootId: parsed.boot_id, atMs: parsed.at_ms, monotonicMs: parsed.monotonic_ms };
}

export function prune(tx: Tx, args: ChangeMap['prune']['args']): ChangeMap['prune']['result'] {
  const { db } = tx;
  const dropped = [
    db.run(
      'DELETE FROM events WHERE cursor IN (SELECT cursor FROM events WHERE at_ms < ? ORDER BY at_ms LIMIT ?)',
      args.eventsBeforeMs,
      PAGE_ROWS_MAX,
    ),
    db.run(
      'DELETE FROM operations WHERE rowid IN (SELECT rowid FROM operations WHERE ended_at_ms < ? ORDER BY ended_at_ms LIMIT ?)',
      args.operationsBeforeMs,
      PAGE_ROWS_MAX,
    ),
    db.run(
      "DELETE FROM sandboxes WHERE rowid IN (SELECT rowid FROM sandboxes WHERE state = 'deleted' AND changed_at_ms < ? ORDER BY changed_at_ms LIMIT ?)",
      args.tombstonesBeforeMs,
      PAGE_ROWS_MAX,
    ),
    db.run(
      `DELETE FROM requests WHERE (api_key_id, key) IN
         (SELECT api_key_id, key FROM requests WHERE created_at_ms < ? AND reply IS NOT NULL ORDER BY created_at_ms LIMIT ?)`,
      args.nowMs - REQUEST_LIFETIME_MS,
      PAGE_ROWS_MAX,
    ),
    { changes: pruneLeases(tx, args.nowMs) },
  ].map(({ changes }) => changes);
  return { dropped: dropped.reduce((sum, count) => sum + count, 0), more: dropped.some((count) => count === PAGE_ROWS_MAX) };
}

export function health(db: Db): QueryMap['health']['result'] {
  const pageCount = db.number('PRAGMA page_count');
  return { schemaVersion: db.number('PRAGMA user_version'), pageCount, sizeBytes: pageCount * db.number('PRAGMA page_size') };
}
