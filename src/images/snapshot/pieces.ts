// One file of a snapshot as it travels: what of it is not zeros, each piece with its place. The same content gives the same bytes,
// whatever of the file is a hole.
//
// On the wire: `HUTCHSP1`, the file's length (64 bits, little-endian, as all numbers here); then for each piece its offset (64 bits), its
// length (32 bits) and its bytes; at last the file's length once more, with a length of 0. Pieces are whole pages but for what lies at the end
// of the file, in order, and lie each within one window of 1 MiB.

import { ArchiveError } from '../../domain/archive-error.ts';
import { ByteSource } from '../../domain/tar/bytes.ts';
import type { SparsePiece } from '../../host/host.ts';

const MAGIC = Buffer.from('HUTCHSP1', 'latin1');
const PAGE_BYTES = 4096;
export const WINDOW_BYTES = 1024 * 1024;
const HEAD_BYTES = 12;
const ZEROS = Buffer.alloc(PAGE_BYTES);

/** From, and up to. */
export type Place = readonly [number, number];

/** `places`: where there may be more than zeros, in order. `onData` hears how many bytes of data a window has. */
export async function* packPieces(
  sizeBytes: number,
  places: readonly Place[],
  read: (offset: number, length: number) => Promise<Uint8Array>,
  onData: (bytes: number) => void = () => {},
): AsyncGenerator<Uint8Array> {
  yield start(sizeBytes);
  for (const window of windowsOf(sizeBytes, places)) {
    const at = window * WINDOW_BYTES;
    const bytes = await read(at, Math.min(WINDOW_BYTES, sizeBytes - at));
    for (const [from, until] of dataOf(bytes)) {
      yield head(at + from, until - from);
      yield bytes.subarray(from, until);
      onData(until - from);
    }
  }
  yield head(sizeBytes, 0);
}

/**
 * The pieces of a file of that length, which together have that many bytes; what a piece has is valid until the next step. Reads to the
 * end of what comes. @throws ArchiveError for all that `packPieces` does not write.
 */
export async function* unpackPieces(
  chunks: AsyncIterable<Uint8Array>,
  { sizeBytes, dataBytes }: { readonly sizeBytes: number; readonly dataBytes: number },
): AsyncGenerator<SparsePiece> {
  const source = new ByteSource(chunks);
  try {
    const begin = await source.take(MAGIC.byteLength + 8);
    if (!begin.equals(start(sizeBytes))) throw new ArchiveError('it does not begin as it should');
    let after = 0;
    let left = dataBytes;
    for (;;) {
      const place = await source.take(HEAD_BYTES);
      if (place.byteLength < HEAD_BYTES) throw new ArchiveError('it is cut off');
      const offset = Number(place.readBigUInt64LE(0));
      const length = place.readUInt32LE(8);
      if (length === 0 && offset === sizeBytes) break;
      const end = offset + length;
      const isWhole = offset % PAGE_BYTES === 0 && (length % PAGE_BYTES === 0 || end === sizeBytes);
      const isInWindow = length > 0 && offset % WINDOW_BYTES <= WINDOW_BYTES - length;
      if (!isWhole || !isInWindow || offset < after || end > sizeBytes || length > left)
        throw new ArchiveError('a piece lies where none can');
      const bytes = await source.take(length);
      if (bytes.byteLength < length) throw new ArchiveError('it is cut off');
      left -= length;
      after = end;
      yield { offset, bytes };
    }
    if (left > 0) throw new ArchiveError(`it has ${left} bytes less than is said of it`);
    if ((await source.some(1)) !== null) throw new ArchiveError('something stands after its end');
  } finally {
    await source.close();
  }
}

function start(sizeBytes: number): Buffer {
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(sizeBytes));
  return Buffer.concat([MAGIC, size]);
}

function head(offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(HEAD_BYTES);
  bytes.writeBigUInt64LE(BigInt(offset));
  bytes.writeUInt32LE(length, 8);
  return bytes;
}

/** Numbers of those that a place touches, each once. */
function* windowsOf(sizeBytes: number, places: readonly Place[]): Generator<number> {
  let next = 0;
  for (const [from, until] of places) {
    for (let window = Math.max(next, Math.floor(from / WINDOW_BYTES)); window * WINDOW_BYTES < Math.min(until, sizeBytes); window += 1) {
      yield window;
      next = window + 1;
    }
  }
}

/** Runs of pages that are not all zeros. */
function* dataOf(bytes: Uint8Array): Generator<Place> {
  let from = -1;
  for (let at = 0; at < bytes.byteLength; at += PAGE_BYTES) {
    const length = Math.min(PAGE_BYTES, bytes.byteLength - at);
    const isZero = ZEROS.compare(bytes, at, at + length, 0, length) === 0;
    if (!isZero && from < 0) from = at;
    if (isZero && from >= 0) {
      yield [from, at];
      from = -1;
    }
  }
  if (from >= 0) yield [from, bytes.byteLength];
}
