// An image without layers that came with a snapshot, or in an archive: one that was made on another machine, in the very bytes that a guest's memory
// knows. Its digest is over them, so nothing else can have its name. Who made them is not known: a guest alone reads them, as it reads its own disk. What this machine looks
// into (other backends, exports, lists of packages) is made anew of what is in them, by our own writer, out of a reader that has no rights.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import * as z from 'zod';
import { ArchiveError } from '../domain/archive-error.ts';
import type { ImageConfig } from '../domain/image.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { mediaTypeOf, scan } from './archive-parts.ts';
import type { Blobs } from './blobs.ts';
import { BUILD_LIMITS, type BuildLimits, buildImage } from './build.ts';
import { type ImageManifest, imageConfigSchema, type PreparedImage } from './image.ts';
import { TREE_LIMITS } from './layers/tree.ts';
import { unpacked } from './layers/unpack.ts';
import { type ImagePaths, SHARED_DIR_MODE } from './layout.ts';
import { readOutside } from './outside-reader.ts';

const HEAD_BYTES = 96;
const MAGIC_BYTES = 6;
const SQUASHFS = 'hsqs';
/** By the number of the way in which it is packed: what the kernels that we boot read. */
const PACKINGS = new Set([1, 4, 5, 6]);

/** What an image of ours says beside its bytes. */
export const broughtImageSchema = z.strictObject({ config: imageConfigSchema, createdAtMs: z.int().nonnegative() });
export type BroughtImage = z.infer<typeof broughtImageSchema>;

/** An image that has another digest than its file system: of its description, which the caller has compared with all that is given. */
type Described = {
  readonly digest: string;
  readonly configBytes: Buffer;
  readonly own: ImageManifest['own'] | null;
  /** Checked. */
  readonly initrd: string | null;
};

export type BroughtParts = { readonly host: Host; readonly paths: ImagePaths; readonly blobs: Blobs; readonly limits?: BuildLimits };

/**
 * Moves the file at `path` into place as the image `digest`. `bytesMax`: what may be unpacked for that, for a moment.
 * @throws ArchiveError for what is not that image, or none that guests boot from.
 */
export async function takeRootfs(
  op: Operation,
  { host, paths, blobs, limits = BUILD_LIMITS }: BroughtParts,
  {
    path,
    digest,
    said,
    bytesMax,
    what = 'the image of the snapshot',
    as = null,
  }: {
    readonly path: string;
    readonly digest: string;
    readonly said: BroughtImage;
    readonly bytesMax: number;
    readonly what?: string;
    readonly as?: Described | null;
  },
): Promise<PreparedImage> {
  if (`sha256:${await host.sha256(op, path)}` !== digest) throw new ArchiveError('the image in it is not the one that it names');
  const head = Buffer.from(await host.readRange(op, path, 0, HEAD_BYTES));
  if (
    head.byteLength < HEAD_BYTES ||
    head.toString('latin1', 0, 4) !== SQUASHFS ||
    head.readUInt16LE(28) !== 4 ||
    !PACKINGS.has(head.readUInt16LE(20))
  )
    throw new ArchiveError('the image in it is no file system that guests read');
  await using staged = await blobs.stage(op, `make-brought-${op.id}`);
  await host.makeDir(op, staged.path, SHARED_DIR_MODE);
  const tar = join(staged.path, 'root.tar');
  const room = Math.min(bytesMax, limits.layerBytesMax);
  await readOutside(op, host, ['sqfs2tar', '/dev/stdin'], { from: path, to: tar, bytesMax: room, what: 'the image in it' });
  const { diffId } = await scan(unpacked(op, host, tar, limits.layerBytesMax));
  const unsaid = JSON.stringify({ architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [diffId] } });
  const layer = { digest: diffId, diffId, sizeBytes: (await host.stat(op, tar))?.sizeBytes ?? 0 };
  const mediaType = mediaTypeOf(await host.readRange(op, tar, 0, MAGIC_BYTES));
  const image = {
    ...{ what, name: null, digest: as?.digest ?? digest, configBytes: as?.configBytes ?? Buffer.from(unsaid) },
    ...{ config: said.config, createdAtMs: said.createdAtMs, manifest: null },
    layers: [{ ...layer, mediaType, file: Promise.resolve(tar) }],
    more: {
      source: { kind: as === null ? 'snapshot' : 'file' } as const,
      ...(as?.own == null ? {} : { own: as.own }),
    },
    ...(as?.initrd == null ? {} : { initrdFile: as.initrd }),
    guestFile: path,
    step: 'import',
  };
  return await buildImage(op, host, paths, blobs, image, { ...TREE_LIMITS, ...limits });
}

/** Tells two images of one digest apart that say different things of themselves. */
export function saidOf({ config }: { readonly config: ImageConfig }): string {
  return createHash('sha256')
    .update(JSON.stringify(sorted(config)))
    .digest('hex');
}

function sorted(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, one]) => [key, sorted(one)]),
  );
}
