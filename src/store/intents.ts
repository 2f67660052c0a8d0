// The table of intents: a side effect is written down here before it happens, so that the next start
// can finish or undo it. Here too: the uids that are handed out to sandboxes.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import type { SandboxId } from '../domain/ids.ts';
import type { Intent } from '../domain/records.ts';
import { isWithin } from '../domain/users.ts';
import { DETAIL_BYTES_MAX, idColumn, jsonColumn, objectSchema, opIdColumn, timeColumn, toJson } from './columns.ts';
import type { ChangeMap, QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import { meta, setMeta } from './open.ts';
import { roomForSandbox } from './quotas.ts';
import { claimName } from './sandboxes.ts';
import type { Tx } from './tx.ts';

const row = z.object({
  id: z.int(),
  kind: z.string(),
  project_id: idColumn('prj'),
  sandbox_id: idColumn('sbx').nullable(),
  reserved_name: z.string().nullable(),
  op_id: opIdColumn,
  created_at_ms: timeColumn,
  detail: jsonColumn(objectSchema),
});

/** Of one that makes a sandbox: what counts for the quotas of its project. */
const shapeOfDetail = z.object({ shape: z.object({ cpus: z.number(), memoryMiB: z.number(), diskMiB: z.number() }) });

function fromRow(raw: Row): Intent {
  const parsed = row.parse(raw);
  return {
    id: parsed.id,
    kind: parsed.kind,
    projectId: parsed.project_id,
    sandboxId: parsed.sandbox_id,
    reservedName: parsed.reserved_name,
    opId: parsed.op_id,
    createdAtMs: parsed.created_at_ms,
    detail: parsed.detail,
  };
}

export function addIntent(tx: Tx, args: ChangeMap['addIntent']['args']): Intent {
  const making = shapeOfDetail.safeParse(args.detail);
  if (args.kind === 'create' && making.success) roomForSandbox(tx, args.projectId, making.data.shape);
  if (args.reserveName !== undefined) claimName(tx.db, args.projectId, args.reserveName, args.sandboxId ?? null);
  const { lastRowId } = tx.db.run(
    'INSERT INTO intents (kind, project_id, sandbox_id, reserved_name, op_id, created_at_ms, detail) VALUES (?, ?, ?, ?, ?, ?, ?)',
    args.kind,
    args.projectId,
    args.sandboxId ?? null,
    args.reserveName ?? null,
    tx.stamp.opId,
    args.atMs,
    toJson(args.detail ?? {}, DETAIL_BYTES_MAX, 'the detail of the intent'),
  );
  return existing(tx.db, lastRowId);
}

export function updateIntent(tx: Tx, { id, detail }: ChangeMap['updateIntent']['args']): Intent {
  tx.db.run('UPDATE intents SET detail = ? WHERE id = ?', toJson(detail, DETAIL_BYTES_MAX, 'the detail of the intent'), id);
  return existing(tx.db, id);
}

export function finishIntent(tx: Tx, { id }: ChangeMap['finishIntent']['args']): null {
  tx.db.run('DELETE FROM intents WHERE id = ?', id);
  return null;
}

export function listIntents(db: Db, { sandboxId }: QueryMap['intents']['args']): readonly Intent[] {
  if (sandboxId === undefined) return db.all('SELECT * FROM intents ORDER BY id').map(fromRow);
  return db.all('SELECT * FROM intents WHERE sandbox_id = ? ORDER BY id', sandboxId).map(fromRow);
}

function existing(db: Db, id: number): Intent {
  const found = db.get('SELECT * FROM intents WHERE id = ?', id);
  if (found === undefined) throw new HutchError({ code: 'not_found', message: `there is no intent ${id}: it was finished before` });
  return fromRow(found);
}

const LAST_UID = 'last-uid';

/** Goes round the range, so that a uid that was given back rests before the next sandbox has it. */
export function allocateUid(tx: Tx, { sandboxId, uids }: ChangeMap['allocateUid']['args']): number {
  const own = readUid(tx.db, sandboxId);
  if (own !== null && isWithin(uids, own)) return own;
  releaseUid(tx, { sandboxId });
  const last = Number(meta(tx.db, LAST_UID) ?? uids.first - 1);
  const next = isWithin(uids, last) ? last + 1 : uids.first;
  const uid = freeUidFrom(tx.db, next, uids.last) ?? freeUidFrom(tx.db, uids.first, uids.last);
  if (uid === null) {
    throw new HutchError({
      code: 'resource_exhausted',
      message: `all ${uids.last - uids.first + 1} user ids for sandboxes are taken`,
      hint: 'remove sandboxes that are not needed: hutch rm',
    });
  }
  tx.db.run('INSERT INTO uids (uid, sandbox_id) VALUES (?, ?)', uid, sandboxId);
  setMeta(tx.db, LAST_UID, String(uid));
  return uid;
}

export function releaseUid(tx: Tx, { sandboxId }: ChangeMap['releaseUid']['args']): null {
  tx.db.run('DELETE FROM uids WHERE sandbox_id = ?', sandboxId);
  return null;
}

export function readUid(db: Db, sandboxId: SandboxId): number | null {
  const uid = db.get('SELECT uid FROM uids WHERE sandbox_id = ?', sandboxId)?.['uid'];
  return typeof uid === 'number' ? uid : null;
}

export function listUids(db: Db): QueryMap['uids']['result'] {
  return db.all('SELECT uid, sandbox_id FROM uids ORDER BY uid').map((found) => ({
    uid: z.int().parse(found['uid']),
    sandboxId: idColumn('sbx').parse(found['sandbox_id']),
  }));
}

/** The first free one from `from` on: `from` itself, or one after a taken one. */
function freeUidFrom(db: Db, from: number, last: number): number | null {
  if (from > last) return null;
  const uid = db.get(
    `SELECT min(uid) AS uid FROM (SELECT ?1 AS uid UNION ALL SELECT uid + 1 FROM uids WHERE uid >= ?1)
     WHERE uid <= ?2 AND uid NOT IN (SELECT uid FROM uids)`,
    from,
    last,
  )?.['uid'];
  return typeof uid === 'number' ? uid : null;
}
