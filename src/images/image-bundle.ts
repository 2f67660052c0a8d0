// An image without layers in an archive: one that Hutch made, or one of a user's files. For others it is there as one layer, which is another
// image; beside that lies what it is, as `hutch.json` lists it, and comes back under its own digest: that of its root file system, or of its
// description, which names the digests of all that it is made of. docs/images.md has the form.
import { join } from 'node:path';
import * as z from 'zod';
import { ArchiveError } from '../domain/archive-error.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { type ArchiveParts, partOf, range, readBlob, readJson } from './archive-parts.ts';
import { type BroughtParts, saidOf, takeRootfs } from './brought.ts';
import { BUILD_LIMITS } from './build.ts';
import { type Described, parseDescription } from './description.ts';
import { digestOf } from './digest.ts';
import { INITRD_BYTES_MAX, imageConfigSchema, imageDir, OCI_CONFIG, openImage, type PreparedImage } from './image.ts';
import { openKernel } from './kernel.ts';
import { type ImagePaths, SHARED_DIR_MODE, SHARED_FILE_MODE, unlessDamaged } from './layout.ts';
import { blobPath } from './oci/layout-tar.ts';
import { CONFIG_BYTES_MAX } from './oci/manifest.ts';

export const OWN_LIST = 'hutch.json';
const LIST_BYTES_MAX = 4 * 1024 * 1024;
const IMAGES_MAX = 64;
const VERSION = 1;

const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/);
const ownSchema = z.strictObject({
  rootfs: digest,
  initrd: digest.nullable(),
  /** Of one of a user's files: the image has its digest. */
  description: digest.nullable(),
  /** What others find in its place. */
  others: z.strictObject({ config: digest, manifest: digest }).nullable(),
  names: z.array(z.string().max(512)).max(256),
  config: imageConfigSchema,
  createdAtMs: z.int().nonnegative(),
});
const listSchema = z.strictObject({ version: z.literal(VERSION), images: z.array(ownSchema).max(IMAGES_MAX) });
export type OwnImage = z.infer<typeof ownSchema>;

export type OwnContent = {
  readonly said: OwnImage;
  readonly description: Buffer | null;
  readonly files: readonly { readonly digest: string; readonly sizeBytes: number; readonly path: string }[];
};

/** Null for one that has layers, and for one of files that an older release packed: nothing says that those are what it has. */
export async function ownContent(
  op: Operation,
  { host, paths }: { readonly host: Host; readonly paths: ImagePaths },
  image: PreparedImage,
  names: readonly string[],
  others: OwnImage['others'],
): Promise<OwnContent | null> {
  const { record, source, own, rootDigest } = image;
  if (source.kind === 'oci') return null;
  const description =
    source.kind === 'file'
      ? Buffer.from(await host.readFile(op, join(imageDir(paths, record.digest), OCI_CONFIG), CONFIG_BYTES_MAX))
      : null;
  if (description === null ? record.digest !== rootDigest : `sha256:${parseDescription(description)?.rootSha256}` !== rootDigest)
    return null;
  const fileOf = async (path: string, of: string) => ({ digest: of, path, sizeBytes: (await host.stat(op, path))?.sizeBytes ?? 0 });
  const initrd = own?.initrd == null ? null : await fileOf(own.initrd.path, `sha256:${own.initrd.sha256}`);
  const { config, createdAtMs } = record;
  return {
    said: ownSchema.parse({
      ...{ rootfs: rootDigest, initrd: initrd?.digest ?? null, description: description === null ? null : digestOf(description) },
      ...{ others, names, config, createdAtMs },
    }),
    description,
    files: [await fileOf(image.guestPath, rootDigest), ...(initrd === null ? [] : [initrd])],
  };
}

export function ownList(images: readonly OwnImage[]): Buffer {
  return Buffer.from(JSON.stringify({ version: VERSION, images }));
}

/** What an archive lists of these. @throws ArchiveError */
export async function ownImages(op: Operation, host: Host, archive: ArchiveParts): Promise<readonly OwnImage[]> {
  if (!archive.parts.has(OWN_LIST)) return [];
  const json = await readJson(op, host, archive, OWN_LIST, LIST_BYTES_MAX);
  const version = typeof json === 'object' && json !== null && 'version' in json ? json.version : null;
  if (typeof version === 'number' && version > VERSION)
    throw new ArchiveError(`its ${OWN_LIST} is of version ${version}; this release of Hutch reads version ${VERSION}`);
  const parsed = listSchema.safeParse(json);
  if (!parsed.success) throw new ArchiveError(`its ${OWN_LIST} is damaged`);
  return parsed.data.images;
}

/** By which it is known here. */
export function digestOfOwn({ rootfs, description }: OwnImage): string {
  return description ?? rootfs;
}

/**
 * Into place, under its digest. Its kernel, where it has one, is here already.
 * @throws ArchiveError for what is not that image, or none that guests boot from.
 */
export async function takeOwnImage(op: Operation, parts: BroughtParts, archive: ArchiveParts, said: OwnImage): Promise<PreparedImage> {
  const { host, paths, blobs, limits = BUILD_LIMITS } = parts;
  const own = digestOfOwn(said);
  const about = said.description === null ? null : await aboutOf(op, parts, archive, said, said.description);
  const there = await unlessDamaged(op, () => openImage(op, host, paths, own));
  if (there !== null) {
    // Nothing in its digest says which of them is right.
    if (there.source.kind === 'snapshot' && saidOf(there.record) !== saidOf(said))
      throw new ArchiveError(`the image ${own} is here already, and says other things of its environment or its command`);
    return there;
  }
  await using staged = await blobs.stage(op, `import-own-${op.id}-${own.slice(7, 19)}`);
  await host.makeDir(op, staged.path, SHARED_DIR_MODE);
  const taken = async (of: string, name: string, bytesMax: number): Promise<string> => {
    const { file, offset, length } = partOf(archive, blobPath(of));
    if (length > bytesMax) throw new ArchiveError(`the ${name} in it has ${length} bytes; at most ${bytesMax} are read`);
    const path = join(staged.path, name);
    await host.appendStream(op, path, range(op, host, file, offset, length));
    await host.chmod(op, path, SHARED_FILE_MODE); // its reader has no rights
    return path;
  };
  const rootfs = await taken(said.rootfs, 'rootfs', limits.layerBytesMax);
  const initrd = said.initrd === null ? null : await taken(said.initrd, 'initrd', INITRD_BYTES_MAX);
  if (initrd !== null && `sha256:${await host.sha256(op, initrd)}` !== said.initrd)
    throw new ArchiveError(`the initrd ${said.initrd} is not what its name says`);
  return await takeRootfs(op, parts, {
    ...{ path: rootfs, digest: said.rootfs, said, bytesMax: limits.layerBytesMax, what: 'the image' },
    ...(about === null ? {} : { as: { digest: own, ...about, initrd } }),
  });
}

/** Its description names all that it is made of; what the archive says beside that must be the same. */
async function aboutOf(op: Operation, { host, paths }: BroughtParts, archive: ArchiveParts, said: OwnImage, description: string) {
  const configBytes = await readBlob(op, host, archive, description, CONFIG_BYTES_MAX);
  const described: Described | null = parseDescription(configBytes);
  if (described === null) throw new ArchiveError('the description of an image in it is damaged');
  const { rootSha256, kernel, initrdSha256 } = described;
  const isSame = said.rootfs === `sha256:${rootSha256}` && said.initrd === (initrdSha256 === null ? null : `sha256:${initrdSha256}`);
  if (!isSame) throw new ArchiveError(`the image ${description} is not made of what lies beside it`);
  if (kernel === null) return { configBytes, own: null };
  if ((await unlessDamaged(op, () => openKernel(op, host, paths, kernel))) === null)
    throw new ArchiveError(`the kernel ${kernel} that its image ${description} boots is neither in it nor here`);
  return { configBytes, own: { kernel, initrd: initrdSha256 } };
}
