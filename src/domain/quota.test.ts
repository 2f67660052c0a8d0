import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Bounds, effective, NO_USE, passed, QUOTA_NAMES, type Use } from './quota.ts';

const amount = fc.integer({ min: 0, max: 1_000 });
const bounds: fc.Arbitrary<Bounds> = fc.record(Object.fromEntries(QUOTA_NAMES.map((name) => [name, fc.option(amount, { nil: null })])), {
  requiredKeys: [],
}) as fc.Arbitrary<Bounds>;
const use = fc.record(Object.fromEntries(QUOTA_NAMES.map((name) => [name, amount]))) as unknown as fc.Arbitrary<Use>;

test('a bound of the project comes before its tier’s, also when it is none', () => {
  expect(effective({ cpus: 4, memoryMiB: null }, { cpus: 1, memoryMiB: 512, sandboxes: 2 })).toMatchObject({
    cpus: 4,
    memoryMiB: null,
    sandboxes: 2,
    diskMiB: null,
  });
});

test('what is let through never passes a bound, and what is refused would have', () => {
  fc.assert(
    fc.property(bounds, fc.option(bounds, { nil: null }), use, use, (own, tier, used, wanted) => {
      const held = effective(own, tier);
      const name = passed(held, used, wanted);
      if (name !== null) return used[name] + wanted[name] > (held[name] ?? Number.POSITIVE_INFINITY);
      return QUOTA_NAMES.every((each) => wanted[each] === 0 || held[each] === null || used[each] + wanted[each] <= held[each]);
    }),
  );
});

test('who wants nothing more is not refused, although a bound was lowered below what is used', () => {
  expect(passed(effective({ sandboxes: 1 }, null), { ...NO_USE, sandboxes: 5 }, { cpus: 1 })).toBeNull();
  expect(passed(effective({ sandboxes: 1 }, null), { ...NO_USE, sandboxes: 5 }, { sandboxes: 1 })).toBe('sandboxes');
});
