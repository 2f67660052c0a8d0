// What is known of a layer in an image that is here: what it says, and where in the image's file system its content
// lies. Another image that has the same layer takes it from there. A map that is missing or damaged is
// no loss: the layer is then read anew.

import { join } from 'node:path';
import { promisify } from 'node:util';
import { zstdCompress, zstdDecompress } from 'node:zlib';
import * as z from 'zod';
import type { TarEntry } from '../../domain/tar/entry.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { ROOTFS } from '../image.ts';
import { type ImagePaths, listOr, writeStaged } from '../layout.ts';
import type { PackedFile, PackedLayer } from '../squashfs/format.ts';

/** Of one layer. A larger one is read anew. */
const ENTRIES_MAX = 200_000;
const FILE_BYTES_MAX = 64 * 1024 * 1024;
const MAP_BYTES_MAX = 256 * 1024 * 1024;
const pack = promisify(zstdCompress);
const unpack = promisify(zstdDecompress);

const types = ['file', 'hardlink', 'symlink', 'character', 'block', 'directory', 'fifo'] as const;
const number = z.number().nonnegative();
/** In the order in which they are written; each is many times in a file. */
const entryRow = z.tuple([
  z.enum(types),
  z.string(),
  z.string(),
  z.tuple([number, number, number, z.number(), number, number, number]),
  z.array(z.tuple([z.string(), z.string()])).nullable(),
  z.tuple([number, number, number.nullable(), number, z.array(number)]).nullable(),
]);
const mapFile = z.strictObject({
  offset: number,
  bytes: number,
  sha256: z.string().length(64),
  fragments: z.array(z.tuple([number, number])),
  entries: z.array(entryRow).max(ENTRIES_MAX),
});

export type KnownLayer = { readonly packed: PackedLayer; readonly entries: readonly TarEntry[] };

function nameOf(diffId: string): string {
  return `layer-${diffId.replace(/^sha256:/, '')}.map`;
}

/** Into the directory of an image that is being made, in whose file system the layer lies at `packed.offset`. */
export async function keepMap(
  op: Operation,
  host: Host,
  dir: string,
  diffId: string,
  { packed, entries, sha256 }: KnownLayer & { readonly sha256: string },
): Promise<void> {
  if (entries.length > ENTRIES_MAX) return;
  const { offset, bytes, fragments, files } = packed;
  const said: z.input<typeof mapFile> = {
    offset,
    bytes,
    sha256,
    fragments: fragments.map(({ start, size }) => [start, size]),
    entries: entries.map((entry, ordinal) => rowOf(entry, files.get(ordinal))),
  };
  const packedMap = await pack(JSON.stringify(said));
  if (packedMap.byteLength <= FILE_BYTES_MAX) await writeStaged(op, host, join(dir, nameOf(diffId)), packedMap);
}

function rowOf({ type, path, link, xattrs, ...said }: TarEntry, file: PackedFile | undefined): z.input<typeof entryRow> {
  const { mode, uid, gid, mtimeSeconds, sizeBytes, devMajor, devMinor } = said;
  return [
    type,
    path,
    link,
    [mode, uid, gid, mtimeSeconds, sizeBytes, devMajor, devMinor],
    xattrs === null ? null : [...xattrs].map(([name, value]) => [name, value.toString('base64')]),
    file === undefined ? null : [file.start, file.sizeBytes, file.fragment, file.fragmentOffset, [...file.blocks]],
  ];
}

/** The layers of all images that are here, by their diff id: where a map of each lies. */
export async function knownMaps(op: Operation, host: Host, paths: ImagePaths): Promise<ReadonlyMap<string, string>> {
  const found = new Map<string, string>();
  for (const image of await listOr(op, host, paths.images)) {
    if (!/^[0-9a-f]{64}$/.test(image)) continue;
    // It may be removed at this moment.
    for (const name of await host.list(op, join(paths.images, image)).catch(() => [])) {
      const hex = /^layer-([0-9a-f]{64})\.map$/.exec(name)?.[1];
      if (hex !== undefined) found.set(`sha256:${hex}`, join(paths.images, image));
    }
  }
  return found;
}

/** Null where it is not what it should be. */
export async function openMap(op: Operation, host: Host, dir: string, diffId: string): Promise<KnownLayer | null> {
  try {
    const packedMap = await host.readFile(op, join(dir, nameOf(diffId)), FILE_BYTES_MAX);
    const text = (await unpack(packedMap, { maxOutputLength: MAP_BYTES_MAX })).toString();
    const { offset, bytes, sha256, fragments, entries } = mapFile.parse(JSON.parse(text));
    const files = new Map<number, PackedFile>();
    for (const [ordinal, row] of entries.entries()) {
      const file = row[5];
      if (file === null) continue;
      const [start, sizeBytes, fragment, fragmentOffset, blocks] = file;
      files.set(ordinal, { start, sizeBytes, fragment, fragmentOffset, blocks });
    }
    const packed = {
      path: join(dir, ROOTFS),
      offset,
      bytes,
      fragments: fragments.map(([start, size]) => ({ start, size })),
      files,
      sha256,
    };
    return { packed, entries: entries.map(entryOf) };
  } catch (cause) {
    op.signal.throwIfAborted();
    op.log.warn({ dir, diffId, cause }, 'what is known of a layer cannot be read; it is read anew');
    return null;
  }
}

function entryOf([type, path, link, [mode, uid, gid, mtimeSeconds, sizeBytes, devMajor, devMinor], xattrs]: z.output<
  typeof entryRow
>): TarEntry {
  return {
    type,
    path,
    link,
    mode,
    uid,
    gid,
    mtimeSeconds,
    sizeBytes,
    devMajor,
    devMinor,
    xattrs: xattrs === null ? null : new Map(xattrs.map(([name, value]) => [name, Buffer.from(value, 'base64')])),
    sparse: null,
  };
}
