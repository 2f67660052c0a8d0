// Buffers for large payloads that are used again. What passes through the daemon would otherwise be
// garbage by the hundred megabytes, and each round of the collector goes over the whole heap.
// Always true: a buffer is handed out again only after `giveBack` of the very object that was handed
// out last; who forgets to give back leaves it to the collector. A view of it gives nothing back.

/** The largest payload. */
export const LARGE_BYTES_MAX = 262_144;
/** Smaller ones get a buffer of their own, so that none is kept that is many times as large. */
const LARGE_BYTES_MIN = LARGE_BYTES_MAX / 2;
const KEPT_MAX = 8;

const free: Buffer[] = [];
const lent = new WeakMap<Uint8Array, Buffer>();

/** So many bytes, whatever they hold. */
export function takeBuffer(length: number): Uint8Array {
  // Node cuts small ones out of a larger one.
  if (length < LARGE_BYTES_MIN || length > LARGE_BYTES_MAX) return Buffer.allocUnsafe(length);
  // One byte more, before it: see `withByteBefore`.
  const whole = free.pop() ?? Buffer.allocUnsafeSlow(1 + LARGE_BYTES_MAX);
  const bytes = whole.subarray(1, 1 + length);
  lent.set(bytes, whole);
  return bytes;
}

/** Nobody looks at these bytes any more. Harmless for bytes that are not from here. */
export function giveBack(bytes: Uint8Array): void {
  const whole = lent.get(bytes);
  if (whole === undefined) return;
  lent.delete(bytes);
  if (free.length < KEPT_MAX) free.push(whole);
}

/** The bytes with one more before them: in place where they are from here, else a copy. */
export function withByteBefore(byte: number, bytes: Uint8Array): Uint8Array {
  const whole = lent.get(bytes);
  const message = whole === undefined ? Buffer.allocUnsafe(1 + bytes.byteLength) : whole.subarray(0, 1 + bytes.byteLength);
  message[0] = byte;
  if (whole === undefined) message.set(bytes, 1);
  return message;
}

/** What comes out of a request, for one reader who keeps none of it: each chunk's memory is free when the next is asked for. */
export async function* letGoOfUsed(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    yield chunk;
    letGo(chunk);
  }
}

/** Frees memory at once that is these bytes' alone, in place of the collector, whose rounds over the whole heap go by how much there is to be freed. */
export function letGo(bytes: Uint8Array): void {
  const { buffer } = bytes;
  if (buffer instanceof ArrayBuffer && buffer.byteLength === bytes.byteLength) buffer.transferToFixedLength(0);
}

const writersOwn = new WeakSet<ArrayBufferLike>();

/** Memory of its own for what is written once: whoever has written all of it lets go of it. */
export function takeToWrite(length: number): Buffer {
  const bytes = Buffer.allocUnsafeSlow(length);
  writersOwn.add(bytes.buffer);
  return bytes;
}

/** What frees the memory in which these bytes lie, to be called once all that it holds is written; null where it is not from `takeToWrite`. */
export function whenWritten({ buffer }: Uint8Array): (() => void) | null {
  if (!(buffer instanceof ArrayBuffer) || !writersOwn.has(buffer)) return null;
  return () => {
    if (writersOwn.delete(buffer)) buffer.transferToFixedLength(0);
  };
}
