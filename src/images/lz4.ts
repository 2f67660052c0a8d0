// The LZ4 "legacy" stream, in which kernels are packed (`lz4 -l`): blocks of at most 8 MiB, each for
// itself, without checksums. What is decoded never exceeds the room that the caller gives, and a
// broken stream is a DamagedPayload, never a read or write outside the buffers.
import { setImmediate } from 'node:timers/promises';
import { DamagedPayload } from './payload-error.ts';

export const LZ4_LEGACY_MAGIC = 0x184c2102;
const BLOCK_BYTES_MAX = 8 * 1024 * 1024;
/** A literal or match length of this value goes on in the bytes that follow. */
const LENGTH_GOES_ON = 15;
const MATCH_BYTES_MIN = 4;

/** Unpacks a whole stream of exactly `unpackedBytes`. Between blocks others get their turn. */
export async function unpackLz4Legacy(packed: Uint8Array, unpackedBytes: number): Promise<Uint8Array> {
  const view = new DataView(packed.buffer, packed.byteOffset, packed.byteLength);
  if (packed.byteLength < 4 || view.getUint32(0, true) !== LZ4_LEGACY_MAGIC) throw new DamagedPayload('it does not begin as an LZ4 stream');
  const out = new Uint8Array(unpackedBytes);
  let filled = 0;
  let at = 4;
  while (at < packed.byteLength) {
    if (at + 4 > packed.byteLength) throw new DamagedPayload('its LZ4 stream is cut off between two blocks');
    const blockBytes = view.getUint32(at, true);
    at += 4;
    if (blockBytes === LZ4_LEGACY_MAGIC) continue; // streams may be joined, as by `cat`
    if (at + blockBytes > packed.byteLength) throw new DamagedPayload('its LZ4 stream is cut off within a block');
    filled = unpackBlock(packed.subarray(at, at + blockBytes), out, filled);
    at += blockBytes;
    await setImmediate();
  }
  if (filled !== unpackedBytes) throw new DamagedPayload(`it unpacks to ${filled} bytes, not to the ${unpackedBytes} that it announces`);
  return out;
}

/** One block alone, of which at most `bytesMax` come. */
export function unpackLz4Block(block: Uint8Array, bytesMax: number): Uint8Array {
  const out = new Uint8Array(bytesMax);
  return out.subarray(0, unpackBlock(block, out, 0));
}

/** Unpacks one block into `out` from `start` on; gives where it ended. */
function unpackBlock(block: Uint8Array, out: Uint8Array, start: number): number {
  const room = Math.min(out.byteLength, start + BLOCK_BYTES_MAX);
  let from = 0;
  let to = start;
  /** The rest of a length that did not fit its four bits. */
  const lengthFrom = (bits: number): number => {
    let length = bits;
    if (bits !== LENGTH_GOES_ON) return length;
    for (;;) {
      const byte = block[from];
      if (byte === undefined) throw new DamagedPayload('an LZ4 block ends within a length');
      from += 1;
      length += byte;
      if (byte !== 255) return length;
    }
  };
  while (from < block.byteLength) {
    const token = block[from] ?? 0;
    from += 1;
    const literals = lengthFrom(token >> 4);
    if (from + literals > block.byteLength) throw new DamagedPayload('an LZ4 block ends within its literals');
    if (to + literals > room) throw tooMuch(room - start);
    out.set(block.subarray(from, from + literals), to);
    from += literals;
    to += literals;
    if (from === block.byteLength) return to; // the last sequence has no match
    if (from + 2 > block.byteLength) throw new DamagedPayload('an LZ4 block ends within a match');
    const distance = (block[from] ?? 0) | ((block[from + 1] ?? 0) << 8);
    from += 2;
    if (distance === 0 || distance > to - start) throw new DamagedPayload('an LZ4 match points outside its block');
    const length = lengthFrom(token & 15) + MATCH_BYTES_MIN;
    if (to + length > room) throw tooMuch(room - start);
    if (distance >= length) out.copyWithin(to, to - distance, to - distance + length);
    else for (let byte = to; byte < to + length; byte += 1) out[byte] = out[byte - distance] ?? 0; // overlaps: repeats itself
    to += length;
  }
  return to;
}

function tooMuch(room: number): DamagedPayload {
  return new DamagedPayload(`an LZ4 block unpacks to more than the ${room} bytes that are left for it`);
}
