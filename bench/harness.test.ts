import fc from 'fast-check';
import { expect, test } from 'vitest';
import { figures, pair } from './harness.ts';

test('the median lies between the tenth and the ninetieth percentile, whatever the samples', () => {
  fc.assert(
    fc.property(fc.array(fc.double({ min: 0, max: 1e6, noNaN: true }), { minLength: 1, maxLength: 200 }), (samples) => {
      const { median, p10, p90, p99, n } = figures(samples);
      return p10 <= median && median <= Math.max(p90, p99) && p90 <= p99 && n === samples.length;
    }),
  );
});

test('a ratio is taken pair by pair, so that a machine that slows down in the middle does not change it', async () => {
  let call = 0;
  const slowdown = () => (call++ < 20 ? 1 : 3);
  const row = await pair({
    what: 'x',
    unit: 'ms',
    baselineName: 'y',
    runs: 11,
    target: '2×',
    note: '',
    meets: (ratio) => ratio <= 2,
    baseline: async () => 10 * slowdown(),
    candidate: async () => 20 * slowdown(),
  });
  expect(row.ratio).toBe(2);
  expect(row.met).toBe(true);
  expect(row.noisy).toBe(true);
});
