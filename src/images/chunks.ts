// Streams of bytes, as archives and layers are read and written: in fewer and larger pieces, and no more than there may be.
import { ArchiveError } from '../domain/archive-error.ts';

const CHUNK_BYTES = 256 * 1024;

/**
 * Few large writes. Pieces are copied: what a reader gives is valid until its next step, and who reads this may hold the last one
 * still. `in-place` is for who does not: all are in the same memory, each valid until the next step.
 */
export async function* gathered(chunks: AsyncIterable<Uint8Array>, memory: 'fresh' | 'in-place' = 'fresh'): AsyncGenerator<Uint8Array> {
  let buffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  let filled = 0;
  for await (const chunk of chunks) {
    for (let at = 0; at < chunk.byteLength; ) {
      const taken = Math.min(chunk.byteLength - at, CHUNK_BYTES - filled);
      buffer.set(chunk.subarray(at, at + taken), filled);
      filled += taken;
      at += taken;
      if (filled < CHUNK_BYTES) continue;
      yield buffer;
      if (memory === 'fresh') buffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);
      filled = 0;
    }
  }
  if (filled > 0) yield buffer.subarray(0, filled);
}

/** The same. @throws ArchiveError when there is more than `bytesMax`. */
export async function* bounded(source: AsyncIterable<Uint8Array>, bytesMax: number): AsyncGenerator<Uint8Array> {
  let total = 0;
  for await (const chunk of source) {
    total += chunk.byteLength;
    if (total > bytesMax) throw new ArchiveError(`it has more than ${bytesMax} bytes`);
    yield chunk;
  }
}

export async function* oneChunk(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  if (bytes.byteLength > 0) yield bytes;
}
