import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { bytesToMiB, formatSize, GIB, KIB, MIB, parseSize, TIB } from './size.ts';

const disk = { what: 'disk', min: 1n, max: 128n * GIB };
const any = { what: 'size', min: 0n, max: 2n ** 80n };

function bytes(text: string, bounds = any): bigint | string {
  const parsed = parseSize(text, bounds);
  return parsed.ok ? parsed.value : `${parsed.message} (${parsed.hint})`;
}

describe('sizes that people write', () => {
  test.each([
    ['64k', 64n * KIB],
    ['8G', 8n * GIB],
    [' 8g ', 8n * GIB],
    ['10GB', 10n * GIB],
    ['10GiB', 10n * GIB],
    ['10gib', 10n * GIB],
    ['1T', TIB],
    ['1.5G', 1536n * MIB],
    ['0.5T', 512n * GIB],
    ['+2G', 2n * GIB],
    ['1000B', 1000n],
    ['0B', 0n],
    ['128.0G', 128n * GIB],
  ])('%s is read', (text, expected) => expect(bytes(text)).toBe(expected));

  test('a part of a byte is rounded up, so that nobody gets less than was asked', () => {
    expect(bytes('0.3G')).toBe(322_122_548n);
    expect(bytes('0.0000000001K')).toBe(1n);
  });

  test.each([
    ['', 'disk: a size is missing (write it like 1G: a number and K, M, G or T)'],
    ['   ', 'disk: a size is missing (write it like 1G: a number and K, M, G or T)'],
    ['512', 'disk: 512 has no unit (write 512M or 512G, whichever you mean)'],
    ['0', 'disk: 0 has no unit (write 0M or 0G, whichever you mean)'],
    ['-1G', 'disk: -1G is negative (write it like 1G: a number and K, M, G or T)'],
    ['10 G', "disk: '10 G' is no size (write it like 1G: a number and K, M, G or T)"],
    ['G', "disk: 'G' is no size (write it like 1G: a number and K, M, G or T)"],
    ['1Gi', "disk: '1Gi' is no size (write it like 1G: a number and K, M, G or T)"],
    ['1.G', "disk: '1.G' is no size (write it like 1G: a number and K, M, G or T)"],
    ['.5G', "disk: '.5G' is no size (write it like 1G: a number and K, M, G or T)"],
    ['1e3M', "disk: '1e3M' is no size (write it like 1G: a number and K, M, G or T)"],
    ['0x10M', "disk: '0x10M' is no size (write it like 1G: a number and K, M, G or T)"],
    ['1,5G', "disk: '1,5G' is no size (write it like 1G: a number and K, M, G or T)"],
    ['١G', "disk: '١G' is no size (write it like 1G: a number and K, M, G or T)"],
    ['0G', 'disk: 0G is less than the least, 1B (give at least 1B)'],
    ['129G', 'disk: 129G is more than the most, 128G (give at most 128G)'],
    ['128.0000000001G', 'disk: 128.0000000001G is more than the most, 128G (give at most 128G)'],
    ['17179869185G', 'disk: 17179869185G is more than the most, 128G (give at most 128G)'],
    ['18014398509481985K', 'disk: 18014398509481985K is more than the most, 128G (give at most 128G)'],
    ['9'.repeat(41), 'disk: a size has at most 40 characters (write it like 1G: a number and K, M, G or T)'],
  ])('%j is refused with a hint', (text, expected) => expect(bytes(text, disk)).toBe(expected));

  test('a lower bound holds', () => {
    expect(bytes('1K', { what: 'disk', min: 256n * MIB, max: TIB })).toBe('disk: 1K is less than the least, 256M (give at least 256M)');
  });
});

test('what is written is read back as the same bytes', () => {
  fc.assert(
    fc.property(fc.bigInt(0n, 2n ** 70n), (size) => {
      expect(bytes(formatSize(size))).toBe(size);
    }),
  );
  fc.assert(
    fc.property(fc.bigInt(0n, 5_000n), fc.constantFrom(KIB, MIB, GIB, TIB), (count, unit) => {
      expect(bytes(formatSize(count * unit))).toBe(count * unit);
    }),
  );
});

test('any text gives a size within the bounds or a sentence', () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^[+-]?\d{0,30}\.?\d{0,9}[kKmMgGtT]?i?[bB]?$/)), (text) => {
      const parsed = parseSize(text, disk);
      if (parsed.ok) expect(parsed.value >= disk.min && parsed.value <= disk.max).toBe(true);
      else expect(parsed.message).toMatch(/^disk: /);
    }),
  );
});

test('bytes become whole MiB, rounded up', () => {
  expect([0n, 1n, MIB, MIB + 1n, 322_122_548n].map(bytesToMiB)).toEqual([0, 1, 1, 2, 308]);
});

test('the shortest exact form is written', () => {
  expect([0n, 1n, 1_000n, 1_024n, 512n * MIB, 1_536n * MIB, 8n * GIB, TIB].map(formatSize)).toEqual([
    '0B',
    '1B',
    '1000B',
    '1K',
    '512M',
    '1536M',
    '8G',
    '1T',
  ]);
});
