// The table of requests that carried an Idempotency-Key: a repeated one gets the first one's reply, and
// another request with the same key is refused. Each lives for REQUEST_LIFETIME_MS.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import type { RequestRecord } from '../domain/records.ts';
import { idColumn, jsonColumn, opIdColumn, REPLY_BYTES_MAX, timeColumn, toJson } from './columns.ts';
import { type ChangeMap, REQUEST_LIFETIME_MS, type RequestClaim } from './contract.ts';
import type { Db, Row } from './db.ts';
import type { Tx } from './tx.ts';

export const REQUEST_KEY_CHARS_MAX = 255;

const row = z.object({
  api_key_id: idColumn('key'),
  key: z.string(),
  request_hash: z.string(),
  op_id: opIdColumn,
  target_id: z.string().nullable(),
  created_at_ms: timeColumn,
  reply: jsonColumn(z.unknown()).nullable(),
});

function fromRow(raw: Row): RequestRecord {
  const parsed = row.parse(raw);
  return {
    apiKeyId: parsed.api_key_id,
    key: parsed.key,
    requestHash: parsed.request_hash,
    opId: parsed.op_id,
    targetId: parsed.target_id,
    createdAtMs: parsed.created_at_ms,
    reply: parsed.reply,
  };
}

/** Null: the claim is made, go on. Otherwise the first use of the key. */
export function claimRequest(tx: Tx, claim: RequestClaim): { outcome: 'running' | 'done'; request: RequestRecord } | null {
  const { apiKeyId, key, requestHash, targetId } = claim;
  if (key.length === 0 || key.length > REQUEST_KEY_CHARS_MAX) {
    throw new HutchError({ code: 'invalid_argument', message: `Idempotency-Key: must have 1 to ${REQUEST_KEY_CHARS_MAX} characters` });
  }
  const found = tx.db.get('SELECT * FROM requests WHERE api_key_id = ? AND key = ?', apiKeyId, key);
  const first = found === undefined ? null : fromRow(found);
  if (first !== null && !isExpired(first, tx.stamp.nowMs)) {
    if (first.requestHash !== requestHash) {
      throw new HutchError({
        code: 'conflict',
        message: `Idempotency-Key: this key was used for another request (${first.opId})`,
        hint: 'use a new key for a new request',
      });
    }
    return { outcome: first.reply === null ? 'running' : 'done', request: first };
  }
  tx.db.run(
    `INSERT INTO requests (api_key_id, key, request_hash, op_id, target_id, created_at_ms, reply) VALUES (?, ?, ?, ?, ?, ?, NULL)
     ON CONFLICT (api_key_id, key) DO UPDATE SET request_hash = excluded.request_hash, op_id = excluded.op_id,
       target_id = excluded.target_id, created_at_ms = excluded.created_at_ms, reply = NULL`,
    apiKeyId,
    key,
    requestHash,
    tx.stamp.opId,
    targetId ?? null,
    tx.stamp.nowMs,
  );
  return null;
}

export function finishRequest(tx: Tx, { apiKeyId, key, reply }: ChangeMap['finishRequest']['args']): null {
  const text = toJson(reply ?? {}, REPLY_BYTES_MAX, 'the reply');
  tx.db.run('UPDATE requests SET reply = ? WHERE api_key_id = ? AND key = ?', text, apiKeyId, key);
  return null;
}

export function releaseRequest(tx: Tx, { apiKeyId, key }: ChangeMap['releaseRequest']['args']): null {
  tx.db.run('DELETE FROM requests WHERE api_key_id = ? AND key = ? AND reply IS NULL', apiKeyId, key);
  return null;
}

export function openRequests(db: Db): readonly RequestRecord[] {
  return db.all('SELECT * FROM requests WHERE reply IS NULL ORDER BY created_at_ms').map(fromRow);
}

/** One that is still under way never expires: it would be done twice. */
function isExpired(request: RequestRecord, nowMs: number): boolean {
  return request.reply !== null && nowMs - request.createdAtMs >= REQUEST_LIFETIME_MS;
}
