import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { formatDuration, parseDuration } from './duration.ts';

const any = { what: 'timeout', minMs: 0, maxMs: Number.MAX_SAFE_INTEGER };

function ms(text: string, bounds = any): number | string {
  const parsed = parseDuration(text, bounds);
  return parsed.ok ? parsed.value : `${parsed.message} (${parsed.hint})`;
}

describe('durations that people write', () => {
  test.each([
    ['5m', 300_000],
    ['1h30m', 5_400_000],
    ['250ms', 250],
    ['1.5h', 5_400_000],
    ['1D', 86_400_000],
    [' 30S ', 30_000],
    ['1m500ms', 60_500],
    ['0s', 0],
    ['0.1ms', 1],
    ['+1s', 1_000],
    ['90m', 5_400_000],
  ])('%s is read', (text, expected) => expect(ms(text)).toBe(expected));

  test.each([
    ['', 'timeout: a duration is missing (write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms)'],
    ['300', 'timeout: 300 has no unit (write 300s or 300m, whichever you mean)'],
    ['0', 'timeout: 0 has no unit (write 0s or 0m, whichever you mean)'],
    ['-5m', 'timeout: -5m is negative (write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms)'],
    ['30m1h', "timeout: '30m1h' is no duration (write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms)"],
    ['1m1m', "timeout: '1m1m' is no duration (write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms)"],
    ['5 m', "timeout: '5 m' is no duration (write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms)"],
    ['5min', "timeout: '5min' is no duration (write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms)"],
    ['1h30', "timeout: '1h30' is no duration (write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms)"],
    ['inf', "timeout: 'inf' is no duration (write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms)"],
    ['99999999999999999999d', 'timeout: 99999999999999999999d is more than the most, 365d (give at most 365d)'],
    ['10ms', 'timeout: 10ms is less than the least, 1s (give at least 1s)'],
    ['1'.repeat(41), 'timeout: a duration has at most 40 characters (write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms)'],
  ])('%j is refused with a hint', (text, expected) => {
    expect(ms(text, { what: 'timeout', minMs: 1_000, maxMs: 31_536_000_000 })).toBe(expected);
  });
});

test('what is written is read back as the same milliseconds', () => {
  fc.assert(
    fc.property(fc.maxSafeNat(), (duration) => {
      expect(ms(formatDuration(duration))).toBe(duration);
    }),
  );
});

test('any text gives a duration within the bounds or a sentence', () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^(\d{1,4}(\.\d{1,3})?(d|h|m|s|ms)){0,6}$/)), (text) => {
      const parsed = parseDuration(text, { what: 'timeout', minMs: 1, maxMs: 1_000_000 });
      if (parsed.ok) expect(parsed.value >= 1 && parsed.value <= 1_000_000 && Number.isInteger(parsed.value)).toBe(true);
      else expect(parsed.message).toMatch(/^timeout: /);
    }),
  );
});

test('the exact form is written', () => {
  expect([0, 250, 60_500, 5_400_000, 86_400_000].map(formatDuration)).toEqual(['0s', '250ms', '1m500ms', '1h30m', '1d']);
  expect(() => formatDuration(0.5)).toThrow(RangeError);
});
