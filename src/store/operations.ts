// The table of operations: what was asked, by whom, how far it came and how it ended.
import * as z from 'zod';
import { ERROR_CODES, type ErrorBody, type ErrorCode, HutchError } from '../domain/errors.ts';
import type { OpId } from '../domain/ids.ts';
import { OPERATION_STATES, type OperationRecord } from '../domain/records.ts';
import { DETAIL_BYTES_MAX, idColumn, jsonColumn, opIdColumn, timeColumn, toJson } from './columns.ts';
import { type ChangeMap, PAGE_ROWS_MAX, type QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import type { Tx } from './tx.ts';

const errorBody: z.ZodType<ErrorBody> = z.object({
  code: z.enum(Object.keys(ERROR_CODES) as [ErrorCode, ...ErrorCode[]]),
  message: z.string(),
  hint: z.string().nullable(),
  retryable: z.boolean(),
  opId: z.string().nullable(),
});

const row = z.object({
  id: opIdColumn,
  verb: z.string(),
  project_id: idColumn('prj').nullable(),
  target_id: z.string().nullable(),
  actor: z.string(),
  state: z.enum(OPERATION_STATES),
  step: z.string().nullable(),
  done: z.number().nullable(),
  total: z.number().nullable(),
  started_at_ms: timeColumn,
  ended_at_ms: timeColumn.nullable(),
  error: jsonColumn(errorBody).nullable(),
  traceparent: z.string().nullable(),
});

function fromRow(raw: Row): OperationRecord {
  const parsed = row.parse(raw);
  return {
    id: parsed.id,
    verb: parsed.verb,
    projectId: parsed.project_id,
    targetId: parsed.target_id,
    actor: parsed.actor,
    state: parsed.state,
    step: parsed.step,
    done: parsed.done,
    total: parsed.total,
    startedAtMs: parsed.started_at_ms,
    endedAtMs: parsed.ended_at_ms,
    error: parsed.error,
    traceparent: parsed.traceparent,
  };
}

export function beginOperation(tx: Tx, args: ChangeMap['beginOperation']['args']): OperationRecord {
  const { opId, actor } = tx.stamp;
  tx.db.run(
    "INSERT INTO operations (id, verb, project_id, target_id, actor, state, started_at_ms, traceparent) VALUES (?, ?, ?, ?, ?, 'running', ?, ?)",
    opId,
    args.verb,
    args.projectId ?? null,
    args.targetId ?? null,
    actor,
    args.startedAtMs,
    args.traceparent ?? null,
  );
  return existing(tx.db, opId);
}

export function updateOperation(tx: Tx, args: ChangeMap['updateOperation']['args']): OperationRecord {
  const before = existing(tx.db, args.id);
  tx.db.run(
    "UPDATE operations SET target_id = ?, step = ?, done = ?, total = ? WHERE id = ? AND state = 'running'",
    args.targetId ?? before.targetId,
    args.step ?? before.step,
    args.done === undefined ? before.done : args.done,
    args.total === undefined ? before.total : args.total,
    args.id,
  );
  return existing(tx.db, args.id);
}

export function endOperation(tx: Tx, args: ChangeMap['endOperation']['args']): OperationRecord {
  tx.db.run(
    "UPDATE operations SET state = ?, ended_at_ms = ?, error = ? WHERE id = ? AND state = 'running'",
    args.state,
    args.endedAtMs,
    args.error === undefined ? null : toJson(args.error, DETAIL_BYTES_MAX, 'the error of the operation'),
    args.id,
  );
  return existing(tx.db, args.id);
}

export function interruptOperations(tx: Tx, { endedAtMs }: ChangeMap['interruptOperations']['args']): readonly OperationRecord[] {
  const running = tx.db
    .all("SELECT id FROM operations WHERE state = 'running' ORDER BY started_at_ms")
    .map((found) => opIdColumn.parse(found['id']));
  return running.map((id) => endOperation(tx, { id, state: 'interrupted', endedAtMs }));
}

export function readOperation(db: Db, id: OpId): OperationRecord | null {
  const found = db.get('SELECT * FROM operations WHERE id = ?', id);
  return found === undefined ? null : fromRow(found);
}

export function listOperations(db: Db, args: QueryMap['operations']['args']): readonly OperationRecord[] {
  const wanted = Object.entries({ project_id: args.projectId, state: args.state, target_id: args.targetId }).filter(
    (pair): pair is [string, NonNullable<(typeof pair)[1]>] => pair[1] !== undefined,
  );
  const where = wanted.map(([column]) => `AND ${column} = ?`).join(' ');
  const limit = Math.min(args.limit ?? PAGE_ROWS_MAX, PAGE_ROWS_MAX);
  return db
    .all(
      `SELECT * FROM operations WHERE true ${where} ORDER BY started_at_ms DESC, rowid DESC LIMIT ?`,
      ...wanted.map(([, value]) => value),
      limit,
    )
    .map(fromRow);
}

export function operationCandidates(db: Db, text: string): readonly OperationRecord[] {
  return db
    .all(
      'SELECT * FROM operations WHERE substr(id, 1, ?1) = ?2 OR substr(id, 4, ?1) = ?2 ORDER BY started_at_ms DESC LIMIT 20',
      text.length,
      text,
    )
    .map(fromRow);
}

function existing(db: Db, id: OpId): OperationRecord {
  const operation = readOperation(db, id);
  if (operation === null) throw new HutchError({ code: 'not_found', message: `there is no operation ${id}` });
  return operation;
}
