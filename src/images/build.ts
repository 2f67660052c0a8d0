// From layers to an image that sandboxes boot: the layers are flattened into one tar stream, that is
// packed as it comes (docs/decisions/0005-image-file-system.md), and the result is moved into place
// whole. Needs no root, and no file of the image is ever made on this machine.
import { join } from 'node:path';
import type { HutchError } from '../domain/errors.ts';
import type { ImageConfig } from '../domain/image.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { ArchiveError } from './archive-error.ts';
import type { Blobs } from './blobs.ts';
import { commitImage, OCI_CONFIG, OCI_MANIFEST, type OciSource, openImage, type PreparedImage, ROOTFS } from './image.ts';
import { applyLayer, flattened, type LayerSource } from './layers/flatten.ts';
import { TREE_LIMITS, Tree, type TreeLimits } from './layers/tree.ts';
import { unpacked } from './layers/unpack.ts';
import { type ImagePaths, SHARED_DIR_MODE, SHARED_FILE_MODE, unlessDamaged } from './layout.ts';
import { PACK_OPTIONS } from './pack.ts';

const OUTPUT_BYTES_MAX = 1024 * 1024;
export const STEP = 'pull';

export type BuildLimits = TreeLimits & {
  /** One layer as a tar archive, with its headers and all that is overwritten later. */
  readonly layerBytesMax: number;
};
export const BUILD_LIMITS: BuildLimits = { ...TREE_LIMITS, layerBytesMax: 72 * 1024 ** 3 };

export type LayerToBuild = OciSource['layers'][number] & {
  /** Resolves when the layer lies in a file, whole and checked. */
  readonly file: Promise<string>;
};

export type ImageToBuild = {
  /** What it is called, for people. */
  readonly what: string;
  readonly name: string | null;
  /** Of the configuration, and so of the image. */
  readonly digest: string;
  readonly configBytes: Buffer;
  readonly config: ImageConfig;
  readonly createdAtMs: number;
  /** Null out of an archive that has none. */
  readonly manifest: { readonly digest: string; readonly bytes: Buffer } | null;
  /** From the lowest up. */
  readonly layers: readonly LayerToBuild[];
};

export async function buildImage(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  blobs: Blobs,
  image: ImageToBuild,
  limits: BuildLimits = BUILD_LIMITS,
): Promise<PreparedImage> {
  await using staged = await blobs.stage(op, `make-${op.id}-${image.digest.slice(7, 19)}`);
  const out = staged.path;
  await host.remove(op, out);
  await host.makeDir(op, out, SHARED_DIR_MODE);
  const sources: LayerSource[] = [];
  const tree = new Tree(limits);
  for (const [at, layer] of image.layers.entries()) {
    const name = `layer ${at + 1} of ${image.layers.length} of ${image.what}`;
    const file = await layer.file;
    const open = (): AsyncIterable<Uint8Array> => unpacked(op, host, file, limits.layerBytesMax);
    op.progress({ step: STEP, detail: `reading layer ${at + 1} of ${image.layers.length}` });
    const diffId = await named(op, name, () => applyLayer(tree, at, open));
    if (diffId !== layer.diffId) throw op.error('failed_precondition', `${name} is not what the image says: its content is ${diffId}`);
    sources.push(open);
  }
  op.progress({ step: STEP, detail: 'packing' });
  const sizeBytes = await named(op, image.what, () => pack(op, host, flattened(tree, sources), join(out, ROOTFS), image.what));
  await host.writeFileAtomic(op, join(out, OCI_CONFIG), image.configBytes, SHARED_FILE_MODE);
  if (image.manifest !== null) await host.writeFileAtomic(op, join(out, OCI_MANIFEST), image.manifest.bytes, SHARED_FILE_MODE);
  const sha256 = await host.sha256(op, join(out, ROOTFS));
  // Another process may have been quicker.
  const there = await unlessDamaged(op, () => openImage(op, host, paths, image.digest));
  if (there !== null) return there;
  return await commitImage(op, host, paths, out, {
    name: image.name,
    architecture: 'x86_64',
    fileSystem: 'squashfs',
    sha256,
    digest: image.digest.replace(/^sha256:/, ''),
    sizeBytes,
    config: { ...image.config, env: { ...image.config.env }, ...listsOf(image.config) },
    createdAtMs: image.createdAtMs,
    source: {
      kind: 'oci',
      manifest: image.manifest?.digest ?? null,
      layers: image.layers.map(({ digest, sizeBytes: layerBytes, diffId, mediaType }) => ({
        digest,
        sizeBytes: layerBytes,
        diffId,
        mediaType,
      })),
    },
  });
}

function listsOf({ entrypoint, command, exposedPorts }: ImageConfig) {
  return { entrypoint: [...entrypoint], command: [...command], exposedPorts: [...exposedPorts] };
}

/** What an archive cannot be used for is said of the image that it belongs to. */
export async function named<T>(op: Operation, what: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    for (let at: unknown = error, depth = 0; at instanceof Error && depth < 4; at = at.cause, depth += 1) {
      if (at instanceof ArchiveError) throw op.error('failed_precondition', `${what} cannot be used: ${at.message}`);
    }
    throw error;
  }
}

async function pack(op: Operation, host: Host, tar: AsyncIterable<Uint8Array>, out: string, what: string): Promise<number> {
  const packed = await host.run(op, ['tar2sqfs', ...PACK_OPTIONS, out], {
    input: tar,
    env: { SOURCE_DATE_EPOCH: '0' },
    outputBytesMax: OUTPUT_BYTES_MAX,
  });
  const file = await host.stat(op, out);
  if (packed.exitCode === 0 && file !== null) return file.sizeBytes;
  throw packError(op, Buffer.from(packed.stderr).toString(), what);
}

function packError(op: Operation, said: string, what: string): HutchError {
  if (/No space left/.test(said)) {
    return op.error('resource_exhausted', `${what} cannot be packed: the disk is full`, {
      hint: 'free some space, for example with: hutch image prune',
    });
  }
  const last = said.trim().split('\n').at(-1) ?? '';
  return op.error('failed_precondition', `${what} cannot be packed: ${last.replace(/[^\x20-\x7e]/g, '?').slice(0, 300)}`);
}
