// Reads back what tar2sqfs made of one layer: not the content, only where it lies. Each file says by its
// time of change which entry of the layer it is.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { unpackLz4Block } from '../lz4.ts';
import {
  BLOCK_BYTES,
  EXTENDED,
  LZ4,
  MAGIC,
  METADATA_BYTES,
  NO_FRAGMENT,
  type PackedFile,
  type PackedLayer,
  type Piece,
  STORED,
  SUPERBLOCK_BYTES,
  TYPES,
} from './format.ts';

/** Tables of a million files. */
const TABLES_BYTES_MAX = 512 * 1024 * 1024;
const FRAGMENT_BYTES = 16;

export async function readPacked(op: Operation, host: Host, path: string): Promise<PackedLayer> {
  const head = Buffer.from(await host.readRange(op, path, 0, SUPERBLOCK_BYTES + 2));
  const wrong = (why: string): Error => new Error(`tar2sqfs made something that is not understood: ${why}`);
  if (head.readUInt32LE(0) !== MAGIC || head.readUInt16LE(20) !== LZ4 || head.readUInt32LE(12) !== BLOCK_BYTES) throw wrong('its head');
  const place = (at: number): number => Number(head.readBigUInt64LE(at));
  const [end, inodesAt, directoriesAt] = [place(40), place(64), place(72)];
  const dataAt = SUPERBLOCK_BYTES + 2 + (head.readUInt16LE(SUPERBLOCK_BYTES) & ~STORED);
  const fragmentCount = head.readUInt32LE(16);
  if (end - inodesAt > TABLES_BYTES_MAX || inodesAt < dataAt) throw wrong('its tables');
  const tables = Buffer.from(await host.readRange(op, path, inodesAt, end - inodesAt));
  const fragments: Piece[] = [];
  if (fragmentCount > 0) {
    const index = place(80) - inodesAt;
    const found = unpackedTable(tables, Number(tables.readBigUInt64LE(index)) - inodesAt, index);
    for (let at = 0; at < fragmentCount * FRAGMENT_BYTES; at += FRAGMENT_BYTES) {
      fragments.push({ start: Number(found.readBigUInt64LE(at)) - dataAt, size: found.readUInt32LE(at + 8) });
    }
  }
  const files = filesOf(unpackedTable(tables, 0, directoriesAt - inodesAt), head.readUInt32LE(4), dataAt);
  return { path, offset: dataAt, bytes: inodesAt - dataAt, fragments, files, sha256: null };
}

function unpackedTable(tables: Buffer, from: number, to: number): Buffer {
  const blocks: Buffer[] = [];
  for (let at = from; at < to; ) {
    const said = tables.readUInt16LE(at);
    const length = said & ~STORED;
    const block = tables.subarray(at + 2, at + 2 + length);
    blocks.push((said & STORED) !== 0 ? block : Buffer.from(unpackLz4Block(block, METADATA_BYTES)));
    at += 2 + length;
  }
  return Buffer.concat(blocks);
}

function filesOf(inodes: Buffer, count: number, dataAt: number): ReadonlyMap<number, PackedFile> {
  const files = new Map<number, PackedFile>();
  let at = 0;
  const word = (offset: number): number => inodes.readUInt32LE(at + offset);
  const long = (offset: number): number => Number(inodes.readBigUInt64LE(at + offset));
  for (let number = 0; number < count; number += 1) {
    const type = inodes.readUInt16LE(at);
    if (type === TYPES.directory) at += 32;
    else if (type === TYPES.directory + EXTENDED) {
      // Behind it a list for quicker searching, with a name in each entry.
      const entries = inodes.readUInt16LE(at + 32);
      at += 40;
      for (let entry = 0; entry < entries; entry += 1) at += 12 + word(8) + 1;
    } else if (type === TYPES.file || type === TYPES.file + EXTENDED) {
      const isBasic = type === TYPES.file;
      const [start, sizeBytes] = isBasic ? [word(16), word(28)] : [long(16), long(24)];
      const [fragment, fragmentOffset] = isBasic ? [word(20), word(24)] : [word(44), word(48)];
      const hasFragment = fragment !== NO_FRAGMENT;
      const blockCount = hasFragment ? Math.floor(sizeBytes / BLOCK_BYTES) : Math.ceil(sizeBytes / BLOCK_BYTES);
      const list = isBasic ? 32 : 56;
      const blocks = Array.from({ length: blockCount }, (_, index) => word(list + 4 * index));
      files.set(word(8), {
        start: blockCount === 0 ? 0 : start - dataAt,
        sizeBytes,
        blocks,
        fragment: hasFragment ? fragment : null,
        fragmentOffset,
      });
      at += list + 4 * blockCount;
    } else throw new Error(`tar2sqfs made an inode of type ${type} out of a file`);
  }
  return files;
}
