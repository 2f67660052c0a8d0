import { expect, test } from 'vitest';
import { testOperation } from '../support/operation.ts';
import { countCommits, dieAtNthCommit, failNthCommit, storeWithFault } from '../support/store-faults.ts';
import { tempStore } from './support/stores.ts';

const op = testOperation();
const key = { apiKeyId: 'key00000000000000000', key: 'k', requestHash: 'h' } as Parameters<
  Awaited<ReturnType<typeof tempStore>>['claim']
>[1];

test('the N-th commit fails and changes nothing; the others do not notice', async () => {
  await using store = await tempStore();
  const faulty = failNthCommit(store, 2);
  const set = (value: number) => faulty.commit(op, [{ change: 'setSetting', key: 'a', value }]);
  await set(1);
  await expect(set(2)).rejects.toMatchObject({ code: 'resource_exhausted', opId: op.id });
  expect([await faulty.query('setting', { key: 'a' }), faulty.hit]).toEqual([1, { n: 2, opId: op.id, changes: ['setSetting'] }]);
  await set(3);
  expect(await store.query('setting', { key: 'a' })).toBe(3);
});

test('claims count, and others can be let through by what they change', async () => {
  await using store = await tempStore();
  const counting = countCommits(store);
  await counting.claim(op, key, []);
  await counting.commit(op, [{ change: 'releaseRequest', ...key }]);
  expect(counting.commits.map(({ changes }) => changes)).toEqual([[], ['releaseRequest']]);
  const picky = failNthCommit(store, 1, { only: 'beat' });
  await picky.commit(op, [{ change: 'setSetting', key: 'a', value: 1 }]);
  await expect(picky.commit(op, [{ change: 'beat' }])).rejects.toMatchObject({ code: 'resource_exhausted' });
});

test('who dies after a commit has made it, who dies before has not', async () => {
  await using store = await tempStore();
  for (const [when, expected] of [
    ['before', null],
    ['after', 'before its death'],
  ] as const) {
    const dead = Promise.withResolvers<void>();
    const mortal = dieAtNthCommit(store, 1, { when, die: () => dead.resolve() });
    void mortal.commit(op, [{ change: 'setSetting', key: when, value: 'before its death' }]);
    await dead.promise;
    expect(await store.query('setting', { key: when })).toBe(expected);
  }
});

test('a fault can be given as text', async () => {
  await using store = await tempStore();
  await expect(storeWithFault(store, 'fail:1:beat').commit(op, [{ change: 'beat' }])).rejects.toMatchObject({ code: 'resource_exhausted' });
  expect(storeWithFault(store, '')).toBe(store);
  expect(() => storeWithFault(store, 'burn')).toThrow('cannot read the fault burn');
});
