// A layer's bytes, unpacked as they are read. How it is packed is told by its first bytes and not by
// what somebody says of it.
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { ArchiveError } from '../../domain/archive-error.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';

/** Larger ones are no quicker, and more of them wait for the collector. */
const CHUNK_BYTES = 64 * 1024;
const MAGIC_BYTES = 6;

type Unpacker = ReturnType<typeof createGunzip | typeof createZstdDecompress>;

export type Packing = 'gzip' | 'zstd' | 'none';

/** @throws ArchiveError for a form that nothing here unpacks. */
export function packingOf(start: Uint8Array): Packing {
  const hex = Buffer.from(start).toString('hex');
  if (hex.startsWith('1f8b')) return 'gzip';
  if (hex.startsWith('28b52ffd') || /^5[0-9a-f]2a4d18/.test(hex)) return 'zstd';
  const outside = outsidePackingOf(start);
  if (outside !== null) throw new ArchiveError(`it is packed with ${outside}; gzip and zstd are understood`);
  if (hex.startsWith('514649fb')) throw new ArchiveError('it is a disk image (qcow2), and no archive');
  return 'none';
}

/** Forms that only a program of the machine unpacks; no layer may have them. */
export function outsidePackingOf(start: Uint8Array): 'xz' | 'bzip2' | null {
  const hex = Buffer.from(start).toString('hex');
  if (hex.startsWith('fd377a585a00')) return 'xz';
  return hex.startsWith('425a68') ? 'bzip2' : null;
}

/** What it yields is valid until the next step. @throws ArchiveError when it is damaged, or has more than `bytesMax`. */
export async function* unpacked(op: Operation, host: Host, path: string, bytesMax: number): AsyncGenerator<Uint8Array> {
  const packing = packingOf(await host.readRange(op, path, 0, MAGIC_BYTES));
  let total = 0;
  const source = packing === 'none' ? host.readStream(op, path, 0, 'in-place') : through(host.readStream(op, path, 0, 'in-place'), packing);
  for await (const chunk of source) {
    total += chunk.byteLength;
    if (total > bytesMax) throw new ArchiveError(`it has more than ${bytesMax} bytes when it is unpacked`);
    yield chunk;
  }
}

/** @throws ArchiveError when it is damaged. */
export async function* through(packed: AsyncIterable<Uint8Array>, packing: 'gzip' | 'zstd'): AsyncGenerator<Uint8Array> {
  const unpacker = packing === 'gzip' ? createGunzip({ chunkSize: CHUNK_BYTES }) : createZstdDecompress({ chunkSize: CHUNK_BYTES });
  let fed = 0;
  feed(counted(), unpacker).catch((cause: unknown) => unpacker.destroy(cause instanceof Error ? cause : new Error(String(cause))));
  try {
    for await (const chunk of unpacker) yield chunk as Uint8Array;
    // Node's zstd ends in silence where no frame follows: what a damaged one had would be missing.
    if (packing === 'zstd' && unpacker.bytesWritten < fed)
      throw new ArchiveError('it does not unpack (zstd): what follows its end is no frame');
  } catch (error) {
    if (isDamage(error)) throw new ArchiveError(`it does not unpack (${packing}): ${(error as Error).message}`);
    throw error;
  } finally {
    unpacker.destroy();
  }

  async function* counted(): AsyncGenerator<Uint8Array> {
    for await (const piece of packed) {
      fed += piece.byteLength;
      yield piece;
    }
  }
}

/** A piece is asked for when the one before is used up: all of them lie in the same memory. */
async function feed(packed: AsyncIterable<Uint8Array>, unpacker: Unpacker): Promise<void> {
  const closed = new Promise<void>((resolve) => unpacker.once('close', resolve)); // then a write is not answered any more
  for await (const piece of packed) {
    await Promise.race([new Promise<void>((resolve) => unpacker.write(piece, () => resolve())), closed]);
    if (unpacker.destroyed) return;
  }
  unpacker.end();
}

/** zlib's own errors, which name themselves so. */
function isDamage(error: unknown): boolean {
  return error instanceof Error && 'code' in error && /^(Z_|ZSTD_)/.test(String(error.code));
}
