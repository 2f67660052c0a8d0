// The table of events: what happened, in the order in which it was committed. Cursors only grow, also
// after old events were dropped.
import * as z from 'zod';
import { isId } from '../domain/ids.ts';
import type { EventRecord, JsonObject } from '../domain/records.ts';
import type { Sandbox, SandboxCreation, SandboxEvent } from '../domain/sandbox.ts';
import { DETAIL_BYTES_MAX, idColumn, jsonColumn, objectSchema, opIdColumn, timeColumn, toJson } from './columns.ts';
import { type ChangeMap, PAGE_ROWS_MAX, type QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import type { Tx } from './tx.ts';

const row = z.object({
  cursor: z.int(),
  at_ms: timeColumn,
  type: z.string(),
  project_id: idColumn('prj').nullable(),
  sandbox_id: idColumn('sbx').nullable(),
  sandbox_name: z.string().nullable(),
  op_id: opIdColumn.nullable(),
  actor: z.string(),
  detail: jsonColumn(objectSchema),
});

function fromRow(raw: Row): EventRecord {
  const parsed = row.parse(raw);
  return {
    cursor: parsed.cursor,
    atMs: parsed.at_ms,
    type: parsed.type,
    projectId: parsed.project_id,
    sandboxId: parsed.sandbox_id,
    sandboxName: parsed.sandbox_name,
    opId: parsed.op_id,
    actor: parsed.actor,
    detail: parsed.detail,
  };
}

type NewEvent = { readonly type: string; readonly atMs: number; readonly sandbox: Sandbox; readonly detail: JsonObject };

export function appendEvent(tx: Tx, { type, atMs, sandbox, detail }: NewEvent): number {
  return insert(tx, type, atMs, sandbox.projectId, sandbox.id, sandbox.spec.name, detail);
}

export function addEvent(tx: Tx, { type, atMs, projectId, sandboxId, detail = {} }: ChangeMap['addEvent']['args']): number {
  const sandbox = sandboxId === undefined ? undefined : tx.db.get('SELECT name, project_id FROM sandboxes WHERE id = ?', sandboxId);
  const name = typeof sandbox?.['name'] === 'string' ? sandbox['name'] : null;
  const owner = sandbox?.['project_id'];
  return insert(tx, type, atMs, projectId ?? (isId('prj', owner) ? owner : null), sandboxId ?? null, name, detail);
}

export function listEvents(db: Db, args: QueryMap['events']['args']): readonly EventRecord[] {
  const { where, parameters } = conditions(args);
  const limit = Math.min(args.limit ?? PAGE_ROWS_MAX, PAGE_ROWS_MAX);
  return db
    .all(`SELECT * FROM events WHERE cursor > ? ${where} ORDER BY cursor LIMIT ?`, args.after ?? 0, ...parameters, limit)
    .map(fromRow);
}

export function lastEvents(db: Db, args: QueryMap['lastEvents']['args']): readonly EventRecord[] {
  const { where, parameters } = conditions(args);
  const limit = Math.min(args.limit, PAGE_ROWS_MAX);
  return db
    .all(`SELECT * FROM events WHERE true ${where} ORDER BY cursor DESC LIMIT ?`, ...parameters, limit)
    .map(fromRow)
    .reverse();
}

/** What an event says beyond its type and time, for `why`. */
export function factsOf(event: SandboxEvent | SandboxCreation, before?: Sandbox): JsonObject {
  switch (event.type) {
    case 'created':
      return event.source === undefined ? {} : { source: event.source };
    case 'started': {
      const { reason, deadlineAtMs, source, shape, evidence } = event;
      return compact({ reason, deadlineAtMs, source, shape, evidence });
    }
    case 'suspended':
      return compact({ snapshotId: event.snapshotId, evidence: event.evidence });
    case 'ended': {
      const { reason, ended, diedAtMs, evidence, source } = event;
      const { atMs: endedAtMs, ...how } = ended;
      return compact({ reason, ...how, endedAtMs, diedAtMs, evidence, source });
    }
    case 'failed':
      return { cause: event.cause };
    case 'recovered':
      return { deadlineAtMs: event.deadlineAtMs };
    case 'renamed':
      return compact({ from: before?.spec.name, to: event.name });
    case 'changed':
      return compact({ ...event.change, deadlineAtMs: event.deadlineAtMs });
    case 'begun':
      return { argv0: event.main.argv[0] };
    case 'prepared': {
      const { repoName, guestPath, mode, headCommit } = event.workspace;
      return { repoName, guestPath, mode, headCommit };
    }
    case 'deleted':
      return event.process === null ? {} : compact({ ...event.process });
    case 'paused':
    case 'resumed':
      return {};
  }
}

function compact(facts: JsonObject): JsonObject {
  return Object.fromEntries(Object.entries(facts).filter(([, value]) => value !== undefined));
}

function insert(
  tx: Tx,
  type: string,
  atMs: number,
  projectId: string | null,
  sandboxId: string | null,
  sandboxName: string | null,
  detail: JsonObject,
): number {
  const { lastRowId: cursor } = tx.db.run(
    'INSERT INTO events (at_ms, type, project_id, sandbox_id, sandbox_name, op_id, actor, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
    atMs,
    type,
    projectId,
    sandboxId,
    sandboxName,
    tx.stamp.opId,
    tx.stamp.actor,
    toJson(detail, DETAIL_BYTES_MAX, `the detail of event ${type}`),
  );
  tx.news = { lastEventCursor: cursor, lastLedgerSequence: tx.news?.lastLedgerSequence ?? 0 };
  return cursor;
}

function conditions(args: { readonly projectId?: string; readonly sandboxId?: string; readonly opId?: string }): {
  where: string;
  parameters: string[];
} {
  const wanted = (
    [
      ['project_id', args.projectId],
      ['sandbox_id', args.sandboxId],
      ['op_id', args.opId],
    ] as const
  ).filter((pair): pair is [(typeof pair)[0], string] => pair[1] !== undefined);
  return { where: wanted.map(([column]) => `AND ${column} = ?`).join(' '), parameters: wanted.map(([, value]) => value) };
}
