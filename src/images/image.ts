// An image in Hutch's own directory: `images/DIGEST/` with one read-only root file system and a
// manifest. One that we made is named by the digest of its file system; one from a registry or an archive
// by the digest of its configuration, as everybody else names it, and has that beside it. Who made it
// does not matter to who uses it.
import { basename, join } from 'node:path';
import * as z from 'zod';
import { type Image, OWN_KERNEL, REGISTERED } from '../domain/image.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { idOfDigest } from './digest.ts';
import { type GivenFile, givenFile, unchanged } from './given.ts';
import { commit, type ImagePaths, listOr, SHARED_FILE_MODE, unlessDamaged, writeStaged } from './layout.ts';
import type { ManifestsRead } from './manifests-read.ts';

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
/** Of files that a user has registered. */
const fileSource = z.strictObject({ kind: z.literal('file') });
/** Made by Hutch on another machine, and came with a snapshot or in an archive of that. */
const snapshotSource = z.strictObject({ kind: z.literal('snapshot') });
const sourceSchema = z.discriminatedUnion('kind', [mmdebstrapSource, ociSource, fileSource, snapshotSource]);
export type ImageSource = z.infer<typeof sourceSchema>;

export const imageConfigSchema = z.strictObject({
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
  config: imageConfigSchema,
  createdAtMs: z.int(),
  source: sourceSchema,
  /** What it boots unless somebody asks for another kernel: `sha256:…` of a kernel here, and of the initrd that goes before ours. */
  own: z.strictObject({ kernel: z.string().regex(/^sha256:[0-9a-f]{64}$/), initrd: hex64.nullable() }).optional(),
  /** The files of the user's that it is made of; one that Hutch owns has none. */
  given: z.array(givenFile).min(1).max(8).optional(),
  /** Its root file system is the first of these, as it lies there. */
  inPlace: z.literal(true).optional(),
  /** What guests get, where this machine reads something else: the same files, in the bytes that a memory from elsewhere knows. */
  guest: z.strictObject({ sha256: hex64, sizeBytes: z.int().positive() }).optional(),
});
export type ImageManifest = z.infer<typeof manifestSchema>;

export type PreparedImage = {
  readonly record: Image;
  /** What this machine reads. */
  readonly path: string;
  /** What guests mount: mostly the same. */
  readonly guestPath: string;
  /** `sha256:…` of the file at `guestPath`: two images may have the same. */
  readonly rootDigest: string;
  /** Whether this machine's own programs made what is at `path`: what a user gave may be anything, also once it is Hutch's own. */
  readonly isPackedHere: boolean;
  readonly fileSystem: ImageManifest['fileSystem'];
  readonly source: ImageSource;
  /** The kernel that it brings, and the initrd that belongs to that. */
  readonly own: OwnBoot | null;
  /** The user's files that it is made of: `requireUnchanged` before they are used. Empty: it is Hutch's own. */
  readonly given: readonly GivenFile[];
};

export type OwnBoot = { readonly kernelDigest: string; readonly initrd: { readonly path: string; readonly sha256: string } | null };

export const INITRD = 'initrd';
export const INITRD_BYTES_MAX = 512 * 1024 * 1024;
export const ROOTFS = 'rootfs.squashfs';
export const GUEST_ROOTFS = 'guest.squashfs';
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
  await host.remove(op, join(dir, MANIFEST)); // of a try before
  await writeStaged(op, host, join(dir, MANIFEST), manifestBytes(manifest));
  await commit(op, host, dir, imageDir(paths, digestOf(manifest)), manifest.inPlace === true ? [] : [ROOTFS]);
  return preparedOf(paths, manifest);
}

/** Says anew how an image that is there was made: the old word or the new, never a part. */
export async function changeManifest(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  digest: string,
  change: (manifest: ImageManifest) => ImageManifest,
): Promise<PreparedImage> {
  const dir = imageDir(paths, digest);
  const manifest = change(await readManifest(op, host, dir));
  await host.writeFileAtomic(op, join(dir, MANIFEST), manifestBytes(manifest), SHARED_FILE_MODE);
  return preparedOf(paths, manifest);
}

function manifestBytes(manifest: ImageManifest): Buffer {
  return Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`);
}

/**
 * Before a user's files are used: they are what they were when they were registered.
 * @throws HutchError `failed_precondition` naming what is not.
 */
export async function requireUnchanged(op: Operation, host: Host, paths: ImagePaths, image: PreparedImage): Promise<void> {
  if (image.given.length === 0) return;
  const { files, areAsSeen } = await unchanged(op, host, image.given, `image ${image.record.id}`);
  if (!areAsSeen) await changeManifest(op, host, paths, image.record.digest, (manifest) => ({ ...manifest, given: [...files] }));
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
export async function openImage(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  digest: string,
  read?: ManifestsRead,
): Promise<PreparedImage | null> {
  const dir = imageDir(paths, digest);
  const file = await host.stat(op, join(dir, MANIFEST));
  if (file === null) return null;
  const manifest = read?.get(dir, file) ?? (await readManifest(op, host, dir));
  read?.put(dir, file, manifest);
  const image = preparedOf(paths, manifest);
  if (image.record.digest !== digest) throw damaged(op, dir, 'its manifest does not belong to its digest');
  if (manifest.inPlace === true) return image; // the user's: `requireUnchanged` says what became of it
  await requireLength(ROOTFS, manifest.sizeBytes);
  if (manifest.guest !== undefined) await requireLength(GUEST_ROOTFS, manifest.guest.sizeBytes);
  return image;

  async function requireLength(name: string, sizeBytes: number): Promise<void> {
    const file = await host.stat(op, join(dir, name));
    if (file?.sizeBytes === sizeBytes) return;
    throw damaged(op, dir, file === null ? `${name} is missing` : `${name} has ${file.sizeBytes} of ${sizeBytes} bytes`);
  }
}

/** Reads the whole file system. @throws HutchError `failed_precondition` when it is not what it was. */
export async function verifyImage(op: Operation, host: Host, paths: ImagePaths, digest: string): Promise<void> {
  const image = await openImage(op, host, paths, digest);
  if (image === null)
    throw op.error('not_found', `image ${digest} is not in ${paths.images}`, {
      hint: 'bring it again as it came: pull, import, build or register it',
    });
  const dir = imageDir(paths, digest);
  await requireUnchanged(op, host, paths, image);
  if (`sha256:${await host.sha256(op, image.guestPath)}` !== image.rootDigest)
    throw damaged(op, dir, `${basename(image.guestPath)} has changed`);
  const { sha256 } = await readManifest(op, host, dir);
  if (image.path !== image.guestPath && (await host.sha256(op, image.path)) !== sha256) throw damaged(op, dir, `${ROOTFS} has changed`);
  if (image.own?.initrd != null && (await host.sha256(op, image.own.initrd.path)) !== image.own.initrd.sha256) {
    throw damaged(op, dir, `${INITRD} has changed`);
  }
  if (image.source.kind !== 'oci' && image.source.kind !== 'file') return;
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
    hint: `remove it (rm -r ${dir}) and bring it again as it came: pull, import, build or register it; the default image is made anew`,
    cause,
  });
}

function preparedOf(paths: ImagePaths, manifest: ImageManifest): PreparedImage {
  const { name, architecture, sizeBytes, config, createdAtMs, source, fileSystem, own, given = [], inPlace, guest } = manifest;
  const digest = digestOf(manifest);
  const dir = imageDir(paths, digest);
  const initrdPath = given.find(({ role }) => role === 'initrd')?.path ?? join(dir, INITRD);
  const record = {
    id: idOfDigest('img', digest),
    name,
    digest,
    architecture,
    sizeBytes,
    config,
    createdAtMs,
    detail: {
      fileSystem,
      source,
      ...(own === undefined ? {} : { [OWN_KERNEL]: idOfDigest('krn', own.kernel) }),
      ...(given.length === 0
        ? {}
        : { [REGISTERED]: { files: given.map(({ role, path }) => ({ role, path })), inPlace: inPlace === true } }),
    },
  };
  const path = inPlace === true ? (given[0]?.path ?? '') : join(dir, ROOTFS);
  return {
    record,
    path,
    guestPath: guest === undefined ? path : join(dir, GUEST_ROOTFS),
    rootDigest: `sha256:${guest?.sha256 ?? manifest.sha256}`,
    isPackedHere: source.kind !== 'file' || guest !== undefined,
    fileSystem,
    source,
    own:
      own === undefined
        ? null
        : { kernelDigest: own.kernel, initrd: own.initrd === null ? null : { path: initrdPath, sha256: own.initrd } },
    given,
  };
}
