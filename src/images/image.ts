// An image in Hutch's own directory: `images/DIGEST/` with one read-only root file system and a
// manifest. Named by the digest of the file system; who made it does not matter to who uses it.
import { join } from 'node:path';
import * as z from 'zod';
import type { Image } from '../domain/image.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { idOfDigest } from './digest.ts';
import { commit, type ImagePaths, listOr, SHARED_FILE_MODE, unlessDamaged } from './layout.ts';

/** How an image was made. Other makers add themselves here. */
const sourceSchema = z.strictObject({
  kind: z.literal('mmdebstrap'),
  suite: z.string().max(64),
  /** Asked for, beside Debian's minimal base. */
  packages: z.array(z.string().max(128)).max(256),
  /** Made in another way, or of other packages: an older one is made anew. */
  recipe: z.string().regex(/^[0-9a-f]{16}$/),
});
export type ImageSource = z.infer<typeof sourceSchema>;

const configSchema = z.strictObject({
  env: z.record(z.string().max(256), z.string().max(32_768)),
  entrypoint: z.array(z.string().max(32_768)).max(256),
  command: z.array(z.string().max(32_768)).max(256),
  workdir: z.string().max(4096).nullable(),
  user: z.string().max(256).nullable(),
  // Manifests of before have neither.
  stopSignal: z.string().max(64).nullable().default(null),
  exposedPorts: z.array(z.string().max(64)).max(1_024).default([]),
});

const manifestSchema = z.strictObject({
  name: z.string().max(63),
  architecture: z.literal('x86_64'),
  fileSystem: z.literal('squashfs'),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  sizeBytes: z.int().positive(),
  config: configSchema,
  createdAtMs: z.int(),
  source: sourceSchema,
});
export type ImageManifest = z.infer<typeof manifestSchema>;

export type PreparedImage = {
  readonly record: Image;
  readonly path: string;
  readonly fileSystem: ImageManifest['fileSystem'];
  readonly source: ImageSource;
};

export const ROOTFS = 'rootfs.squashfs';
const MANIFEST = 'manifest.json';
const MANIFEST_BYTES_MAX = 1024 * 1024;

/** Moves `dir`, which holds the root file system, into place. */
export async function commitImage(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  dir: string,
  manifest: ImageManifest,
): Promise<PreparedImage> {
  await host.writeFileAtomic(op, join(dir, MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`, SHARED_FILE_MODE);
  await commit(op, host, dir, join(paths.images, manifest.sha256), [ROOTFS]);
  return preparedOf(paths, manifest);
}

/** All images that are there and not damaged, in the order of their digests. */
export async function listImages(op: Operation, host: Host, paths: ImagePaths): Promise<readonly PreparedImage[]> {
  const images: PreparedImage[] = [];
  for (const name of await listOr(op, host, paths.images)) {
    if (!/^[0-9a-f]{64}$/.test(name)) continue;
    const image = await unlessDamaged(op, () => openImage(op, host, paths, `sha256:${name}`));
    if (image !== null) images.push(image);
  }
  return images;
}

/** The image of a digest; null when it is not there. Its content is not read: `verifyImage` does that. */
export async function openImage(op: Operation, host: Host, paths: ImagePaths, digest: string): Promise<PreparedImage | null> {
  const dir = join(paths.images, digest.replace(/^sha256:/, ''));
  if ((await host.stat(op, join(dir, MANIFEST))) === null) return null;
  const manifest = await readManifest(op, host, dir);
  const image = preparedOf(paths, manifest);
  if (image.record.digest !== digest) throw damaged(op, dir, 'its manifest does not belong to its digest');
  const file = await host.stat(op, image.path);
  if (file?.sizeBytes !== manifest.sizeBytes) {
    throw damaged(op, dir, file === null ? `${ROOTFS} is missing` : `${ROOTFS} has ${file.sizeBytes} of ${manifest.sizeBytes} bytes`);
  }
  return image;
}

/** Reads the whole file system. @throws HutchError `failed_precondition` when it is not what it was. */
export async function verifyImage(op: Operation, host: Host, paths: ImagePaths, digest: string): Promise<void> {
  const image = await openImage(op, host, paths, digest);
  if (image === null) throw op.error('not_found', `image ${digest} is not in ${paths.images}`);
  if (`sha256:${await host.sha256(op, image.path)}` !== digest) throw damaged(op, join(image.path, '..'), `${ROOTFS} has changed`);
}

async function readManifest(op: Operation, host: Host, dir: string): Promise<ImageManifest> {
  const content = Buffer.from(await host.readFile(op, join(dir, MANIFEST), MANIFEST_BYTES_MAX)).toString();
  try {
    return manifestSchema.parse(JSON.parse(content));
  } catch (cause) {
    throw damaged(op, dir, 'its manifest cannot be read', cause);
  }
}

function damaged(op: Operation, dir: string, why: string, cause?: unknown): Error {
  return op.error('failed_precondition', `the image in ${dir} is damaged: ${why}`, {
    hint: `remove it, and it is made anew: rm -r ${dir}`,
    cause,
  });
}

function preparedOf(paths: ImagePaths, manifest: ImageManifest): PreparedImage {
  const { name, architecture, sizeBytes, config, createdAtMs, source, fileSystem } = manifest;
  const digest = `sha256:${manifest.sha256}`;
  const record = {
    id: idOfDigest('img', digest),
    name,
    digest,
    architecture,
    sizeBytes,
    config,
    createdAtMs,
    detail: { fileSystem, source },
  };
  return { record, path: join(paths.images, manifest.sha256, ROOTFS), fileSystem, source };
}
