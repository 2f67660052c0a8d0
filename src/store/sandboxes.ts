// The table of sandboxes: one row each, tombstones included. `applyEvent` is the one place where a
// sandbox changes: its row, its ledger entries and its event commit together or not at all.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import type { ProjectId, SandboxId } from '../domain/ids.ts';
import { ledgerEntries } from '../domain/ledger.ts';
import {
  BACKENDS,
  END_CAUSES,
  IDLE_ACTIONS,
  type IllegalTransition,
  illegalSentence,
  NETWORK_MODES,
  newSandbox,
  RESTART_POLICIES,
  type Sandbox,
  type SandboxCreation,
  type SandboxEvent,
  transition,
  withPending,
} from '../domain/sandbox.ts';
import { idColumn, jsonColumn, opIdColumn, timeColumn, toJson } from './columns.ts';
import { type ChangeMap, PAGE_ROWS_MAX, type QueryMap, type SandboxFilter } from './contract.ts';
import type { Db, Row } from './db.ts';
import { appendEvent, factsOf } from './events.ts';
import { appendLedger } from './ledger.ts';
import { forgetLineage, standOn } from './lineage.ts';
import { requireName } from './names.ts';
import { roomForChange, roomForSandbox } from './quotas.ts';
import type { Tx } from './tx.ts';
import { forgetVolumes, mountVolumes } from './volumes.ts';

/** A spec has argv and env: as large as the API's bounds let them be. */
export const SPEC_BYTES_MAX = 134_217_728;

/** A page ends early beyond this: a spec may have megabytes of environment. */
const PAGE_SPEC_CHARS_MAX = 4_194_304;

const shape = z.object({ cpus: z.number(), memoryMiB: z.number(), diskMiB: z.number(), pids: z.number().exactOptional() });

const workspace = z.object({
  sourcePath: z.string(),
  repoRoot: z.string(),
  repoName: z.string(),
  guestPath: z.string(),
  mode: z.enum(['shallow_overlay', 'full_copy', 'metadata_only']),
  includesUntracked: z.boolean(),
  headCommit: z.string().nullable(),
  branch: z.string().nullable(),
  baseCommit: z.string(),
  preparedAtMs: timeColumn,
});

// Keys that are added later need a `.default()`: old rows have not got them.
export const specSchema = z.object({
  name: z.string(),
  backend: z.enum(BACKENDS),
  imageId: idColumn('img'),
  kernelId: idColumn('krn').nullable(),
  shape,
  network: z.enum(NETWORK_MODES),
  env: z.record(z.string(), z.string()),
  secretNames: z.array(z.string()),
  labels: z.record(z.string(), z.string()),
  workdir: z.string().nullable(),
  user: z.string().nullable(),
  main: z.object({ argv: z.array(z.string()), tty: z.boolean(), stdin: z.enum(['open', 'null']) }).nullable(),
  autoRemove: z.boolean(),
  timeoutMs: z.number().nullable(),
  mounts: z
    .array(z.object({ source: z.string(), volumeId: idColumn('vol').exactOptional(), target: z.string(), readOnly: z.boolean() }))
    .exactOptional(),
  devices: z.array(z.string()).exactOptional(),
  fileSync: z.array(z.object({ host: z.string(), guest: z.string(), mode: z.number().nullable() })).exactOptional(),
  workspace: workspace.exactOptional(),
  restart: z.enum(RESTART_POLICIES).exactOptional(),
  idleMs: z.number().exactOptional(),
  idleAction: z.enum(IDLE_ACTIONS).exactOptional(),
  undo: z.number().exactOptional(),
  held: z.literal(true).exactOptional(),
  pending: z
    .object({
      cpus: z.number().exactOptional(),
      memoryMiB: z.number().exactOptional(),
      diskMiB: z.number().exactOptional(),
      pids: z.number().exactOptional(),
      network: z.enum(NETWORK_MODES).exactOptional(),
    })
    .exactOptional(),
});

const ended = z.object({
  cause: z.enum(END_CAUSES),
  exitCode: z.number().nullable(),
  oomKilled: z.boolean(),
  actor: z.string(),
  atMs: timeColumn,
});

const awake = { sinceMs: timeColumn, deadlineAtMs: timeColumn.nullable() };

const status = z.discriminatedUnion('state', [
  z.object({ state: z.literal('created') }),
  z.object({ state: z.literal('running'), ...awake }),
  z.object({ state: z.literal('paused'), ...awake }),
  z.object({ state: z.literal('suspended'), snapshotId: idColumn('snp'), sinceMs: timeColumn }),
  z.object({ state: z.literal('stopped'), ended }),
  z.object({ state: z.literal('error'), cause: z.string(), ended: ended.nullable(), snapshotId: idColumn('snp').nullable() }),
  z.object({ state: z.literal('deleted'), deletedAtMs: timeColumn }),
]);

const row = z.object({
  id: idColumn('sbx'),
  project_id: idColumn('prj'),
  spec: jsonColumn(specSchema),
  status: jsonColumn(status),
  created_at_ms: timeColumn,
  changed_at_ms: timeColumn,
  generation: z.int(),
  start_count: z.int(),
  open_compute_since_ms: timeColumn.nullable(),
  open_pause_since_ms: timeColumn.nullable(),
  alive_at_ms: timeColumn.nullable(),
  last_op_id: opIdColumn,
});

function fromRow(raw: Row): Sandbox {
  const parsed = row.parse(raw);
  return {
    id: parsed.id,
    projectId: parsed.project_id,
    spec: parsed.spec,
    createdAtMs: parsed.created_at_ms,
    changedAtMs: parsed.changed_at_ms,
    generation: parsed.generation,
    startCount: parsed.start_count,
    openComputeSinceMs: parsed.open_compute_since_ms,
    openPauseSinceMs: parsed.open_pause_since_ms,
    aliveAtMs: parsed.alive_at_ms,
    lastOpId: parsed.last_op_id,
    ...parsed.status,
  };
}

export function createSandbox(tx: Tx, args: ChangeMap['createSandbox']['args']): Sandbox {
  const { id, projectId, spec: wanted, atMs, source } = args;
  claimName(tx.db, projectId, wanted.name, null);
  roomForSandbox(tx, projectId, wanted.shape);
  const creation: SandboxCreation = { type: 'created', atMs, opId: tx.stamp.opId, ...(source === undefined ? {} : { source }) };
  const sandbox = newSandbox({ id, projectId, spec: wanted, atMs, opId: tx.stamp.opId });
  tx.db.run(
    `INSERT INTO sandboxes (id, project_id, name, state, image_id, kernel_id, spec, status, created_at_ms, changed_at_ms, generation,
       start_count, open_compute_since_ms, open_pause_since_ms, alive_at_ms, last_op_id)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    id,
    projectId,
    wanted.name,
    sandbox.state,
    wanted.imageId,
    wanted.kernelId,
    toJson(wanted, SPEC_BYTES_MAX, 'what was asked of the sandbox'),
    statusOf(sandbox),
    atMs,
    atMs,
    sandbox.generation,
    sandbox.startCount,
    null,
    null,
    null,
    sandbox.lastOpId,
  );
  standOn(tx, id, source);
  mountVolumes(tx, id, wanted.mounts ?? []);
  appendLedger(tx, ledgerEntries(null, sandbox, creation));
  appendEvent(tx, { type: 'sandbox.created', atMs, sandbox, detail: factsOf(creation) });
  return sandbox;
}

/** The refusal is a value here; `applyChange` below makes it an error, which undoes the whole commit. */
export function applyEvent(
  tx: Tx,
  id: SandboxId,
  event: SandboxEvent,
  detail: Readonly<Record<string, unknown>> = {},
): Sandbox | IllegalTransition {
  const before = existing(tx.db, id);
  const after = transition(before, event);
  if ('illegal' in after) return after;
  if (event.type === 'changed' && (event.change.shape !== undefined || event.change.pending !== undefined))
    roomForChange(tx, before.projectId, before.spec.shape, withPending(after.spec).shape);
  if (event.type === 'renamed') claimName(tx.db, before.projectId, event.name, id);
  writeSandbox(tx.db, after, before);
  if (event.type === 'started' && event.reason === 'restore') {
    roomForChange(tx, before.projectId, before.spec.shape, after.spec.shape);
    standOn(tx, id, event.source);
  }
  if (event.type === 'deleted') {
    forgetLineage(tx, id);
    forgetVolumes(tx, id);
  }
  appendLedger(tx, ledgerEntries(before, after, event));
  appendEvent(tx, {
    type: `sandbox.${event.type}`,
    atMs: after.changedAtMs,
    sandbox: after,
    detail: { ...factsOf(event, before), ...detail },
  });
  return after;
}

export function applyChange(tx: Tx, args: ChangeMap['applyEvent']['args']): Sandbox {
  const before = existing(tx.db, args.sandboxId);
  if (args.expectGeneration !== undefined && args.expectGeneration !== before.generation) {
    throw new HutchError({
      code: 'failed_precondition',
      message: `sandbox ${before.spec.name} (${before.id}) was changed meanwhile: it is ${before.state}`,
      hint: 'look at it again, then decide',
    });
  }
  const after = applyEvent(tx, args.sandboxId, args.event, args.detail);
  if ('illegal' in after) throw new HutchError({ code: 'failed_precondition', message: illegalSentence(before, after) });
  return after;
}

export function readSandbox(db: Db, id: SandboxId): Sandbox | null {
  const found = db.get('SELECT * FROM sandboxes WHERE id = ?', id);
  return found === undefined ? null : fromRow(found);
}

export function listSandboxes(db: Db, args: QueryMap['sandboxes']['args']): QueryMap['sandboxes']['result'] {
  const limit = Math.min(args.limit ?? PAGE_ROWS_MAX, PAGE_ROWS_MAX);
  const { where, parameters } = conditions(args);
  const after = cursorPosition(args.cursor ?? null);
  const rows = db.iterate(
    `SELECT * FROM sandboxes WHERE ${where} ${after === null ? '' : 'AND (created_at_ms, id) < (?, ?)'} ORDER BY created_at_ms DESC, id DESC`,
    ...parameters,
    ...(after === null ? [] : [after.createdAtMs, after.id]),
  );
  const sandboxes: Sandbox[] = [];
  let chars = 0;
  for (const found of rows) {
    const last = sandboxes.at(-1);
    if (last !== undefined && (sandboxes.length === limit || chars > PAGE_SPEC_CHARS_MAX)) {
      return { sandboxes, nextCursor: `${last.createdAtMs}.${last.id}` };
    }
    sandboxes.push(fromRow(found));
    chars += String(found['spec']).length;
  }
  return { sandboxes, nextCursor: null };
}

export function countSandboxes(db: Db, filter: SandboxFilter): number {
  const { where, parameters } = conditions(filter);
  return db.number(`SELECT count(*) FROM sandboxes WHERE ${where}`, ...parameters);
}

/** A superset of what the text may refer to, few enough to list: the rules are `resolveReference`'s. */
export function sandboxCandidates(db: Db, projectId: ProjectId, text: string): readonly Sandbox[] {
  const exact = db.all('SELECT * FROM sandboxes WHERE id = ? AND project_id = ?', text, projectId);
  if (exact.length > 0) return exact.map(fromRow);
  const rows = db.all(
    `SELECT * FROM sandboxes INDEXED BY sandboxes_live
     WHERE state <> 'deleted' AND project_id = ?1
       AND (name = ?2 OR substr(id, 1, ?3) = ?2 OR substr(id, 4, ?3) = ?2 OR substr(name, 1, ?3) = ?2)
     ORDER BY (name = ?2) DESC, created_at_ms DESC LIMIT ?4`,
    projectId,
    text,
    text.length,
    CANDIDATES_MAX,
  );
  return rows.map(fromRow);
}

const CANDIDATES_MAX = 20;

/** The deleted sandbox that had this name last, or whose id begins so as lists shorten it; null: none is remembered. */
export function lastDeleted(db: Db, projectId: ProjectId, text: string): Sandbox | null {
  const found = db.get(
    `SELECT * FROM sandboxes INDEXED BY sandboxes_tombstones
     WHERE state = 'deleted' AND project_id = ?1 AND (name = ?2 OR (?3 >= ?4 AND substr(id, 1, ?3) = ?2))
     ORDER BY (name = ?2) DESC, changed_at_ms DESC LIMIT 1`,
    projectId,
    text,
    text.length,
    ID_CHARS_SHOWN,
  );
  return found === undefined ? null : fromRow(found);
}

/** Of an id, in a list. */
const ID_CHARS_SHOWN = 12;

export function openSandboxes(db: Db): readonly Sandbox[] {
  return db.all('SELECT * FROM sandboxes WHERE open_compute_since_ms IS NOT NULL ORDER BY open_compute_since_ms, id').map(fromRow);
}

export function liveSandboxIds(db: Db): readonly SandboxId[] {
  return db.all("SELECT id FROM sandboxes WHERE state <> 'deleted'").map((found) => idColumn('sbx').parse(found['id']));
}

/** Throws unless nobody else has the name or has reserved it. */
export function claimName(db: Db, projectId: ProjectId, name: string, self: SandboxId | null): void {
  requireName(name);
  const holder = db.get(
    "SELECT id FROM sandboxes WHERE project_id = ? AND name = ? AND state <> 'deleted' AND id IS NOT ?",
    projectId,
    name,
    self,
  )?.['id'];
  if (holder !== undefined) {
    throw new HutchError({
      code: 'conflict',
      message: `the name ${name} is taken by sandbox ${holder}`,
      hint: `choose another, or remove it: hutch rm ${name}`,
    });
  }
  const reserved = db.get('SELECT op_id FROM intents WHERE project_id = ? AND reserved_name = ?', projectId, name)?.['op_id'];
  if (reserved !== undefined) {
    throw new HutchError({
      code: 'conflict',
      message: `the name ${name} is being taken by ${reserved}, which is under way`,
      hint: 'choose another',
    });
  }
}

function existing(db: Db, id: SandboxId): Sandbox {
  const sandbox = readSandbox(db, id);
  if (sandbox === null) throw new HutchError({ code: 'not_found', message: `there is no sandbox ${id}` });
  return sandbox;
}

function writeSandbox(db: Db, after: Sandbox, before: Sandbox): void {
  // Most changes leave the spec alone, and it may be large.
  if (after.spec !== before.spec) {
    db.run(
      'UPDATE sandboxes SET name = ?, spec = ? WHERE id = ?',
      after.spec.name,
      toJson(after.spec, SPEC_BYTES_MAX, 'what was asked of the sandbox'),
      after.id,
    );
  }
  db.run(
    `UPDATE sandboxes SET state = ?, status = ?, changed_at_ms = ?, generation = ?, start_count = ?, open_compute_since_ms = ?,
       open_pause_since_ms = ?, alive_at_ms = ?, last_op_id = ? WHERE id = ?`,
    after.state,
    statusOf(after),
    after.changedAtMs,
    after.generation,
    after.startCount,
    after.openComputeSinceMs,
    after.openPauseSinceMs,
    after.aliveAtMs,
    after.lastOpId,
    after.id,
  );
}

/** What only this state has; the schema drops the rest. */
function statusOf(sandbox: Sandbox): string {
  return JSON.stringify(status.parse(sandbox));
}

function conditions(filter: SandboxFilter): { where: string; parameters: (string | number)[] } {
  const where: string[] = [];
  const parameters: (string | number)[] = [];
  if (filter.projectId !== undefined) {
    where.push('project_id = ?');
    parameters.push(filter.projectId);
  }
  // Said also where `states` implies it: then the index without tombstones is used.
  if (filter.states?.includes('deleted') !== true) where.push("state <> 'deleted'");
  if (filter.states !== undefined) {
    where.push('state IN (SELECT value FROM json_each(?))');
    parameters.push(JSON.stringify(filter.states));
  }
  for (const label of filter.labels ?? []) {
    where.push(
      `EXISTS (SELECT 1 FROM json_each(spec, '$.labels') AS label WHERE label.key = ?${label.value === null ? '' : ' AND label.value = ?'})`,
    );
    parameters.push(label.key, ...(label.value === null ? [] : [label.value]));
  }
  return { where: where.join(' AND '), parameters };
}

function cursorPosition(cursor: string | null): { createdAtMs: number; id: string } | null {
  if (cursor === null) return null;
  const match = /^(\d{1,16})\.(sbx[0-9a-z]{17})$/.exec(cursor);
  if (match?.[1] === undefined || match[2] === undefined) {
    throw new HutchError({
      code: 'invalid_argument',
      message: 'cursor: not one that an earlier page gave',
      hint: 'leave it out to begin with the first page',
    });
  }
  return { createdAtMs: Number(match[1]), id: match[2] };
}
