// The tables of snapshots and of which sandbox stands on which. Their lineage is a graph here: a parent cannot vanish under its
// child. A snapshot's row, what it holds, its entry in the ledger and its event commit together or not at all.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import type { Holding } from '../domain/holding.ts';
import type { SnapshotId } from '../domain/ids.ts';
import { type NewSnapshot, SNAPSHOT_CONTENTS, SNAPSHOT_KINDS, type Snapshot, snapshotEntry } from '../domain/snapshot.ts';
import { idColumn, jsonColumn, objectSchema, timeColumn, toJson } from './columns.ts';
import type { ChangeMap, QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import { addEvent } from './events.ts';
import { addHoldings, notBefore, recounted, releaseHoldings, uncountedBytes, writeRecounted } from './holdings.ts';
import { appendLedger } from './ledger.ts';
import { requireName } from './names.ts';
import { noRoomForSnapshot } from './quotas.ts';
import { SPEC_BYTES_MAX, specSchema } from './sandboxes.ts';
import type { Tx } from './tx.ts';

const row = z.object({
  id: idColumn('snp'),
  project_id: idColumn('prj'),
  name: z.string().nullable(),
  kind: z.enum(SNAPSHOT_KINDS),
  contents: z.enum(SNAPSHOT_CONTENTS),
  sandbox_id: idColumn('sbx').nullable(),
  parent_id: idColumn('snp').nullable(),
  spec: jsonColumn(specSchema),
  own_bytes: z.int(),
  apparent_bytes: z.int(),
  created_at_ms: timeColumn,
  detail: jsonColumn(objectSchema),
});

function fromRow(raw: Row): Snapshot {
  const parsed = row.parse(raw);
  return {
    id: parsed.id,
    projectId: parsed.project_id,
    name: parsed.name,
    kind: parsed.kind,
    contents: parsed.contents,
    sandboxId: parsed.sandbox_id,
    spec: parsed.spec,
    parentId: parsed.parent_id,
    ownBytes: parsed.own_bytes,
    apparentBytes: parsed.apparent_bytes,
    createdAtMs: parsed.created_at_ms,
    detail: parsed.detail,
  };
}

const DETAIL_BYTES_MAX = 65_536;

export function createSnapshot(tx: Tx, { snapshot: fresh, holdings, mayGo = [] }: ChangeMap['createSnapshot']['args']): Snapshot {
  const { db, stamp } = tx;
  makeRoom(tx, fresh, holdings, mayGo);
  const snapshot = { ...fresh, ownBytes: uncountedBytes(db, holdings) };
  if (snapshot.name !== null) claimSnapshotName(db, snapshot.projectId, snapshot.name);
  // What it was stored against may have been removed meanwhile: what is stored needs nothing of it.
  const parent = snapshot.parentId === null ? null : readSnapshot(db, snapshot.parentId);
  db.run(
    `INSERT INTO snapshots (id, project_id, name, kind, contents, sandbox_id, parent_id, image_id, kernel_id, spec, own_bytes,
       apparent_bytes, created_at_ms, own_since_ms, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    snapshot.id,
    snapshot.projectId,
    snapshot.name,
    snapshot.kind,
    snapshot.contents,
    snapshot.sandboxId,
    parent?.id ?? null,
    snapshot.spec.imageId,
    snapshot.spec.kernelId,
    toJson(snapshot.spec, SPEC_BYTES_MAX, 'what the sandbox of the snapshot was made as'),
    snapshot.ownBytes,
    snapshot.apparentBytes,
    snapshot.createdAtMs,
    snapshot.createdAtMs,
    toJson(snapshot.detail, DETAIL_BYTES_MAX, 'the detail of the snapshot'),
  );
  addHoldings(db, snapshot.id, 'as the newest', holdings);
  if (snapshot.sandboxId !== null) {
    db.run(
      'INSERT INTO sandbox_lineage (sandbox_id, head_id) VALUES (?, ?) ON CONFLICT (sandbox_id) DO UPDATE SET head_id = excluded.head_id',
      snapshot.sandboxId,
      snapshot.id,
    );
  }
  appendLedger(tx, [snapshotEntry(snapshot, 'created', snapshot.createdAtMs, stamp.opId)]);
  record(tx, 'snapshot.created', snapshot, snapshot.createdAtMs);
  return existing(db, snapshot.id);
}

/** Nothing stands on what is kept to undo. What is removed for it comes back where that is not enough: the commit fails as a whole. */
function makeRoom(tx: Tx, { projectId, createdAtMs }: NewSnapshot, holdings: readonly Holding[], mayGo: readonly SnapshotId[]): void {
  // What it has of one that goes is its own from then on.
  const refused = () => noRoomForSnapshot(tx, projectId, uncountedBytes(tx.db, holdings));
  let refusal = refused();
  for (const id of mayGo) {
    if (refusal === null) return;
    const going = readSnapshot(tx.db, id);
    if (going?.kind !== 'undo') continue;
    dropAll(tx, [going], createdAtMs);
    refusal = refused();
  }
  if (refusal !== null) throw refusal;
}

/** Names are the project's, apart from those of sandboxes. */
export function claimSnapshotName(db: Db, projectId: Snapshot['projectId'], name: string): void {
  requireName(name);
  const holder = db.get('SELECT id FROM snapshots WHERE project_id = ? AND name = ?', projectId, name)?.['id'];
  if (holder === undefined) return;
  throw new HutchError({
    code: 'conflict',
    message: `the name ${name} is taken by snapshot ${holder}`,
    hint: `choose another, or remove it: hutch snapshot rm ${name}`,
  });
}

/**
 * Out of the record, with all that stands on it where that is asked for. What was removed by another transaction is not in the
 * result, and not in the ledger.
 */
export function removeSnapshot(tx: Tx, { id, cascade, atMs }: ChangeMap['removeSnapshot']['args']): readonly Snapshot[] {
  const { db } = tx;
  const snapshot = readSnapshot(db, id);
  if (snapshot === null) return [];
  const gone = withAllOnIt(db, id);
  for (const each of gone) refuseTagged(db, each);
  if (!cascade) {
    const below = gone.length - 1;
    const withIt = below === 0 ? 'sandboxes stay' : `the ${below} that stand on it go with it, sandboxes stay`;
    const name = snapshot.name ?? id;
    refuseUsed(db, id, {
      what: `snapshot ${name}`,
      hint: `remove those first, or: hutch snapshot rm --cascade ${name} (${withIt})`,
    });
  }
  return dropAll(tx, gone, atMs);
}

/** One that no template is on any more, and no snapshot stands on. Sandboxes that were made from it stay. */
export function removeUntagged(tx: Tx, id: SnapshotId, atMs: number): readonly Snapshot[] {
  return dropAll(tx, [existing(tx.db, id)], atMs);
}

/** Deepest first. */
function withAllOnIt(db: Db, id: SnapshotId): readonly Snapshot[] {
  return db
    .all(
      `WITH RECURSIVE below (id, depth) AS (
         SELECT ?1, 0 UNION SELECT s.id, depth + 1 FROM snapshots s JOIN below b ON s.parent_id = b.id
       ) SELECT s.* FROM snapshots s JOIN below b ON b.id = s.id ORDER BY b.depth DESC, s.id`,
      id,
    )
    .map(fromRow);
}

function dropAll(tx: Tx, gone: readonly Snapshot[], wantedMs: number): readonly Snapshot[] {
  const { db, stamp } = tx;
  const heirs = new Set(gone.flatMap(({ id }) => [...releaseHoldings(db, id)]));
  for (const { id } of gone) heirs.delete(id);
  const changed = recounted(
    db,
    [...heirs].map((id) => existing(db, id)),
  );
  const atMs = notBefore(db, [...gone, ...changed.map(({ before }) => before)], wantedMs);
  for (const snapshot of gone) {
    db.run('UPDATE sandbox_lineage SET head_id = ? WHERE head_id = ?', snapshot.parentId, snapshot.id);
    db.run('UPDATE sandbox_lineage SET made_from_id = NULL WHERE made_from_id = ?', snapshot.id);
    db.run('DELETE FROM snapshots WHERE id = ?', snapshot.id);
    record(tx, 'snapshot.removed', snapshot, atMs);
  }
  const removals = gone.map((snapshot) => snapshotEntry(snapshot, 'removed', atMs, stamp.opId));
  appendLedger(tx, [...removals, ...writeRecounted(tx, changed, atMs)]);
  return gone;
}

/** Of all of them at once: what they held before says nothing of what they hold now. Who is not on record any more is left out. */
export function settleHoldings(tx: Tx, { of, atMs: wantedMs }: ChangeMap['settleHoldings']['args']): null {
  const { db } = tx;
  const found = of.flatMap(({ id, holdings }) => {
    const snapshot = readSnapshot(db, id);
    return snapshot === null ? [] : [{ snapshot, holdings }];
  });
  const touched = new Set<SnapshotId>(found.map(({ snapshot }) => snapshot.id));
  for (const { snapshot } of found) for (const heir of releaseHoldings(db, snapshot.id)) touched.add(heir);
  for (const { snapshot, holdings } of found) for (const other of addHoldings(db, snapshot.id, 'by its age', holdings)) touched.add(other);
  const changed = recounted(
    db,
    [...touched].map((id) => existing(db, id)),
  );
  const atMs = notBefore(
    db,
    changed.map(({ before }) => before),
    wantedMs,
  );
  appendLedger(tx, writeRecounted(tx, changed, atMs));
  return null;
}

/** What a template starts from goes with that template only. */
function refuseTagged(db: Db, { id, name }: Snapshot): void {
  const template = db.get('SELECT name FROM templates WHERE snapshot_id = ?', id)?.['name'];
  if (template === undefined) return;
  throw new HutchError({
    code: 'failed_precondition',
    message: `snapshot ${name ?? id} is what sandboxes of template ${template} start from`,
    hint: `remove that: hutch template rm ${template}`,
  });
}

/** @throws HutchError `failed_precondition`, naming what was made from it. */
export function refuseUsed(db: Db, id: SnapshotId, { what, hint }: { readonly what: string; readonly hint: string }): void {
  const children = db.all('SELECT id, name FROM snapshots WHERE parent_id = ? ORDER BY created_at_ms LIMIT ?', id, SHOWN_MAX + 1);
  const users = db.all(`${USERS} AND l.made_from_id = ? ORDER BY s.name LIMIT ?`, id, SHOWN_MAX + 1);
  if (children.length + users.length === 0) return;
  const names = (rows: readonly Row[]): string =>
    `${rows
      .slice(0, SHOWN_MAX)
      .map((each) => String(each['name'] ?? each['id']))
      .join(', ')}${rows.length > SHOWN_MAX ? ' and more' : ''}`;
  const uses = [
    ...(children.length === 0 ? [] : [`${children.length === 1 ? 'snapshot' : 'snapshots'} ${names(children)}`]),
    ...(users.length === 0 ? [] : [`${users.length === 1 ? 'sandbox' : 'sandboxes'} ${names(users)}`]),
  ];
  throw new HutchError({ code: 'failed_precondition', message: `${what} is used by ${uses.join(' and by ')}`, hint });
}

const SHOWN_MAX = 10;
const USERS = `SELECT s.name, l.made_from_id FROM sandbox_lineage l JOIN sandboxes s ON s.id = l.sandbox_id WHERE s.state <> 'deleted'`;

export function readSnapshot(db: Db, id: SnapshotId): Snapshot | null {
  const found = db.get('SELECT * FROM snapshots WHERE id = ?', id);
  return found === undefined ? null : fromRow(found);
}

export function listSnapshots(db: Db, { projectId, sandboxId, kind }: QueryMap['snapshots']['args']): readonly Snapshot[] {
  return db
    .all(
      `SELECT * FROM snapshots WHERE (?1 IS NULL OR project_id = ?1) AND (?2 IS NULL OR sandbox_id = ?2) AND (?3 IS NULL OR kind = ?3)
       ORDER BY created_at_ms DESC, id`,
      projectId ?? null,
      sandboxId ?? null,
      kind ?? null,
    )
    .map(fromRow);
}

export function snapshotUsers(db: Db): QueryMap['snapshotUsers']['result'] {
  return db.all(`${USERS} AND l.made_from_id IS NOT NULL ORDER BY s.name`).map((found) => ({
    id: idColumn('snp').parse(found['made_from_id']),
    sandbox: String(found['name']),
  }));
}

/** On which one a sandbox stands: the last that was taken of it, or that it went on with. */
export function readHead(db: Db, { sandboxId }: QueryMap['snapshotHead']['args']): Snapshot | null {
  const found = db.get('SELECT s.* FROM sandbox_lineage l JOIN snapshots s ON s.id = l.head_id WHERE l.sandbox_id = ?', sandboxId);
  return found === undefined ? null : fromRow(found);
}

function existing(db: Db, id: SnapshotId): Snapshot {
  const found = readSnapshot(db, id);
  if (found === null) throw new HutchError({ code: 'not_found', message: `there is no snapshot ${id}` });
  return found;
}

function record(tx: Tx, type: string, { id, name, kind, projectId, sandboxId, ownBytes }: Snapshot, atMs: number): void {
  const detail = { snapshotId: id, ...(name === null ? {} : { name }), kind, ownBytes };
  addEvent(tx, { type, atMs, projectId, ...(sandboxId === null ? {} : { sandboxId }), detail });
}
