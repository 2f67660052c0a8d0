// Bytes at any place of a disk image, whatever form its file has. What lies beyond the end is not there: every reader says how
// much it needs, and gets that or an ArchiveError.

import { ArchiveError } from '../../domain/archive-error.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';

export type Disk = {
  readonly sizeBytes: number;
  /** @throws ArchiveError when the disk ends before. */
  read(offset: number, length: number): Promise<Buffer>;
};

export function rawDisk(op: Operation, host: Host, path: string, sizeBytes: number): Disk {
  return {
    sizeBytes,
    async read(offset, length) {
      checkWithin(sizeBytes, offset, length);
      if (length === 0) return Buffer.alloc(0);
      const bytes = await host.readRange(op, path, offset, length);
      if (bytes.byteLength !== length) throw new ArchiveError('the disk image is cut off');
      return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    },
  };
}

/** A part of a disk, as a disk. */
export function partOfDisk(disk: Disk, start: number, sizeBytes: number): Disk {
  checkWithin(disk.sizeBytes, start, sizeBytes);
  return {
    sizeBytes,
    async read(offset, length) {
      checkWithin(sizeBytes, offset, length);
      return await disk.read(start + offset, length);
    },
  };
}

/** Keeps pieces that were read a moment ago: for tables, which are read a few bytes at a time. */
export function remembering(disk: Disk): Disk {
  const pieces = new Map<number, Promise<Buffer>>();
  const piece = async (at: number): Promise<Buffer> => {
    const known = pieces.get(at);
    if (known !== undefined) return await known;
    const reading = disk.read(at * PIECE_BYTES, Math.min(PIECE_BYTES, disk.sizeBytes - at * PIECE_BYTES));
    if (pieces.size >= PIECES_MAX) pieces.delete(pieces.keys().next().value ?? 0);
    pieces.set(at, reading);
    return await reading;
  };
  return {
    sizeBytes: disk.sizeBytes,
    async read(offset, length) {
      checkWithin(disk.sizeBytes, offset, length);
      const parts: Buffer[] = [];
      for (let at = offset; at < offset + length; ) {
        const index = Math.floor(at / PIECE_BYTES);
        const from = at - index * PIECE_BYTES;
        const take = Math.min(PIECE_BYTES - from, offset + length - at);
        parts.push((await piece(index)).subarray(from, from + take));
        at += take;
      }
      const [only] = parts;
      return parts.length === 1 && only !== undefined ? only : Buffer.concat(parts);
    },
  };
}

const PIECE_BYTES = 64 * 1024;
const PIECES_MAX = 512;

function checkWithin(sizeBytes: number, offset: number, length: number): void {
  const isWithin =
    Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0 && offset + length <= sizeBytes;
  if (!isWithin) throw new ArchiveError('the disk image points beyond its own end');
}

/** A 64-bit number that must be one that we can count with. */
export function number64(value: bigint, what: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new ArchiveError(`${what} of the disk image is larger than any disk`);
  return Number(value);
}
