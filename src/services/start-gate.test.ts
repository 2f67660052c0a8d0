import fc from 'fast-check';
import { expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import { StartGate } from './start-gate.ts';

/** Lets everything run that is ready to. */
const settled = () => new Promise((resolve) => setImmediate(resolve));

test('never more than there are places, in the order of asking, and nobody is forgotten', async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 4 }), fc.array(fc.boolean(), { maxLength: 20 }), async (places, givesUp) => {
      const gate = new StartGate(places, 60_000);
      const inside: { readonly index: number; readonly place: Disposable }[] = [];
      const order: number[] = [];
      const all = givesUp.map(async (gone, index) => {
        const leaving = new AbortController();
        const entering = gate.enter(testOperation({ signal: leaving.signal }));
        if (gone && index >= places) leaving.abort(new Error('gone'));
        const place = await entering.catch(() => null);
        if (place === null) return;
        order.push(index);
        inside.push({ index, place });
      });
      for (let left = givesUp.length * 2; left > 0; left -= 1) {
        await settled();
        expect(inside.length).toBeLessThanOrEqual(places);
        inside.shift()?.place[Symbol.dispose]();
      }
      await Promise.all(all);
      expect(order).toEqual(givesUp.flatMap((gone, index) => (gone && index >= places ? [] : [index])));
    }),
    { numRuns: 50 },
  );
});

test('who takes too long lets the next one in, and its end lets in nobody else', async () => {
  const gate = new StartGate(1, 20);
  const slow = await gate.enter(testOperation());
  const next = await gate.enter(testOperation());
  slow[Symbol.dispose]();
  let third = false;
  const entering = gate.enter(testOperation()).then((place) => {
    third = true;
    return place;
  });
  await settled();
  expect(third).toBe(false);
  next[Symbol.dispose]();
  (await entering)[Symbol.dispose]();
});
