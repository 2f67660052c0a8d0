import fc from 'fast-check';
import { expect, test } from 'vitest';
import { LZ4_LEGACY_MAGIC, unpackLz4Legacy } from './lz4.ts';
import { DamagedPayload } from './payload-error.ts';

const u32 = (value: number) => [value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >>> 24) & 255];
const stream = (...blocks: number[][]) =>
  Uint8Array.from([...u32(LZ4_LEGACY_MAGIC), ...blocks.flatMap((block) => [...u32(block.length), ...block])]);
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString();
const ascii = (words: string) => [...Buffer.from(words)];

test('literals and matches are unpacked', async () => {
  // 3 literals, then 5 bytes from 3 back; then 1 literal.
  const block = [0x31, ...ascii('abc'), 3, 0, 0x10, ...ascii('!')];
  expect(text(await unpackLz4Legacy(stream(block), 9))).toBe('abcabcab!');
});

test('a match that overlaps what it writes repeats it', async () => {
  const block = [0x1f, ...ascii('z'), 1, 0, 2, 0x10, ...ascii('.')]; // length 15 + 2 + 4
  expect(text(await unpackLz4Legacy(stream(block), 23))).toBe(`${'z'.repeat(22)}.`);
});

test('lengths go on over several bytes', async () => {
  const literals = new Array<number>(15 + 255 + 7).fill(65);
  expect(text(await unpackLz4Legacy(stream([0xf0, 255, 7, ...literals]), literals.length))).toBe('A'.repeat(literals.length));
});

test('several blocks and joined streams are one', async () => {
  const one = stream([0x20, ...ascii('ab')]);
  const two = stream([0x20, ...ascii('cd')], [0x10, ...ascii('e')]);
  expect(text(await unpackLz4Legacy(Buffer.concat([one, two]), 5))).toBe('abcde');
});

test.for([
  ['another magic', Uint8Array.from([1, 2, 3, 4]), /does not begin as an LZ4 stream/],
  ['nothing', new Uint8Array(), /does not begin as an LZ4 stream/],
  ['a cut between blocks', Uint8Array.from([...stream(), 9, 0]), /cut off between two blocks/],
  ['a cut within a block', stream([0x40, ...ascii('abcd')]).slice(0, -1), /cut off within a block/],
  ['literals beyond the block', stream([0x50, ...ascii('ab')]), /ends within its literals/],
  ['a match cut in two', stream([0x10, ...ascii('a'), 1]), /ends within a match/],
  ['a length without end', stream([0xf0, 255, 255]), /ends within a length/],
  ['a match before the start', stream([0x10, ...ascii('a'), 2, 0]), /points outside its block/],
  ['a match of distance zero', stream([0x10, ...ascii('a'), 0, 0]), /points outside its block/],
  ['fewer bytes than announced', stream([0x10, ...ascii('a')]), /unpacks to 1 bytes, not to the 10/],
] as const)('%s is refused', async ([, packed, message]) => {
  await expect(unpackLz4Legacy(packed, 10)).rejects.toThrow(DamagedPayload);
  await expect(unpackLz4Legacy(packed, 10)).rejects.toThrow(message);
});

test('a block that would unpack to more than is announced is refused before it is written', async () => {
  const bomb = stream([0x1f, 0, 1, 0, ...new Array<number>(4000).fill(255), 0]); // a megabyte of zeros
  await expect(unpackLz4Legacy(bomb, 4096)).rejects.toThrow(/more than the 4096 bytes that are left/);
});

test('whatever the bytes, they unpack or are refused', async () => {
  const block = fc.uint8Array({ maxLength: 200 }).map((bytes) => [...bytes]);
  await fc.assert(
    fc.asyncProperty(fc.array(block, { maxLength: 4 }), fc.nat(4096), async (blocks, announced) => {
      const result = await unpackLz4Legacy(stream(...blocks), announced).catch((error: unknown) => error);
      if (result instanceof Uint8Array) expect(result.byteLength).toBe(announced);
      else expect(result).toBeInstanceOf(DamagedPayload);
    }),
    { numRuns: 500 },
  );
});
