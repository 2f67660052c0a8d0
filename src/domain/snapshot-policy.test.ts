import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { SandboxId, SnapshotId } from './ids.ts';
import { judgeSnapshots, type PolicySnapshot } from './snapshot-policy.ts';

const snapshot = (id: string, sandbox: string, createdAtMs: number, parent: string | null = null, bytes = 10): PolicySnapshot => ({
  ...{ id: id as SnapshotId, name: id, sandboxId: sandbox as SandboxId, parentId: parent as SnapshotId | null },
  ...{ createdAtMs, holdings: [{ what: id, bytes }], spec: { name: sandbox } },
});
const none = (): readonly string[] => [];

test('the newest of each sandbox stay, what is older goes, children before parents', () => {
  const all = [snapshot('a', 'web', 1), snapshot('b', 'web', 2, 'a'), snapshot('c', 'web', 3, 'b'), snapshot('d', 'db', 1)];
  const of = (policy: Parameters<typeof judgeSnapshots>[2], others: Parameters<typeof judgeSnapshots>[1] = none) => {
    const { going, staying } = judgeSnapshots(all, others, policy, 10);
    return [going.map(({ snapshot: { id } }) => id), staying.map(({ snapshot: { id }, why }) => `${id}: ${why}`)];
  };
  expect(of({ keep: 1 })).toEqual([
    [],
    ['b: 1 of web is newer, but snapshot c stands on it', 'a: 1 of web is newer, but snapshot b stands on it'],
  ]);
  expect(of({ keep: 0 })).toEqual([['c', 'b', 'd', 'a'], []]);
  expect(of({ olderThanMs: 8 })).toEqual([['d'], ['a: it is older than it may be, but snapshot b stands on it']]);
  expect(of({ keep: 0 }, (id) => (id === 'c' ? ['sandbox x'] : []))).toMatchObject([['d'], { length: 3 }]);
  expect(of({ bytesMax: 20 })).toEqual([['d', 'c'], []]);
  expect(of({ bytesMax: 40 })).toEqual([[], []]);
});

test('what several hold makes room when the last of them goes', () => {
  const shared = { what: 'shared', bytes: 50 };
  const all = [1, 2, 3].map((at) => {
    const one = snapshot(`${at}`, 'web', at);
    return at === 3 ? one : { ...one, holdings: [...one.holdings, shared] };
  });
  const goneFor = (bytesMax: number) => judgeSnapshots(all, none, { bytesMax }, 10).going.map(({ snapshot: { id } }) => id);
  expect([80, 79, 70, 69, 10].map(goneFor)).toEqual([[], ['1'], ['1'], ['1', '2'], ['1', '2']]);
});

test('whatever the policy: nothing goes that something stands on, and each is judged once', () => {
  const snapshots = fc
    .array(fc.record({ sandbox: fc.constantFrom('x', 'y'), at: fc.nat(20), parent: fc.nat(20), bytes: fc.nat(50), used: fc.boolean() }), {
      maxLength: 12,
    })
    .map((rows) =>
      rows.map((row, nth) => ({
        used: row.used,
        ...snapshot(`${nth}`, row.sandbox, row.at, row.parent < nth ? `${row.parent}` : null, row.bytes),
      })),
    );
  const policy = fc.record({ keep: fc.nat(5), olderThanMs: fc.nat(20), bytesMax: fc.nat(300) }, { requiredKeys: [] });
  fc.assert(
    fc.property(snapshots, policy, (all, wanted) => {
      const used = new Set(all.filter((one) => one.used).map(({ id }) => id));
      const { going, staying } = judgeSnapshots(all, (id) => (used.has(id) ? ['sandbox z'] : []), wanted, 20);
      const gone = new Set<string>();
      for (const { snapshot: each } of going) {
        expect(used.has(each.id)).toBe(false);
        expect(all.filter(({ parentId, id }) => parentId === each.id && !gone.has(id))).toEqual([]);
        gone.add(each.id);
      }
      expect(staying.filter(({ snapshot: { id } }) => gone.has(id))).toEqual([]);
      expect(gone.size).toBe(going.length);
      for (const { id, sandboxId, createdAtMs } of all) {
        const isNew = all.filter((one) => one.sandboxId === sandboxId && one.createdAtMs >= createdAtMs).length <= (wanted.keep ?? 99);
        const isYoung = wanted.olderThanMs === undefined || 20 - createdAtMs <= wanted.olderThanMs;
        if (isNew && isYoung && wanted.bytesMax === undefined) expect(gone.has(id)).toBe(false);
      }
    }),
  );
});
