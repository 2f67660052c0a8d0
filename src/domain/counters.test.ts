import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Counts, countFrom, countOn, type Kept } from './counters.ts';

test('whatever is counted, in whichever runs, no total goes back', () => {
  const look = fc.record({ goesOn: fc.boolean(), run: fc.nat(3), count: fc.option(fc.nat(1_000), { nil: null }) });
  fc.assert(
    fc.property(fc.array(look, { maxLength: 30 }), (looks) => {
      let kept: Kept<'it'> | null = null;
      let told = 0;
      for (const { goesOn, run, count } of looks) {
        const now: Counts<'it'> = { it: count };
        if (goesOn) kept = countFrom(kept, run, now);
        const { kept: next, totals }: ReturnType<typeof countOn<'it'>> = countOn(kept, run, now);
        kept = next;
        if (totals.it === null) continue;
        expect(totals.it).toBeGreaterThanOrEqual(told);
        told = totals.it;
      }
    }),
  );
});

test('looked at before each end, the total is what all runs have done together', () => {
  const run = fc.array(fc.nat(1_000), { minLength: 1, maxLength: 5 });
  fc.assert(
    fc.property(fc.array(run, { minLength: 1, maxLength: 8 }), (runs) => {
      let kept: Kept<'it'> | null = null;
      let done = 0;
      for (const [at, steps] of runs.entries()) {
        let count = 0;
        for (const step of steps) {
          count += step;
          done += step;
          const { kept: next, totals }: ReturnType<typeof countOn<'it'>> = countOn(kept, at, { it: count });
          expect(totals.it).toBe(done);
          kept = next;
        }
      }
    }),
  );
});

test('what was told before memory was taken up again is not told twice', () => {
  const { kept } = countOn(null, 1, { it: 150 });
  const back = countFrom(kept, 2, { it: 100 });
  expect(countOn(back, 2, { it: 130 }).totals.it).toBe(180);
  // A process that took over, and counts from nothing.
  expect(countOn(back, 2, { it: 0 }).totals.it).toBe(150);
});
