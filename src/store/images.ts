// The tables of images and kernels: immutable, found by digest. An image has any number of names; a name
// belongs to one image at a time.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import type { ImageId, KernelId } from '../domain/ids.ts';
import { ARCHITECTURES, type Kernel, type NamedImage, OWN_KERNEL } from '../domain/image.ts';
import { forgetAsset, refuseLeased } from './assets.ts';
import { DETAIL_BYTES_MAX, idColumn, jsonColumn, objectSchema, timeColumn, toJson } from './columns.ts';
import type { ChangeMap, QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import { ownImage } from './quotas.ts';
import { readSetting, setSetting } from './settings.ts';
import type { Tx } from './tx.ts';

const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'must be sha256: and 64 hex digits');

const imageBody = z.object({
  architecture: z.enum(ARCHITECTURES),
  sizeBytes: z.number(),
  config: z.object({
    env: z.record(z.string(), z.string()),
    entrypoint: z.array(z.string()),
    command: z.array(z.string()),
    workdir: z.string().nullable(),
    user: z.string().nullable(),
    // Records of before have neither.
    stopSignal: z.string().nullable().default(null),
    exposedPorts: z.array(z.string()).default([]),
  }),
  detail: objectSchema,
});

const kernelBody = z.object({ version: z.string(), architecture: z.enum(ARCHITECTURES), sizeBytes: z.number(), detail: objectSchema });

const imageRow = z.object({
  id: idColumn('img'),
  digest,
  body: jsonColumn(imageBody),
  created_at_ms: timeColumn,
});
const idRow = z.object({ id: idColumn('img') });
const nameRow = z.object({ name: z.string(), image_id: idColumn('img') });
const kernelRow = z.object({ id: idColumn('krn'), digest, body: jsonColumn(kernelBody), created_at_ms: timeColumn });

function imageFromRow(raw: Row, names: readonly string[]): NamedImage {
  const { id, digest: imageDigest, body, created_at_ms } = imageRow.parse(raw);
  return { id, name: names[0] ?? null, names, digest: imageDigest, createdAtMs: created_at_ms, ...body };
}

function kernelFromRow(raw: Row): Kernel {
  const { id, digest: kernelDigest, body, created_at_ms } = kernelRow.parse(raw);
  return { id, digest: kernelDigest, createdAtMs: created_at_ms, ...body };
}

export function putImage(tx: Tx, { image }: ChangeMap['putImage']['args']): NamedImage {
  digest.parse(image.digest);
  tx.db.run(
    'INSERT INTO images (id, digest, body, created_at_ms) VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING',
    image.id,
    image.digest,
    toJson(imageBody.parse(image), DETAIL_BYTES_MAX, 'the description of the image'),
    image.createdAtMs,
  );
  // One that was there keeps its id.
  const { id } = idRow.parse(tx.db.get('SELECT id FROM images WHERE digest = ?', image.digest));
  ownImage(tx, id, image);
  if (image.name !== null) setName(tx.db, image.name, id, image.createdAtMs);
  return requireImage(tx.db, id);
}

export function nameImage(tx: Tx, { id, name, atMs }: ChangeMap['nameImage']['args']): NamedImage {
  requireImage(tx.db, id);
  setName(tx.db, name, id, atMs);
  return requireImage(tx.db, id);
}

export function unnameImage(tx: Tx, { id, name }: ChangeMap['unnameImage']['args']): NamedImage {
  tx.db.run(
    'DELETE FROM image_names WHERE name = ?1 AND image_id = ?2 AND (SELECT count(*) FROM image_names WHERE image_id = ?2) > 1',
    name,
    id,
  );
  return requireImage(tx.db, id);
}

/** The same name for the same image keeps its place among the names. */
function setName(db: Db, name: string, id: ImageId, atMs: number): void {
  db.run(
    'INSERT INTO image_names (name, image_id, created_at_ms) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET image_id = excluded.image_id, created_at_ms = excluded.created_at_ms WHERE image_id <> excluded.image_id',
    name,
    id,
    atMs,
  );
}

export function describeImage(tx: Tx, { id, detail }: ChangeMap['describeImage']['args']): NamedImage {
  const image = requireImage(tx.db, id);
  const body = toJson(imageBody.parse({ ...image, detail }), DETAIL_BYTES_MAX, 'the description of the image');
  tx.db.run('UPDATE images SET body = ? WHERE id = ?', body, id);
  return requireImage(tx.db, id);
}

export function removeImage(tx: Tx, { id }: ChangeMap['removeImage']['args']): null {
  refuseUsed(tx.db, 'image', id);
  refuseLeased(tx, 'image', id);
  forgetAsset(tx, id);
  tx.db.run('DELETE FROM image_names WHERE image_id = ?', id);
  tx.db.run('DELETE FROM image_owners WHERE image_id = ?', id);
  if (tx.db.run('DELETE FROM images WHERE id = ?', id).changes === 0)
    throw new HutchError({ code: 'not_found', message: `there is no image ${id}` });
  return null;
}

export function putKernel(tx: Tx, { kernel }: ChangeMap['putKernel']['args']): Kernel {
  digest.parse(kernel.digest);
  tx.db.run(
    'INSERT INTO kernels (id, digest, body, created_at_ms) VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING',
    kernel.id,
    kernel.digest,
    toJson(kernelBody.parse(kernel), DETAIL_BYTES_MAX, 'the description of the kernel'),
    kernel.createdAtMs,
  );
  return kernelFromRow(tx.db.get('SELECT * FROM kernels WHERE digest = ?', kernel.digest) ?? {});
}

export function removeKernel(tx: Tx, { id }: ChangeMap['removeKernel']['args']): null {
  refuseUsed(tx.db, 'kernel', id);
  refuseBrought(tx.db, id);
  refuseLeased(tx, 'kernel', id);
  forgetAsset(tx, id);
  if (defaultKernel(tx.db) === id) {
    throw new HutchError({
      code: 'failed_precondition',
      message: `kernel ${id} is the default: sandboxes that name none boot it`,
      hint: 'choose another first: hutch kernel default REF; or what Hutch chooses: hutch kernel default --reset',
    });
  }
  if (tx.db.run('DELETE FROM kernels WHERE id = ?', id).changes === 0)
    throw new HutchError({ code: 'not_found', message: `there is no kernel ${id}` });
  return null;
}

const DEFAULT_KERNEL = 'kernel.default';

export function setDefaultKernel(tx: Tx, { id }: ChangeMap['setDefaultKernel']['args']): null {
  if (id !== null && readKernel(tx.db, id) === null) throw new HutchError({ code: 'not_found', message: `there is no kernel ${id}` });
  return setSetting(tx, { key: DEFAULT_KERNEL, value: id });
}

export function defaultKernel(db: Db): KernelId | null {
  return idColumn('krn').nullable().parse(readSetting(db, DEFAULT_KERNEL));
}

export function imageUsers(db: Db): QueryMap['imageUsers']['result'] {
  return usersBy(db, 'image_id').map(({ id, ...user }) => ({ id: idColumn('img').parse(id), ...user }));
}

export function kernelUsers(db: Db): QueryMap['kernelUsers']['result'] {
  return usersBy(db, 'kernel_id').map(({ id, ...user }) => ({ id: idColumn('krn').parse(id), ...user }));
}

const userRow = z.object({ id: z.string(), kind: z.enum(['sandbox', 'snapshot', 'template']), name: z.string() });

/** All that `refuseUsed` would name, but for sandboxes that are being made. */
function usersBy(db: Db, column: 'image_id' | 'kernel_id'): readonly z.infer<typeof userRow>[] {
  const rows = db.all(
    `SELECT ${column} AS id, 'sandbox' AS kind, name FROM sandboxes WHERE ${column} IS NOT NULL AND state <> 'deleted'
     UNION ALL SELECT s.${column}, 'template', t.name FROM templates t JOIN snapshots s ON s.id = t.snapshot_id WHERE s.${column} IS NOT NULL
     UNION ALL SELECT ${column}, 'snapshot', coalesce(name, id) FROM snapshots
       WHERE ${column} IS NOT NULL AND id NOT IN (SELECT snapshot_id FROM templates WHERE snapshot_id IS NOT NULL)
     ORDER BY kind, name`,
  );
  return rows.map((row) => userRow.parse(row));
}

export function readImage(db: Db, id: ImageId): NamedImage | null {
  const found = db.get('SELECT id, digest, body, created_at_ms FROM images WHERE id = ?', id);
  return found === undefined ? null : imageFromRow(found, namesOf(db, id));
}

function requireImage(db: Db, id: ImageId): NamedImage {
  const image = readImage(db, id);
  if (image === null) throw new HutchError({ code: 'not_found', message: `there is no image ${id}` });
  return image;
}

function namesOf(db: Db, id: ImageId): readonly string[] {
  const rows = db.all('SELECT name, image_id FROM image_names WHERE image_id = ? ORDER BY created_at_ms, name', id);
  return rows.map((row) => nameRow.parse(row).name);
}

export function listImages(db: Db): readonly NamedImage[] {
  const names = new Map<ImageId, string[]>();
  for (const row of db.all('SELECT name, image_id FROM image_names ORDER BY created_at_ms, name')) {
    const { name, image_id } = nameRow.parse(row);
    names.set(image_id, [...(names.get(image_id) ?? []), name]);
  }
  return db
    .all('SELECT id, digest, body, created_at_ms FROM images ORDER BY created_at_ms DESC, id')
    .map((row) => imageFromRow(row, names.get(imageRow.parse(row).id) ?? []));
}

export function readKernel(db: Db, id: KernelId): Kernel | null {
  const found = db.get('SELECT * FROM kernels WHERE id = ?', id);
  return found === undefined ? null : kernelFromRow(found);
}

export function listKernels(db: Db): readonly Kernel[] {
  return db.all('SELECT * FROM kernels ORDER BY created_at_ms DESC, id').map(kernelFromRow);
}

export function kernelImages(db: Db): QueryMap['kernelImages']['result'] {
  const rows = db.all(
    `SELECT id, body ->> '$.detail.${OWN_KERNEL}' AS kernel_id FROM images WHERE body ->> '$.detail.${OWN_KERNEL}' IS NOT NULL`,
  );
  return rows.map((row) => {
    const id = idColumn('img').parse(row['id']);
    return { id: idColumn('krn').parse(row['kernel_id']), image: namesOf(db, id)[0] ?? id };
  });
}

/** By an image that boots it. */
function refuseBrought(db: Db, id: KernelId): void {
  const images = kernelImages(db).filter((one) => one.id === id);
  const [first] = images;
  if (first === undefined) return;
  const names = images.slice(0, USERS_SHOWN_MAX).map(({ image }) => image);
  throw new HutchError({
    code: 'failed_precondition',
    message: `kernel ${id} belongs to ${names.length === 1 ? 'image' : 'images'} ${names.join(', ')}${images.length > names.length ? ' and more' : ''}`,
    hint: `remove ${names.length === 1 ? 'the image' : 'these'} first: hutch image rm ${names.join(' ')}`,
  });
}

/** How many of its users a refusal names. */
const USERS_SHOWN_MAX = 10;

/** Sandboxes, and those that are being made just now. */
function refuseUsed(db: Db, what: 'image' | 'kernel', id: ImageId | KernelId): void {
  const column = what === 'image' ? 'image_id' : 'kernel_id';
  refuseKept(db, what, id, column);
  const users = db.all(
    `SELECT name, open_compute_since_ms IS NOT NULL OR state = 'suspended' AS awake FROM sandboxes WHERE ${column} = ?1 AND state <> 'deleted'
     UNION SELECT coalesce(reserved_name, sandbox_id) AS name, 0 FROM intents WHERE kind = 'create' AND detail ->> '${what}Id' = ?1
     ORDER BY name LIMIT ${USERS_SHOWN_MAX + 1}`,
    id,
  );
  if (users.length === 0) return;
  const names = users.map((row) => String(row['name']));
  const shown = names.slice(0, USERS_SHOWN_MAX);
  const more = names.length > shown.length ? ' and more' : '';
  const force = users.some((row) => row['awake'] === 1) ? '-f ' : '';
  throw new HutchError({
    code: 'failed_precondition',
    message: `${what} ${id} is used by ${names.length === 1 ? 'sandbox' : 'sandboxes'} ${shown.join(', ')}${more}`,
    hint: `remove ${names.length === 1 ? 'the sandbox' : 'these'} first: hutch rm ${force}${shown.join(' ')}`,
  });
}

/** What a snapshot was made with, it goes on with. */
function refuseKept(db: Db, what: 'image' | 'kernel', id: ImageId | KernelId, column: 'image_id' | 'kernel_id'): void {
  const template = db.get(`SELECT t.name FROM templates t JOIN snapshots s ON s.id = t.snapshot_id WHERE s.${column} = ? LIMIT 1`, id)?.[
    'name'
  ];
  if (template !== undefined) {
    throw new HutchError({
      code: 'failed_precondition',
      message: `${what} ${id} is used by template ${template}`,
      hint: `remove it first: hutch template rm ${template}`,
    });
  }
  const kept = db.all(
    `SELECT coalesce(name, id) AS name FROM snapshots WHERE ${column} = ? AND kind <> 'undo' ORDER BY 1 LIMIT ${USERS_SHOWN_MAX + 1}`,
    id,
  );
  if (kept.length > 0) {
    const names = kept.slice(0, USERS_SHOWN_MAX).map((row) => String(row['name']));
    throw new HutchError({
      code: 'failed_precondition',
      message: `${what} ${id} is used by ${kept.length === 1 ? 'snapshot' : 'snapshots'} ${names.join(', ')}${kept.length > names.length ? ' and more' : ''}`,
      hint: `remove ${kept.length === 1 ? 'it' : 'them'} first: hutch snapshot rm ${names.join(' ')}`,
    });
  }
  // Of a sandbox that uses it too, what is kept to undo goes with that.
  const undone = db.all(
    `SELECT DISTINCT x.name FROM snapshots s JOIN sandboxes x ON x.id = s.sandbox_id
     WHERE s.${column} = ?1 AND s.kind = 'undo' AND x.state <> 'deleted' AND x.${column} IS NOT ?1 ORDER BY 1 LIMIT ${USERS_SHOWN_MAX}`,
    id,
  );
  if (undone.length === 0) return;
  const names = undone.map((row) => String(row['name']));
  throw new HutchError({
    code: 'failed_precondition',
    message: `${what} ${id} is used by what is kept to undo in ${names.length === 1 ? 'sandbox' : 'sandboxes'} ${names.join(', ')}`,
    hint: `let go of that: ${names.map((name) => `hutch set --no-undo ${name}`).join(' && ')}`,
  });
}
