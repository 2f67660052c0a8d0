import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { ID_RANDOM_BYTES, isId, newId } from './ids.ts';

test('metald A.12.3: an id is 85 random bits, never a time: a hundred thousand at once are all different, and without randomness there is none', () => {
  const ids = new Set(Array.from({ length: 100_000 }, () => newId('sbx', randomBytes)));
  expect(ids.size).toBe(100_000);
  expect([...ids].every((id) => isId('sbx', id))).toBe(true);
  // Every bit counts: each byte's lower five make one character.
  const of = (at: number, value: number): string =>
    newId('sbx', (count) => Uint8Array.from({ length: count }, (_, place) => (place === at ? value : 0)));
  const all = Array.from({ length: ID_RANDOM_BYTES }, (_, at) => Array.from({ length: 32 }, (__, value) => of(at, value)));
  expect(new Set(all.flat()).size).toBe(ID_RANDOM_BYTES * 31 + 1);
  for (const weak of [() => new Uint8Array(0), (count: number) => new Uint8Array(count - 1)]) expect(() => newId('sbx', weak)).toThrow();
  expect(() =>
    newId('sbx', () => {
      throw new Error('no entropy');
    }),
  ).toThrow('no entropy');
});
