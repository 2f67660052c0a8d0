// The tables of tiers and of projects' quotas. Use is not kept: it is counted, in the transaction that adds to it, from the
// sandboxes that are there, those that are being made, volumes, snapshots, and the images that a project brought. So two at once cannot both
// have the last of something, and nothing can go out of step.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import type { ImageId, ProjectId } from '../domain/ids.ts';
import type { Image } from '../domain/image.ts';
import { type Bounds, effective, type ProjectQuota, passed, QUOTA_NAMES, QUOTAS, type Tier, type Use } from '../domain/quota.ts';
import type { Shape } from '../domain/sandbox.ts';
import { DETAIL_BYTES_MAX, idColumn, jsonColumn, toJson } from './columns.ts';
import type { ChangeMap, QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import type { Tx } from './tx.ts';

const MIB = 2 ** 20;
const DAY_MS = 24 * 60 * 60 * 1_000;

const boundsSchema = z.object(Object.fromEntries(QUOTA_NAMES.map((name) => [name, z.number().nullable().optional()])));
const tierRow = z.object({ name: z.string(), bounds: jsonColumn(boundsSchema) });
const projectRow = z.object({
  id: idColumn('prj'),
  name: z.string(),
  tier: z.string().nullable(),
  own: z.string().nullable(),
  tier_bounds: z.string().nullable(),
});

const PROJECTS = `SELECT p.id, p.name, q.tier, q.bounds AS own, t.bounds AS tier_bounds
  FROM projects p LEFT JOIN project_quotas q ON q.project_id = p.id LEFT JOIN quota_tiers t ON t.name = q.tier`;

export function listTiers(db: Db): readonly Tier[] {
  return db.all('SELECT name, bounds FROM quota_tiers ORDER BY rowid').map((row) => tierRow.parse(row) as Tier);
}

export function setTier(tx: Tx, { name, bounds }: ChangeMap['setTier']['args']): null {
  tx.db.run(
    'INSERT INTO quota_tiers (name, bounds) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET bounds = excluded.bounds',
    name,
    toJson(bounds, DETAIL_BYTES_MAX, 'the bounds'),
  );
  return null;
}

export function removeTier(tx: Tx, { name }: ChangeMap['removeTier']['args']): null {
  const users = tx.db.all('SELECT p.name FROM project_quotas q JOIN projects p ON p.id = q.project_id WHERE q.tier = ? LIMIT 10', name);
  if (users.length > 0) {
    const names = users.map((row) => String(row['name'])).join(', ');
    throw new HutchError({
      code: 'failed_precondition',
      message: `tier ${name} is that of ${names}`,
      hint: 'give them another first: hutch quotas set PROJECT --tier TIER',
    });
  }
  if (tx.db.run('DELETE FROM quota_tiers WHERE name = ?', name).changes === 0) throw noTier(name);
  return null;
}

export function setQuota(tx: Tx, { projectId, tier, own }: ChangeMap['setQuota']['args']): null {
  if (tier !== null && tx.db.get('SELECT name FROM quota_tiers WHERE name = ?', tier) === undefined) throw noTier(tier);
  tx.db.run(
    'INSERT INTO project_quotas (project_id, tier, bounds) VALUES (?, ?, ?) ON CONFLICT (project_id) DO UPDATE SET tier = excluded.tier, bounds = excluded.bounds',
    projectId,
    tier,
    toJson(own, DETAIL_BYTES_MAX, 'the bounds'),
  );
  return null;
}

function noTier(name: string): HutchError {
  return new HutchError({ code: 'not_found', message: `there is no tier ${name}`, hint: 'see: hutch quotas tiers' });
}

export function listQuotas(db: Db, { atMs }: { readonly atMs: number }): readonly ProjectQuota[] {
  return db.all(`${PROJECTS} ORDER BY p.created_at_ms, p.id`).map((row) => quotaOf(db, row, atMs));
}

export function boundsOf(db: Db, { projectId }: { readonly projectId: ProjectId }): ProjectQuota['bounds'] {
  const row = db.get(`${PROJECTS} WHERE p.id = ?`, projectId);
  if (row === undefined) return effective({}, null);
  const { own, tier_bounds } = projectRow.parse(row);
  return effective(parsed(own) ?? {}, parsed(tier_bounds));
}

function quotaOf(db: Db, row: Row, atMs: number): ProjectQuota {
  const { id, name, tier, own, tier_bounds } = projectRow.parse(row);
  const ownBounds = parsed(own) ?? {};
  return {
    projectId: id,
    project: name,
    tier,
    own: ownBounds,
    bounds: effective(ownBounds, parsed(tier_bounds)),
    use: useOf(db, id, atMs - DAY_MS),
  };
}

function parsed(text: string | null): Bounds | null {
  return text === null ? null : (jsonColumn(boundsSchema).parse(text) as Bounds);
}

function useOf(db: Db, projectId: ProjectId, sinceMs: number): Use {
  const sums = (from: string) =>
    z.object({ sandboxes: z.number(), cpus: z.number(), memory: z.number(), disk: z.number() }).parse(
      db.get(
        `SELECT count(*) AS sandboxes, coalesce(sum(shape ->> 'cpus'), 0) AS cpus, coalesce(sum(shape ->> 'memoryMiB'), 0) AS memory,
             coalesce(sum(shape ->> 'diskMiB'), 0) AS disk FROM (${from})`,
        projectId,
      ),
    );
  const there = sums("SELECT spec -> 'shape' AS shape FROM sandboxes WHERE project_id = ? AND state <> 'deleted'");
  // One that is being made, until it is a sandbox: both are never there at once.
  const coming = sums(
    "SELECT detail -> 'shape' AS shape FROM intents WHERE project_id = ? AND kind = 'create' AND detail -> 'shape' IS NOT NULL",
  );
  const volumes = db.get('SELECT coalesce(sum(size_mib), 0) AS mib FROM volumes WHERE project_id = ?', projectId);
  const builds = z
    .object({ open: z.number(), day: z.number() })
    .parse(
      db.get(
        'SELECT count(*) FILTER (WHERE ended_at_ms IS NULL) AS open, count(*) FILTER (WHERE begun_at_ms > ?) AS day FROM builds WHERE project_id = ?',
        sinceMs,
        projectId,
      ),
    );
  const image = db.get(
    `SELECT coalesce(sum(i.body ->> 'sizeBytes'), 0) AS bytes FROM image_owners o JOIN images i ON i.id = o.image_id WHERE o.project_id = ?`,
    projectId,
  );
  const snapshots = db.get('SELECT coalesce(sum(own_bytes), 0) AS bytes FROM snapshots WHERE project_id = ?', projectId);
  return {
    sandboxes: there.sandboxes + coming.sandboxes,
    cpus: there.cpus + coming.cpus,
    memoryMiB: there.memory + coming.memory,
    diskMiB: there.disk + coming.disk + Number(volumes?.['mib'] ?? 0),
    imageMiB: Math.ceil(Number(image?.['bytes'] ?? 0) / MIB),
    snapshotMiB: Math.ceil(Number(snapshots?.['bytes'] ?? 0) / MIB),
    builds: builds.open,
    buildsPerDay: builds.day,
    buildMinutes: 0, // of each alone
  };
}

/** @throws HutchError `resource_exhausted`, with the quota, its bound and what is used. */
function requireRoom({ db, stamp }: Tx, projectId: ProjectId, wanted: Partial<Use>): void {
  const refusal = refusalOf(db, stamp.nowMs, projectId, wanted);
  if (refusal !== null) throw refusal;
}

/** Null: there is room. */
function refusalOf(db: Db, atMs: number, projectId: ProjectId, wanted: Partial<Use>): HutchError | null {
  const isBounded = db.get('SELECT 1 FROM project_quotas WHERE project_id = ?', projectId) !== undefined;
  if (!isBounded) return null; // the usual case, which must cost nothing
  const row = db.get(`${PROJECTS} WHERE p.id = ?`, projectId);
  if (row === undefined) return null;
  const { project, tier, bounds, use } = quotaOf(db, row, atMs);
  const name = passed(bounds, use, wanted);
  if (name === null) return null;
  const unit = QUOTAS[name].unit === '' ? '' : ` ${QUOTAS[name].unit}`;
  const whose = tier === null ? '' : ` (tier ${tier})`;
  return new HutchError({
    code: 'resource_exhausted',
    message: `the quota ${name} of project ${project}${whose} is ${bounds[name]}${unit}: ${use[name]} are in use, and ${wanted[name]} more are wanted`,
    hint: `${HINTS[name] ?? 'ask for less, or remove what is not needed'}; what is used shows: hutch quotas ls`,
  });
}

const HINTS: Partial<Record<keyof Use, string>> = {
  snapshotMiB: 'remove some (hutch snapshot ls --all, then hutch snapshot rm), or keep none to undo (hutch set --no-undo SANDBOX)',
  builds: 'wait until one of them has ended, or end one: hutch image builds',
  buildsPerDay: 'each counts for 24 hours',
};

export function roomForSandbox(tx: Tx, projectId: ProjectId, { cpus, memoryMiB, diskMiB }: Shape): void {
  requireRoom(tx, projectId, { sandboxes: 1, cpus, memoryMiB, diskMiB });
}

/** Of a volume: as large as it may become, whatever is written to it. */
export function roomForVolume(tx: Tx, projectId: ProjectId, diskMiB: number): void {
  requireRoom(tx, projectId, { diskMiB });
}

/** What is stored for a snapshot alone; null: there is room. */
export function noRoomForSnapshot({ db, stamp }: Tx, projectId: ProjectId, ownBytes: number): HutchError | null {
  return refusalOf(db, stamp.nowMs, projectId, { snapshotMiB: Math.ceil(ownBytes / MIB) });
}

/** Before anything of it is written. @throws HutchError `resource_exhausted`. */
export function requireSnapshotRoom(db: Db, { projectId, bytes, atMs }: QueryMap['snapshotRoom']['args']): null {
  const refusal = refusalOf(db, atMs, projectId, { snapshotMiB: Math.ceil(bytes / MIB) });
  if (refusal !== null) throw refusal;
  return null;
}

/** What it has more of than before, or is to have. */
export function roomForChange(tx: Tx, projectId: ProjectId, before: Shape, after: Shape): void {
  const more = (key: 'cpus' | 'memoryMiB' | 'diskMiB'): number => Math.max(0, after[key] - before[key]);
  requireRoom(tx, projectId, { cpus: more('cpus'), memoryMiB: more('memoryMiB'), diskMiB: more('diskMiB') });
}

/** Whoever brings an image has it, as long as it is there. What Hutch makes by itself is nobody's, and what an Engine keeps lies elsewhere. */
export function ownImage(tx: Tx, id: ImageId, image: Image): void {
  const kind = z.object({ source: z.object({ kind: z.string() }) }).safeParse(image.detail);
  if (!kind.success || kind.data.source.kind === 'mmdebstrap') return;
  const project = tx.db.get('SELECT project_id FROM api_keys WHERE id = ?', tx.stamp.actor)?.['project_id'];
  if (typeof project !== 'string') return; // the daemon itself
  const projectId = idColumn('prj').parse(project);
  if (tx.db.get('SELECT 1 FROM image_owners WHERE image_id = ? AND project_id = ?', id, projectId) !== undefined) return;
  requireRoom(tx, projectId, { imageMiB: Math.ceil(image.sizeBytes / MIB) });
  tx.db.run('INSERT INTO image_owners (image_id, project_id) VALUES (?, ?)', id, projectId);
}

export function imageProjects(db: Db, { imageId }: QueryMap['imageProjects']['args']): readonly ProjectId[] {
  const rows = db.all('SELECT project_id FROM image_owners WHERE image_id = ? ORDER BY project_id', imageId);
  return rows.map((row) => idColumn('prj').parse(row['project_id']));
}

export function beginBuild(tx: Tx, { id, projectId, atMs }: ChangeMap['beginBuild']['args']): null {
  requireRoom(tx, projectId, { builds: 1, buildsPerDay: 1 });
  tx.db.run('DELETE FROM builds WHERE ended_at_ms IS NOT NULL AND begun_at_ms <= ?', atMs - DAY_MS);
  tx.db.run('INSERT INTO builds (id, project_id, begun_at_ms) VALUES (?, ?, ?)', id, projectId, atMs);
  return null;
}

export function endBuild(tx: Tx, { id, atMs, how }: ChangeMap['endBuild']['args']): null {
  if (how === 'never-began') tx.db.run('DELETE FROM builds WHERE id = ?', id);
  else tx.db.run('UPDATE builds SET ended_at_ms = ? WHERE id = ? AND ended_at_ms IS NULL', atMs, id);
  return null;
}

export function endAllBuilds(tx: Tx, { atMs }: ChangeMap['endAllBuilds']['args']): null {
  tx.db.run('UPDATE builds SET ended_at_ms = ? WHERE ended_at_ms IS NULL', atMs);
  return null;
}
