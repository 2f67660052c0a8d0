// Layers as a build makes them: one tar stream each, not packed, under its own digest among the blobs. The same entries give
// the same bytes.
import { createHash } from 'node:crypto';
import { ArchiveError } from '../../domain/archive-error.ts';
import { hashed } from '../../domain/hashed.ts';
import { padding, type TarEntry } from '../../domain/tar/entry.ts';
import { TAR_END, tarHeader } from '../../domain/tar/header.ts';
import { TarReader } from '../../domain/tar/reader.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Blobs } from '../blobs.ts';
import { BUILD_LIMITS } from '../build.ts';
import type { OciSource } from '../image.ts';
import { type Inode, Tree } from '../layers/tree.ts';
import { unpacked } from '../layers/unpack.ts';
import { applyLayer, flattened, type LayerSource } from './flatten.ts';
import { below } from './look.ts';
import type { BuildStaging } from './staging.ts';

export type LayerRef = OciSource['layers'][number];

export const LAYER_TYPE = 'application/vnd.oci.image.layer.v1.tar';

/** Writes a layer, and gives what it is called. */
export async function writeLayer(op: Operation, staging: BuildStaging, chunks: AsyncIterable<Uint8Array>): Promise<LayerRef> {
  const { host, blobs } = staging;
  const file = await staging.file(op, `layer-${Buffer.from(host.randomBytes(8)).toString('hex')}`);
  const hash = createHash('sha256');
  const sizeBytes = await host.appendStream(op, file, hashed(chunks, hash));
  const digest = `sha256:${hash.digest('hex')}`;
  await blobs.adopt(op, file, digest);
  return { digest, sizeBytes, diffId: digest, mediaType: LAYER_TYPE };
}

/** The files of a stage: its layers, and their tree once somebody asks for it. */
export class StageRoot {
  readonly #host: Host;
  readonly #blobs: Blobs;
  readonly #layers: LayerRef[];
  #tree: Tree | null = null;
  #applied = 0;

  constructor(host: Host, blobs: Blobs, layers: readonly LayerRef[]) {
    this.#host = host;
    this.#blobs = blobs;
    this.#layers = [...layers];
  }

  get layers(): readonly LayerRef[] {
    return this.#layers;
  }

  add(layer: LayerRef): void {
    this.#layers.push(layer);
  }

  /** One that goes on from here. */
  copy(): StageRoot {
    return new StageRoot(this.#host, this.#blobs, this.#layers);
  }

  sources(op: Operation): readonly LayerSource[] {
    return this.#layers.map((layer) => this.source(op, layer));
  }

  source(op: Operation, { digest }: LayerRef): LayerSource {
    return () => unpacked(op, this.#host, this.#blobs.path(digest), BUILD_LIMITS.layerBytesMax);
  }

  async tree(op: Operation): Promise<Tree> {
    this.#tree ??= new Tree();
    for (; this.#applied < this.#layers.length; this.#applied += 1) {
      const layer = this.#layers[this.#applied];
      if (layer !== undefined) await applyLayer(this.#tree, this.#applied, this.source(op, layer));
    }
    return this.#tree;
  }
}

/** The layer of a COPY. The tree is its own: it is changed. */
export function copiedLayer(root: Pick<Tree, 'root'>, sources: readonly LayerSource[]): AsyncIterable<Uint8Array> {
  const passes = [...sources];
  const again = new Map<string, number>();
  const placed = new Map<string, Set<Inode>>();
  for (const [, inode] of below(root.root)) {
    if (inode.place === null) continue;
    const { layer, ordinal } = inode.place;
    const same = placed.get(`${layer} ${ordinal}`) ?? new Set();
    placed.set(`${layer} ${ordinal}`, same);
    if (same.has(inode)) continue; // a further name of one file
    const times = same.size;
    same.add(inode);
    if (times === 0) continue;
    // One file that became several: each reading of a layer gives its content once.
    const key = `${layer} ${times}`;
    const open = sources[layer];
    if (open === undefined) throw new Error('a file lies in a layer that is none');
    const pass = again.get(key) ?? passes.push(open) - 1;
    again.set(key, pass);
    inode.place = { layer: pass, ordinal };
  }
  return flattened(root as Tree, passes);
}

/** SHA-256 of the content of files, each layer read once. Those without content have none. */
export async function hashesOf(inodes: Iterable<Inode>, sources: readonly LayerSource[]): Promise<ReadonlyMap<Inode, string>> {
  const wanted = sources.map(() => new Map<number, Inode>());
  for (const inode of inodes) if (inode.place !== null) wanted[inode.place.layer]?.set(inode.place.ordinal, inode);
  const hashes = new Map<Inode, string>();
  for (const [at, open] of sources.entries()) {
    const files = wanted[at] ?? new Map<number, Inode>();
    let missing = files.size;
    if (missing === 0) continue;
    await using reader = new TarReader(open());
    for (let ordinal = 0; missing > 0; ordinal += 1) {
      if ((await reader.next()) === null) throw new ArchiveError('a layer is not what it was a moment ago');
      const inode = files.get(ordinal);
      if (inode === undefined) continue;
      missing -= 1;
      const hash = createHash('sha256');
      for await (const piece of reader.content()) hash.update(piece);
      hashes.set(inode, hash.digest('hex'));
    }
  }
  return hashes;
}

const NOTHING = { link: '', mode: 0, uid: 0, gid: 0, mtimeSeconds: 0, sizeBytes: 0, devMajor: 0, devMinor: 0, xattrs: null } as const;

export type ChangedLayer = {
  readonly removed: readonly string[];
  readonly opaque: readonly string[];
  /** Archives whose entries go into the layer, in this order. */
  readonly archives: readonly AsyncIterable<Uint8Array>[];
  readonly clampMtimeSeconds: number | null;
  /** What no file may have in it. */
  readonly forbidden: readonly string[];
};

/** The layer of a RUN: what it removed, then what it changed. @throws ForbiddenContent */
export async function* changedLayer({ removed, opaque, archives, clampMtimeSeconds, forbidden }: ChangedLayer): AsyncGenerator<Uint8Array> {
  const mtimeSeconds = clampMtimeSeconds ?? 0;
  for (const path of removed)
    yield tarHeader({ ...NOTHING, type: 'file', path: beside(path, `.wh.${path.slice(path.lastIndexOf('/') + 1)}`), mtimeSeconds });
  const hiding = new Set(opaque);
  if (hiding.delete('')) yield tarHeader({ ...NOTHING, type: 'file', path: '.wh..wh..opq', mtimeSeconds });
  for (const archive of archives) {
    await using reader = new TarReader(archive);
    for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
      yield tarHeader({ ...clamped(entry, clampMtimeSeconds), path: entry.path === '/' || entry.path === '' ? './' : entry.path });
      // Never before its directory: where that has a symlink's place, whoever unpacks would be led to where the link led.
      const path = entry.path.replace(/\/+$/, '');
      if (entry.type === 'directory' && hiding.delete(path))
        yield tarHeader({ ...NOTHING, type: 'file', path: `${path}/.wh..wh..opq`, mtimeSeconds });
      if (entry.type !== 'file' || entry.sizeBytes === 0) continue;
      yield* without(forbidden, entry.path, reader.content());
      yield Buffer.alloc(padding(entry.sizeBytes));
    }
  }
  yield TAR_END;
}

/** A file has something in it that no layer may have. */
export class ForbiddenContent extends Error {
  readonly path: string;

  constructor(path: string) {
    super(`${path} has something in it that no layer may have`);
    this.path = path;
  }
}

async function* without(forbidden: readonly string[], path: string, chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  if (forbidden.length === 0) return yield* chunks;
  const longest = Math.max(...forbidden.map((text) => Buffer.byteLength(text)));
  let before = Buffer.alloc(0);
  for await (const chunk of chunks) {
    const seen = Buffer.concat([before, chunk]);
    if (forbidden.some((text) => seen.includes(text))) throw new ForbiddenContent(path);
    before = Buffer.from(seen.subarray(Math.max(0, seen.byteLength - longest + 1)));
    yield chunk;
  }
}

function clamped(entry: TarEntry, seconds: number | null): TarEntry {
  return seconds === null ? entry : { ...entry, mtimeSeconds: Math.min(entry.mtimeSeconds, seconds) };
}

function beside(path: string, name: string): string {
  const at = path.lastIndexOf('/');
  return at < 0 ? name : `${path.slice(0, at)}/${name}`;
}

/**
 * What a layer takes away, as paths in a root; `…/.` is all that is in a directory. A directory that hides what is below, and comes itself,
 * is taken away whole: what stands there may be a symlink.
 */
export async function removalsOf(open: LayerSource): Promise<readonly string[]> {
  const found: string[] = [];
  const directories = new Set<string>();
  await using reader = new TarReader(open());
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    const removal = removalOf(entry.path);
    if (removal !== null) found.push(removal);
    else if (entry.type === 'directory') directories.add(`/${entry.path.replace(/^(\.?\/)+|\/+$/g, '')}`);
  }
  const whole = (path: string) => path.endsWith('/.') && path !== '//.' && directories.has(path.slice(0, -2));
  return found.map((path) => (whole(path) ? path.slice(0, -2) : path));
}

/** What layers bring, one after the other, as one archive. */
export async function* broughtBy(layers: readonly LayerSource[]): AsyncGenerator<Uint8Array> {
  for (const open of layers) {
    await using reader = new TarReader(open());
    for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
      if (removalOf(entry.path) !== null) continue;
      yield tarHeader(entry);
      if (entry.type !== 'file' || entry.sizeBytes === 0) continue;
      for await (const piece of reader.content()) yield Buffer.from(piece);
      yield Buffer.alloc(padding(entry.sizeBytes));
    }
  }
  yield TAR_END;
}

function removalOf(path: string): string | null {
  const at = path.lastIndexOf('/');
  const name = path.slice(at + 1);
  if (!name.startsWith('.wh.')) return null;
  const directory = `/${at < 0 ? '' : path.slice(0, at)}`;
  return name === '.wh..wh..opq' ? `${directory}/.` : `${directory}/${name.slice(4)}`;
}
