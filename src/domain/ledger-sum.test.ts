import fc from 'fast-check';
import { expect, test } from 'vitest';
import { LedgerSum, type SumBy, type Summed } from './ledger-sum.ts';

const shape = { cpus: 2, memoryBytes: 1024 ** 3, storageBytes: 8 * 1024 ** 3 };
const entry = (kind: string, atMs: number, more: object = {}): Summed =>
  ({ kind, atMs, projectId: 'prj1', sandboxId: 'sbx1', snapshotId: null, shape, ...more }) as unknown as Summed;

function sumOf(entries: readonly Summed[], sinceMs: number, untilMs: number, by: SumBy = 'project') {
  const sum = new LedgerSum({ by, sinceMs, untilMs });
  for (const one of entries) sum.add(one);
  return sum.end();
}

test('a sum of the ledger has what lies in the time, by kind and shape, and what is still open', () => {
  const hour = 3_600_000;
  const entries = [
    entry('vm.storage.start', 0),
    entry('vm.compute.start', 0),
    entry('vm.paused.start', hour / 2),
    entry('vm.paused.stop', hour),
    entry('vm.compute.stop', 2 * hour),
    entry('vm.compute.start', 3 * hour, { shape: { ...shape, cpus: 4 } }),
    entry('vm.compute.start', 3 * hour, { sandboxId: 'sbx2', projectId: 'prj2' }),
    entry('snap.storage.start', 3 * hour, { sandboxId: null, snapshotId: 'snp1', shape: { storageBytes: 1024 ** 3 } }),
    entry('vm.compute.stop', 4 * hour, { shape: { ...shape, cpus: 4 } }),
  ];
  const { rows, totals } = sumOf(entries, hour / 2, 5 * hour);
  expect(rows.map(({ key, what, shape: { cpus }, ms, open }) => [key, what, cpus ?? null, ms / hour, open])).toEqual([
    ['prj1', 'snap.storage', null, 2, 1],
    ['prj1', 'vm.compute', 2, 1.5, 0],
    ['prj1', 'vm.compute', 4, 1, 0],
    ['prj1', 'vm.paused', 2, 0.5, 0],
    ['prj1', 'vm.storage', null, 4.5, 1],
    ['prj2', 'vm.compute', 2, 2, 1],
  ]);
  expect(totals).toEqual({
    computeSeconds: 4.5 * 3_600,
    pausedSeconds: 1_800,
    cpuSeconds: (1.5 * 2 + 4 + 2 * 2) * 3_600,
    memoryGiBHours: 4.5,
    storageGiBHours: 2 + 4.5 * 8,
  });
  expect(new Set(sumOf(entries, 0, 5 * hour, 'sandbox').rows.map(({ key }) => key))).toEqual(new Set(['sbx1', 'sbx2', 'snp1']));
});

test('sums of times that follow one another add up to the sum of the whole', () => {
  const lengths = fc.array(fc.tuple(fc.nat(1_000), fc.nat(1_000)), { maxLength: 20 });
  fc.assert(
    fc.property(lengths, fc.nat(20_000), (intervals, cut) => {
      let at = 0;
      const entries = intervals.flatMap(([gap, length]) => {
        const from = at + gap;
        at = from + length;
        return [entry('vm.compute.start', from), entry('vm.compute.stop', at)];
      });
      const end = 50_000;
      const parts = [sumOf(entries, 0, cut), sumOf(entries, cut, end)].map(({ totals }) => totals.computeSeconds);
      const whole = intervals.reduce((sum, [, length]) => sum + length, 0) / 1_000;
      expect(sumOf(entries, 0, end).totals.computeSeconds).toBeCloseTo(whole, 6);
      expect((parts[0] ?? 0) + (parts[1] ?? 0)).toBeCloseTo(whole, 6);
    }),
  );
});
