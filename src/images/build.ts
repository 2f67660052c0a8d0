// From layers to an image that sandboxes boot: each layer is packed as it is read, or taken from an image that
// has it already; one file system is made of them (docs/decisions/0027-layers-are-packed-once.md) and
// moved into place whole. Needs no root, and no file of the image is ever made on this machine.
import { join } from 'node:path';
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { ArchiveError } from '../domain/archive-error.ts';
import type { HutchError } from '../domain/errors.ts';
import type { ImageConfig } from '../domain/image.ts';
import type { Aside, Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Blobs } from './blobs.ts';
import type { LayerSource } from './build/flatten.ts';
import { digestOf } from './digest.ts';
import {
  commitImage,
  GUEST_ROOTFS,
  type ImageManifest,
  INITRD,
  OCI_CONFIG,
  OCI_MANIFEST,
  type OciSource,
  openImage,
  type PreparedImage,
  ROOTFS,
} from './image.ts';
import { Joined, NotAsItWas } from './layers/join.ts';
import { type KnownLayer, keepMap, knownMaps, openMap } from './layers/map.ts';
import { PackFailed, packLayer } from './layers/pack.ts';
import { TREE_LIMITS, Tree, type TreeLimits } from './layers/tree.ts';
import { unpacked } from './layers/unpack.ts';
import { type ImagePaths, SHARED_DIR_MODE, SHARED_FILE_MODE, unlessDamaged, writeStaged } from './layout.ts';
import { keepRunDirectory } from './run-directory.ts';
import { DATA_AT, squashfsOf, TooManyOwners } from './squashfs/write.ts';

export const STEP = 'pull';
const ENTRIES_PER_TURN = 2_000;
/** Of layers: read, or written, beside each other. */
const MAPS_AT_ONCE = 4;
const PUBLISH_MS = 60_000;
const PUBLISH_POLL_MS = 10;

export type BuildLimits = TreeLimits & {
  /** One layer as a tar archive, with its headers and all that is overwritten later. */
  readonly layerBytesMax: number;
};
export const BUILD_LIMITS: BuildLimits = { ...TREE_LIMITS, layerBytesMax: 72 * 1024 ** 3 };

export type LayerToBuild = OciSource['layers'][number] & {
  /** Resolves when the layer lies in a file, whole and checked. */
  readonly file: Promise<string>;
  /** Once it does: whether it is not packed, and its bytes were hashed on their way into that file just now. */
  readonly hashedNow?: () => boolean;
  /** What was packed of it on its way in, for whoever asks first; null where nothing was. Its content is that of `diffId`. */
  readonly packed?: () => Promise<KnownLayer | null>;
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
  /** Of the progress that is told; default `pull`. */
  readonly step?: string;
  /** What its manifest says beside that, or instead. */
  readonly more?: Partial<Pick<ImageManifest, 'source' | 'own' | 'given'>>;
  /** What guests get instead of what is built: moved to it. */
  readonly guestFile?: string;
  /** The initrd that it brings: copied to it. */
  readonly initrdFile?: string;
  /** What it says of itself, once its file system is there; in place of `configBytes` and `digest`. `rootSha256`: of that file system. */
  readonly describedBy?: (rootSha256: string) => Buffer;
  /** Where what is large is copied and hashed. */
  readonly aside?: Aside;
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
  const { sha256, sizeBytes } = await rootOf(op, { host, paths, image, out, limits }, 'reuse');
  const configBytes = image.describedBy?.(sha256) ?? image.configBytes;
  const digest = image.describedBy === undefined ? image.digest : digestOf(configBytes);
  await writeStaged(op, host, join(out, OCI_CONFIG), configBytes);
  if (image.manifest !== null) await writeStaged(op, host, join(out, OCI_MANIFEST), image.manifest.bytes);
  const guest = image.guestFile === undefined ? null : await addGuest(op, host, out, image.guestFile);
  if (image.initrdFile !== undefined) await added(op, host, image.initrdFile, join(out, INITRD));
  // Another process may have been quicker, or be at it now: one looks and moves at a time.
  await using _publishing = await publishing(op, host, paths);
  const there = await unlessDamaged(op, () => openImage(op, host, paths, digest));
  if (there !== null) return there;
  return await commitImage(op, host, paths, out, {
    name: image.name,
    architecture: 'x86_64',
    fileSystem: 'squashfs',
    sha256,
    digest: digest.replace(/^sha256:/, ''),
    sizeBytes,
    config: { ...image.config, env: { ...image.config.env }, ...listsOf(image.config) },
    createdAtMs: image.createdAtMs,
    source: {
      kind: 'oci',
      manifest: image.manifest?.digest ?? null,
      layers: image.layers.map(({ digest: layer, sizeBytes: layerBytes, diffId, mediaType }) => ({
        digest: layer,
        sizeBytes: layerBytes,
        diffId,
        mediaType,
      })),
    },
    ...image.more,
    ...(guest === null ? {} : { guest }),
  });
}

/** Read again once it lies where nobody else writes. */
async function addGuest(op: Operation, host: Host, out: string, file: string): Promise<NonNullable<ImageManifest['guest']>> {
  const path = join(out, GUEST_ROOTFS);
  await added(op, host, file, path);
  return { sha256: await host.sha256(op, path), sizeBytes: (await host.stat(op, path))?.sizeBytes ?? 0 };
}

async function added(op: Operation, host: Host, from: string, to: string): Promise<void> {
  await host.cloneFile(op, from, to);
  await host.chmod(op, to, SHARED_FILE_MODE);
  await host.sync(op, to);
}

/** Held for as long as it takes to look whether an image is there, and to move it into place. */
export async function publishing(op: Operation, host: Host, paths: ImagePaths): Promise<AsyncDisposable> {
  using patient = op.within(PUBLISH_MS, 'waiting for another process that moves an image into place');
  for (;;) {
    const lock = await host.lockFile(patient, join(paths.staging, 'publish.lock'));
    if (lock !== null) return lock;
    await sleep(PUBLISH_POLL_MS, undefined, { signal: patient.signal }).catch(() => patient.signal.throwIfAborted());
  }
}

type Root = { readonly sha256: string; readonly sizeBytes: number };
type Making = {
  readonly host: Host;
  readonly paths: ImagePaths;
  readonly image: ImageToBuild;
  readonly out: string;
  readonly limits: BuildLimits;
};

/** The root file system, with what is known of its layers beside it. */
async function rootOf(op: Operation, making: Making, layersHere: 'reuse' | 'ignore'): Promise<Root> {
  const { host, paths, image, out } = making;
  const here = layersHere === 'reuse' ? await knownMaps(op, host, paths) : new Map<string, string>();
  try {
    return await named(op, image.what, () => written(op, making, here, layersHere));
  } catch (error) {
    if (!(error instanceof NotAsItWas)) throw error;
    op.log.warn({ path: error.path }, 'an image has changed on disk; its layers are read anew');
    await host.remove(op, join(out, ROOTFS));
    return await rootOf(op, making, 'ignore');
  }
}

/** `here`: where the maps of layers lie that other images have. */
async function written(op: Operation, making: Making, here: ReadonlyMap<string, string>, layersHere: 'reuse' | 'ignore'): Promise<Root> {
  const { host, image, out, limits } = making;
  const tree = new Tree(limits);
  const layers: KnownLayer[] = [];
  await using joined = new Joined(op, host, join(out, ROOTFS), image.aside);
  const open = ({ diffId }: LayerToBuild) => {
    const dir = here.get(diffId);
    const opening = dir === undefined ? Promise.resolve(null) : openMap(op, host, dir, diffId);
    opening.catch(() => {}); // heard below, where it comes to that
    return opening;
  };
  const ahead = image.layers.slice(0, MAPS_AT_ONCE).map(open);
  for (const [at, layer] of image.layers.entries()) {
    const there = (await ahead.shift()) ?? null;
    ahead.push(...image.layers.slice(at + MAPS_AT_ONCE, at + MAPS_AT_ONCE + 1).map(open));
    const known = there ?? (layersHere === 'reuse' ? await layer.packed?.() : null) ?? null;
    const read =
      known === null ? await readLayer(op, making, tree, at, layer) : await named(op, layerName(image, at), () => applied(tree, at, known));
    layers.push(read);
    joined.add(read.packed, there === null);
  }
  await Promise.all(image.layers.map(({ file }) => file)); // also those whose content was here: they are kept for others
  op.progress({ step: image.step ?? STEP, detail: 'writing' });
  await keepRunDirectory(op, host, out, tree, await Promise.all(image.layers.map(async ({ file }) => sourceOf(op, making, await file))));
  const parts = await squashfsOf(
    tree,
    layers.map(({ packed }) => packed),
  );
  const { sha256, sums } = await joined.finish(parts);
  let offset = DATA_AT;
  const maps = new Map<string, () => Promise<void>>(); // an image may have one layer twice
  for (const [at, { packed, entries }] of layers.entries()) {
    const { diffId = '' } = image.layers[at] ?? {};
    const map = { packed: { ...packed, offset }, entries, sha256: sums[at] ?? '' };
    if (!maps.has(diffId)) maps.set(diffId, () => keepMap(op, host, out, diffId, map));
    offset += packed.bytes;
  }
  const waiting = maps.values();
  const some = async () => {
    for (const keep of waiting) await keep();
  };
  await Promise.all(Array.from({ length: MAPS_AT_ONCE }, some));
  return { sha256, sizeBytes: parts.sizeBytes };
}

function sourceOf(op: Operation, { host, limits }: Making, file: string): LayerSource {
  return () => unpacked(op, host, file, limits.layerBytesMax);
}

function layerName({ layers, what }: ImageToBuild, at: number): string {
  return `layer ${at + 1} of ${layers.length} of ${what}`;
}

async function readLayer(
  op: Operation,
  { host, image, out, limits }: Making,
  tree: Tree,
  at: number,
  layer: LayerToBuild,
): Promise<KnownLayer> {
  const name = layerName(image, at);
  const file = await layer.file;
  op.progress({ step: image.step ?? STEP, detail: `reading layer ${at + 1} of ${image.layers.length}` });
  const source = unpacked(op, host, file, limits.layerBytesMax);
  // Of what is not packed, the digest by which it came is this one.
  const isKnown = layer.hashedNow?.() === true && layer.digest === layer.diffId;
  const { packed, diffId, entries } = await named(op, name, () =>
    packLayer(
      op,
      host,
      (ordinal, entry) => tree.apply(at, ordinal, entry),
      source,
      join(out, `layer-${at}`),
      isKnown ? layer.diffId : null,
    ),
  );
  if (diffId !== layer.diffId) throw op.error('failed_precondition', `${name} is not what the image says: its content is ${diffId}`);
  return { packed, entries };
}

async function applied(tree: Tree, at: number, known: KnownLayer): Promise<KnownLayer> {
  for (const [ordinal, entry] of known.entries.entries()) {
    tree.apply(at, ordinal, entry);
    if (ordinal % ENTRIES_PER_TURN === 0) await turn();
  }
  return known;
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
      if (at instanceof PackFailed) throw packError(op, at, what);
      if (at instanceof TooManyOwners) throw op.error('failed_precondition', `${what} has files of more than 65,535 users and groups`);
    }
    throw error;
  }
}

function packError(op: Operation, { message: said, isDiskFull }: PackFailed, what: string): HutchError {
  if (isDiskFull || /No space left/.test(said)) {
    return op.error('resource_exhausted', `${what} cannot be packed: the disk is full`, {
      hint: 'free some space, for example with: hutch image prune',
    });
  }
  const last = said.trim().split('\n').at(-1) ?? '';
  return op.error('failed_precondition', `${what} cannot be packed: ${last.replace(/[^\x20-\x7e]/g, '?').slice(0, 300)}`);
}
