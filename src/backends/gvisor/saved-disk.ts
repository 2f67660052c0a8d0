// The disk of a snapshot: in layers (../stored.ts), so that what an earlier snapshot has of it is not stored again. Snapshots of older
// releases have all of it in one file.
import { join } from 'node:path';
import { z } from 'zod';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { hashes } from '../hashes.ts';
import { layOut, take } from '../imprint.ts';
import { hasMap, layerFiles, readyDisk, type Store, storedParts, storeSchema, withTaken } from '../stored.ts';

const DIR = 'disk';
/** Of an older release. */
const WHOLE = 'disk.img';
const MODE = 0o600;

const wholeSchema = z.strictObject({ bytes: z.int().positive(), hash: z.string().regex(/^[0-9a-f]{16}$/) });
export const savedDiskSchema = z.union([storeSchema, wholeSchema]);
export type SavedDisk = z.infer<typeof savedDiskSchema>;

export type DiskTools = { readonly host: Host; readonly imprintPath: string };

/**
 * Stores the disk at `path` in `dir`, on the disk and with its checksums; nobody may write to it until `read` is called. What a snapshot
 * in `earlier.dir` has of it is not stored again.
 */
export async function storeDisk(
  op: Operation,
  { host, imprintPath }: DiskTools,
  path: string,
  dir: string,
  { earlier, read }: { readonly earlier: { readonly dir: string; readonly disk: SavedDisk } | null; readonly read: () => Promise<void> },
): Promise<Store> {
  const to = join(dir, DIR);
  const base = earlier !== null && 'layers' in earlier.disk ? { dir: join(earlier.dir, DIR), store: earlier.disk } : null;
  const { disk, layers } = await readyDisk(op, host, path, to, base);
  const still = { before: false, begin: async () => {}, end: read };
  const [taken] = await take(op, host, imprintPath, { memory: null, disks: [disk], lasts: true }, still);
  return await withTaken(op, host, to, { bytes: disk.bytes, layers }, taken);
}

/** Makes `path` that disk; it is durable only after `Host.sync`. */
export async function layDiskOut(
  op: Operation,
  { host, imprintPath }: DiskTools,
  dir: string,
  disk: SavedDisk,
  path: string,
): Promise<void> {
  await host.remove(op, path);
  if ('layers' in disk) await layOut(op, host, imprintPath, join(dir, DIR), disk.bytes, path);
  else await host.cloneFile(op, join(dir, WHOLE), path);
  await host.chmod(op, path, MODE);
}

/** The name of what is not as it was written, or null. Every byte is read only with `imprintPath`. */
export async function whatIsWrong(
  op: Operation,
  { host, imprintPath }: { readonly host: Host; readonly imprintPath: string | null },
  dir: string,
  disk: SavedDisk,
): Promise<string | null> {
  const isLayered = 'layers' in disk;
  if (isLayered && !(await hasMap(op, host, join(dir, DIR), disk))) return 'the map of its disk';
  const files = isLayered ? layerFiles(join(dir, DIR), disk) : [{ ...disk, path: join(dir, WHOLE) }];
  for (const { path, bytes } of files) if ((await host.stat(op, path))?.sizeBytes !== bytes) return nameIn(dir, path);
  if (imprintPath === null) return null;
  const paths = files.map(({ path }) => path);
  const found = await hashes(op, host, imprintPath, paths);
  const wrong = files.find(({ hash }, at) => found[at] !== hash);
  return wrong === undefined ? null : nameIn(dir, wrong.path);
}

const nameIn = (dir: string, path: string): string => path.slice(dir.length + 1);

/** What that disk takes with all that it has in common with others. */
export function apparentBytesOf({ layers }: Store): number {
  return layers.reduce((sum, { bytes }) => sum + bytes, 0);
}

/** Its files in `dir`, as they travel. */
export function partsOfDisk(dir: string, disk: SavedDisk) {
  return 'layers' in disk ? storedParts('disk', join(dir, DIR), disk) : [{ name: 'disk', path: join(dir, WHOLE), bytesMax: disk.bytes }];
}

/** Where they are to arrive. */
export async function makeRoomFor(op: Operation, host: Host, dir: string, disk: SavedDisk): Promise<void> {
  if ('layers' in disk) await host.makeDir(op, join(dir, DIR), 0o700);
}
