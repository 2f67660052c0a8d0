import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type FailedTry, nextTryInMs, type RetryPolicy } from './retry.ts';

const seed = Number(process.env['HUTCH_TEST_SEED']);
const policy: fc.Arbitrary<RetryPolicy> = fc.record({
  firstMs: fc.integer({ min: 1, max: 1_000 }),
  capMs: fc.integer({ min: 1, max: 10_000 }),
  forMs: fc.integer({ min: 0, max: 60_000 }),
});
/** A run of tries is followed to its end. */
const short = policy.map((rules) => ({ ...rules, forMs: rules.forMs % 2_000 }));
const failed: fc.Arbitrary<FailedTry> = fc.record({
  tries: fc.integer({ min: 1, max: 10_000 }),
  elapsedMs: fc.integer({ min: 0, max: 120_000 }),
  arrived: fc.constantFrom('no' as const, 'perhaps' as const),
  repeatable: fc.boolean(),
  random: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
});

test('what may have been done and cannot be repeated is never tried again', () => {
  fc.assert(
    fc.property(policy, failed, (rules, one) => {
      expect(nextTryInMs(rules, { ...one, arrived: 'perhaps', repeatable: false })).toBeNull();
    }),
    { seed },
  );
});

test('what did not arrive is tried as what can be repeated is', () => {
  fc.assert(
    fc.property(policy, failed, (rules, one) => {
      const notArrived = nextTryInMs(rules, { ...one, arrived: 'no', repeatable: false });
      expect(notArrived).toBe(nextTryInMs(rules, { ...one, arrived: 'perhaps', repeatable: true }));
    }),
    { seed },
  );
});

test('a wait is at least half of its ceiling, below it, and within the time that there is', () => {
  fc.assert(
    fc.property(policy, failed, (rules, one) => {
      const wait = nextTryInMs(rules, { ...one, repeatable: true });
      if (wait === null) return;
      const ceiling = Math.min(rules.capMs, rules.firstMs * 2 ** Math.min(one.tries - 1, 30));
      expect(wait).toBeGreaterThanOrEqual(ceiling / 2);
      expect(wait).toBeLessThanOrEqual(ceiling);
      expect(one.elapsedMs + wait).toBeLessThan(rules.forMs);
    }),
    { seed },
  );
});

test('tries end, however fast each fails', () => {
  fc.assert(
    fc.property(short, fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (rules, random) => {
      let elapsedMs = 0;
      let tries = 1;
      for (; ; tries += 1) {
        const wait = nextTryInMs(rules, { tries, elapsedMs, arrived: 'no', repeatable: false, random });
        if (wait === null) break;
        expect(wait).toBeGreaterThan(0);
        elapsedMs += wait;
      }
      expect(tries).toBeLessThanOrEqual(rules.forMs / Math.min(rules.firstMs, rules.capMs) / 0.5 + 2);
    }),
    { seed, numRuns: 50 },
  );
});

test('callers that fail together come back apart', () => {
  const rules = { firstMs: 100, capMs: 1_000, forMs: 5_000 };
  const waits = Array.from({ length: 100 }, (_, nth) =>
    nextTryInMs(rules, { tries: 3, elapsedMs: 0, arrived: 'no', repeatable: true, random: nth / 100 }),
  );
  expect(new Set(waits).size).toBe(100);
});
