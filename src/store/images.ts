// The tables of images and kernels: immutable, found by digest. A name belongs to one image at a time.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import type { ImageId, KernelId } from '../domain/ids.ts';
import { ARCHITECTURES, type Image, type Kernel } from '../domain/image.ts';
import { DETAIL_BYTES_MAX, idColumn, jsonColumn, objectSchema, timeColumn, toJson } from './columns.ts';
import type { ChangeMap } from './contract.ts';
import type { Db, Row } from './db.ts';
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
  name: z.string().nullable(),
  digest,
  body: jsonColumn(imageBody),
  created_at_ms: timeColumn,
});
const kernelRow = z.object({ id: idColumn('krn'), digest, body: jsonColumn(kernelBody), created_at_ms: timeColumn });

function imageFromRow(raw: Row): Image {
  const { id, name, digest: imageDigest, body, created_at_ms } = imageRow.parse(raw);
  return { id, name, digest: imageDigest, createdAtMs: created_at_ms, ...body };
}

function kernelFromRow(raw: Row): Kernel {
  const { id, digest: kernelDigest, body, created_at_ms } = kernelRow.parse(raw);
  return { id, digest: kernelDigest, createdAtMs: created_at_ms, ...body };
}

export function putImage(tx: Tx, { image }: ChangeMap['putImage']['args']): Image {
  digest.parse(image.digest);
  if (image.name !== null) tx.db.run('UPDATE images SET name = NULL WHERE name = ? AND digest <> ?', image.name, image.digest);
  tx.db.run(
    'INSERT INTO images (id, name, digest, body, created_at_ms) VALUES (?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET name = coalesce(excluded.name, name)',
    image.id,
    image.name,
    image.digest,
    toJson(imageBody.parse(image), DETAIL_BYTES_MAX, 'the description of the image'),
    image.createdAtMs,
  );
  return imageFromRow(tx.db.get('SELECT * FROM images WHERE digest = ?', image.digest) ?? {});
}

export function removeImage(tx: Tx, { id }: ChangeMap['removeImage']['args']): null {
  refuseUsed(tx.db, 'image', id);
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
  if (tx.db.run('DELETE FROM kernels WHERE id = ?', id).changes === 0)
    throw new HutchError({ code: 'not_found', message: `there is no kernel ${id}` });
  return null;
}

export function readImage(db: Db, id: ImageId): Image | null {
  const found = db.get('SELECT * FROM images WHERE id = ?', id);
  return found === undefined ? null : imageFromRow(found);
}

export function listImages(db: Db): readonly Image[] {
  return db.all('SELECT * FROM images ORDER BY created_at_ms DESC, id').map(imageFromRow);
}

export function readKernel(db: Db, id: KernelId): Kernel | null {
  const found = db.get('SELECT * FROM kernels WHERE id = ?', id);
  return found === undefined ? null : kernelFromRow(found);
}

export function listKernels(db: Db): readonly Kernel[] {
  return db.all('SELECT * FROM kernels ORDER BY created_at_ms DESC, id').map(kernelFromRow);
}

function refuseUsed(db: Db, what: 'image' | 'kernel', id: ImageId | KernelId): void {
  const column = what === 'image' ? 'image_id' : 'kernel_id';
  const user = db.get(`SELECT name FROM sandboxes WHERE ${column} = ? AND state <> 'deleted' LIMIT 1`, id)?.['name'];
  if (user === undefined) return;
  throw new HutchError({
    code: 'failed_precondition',
    message: `${what} ${id} is used by sandbox ${user}`,
    hint: `remove the sandbox first: hutch rm ${user}`,
  });
}
