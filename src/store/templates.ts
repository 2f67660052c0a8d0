// The table of templates: tags on snapshots. A tag moves to another snapshot in one transaction, and a snapshot that a tag is on
// is removed with its template only.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import type { TemplateId } from '../domain/ids.ts';
import type { Template } from '../domain/template.ts';
import { idColumn, jsonColumn, objectSchema, timeColumn, toJson } from './columns.ts';
import type { ChangeMap, QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import { addEvent } from './events.ts';
import { requireName } from './names.ts';
import { refuseUsed, removeUntagged } from './snapshots.ts';
import type { Tx } from './tx.ts';

const RECIPE_BYTES_MAX = 2 * 1024 * 1024;

const row = z.object({
  id: idColumn('tpl'),
  project_id: idColumn('prj'),
  name: z.string(),
  recipe: jsonColumn(objectSchema),
  image_id: idColumn('img'),
  snapshot_id: idColumn('snp'),
  digest: z.string(),
  warm_min: z.int(),
  warm_max: z.int(),
  created_at_ms: timeColumn,
  built_at_ms: timeColumn,
  build_id: idColumn('bld'),
});

function fromRow(raw: Row): Template {
  const parsed = row.parse(raw);
  return {
    id: parsed.id,
    projectId: parsed.project_id,
    name: parsed.name,
    recipe: parsed.recipe,
    imageId: parsed.image_id,
    snapshotId: parsed.snapshot_id,
    digest: parsed.digest,
    warm: { min: parsed.warm_min, max: parsed.warm_max },
    createdAtMs: parsed.created_at_ms,
    builtAtMs: parsed.built_at_ms,
    buildId: parsed.build_id,
  };
}

/** What has the name already keeps its id, its age and how many are kept ready. */
export function putTemplate(tx: Tx, { template }: ChangeMap['putTemplate']['args']): Template {
  const { db } = tx;
  requireName(template.name);
  db.run(
    `INSERT INTO templates (id, project_id, name, recipe, image_id, snapshot_id, digest, warm_min, warm_max, created_at_ms, built_at_ms, build_id)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
     ON CONFLICT (project_id, name) DO UPDATE SET
       recipe = ?4, image_id = ?5, snapshot_id = ?6, digest = ?7, built_at_ms = ?11, build_id = ?12`,
    template.id,
    template.projectId,
    template.name,
    toJson(template.recipe, RECIPE_BYTES_MAX, 'the recipe of the template'),
    template.imageId,
    template.snapshotId,
    template.digest,
    template.warm.min,
    template.warm.max,
    template.createdAtMs,
    template.builtAtMs,
    template.buildId,
  );
  const found = db.get('SELECT * FROM templates WHERE project_id = ? AND name = ?', template.projectId, template.name);
  if (found === undefined) throw new Error('a template that was just put is not there');
  const put = fromRow(found);
  record(tx, 'template.built', put, template.builtAtMs);
  return put;
}

/** A rebuild of one that is gone, or was built anew meanwhile, is for nothing: `failed_precondition`. */
export function requireTemplate(tx: Tx, { id, snapshotId }: ChangeMap['requireTemplate']['args']): null {
  const now = readTemplate(tx.db, id);
  if (now?.snapshotId === snapshotId) return null;
  throw new HutchError({
    code: 'failed_precondition',
    message: `template ${now?.name ?? id} was ${now === null ? 'removed' : 'built anew'} meanwhile`,
  });
}

export function warmTemplate(tx: Tx, { id, warm, atMs }: ChangeMap['warmTemplate']['args']): Template {
  tx.db.run('UPDATE templates SET warm_min = ?, warm_max = ? WHERE id = ?', warm.min, warm.max, id);
  const template = existing(tx.db, id);
  record(tx, 'template.set', template, atMs, { ...warm });
  return template;
}

/** With the snapshot that it is on, unless snapshots stand on that: then it goes when those have gone. */
export function removeTemplate(tx: Tx, { id, force, atMs }: ChangeMap['removeTemplate']['args']): ChangeMap['removeTemplate']['result'] {
  const { db } = tx;
  const template = existing(db, id);
  if (!force) {
    refuseUsed(db, template.snapshotId, {
      what: `template ${template.name}`,
      hint: `remove those first, or: hutch template rm --force ${template.name} (they stay)`,
    });
  }
  db.run('DELETE FROM templates WHERE id = ?', id);
  record(tx, 'template.removed', template, atMs);
  const stands = db.get('SELECT id FROM snapshots WHERE parent_id = ? LIMIT 1', template.snapshotId) !== undefined;
  return { template, removed: stands ? [] : removeUntagged(tx, template.snapshotId, atMs) };
}

export function readTemplate(db: Db, id: TemplateId): Template | null {
  const found = db.get('SELECT * FROM templates WHERE id = ?', id);
  return found === undefined ? null : fromRow(found);
}

/** By name. */
export function listTemplates(db: Db, { projectId }: QueryMap['templates']['args']): readonly Template[] {
  return db.all('SELECT * FROM templates WHERE ?1 IS NULL OR project_id = ?1 ORDER BY name, id', projectId ?? null).map(fromRow);
}

function existing(db: Db, id: TemplateId): Template {
  const found = readTemplate(db, id);
  if (found === null) throw new HutchError({ code: 'not_found', message: `there is no template ${id}` });
  return found;
}

function record(tx: Tx, type: string, { id, name, projectId, snapshotId, digest }: Template, atMs: number, more: object = {}): void {
  addEvent(tx, { type, atMs, projectId, detail: { templateId: id, name, snapshotId, digest, ...more } });
}
