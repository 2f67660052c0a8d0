// What travels of a file comes back, whatever of it is a hole; and nothing else is taken for it.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Place, packPieces, unpackPieces, WINDOW_BYTES } from './pieces.ts';

const PAGE = 4096;

/** A file of a few windows with data at some pages, whose end may lie within one. */
const files = fc
  .record({
    windows: fc.integer({ min: 0, max: 3 }),
    odd: fc.integer({ min: 0, max: PAGE * 2 }),
    pages: fc.array(fc.nat(), { maxLength: 12 }),
  })
  .map(({ windows, odd, pages }) => {
    const bytes = Buffer.alloc(windows * WINDOW_BYTES + odd);
    for (const [at, page] of pages.entries()) {
      if (bytes.byteLength > 0) bytes.fill(at + 1, ...within((page * PAGE) % bytes.byteLength, bytes.byteLength));
    }
    return bytes;
  });

function within(from: number, end: number): [number, number] {
  return [from, Math.min(from + 100, end)];
}

async function packed(bytes: Buffer, places: readonly Place[]): Promise<{ packed: Buffer; dataBytes: number }> {
  let dataBytes = 0;
  const read = async (offset: number, length: number) => bytes.subarray(offset, offset + length);
  const chunks: Buffer[] = [];
  for await (const chunk of packPieces(bytes.byteLength, places, read, (count) => (dataBytes += count))) chunks.push(Buffer.from(chunk));
  return { packed: Buffer.concat(chunks), dataBytes };
}

async function unpacked(wire: Buffer, sizeBytes: number, dataBytes: number, step = 1000): Promise<Buffer> {
  const bytes = Buffer.alloc(sizeBytes);
  const chunks = (async function* () {
    for (let at = 0; at < wire.byteLength; at += step) yield wire.subarray(at, at + step);
  })();
  for await (const piece of unpackPieces(chunks, { sizeBytes, dataBytes })) bytes.set(piece.bytes, piece.offset);
  return bytes;
}

/** Where pages that are not zeros lie, each as a place of its own. */
function finest(bytes: Buffer): Place[] {
  const places: Place[] = [];
  for (let at = 0; at < bytes.byteLength; at += PAGE) {
    const end = Math.min(at + PAGE, bytes.byteLength);
    if (bytes.subarray(at, end).some((byte) => byte !== 0)) places.push([at, end]);
  }
  return places;
}

test('the same content gives the same bytes whatever is a hole, no zeros, and comes back', async () => {
  await fc.assert(
    fc.asyncProperty(files, fc.integer({ min: 1, max: 70_000 }), async (bytes, step) => {
      const whole = await packed(bytes, bytes.byteLength === 0 ? [] : [[0, bytes.byteLength]]);
      const fine = await packed(bytes, finest(bytes));
      expect(fine.packed.equals(whole.packed)).toBe(true);
      expect(whole.dataBytes).toBe(finest(bytes).reduce((sum, [from, until]) => sum + until - from, 0));
      expect((await unpacked(whole.packed, bytes.byteLength, whole.dataBytes, step)).equals(bytes)).toBe(true);
    }),
    { numRuns: 60 },
  );
});

test('what is cut off, longer, or not as it was packed is refused, and nothing is written where none can lie', async () => {
  await fc.assert(
    fc.asyncProperty(files, fc.nat(), fc.integer({ min: 0, max: 7 }), async (bytes, where, bit) => {
      const { packed: wire, dataBytes } = await packed(bytes, finest(bytes));
      const size = bytes.byteLength;
      const cut = wire.subarray(0, where % wire.byteLength);
      await expect(unpacked(cut, size, dataBytes)).rejects.toThrow(/cut off|does not begin/);
      await expect(unpacked(Buffer.concat([wire, Buffer.alloc(1)]), size, dataBytes)).rejects.toThrow(/after its end/);
      await expect(unpacked(wire, size + 1, dataBytes)).rejects.toThrow(/does not begin/);
      await expect(unpacked(wire, size, dataBytes + PAGE)).rejects.toThrow(/less than is said/);
      if (dataBytes > 0) await expect(unpacked(wire, size, dataBytes - 1)).rejects.toThrow(/where none can/);
      const flipped = Buffer.from(wire);
      const at = where % wire.byteLength;
      flipped[at] = (flipped[at] ?? 0) ^ (1 << bit);
      // What is flipped within the content is for the digest to find: here it must only stay in its bounds.
      await unpacked(flipped, size, dataBytes).catch((error: unknown) =>
        expect(String(error)).toMatch(/cut off|does not begin|none can|end|less/),
      );
    }),
    { numRuns: 60 },
  );
});

test('any bytes are pieces of that file, or refused', async () => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => {
      const wire = Buffer.concat([(await packed(Buffer.alloc(PAGE), [])).packed.subarray(0, 16), bytes]);
      await unpacked(wire, PAGE, 0).then(
        (found) => expect(found.equals(Buffer.alloc(PAGE))).toBe(true),
        (error: Error) => expect(error.constructor.name).toBe('ArchiveError'),
      );
    }),
  );
});
