// An image in Hutch's own directory: `images/DIGEST/` with one read-only root file system and a
// manifest. One that we made is named by the digest of its file system; one from a registry or an archive
// by the digest of its configuration, as everybody else names it, and has that beside it. Who made it
// does not matter to who uses it.
import { join } from 'node:path';
import * as z from 'zod';
import type { Image } from '../domain/image.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { idOfDigest } from './digest.ts';
import { commit, type ImagePaths, listOr, SHARED_FILE_MODE, unlessDamaged } from './layout.ts';

const hex64 = z.string().regex(/^[0-9a-f]{64}$/);

/** How an image was made. Other makers add themselves here. */
const mmdebstrapSource = z.strictObject({
  kind: z.literal('mmdebstrap'),
  suite: z.string().max(64),
  /** Asked for, beside Debian's minimal base. */
  packages: z.array(z.string().max(128)).max(256),
  /** Made in another way, or of other packages: an older one is made anew. */
  recipe: z.string().regex(/^[0-9a-f]{16}$/),
});
const ociSource = z.strictObject({
  kind: z.literal('oci'),
  /** Of the manifest that it was found by; null for one out of an archive without. */
  manifest: z.string().max(80).nullable(),
  /** From the lowest up. */
  layers: z
    .array(
      z.strictObject({
        digest: z.string().max(80),
        sizeBytes: z.int().nonnegative(),
        diffId: z.string().max(80),
        mediaType: z.string().max(255),
      }),
    )
    .max(512),
});
export type OciSource = z.infer<typeof ociSource>;
const sourceSchema = z.discriminatedUnion('kind', [mmdebstrapSource, ociSource]);
export type ImageSource = z.infer<typeof sourceSchema>;

const configSchema = z.strictObject({
  env: z.record(z.string().max(131_072), z.string().max(131_072)),
  entrypoint: z.array(z.string().max(131_072)).max(10_000),
  command: z.array(z.string().max(131_072)).max(10_000),
  workdir: z.string().max(4096).nullable(),
  user: z.string().max(256).nullable(),
  // Manifests of before have neither.
  stopSignal: z.string().max(64).nullable().default(null),
  exposedPorts: z.array(z.string().max(64)).max(1_024).default([]),
});

const manifestSchema = z.strictObject({
  /** What it was called when it was made; the store knows what it is called now. */
  name: z.string().max(512).nullable(),
  architecture: z.literal('x86_64'),
  fileSystem: z.literal('squashfs'),
  /** Of the file system. */
  sha256: hex64,
  /** Its own, where that is another. */
  digest: hex64.optional(),
  sizeBytes: z.int().positive(),
  config: configSchema,
  createdAtMs: z.int(),
  source: sourceSchema,
});
export type ImageManifest = z.infer<typeof manifestSchema>;

export type PreparedImage = {
  readonly record: Image;
  readonly path: string;
  /** `sha256:…` of the file at `path`: two images may have the same. */
  readonly rootDigest: string;
  readonly fileSystem: ImageManifest['fileSystem'];
  readonly source: ImageSource;
};

export const ROOTFS = 'rootfs.squashfs';
/** The configuration as it came; its digest is the image's. */
export const OCI_CONFIG = 'config.json';
/** The manifest as it came. */
export const OCI_MANIFEST = 'oci-manifest.json';
const MANIFEST = 'manifest.json';
const MANIFEST_BYTES_MAX = 16 * 1024 * 1024;

/** Moves `dir`, which holds the root file system, into place. */
export async function commitImage(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  dir: string,
  manifest: ImageManifest,
): Promise<PreparedImage> {
  await host.writeFileAtomic(op, join(dir, MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`, SHARED_FILE_MODE);
  await commit(op, host, dir, imageDir(paths, digestOf(manifest)), [ROOTFS]);
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
  const dir = imageDir(paths, digest);
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
  const dir = join(image.path, '..');
  if (`sha256:${await host.sha256(op, image.path)}` !== image.rootDigest) throw damaged(op, dir, `${ROOTFS} has changed`);
  if (image.source.kind !== 'oci') return;
  const config = join(dir, OCI_CONFIG);
  if ((await host.stat(op, config)) === null) throw damaged(op, dir, `${OCI_CONFIG} is missing`);
  if (`sha256:${await host.sha256(op, config)}` !== digest) throw damaged(op, dir, `${OCI_CONFIG} has changed`);
}

export function imageDir(paths: Pick<ImagePaths, 'images'>, digest: string): string {
  return join(paths.images, digest.replace(/^sha256:/, ''));
}

function digestOf({ digest, sha256 }: ImageManifest): string {
  return `sha256:${digest ?? sha256}`;
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
  const digest = digestOf(manifest);
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
  return { record, path: join(imageDir(paths, digest), ROOTFS), rootDigest: `sha256:${manifest.sha256}`, fileSystem, source };
}
