// The ledger: append-only, in sequence without gaps, each entry's hash over the one before. Appended to
// only inside the transaction of the change that it records.
import { createHash } from 'node:crypto';
import * as z from 'zod';
import { LEDGER_KINDS, LEDGER_REASONS, type LedgerDraft, type LedgerEntry } from '../domain/ledger.ts';
import { BACKENDS } from '../domain/sandbox.ts';
import { idColumn, jsonColumn, opIdColumn, timeColumn } from './columns.ts';
import { type LedgerCheck, type LedgerPosition, PAGE_ROWS_MAX, type QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import { meta, setMeta } from './open.ts';
import type { Tx } from './tx.ts';

/** What stands before the first entry. */
export const GENESIS: LedgerPosition = { sequence: 0, hash: '0'.repeat(64) };
/** The last entry once more, apart from the table: entries cut off the end are missed by nothing else. */
const HEAD = 'ledger-head';

const row = z.object({
  sequence: z.int(),
  id: z.string(),
  kind: z.enum(LEDGER_KINDS),
  reason: z.enum(LEDGER_REASONS).nullable(),
  at_ms: timeColumn,
  project_id: idColumn('prj'),
  sandbox_id: idColumn('sbx').nullable(),
  snapshot_id: idColumn('snp').nullable(),
  source_snapshot_id: idColumn('snp').nullable(),
  parent_id: idColumn('sbx').nullable(),
  backend: z.enum(BACKENDS).nullable(),
  shape: jsonColumn(
    z.strictObject({ cpus: z.number().optional(), memoryBytes: z.number().optional(), storageBytes: z.number().optional() }),
  ) as z.ZodType<LedgerEntry['shape']>,
  op_id: opIdColumn,
  evidence: z.string().nullable(),
  emitted_at_ms: timeColumn,
  monotonic_ms: z.number(),
  boot_id: z.string(),
  previous_hash: z.string(),
  hash: z.string(),
  volume_id: idColumn('vol').nullable(),
});

function fromRow(raw: Row): LedgerEntry {
  return entryOf(row.parse(raw));
}

function entryOf(parsed: z.output<typeof row>): LedgerEntry {
  return {
    sequence: parsed.sequence,
    id: parsed.id,
    kind: parsed.kind,
    reason: parsed.reason,
    atMs: parsed.at_ms,
    projectId: parsed.project_id,
    sandboxId: parsed.sandbox_id,
    snapshotId: parsed.snapshot_id,
    sourceSnapshotId: parsed.source_snapshot_id,
    parentId: parsed.parent_id,
    backend: parsed.backend,
    shape: parsed.shape,
    opId: parsed.op_id,
    evidence: parsed.evidence,
    emittedAtMs: parsed.emitted_at_ms,
    monotonicMs: parsed.monotonic_ms,
    bootId: parsed.boot_id,
    previousHash: parsed.previous_hash,
    hash: parsed.hash,
    ...(parsed.volume_id === null ? {} : { volumeId: parsed.volume_id }),
  };
}

export function appendLedger(tx: Tx, drafts: readonly LedgerDraft[]): void {
  if (drafts.length === 0) return;
  let head = ledgerHead(tx.db);
  for (const draft of drafts) {
    const { stamp } = tx;
    const unsealed: Unsealed = {
      ...draft,
      sequence: head.sequence + 1,
      id: ulid(stamp.nowMs, stamp.random, tx.entries),
      emittedAtMs: stamp.nowMs,
      monotonicMs: stamp.monotonicMs,
      bootId: stamp.bootId,
      previousHash: head.hash,
    };
    tx.entries += 1;
    head = { sequence: unsealed.sequence, hash: entryHash(unsealed) };
    insert(tx.db, { ...unsealed, hash: head.hash });
  }
  setMeta(tx.db, HEAD, `${head.sequence} ${head.hash}`);
  tx.news = { lastEventCursor: tx.news?.lastEventCursor ?? 0, lastLedgerSequence: head.sequence };
}

export function ledgerHead(db: Db): LedgerPosition {
  const found = db.get('SELECT sequence, hash FROM ledger ORDER BY sequence DESC LIMIT 1');
  return found === undefined ? GENESIS : z.object({ sequence: z.int(), hash: z.string() }).parse(found);
}

export function ledgerPage(db: Db, { after, limit = PAGE_ROWS_MAX, sandboxId }: QueryMap['ledger']['args']): readonly LedgerEntry[] {
  const rows = Math.min(limit, PAGE_ROWS_MAX);
  if (sandboxId === undefined) return db.all('SELECT * FROM ledger WHERE sequence > ? ORDER BY sequence LIMIT ?', after, rows).map(fromRow);
  return db
    .all('SELECT * FROM ledger WHERE sandbox_id = ? AND sequence > ? ORDER BY sequence LIMIT ?', sandboxId, after, rows)
    .map(fromRow);
}

/** Checks the entries after `from`, and at the end that none is missing there. */
export function checkLedger(db: Db, { from, limit = PAGE_ROWS_MAX }: QueryMap['checkLedger']['args']): LedgerCheck {
  const rows = db.all('SELECT * FROM ledger WHERE sequence > ? ORDER BY sequence LIMIT ?', from.sequence, Math.min(limit, PAGE_ROWS_MAX));
  let at = from;
  for (const raw of rows) {
    const problem = problemOf(raw, at);
    if (problem !== null) return { state: 'broken', at, sequence: at.sequence + 1, problem };
    at = { sequence: at.sequence + 1, hash: String(raw['hash']) };
  }
  if (rows.length > 0) return { state: 'more', at };
  const head = meta(db, HEAD) ?? `${GENESIS.sequence} ${GENESIS.hash}`;
  if (head === `${at.sequence} ${at.hash}`) return { state: 'whole', at };
  return { state: 'broken', at, sequence: at.sequence + 1, problem: `is missing: the last one recorded is ${head.split(' ')[0]}` };
}

/** Why a row does not follow `at`, or null. */
function problemOf(raw: Row, at: LedgerPosition): string | null {
  if (raw['sequence'] !== at.sequence + 1) return `is missing: the next one is ${raw['sequence']}`;
  const parsed = row.safeParse(raw);
  if (!parsed.success) return `cannot be read: ${parsed.error.issues[0]?.path.join('.') ?? ''}`;
  const entry = entryOf(parsed.data);
  if (entry.previousHash !== at.hash) return 'does not follow the one before: its previous hash is another';
  return entryHash(entry) === entry.hash ? null : 'was changed: its content does not have its hash';
}

type Unsealed = Omit<LedgerEntry, 'hash'>;

/**
 * SHA-256 over one line of JSON: an array of every field in this order. Written down in
 * docs/store.md, so that others can check a ledger without us. A field that is added later goes to
 * the end, and only into entries that have it.
 */
export function entryHash(entry: Unsealed): string {
  const { cpus = null, memoryBytes = null, storageBytes = null } = entry.shape;
  const line = JSON.stringify([
    'hutch-ledger-1',
    entry.previousHash,
    entry.sequence,
    entry.id,
    entry.kind,
    entry.reason,
    entry.atMs,
    entry.projectId,
    entry.sandboxId,
    entry.snapshotId,
    entry.sourceSnapshotId,
    entry.parentId,
    entry.backend,
    cpus,
    memoryBytes,
    storageBytes,
    entry.opId,
    entry.evidence,
    entry.emittedAtMs,
    entry.monotonicMs,
    entry.bootId,
    ...(entry.volumeId === undefined ? [] : [entry.volumeId]),
  ]);
  return createHash('sha256').update(line).digest('hex');
}

function insert(db: Db, entry: LedgerEntry): void {
  db.run(
    `INSERT INTO ledger (sequence, id, kind, reason, at_ms, project_id, sandbox_id, snapshot_id, source_snapshot_id, parent_id, backend, shape,
       op_id, evidence, emitted_at_ms, monotonic_ms, boot_id, previous_hash, hash, volume_id)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    entry.sequence,
    entry.id,
    entry.kind,
    entry.reason,
    entry.atMs,
    entry.projectId,
    entry.sandboxId,
    entry.snapshotId,
    entry.sourceSnapshotId,
    entry.parentId,
    entry.backend,
    JSON.stringify(entry.shape),
    entry.opId,
    entry.evidence,
    entry.emittedAtMs,
    entry.monotonicMs,
    entry.bootId,
    entry.previousHash,
    entry.hash,
    entry.volumeId ?? null,
  );
}

const CROCKFORD = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

/** 48 bits of time and 80 of randomness (github.com/ulid/spec). The n-th of a commit adds n, so that they sort. */
export function ulid(timeMs: number, random: Uint8Array, nth: number): string {
  let value = 0n;
  for (const byte of random.subarray(0, 10)) value = (value << 8n) | BigInt(byte);
  value = (BigInt(timeMs) << 80n) | BigInt.asUintN(80, value + BigInt(nth));
  let text = '';
  for (let character = 0; character < 26; character += 1) {
    text = CROCKFORD.charAt(Number(value & 31n)) + text;
    value >>= 5n;
  }
  return text;
}
