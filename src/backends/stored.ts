// A memory or a disk as it is stored: a directory with a map and layers, sparse files that are named by their number, each page at its
// own place (rust/imprint). What one has in common with an earlier one is there under one more name of the same file, so nothing
// that it needs can be taken from it, and nothing is stored twice.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { z } from 'zod';
import { errnoOf } from '../host/errors.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { DiskToTake, Taken } from './imprint.ts';
import { allOf } from './wait.ts';

/** Under the layers of a memory. */
export const BASE = 'base';
export const MAP = 'map';
/** Read by every sandbox's user, written by nobody; its directory's name is not to be guessed or listed. */
export const MEMORY_MODE = 0o444;
/** Longer chains begin anew. */
export const CHAIN_MAX = 48;
const LAYERS_MAX = 64;
const MAP_BYTES_MAX = 64 * 1024 * 1024;
const PAGE_BYTES = 4096;
const MAP_HEAD_BYTES = 8;
const RUN_BYTES = 16;

const hash = z.string().regex(/^[0-9a-f]{16}$/);
export const layerSchema = z.strictObject({
  number: z.int().min(1).max(LAYERS_MAX),
  /** Tells the layers of two apart. */
  id: z.string().regex(/^[0-9a-f]{32}$/),
  pages: z.int().nonnegative(),
  bytes: z.int().nonnegative(),
  /** Null: nobody has needed it after this boot of the host, and it may not be on the disk yet. */
  hash: hash.nullable(),
});
export const storeSchema = z.strictObject({
  bytes: z.int().positive(),
  layers: z.array(layerSchema).max(LAYERS_MAX),
  map: z.string().regex(/^[0-9a-f]{64}$/),
});
export type Layer = z.infer<typeof layerSchema>;
export type Store = z.infer<typeof storeSchema>;

/** The number of the layer that is taken next. */
export function nextOf(layers: readonly Layer[]): number {
  return (layers.at(-1)?.number ?? 0) + 1;
}

/** A disk that is to be stored, and the layers that it has from an earlier one. */
export type ReadyDisk = { readonly disk: DiskToTake; readonly layers: readonly Layer[] };

/** Makes `dir` for the disk at `path`, with what an earlier one has in `earlier.dir`: that is not stored again. */
export async function readyDisk(
  op: Operation,
  host: Host,
  path: string,
  dir: string,
  earlier: { readonly dir: string; readonly store: Store } | null,
): Promise<ReadyDisk> {
  await host.makeDir(op, dir, 0o700);
  const bytes = (await host.stat(op, path))?.sizeBytes ?? 0;
  // One that has grown since begins anew: its layers are as long as it is.
  const isBase = earlier !== null && earlier.store.bytes === bytes && earlier.store.layers.length < CHAIN_MAX;
  if (isBase) await linkStore(op, host, earlier.dir, dir, earlier.store);
  const layers = isBase ? earlier.store.layers : [];
  return { disk: { path, dir, bytes, layer: nextOf(layers) }, layers };
}

/** A store in `dir` with the layer that was taken. */
export async function withTaken(
  op: Operation,
  host: Host,
  dir: string,
  { bytes, layers }: Pick<Store, 'bytes'> & { readonly layers: readonly Layer[] },
  taken: Taken | undefined,
): Promise<Store> {
  if (taken === undefined) throw op.error('internal', 'the program that writes machines down has not said what it wrote');
  const { layer: number, pages, bytes: layerBytes, hash: found } = taken;
  const id = Buffer.from(host.randomBytes(16)).toString('hex');
  const map = sha256(await host.readFile(op, join(dir, MAP), MAP_BYTES_MAX));
  return { bytes, layers: [...layers, { number, id, pages, bytes: layerBytes, hash: found }], map };
}

/** Gives every file of a store, and its map, a name in another directory too. */
export async function linkStore(op: Operation, host: Host, from: string, to: string, { layers }: Pick<Store, 'layers'>): Promise<void> {
  const link = (name: string): Promise<void> => host.link(op, join(from, name), join(to, name));
  const [base, map] = await allOf([host.stat(op, join(from, BASE)), host.stat(op, join(from, MAP))]);
  await allOf([
    ...layers.map(({ number }) => link(String(number))),
    ...(map === null ? [] : [link(MAP)]),
    ...(base === null ? [] : [base.type === 'symlink' ? linkTarget(op, host, join(from, BASE), join(to, BASE)) : link(BASE)]),
  ]);
}

/** What is stored must not depend on a template that may go: of one on another file system there is a copy. */
async function linkTarget(op: Operation, host: Host, from: string, to: string): Promise<void> {
  const target = await host.readLink(op, from);
  try {
    await host.link(op, target, to);
  } catch (error) {
    if (errnoOf(error) !== 'EXDEV') throw error;
    await host.cloneFile(op, target, to);
    await host.chmod(op, to, MEMORY_MODE);
  }
}

/** The file that is a disk as it was, where that was written down in one piece, for a moment; null: it has to be laid out. */
export function wholeFile(dir: string, { bytes, layers }: Store): string | null {
  const [only, ...others] = layers;
  return only === undefined || others.length > 0 || only.hash !== null || bytes !== wholePages(bytes)
    ? null
    : join(dir, String(only.number));
}

/** Whether the map in `dir` is that of this store. */
export async function hasMap(op: Operation, host: Host, dir: string, { map }: Pick<Store, 'map'>): Promise<boolean> {
  const path = join(dir, MAP);
  return (await host.stat(op, path)) !== null && sha256(await host.readFile(op, path, MAP_BYTES_MAX)) === map;
}

/** The layers of a store in `dir`, as files that have to be so long and have to have that checksum. */
export function layerFiles(dir: string, { bytes, layers }: Store) {
  return layers.map(({ number, hash: wanted }) => ({ path: join(dir, String(number)), hash: wanted, bytes: wholePages(bytes) }));
}

/** What of a store in `dir` travels, in that order, with bounds for what arrives. */
export function storedParts(name: string, dir: string, { bytes, layers }: Store) {
  return [
    // A map has a run for each page at most.
    { name: `${name}/${MAP}`, path: join(dir, MAP), bytesMax: MAP_HEAD_BYTES + RUN_BYTES * (wholePages(bytes) / PAGE_BYTES) },
    ...layers.map(({ number }) => ({ name: `${name}/${number}`, path: join(dir, String(number)), bytesMax: wholePages(bytes) })),
  ];
}

/** What came from elsewhere may name its layers in any order. */
export function isOrdered({ layers }: Pick<Store, 'layers'>): boolean {
  return layers.every(({ number }, at) => at === 0 || number > (layers[at - 1]?.number ?? 0));
}

function wholePages(bytes: number): number {
  return Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES;
}

export function sha256(bytes: Uint8Array | string): string {
  return createHash('sha256').update(bytes).digest('hex');
}
