// What snapshots hold in common: whatever comes and goes, in whatever order and whatever the clock says, each byte that is there counts
// for one of them, the quota counts what is there, and the ledger says for whom and since when.
import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { Holding } from '../../src/domain/holding.ts';
import { newId, type SnapshotId } from '../../src/domain/ids.ts';
import { LedgerSum } from '../../src/domain/ledger-sum.ts';
import type { NewSnapshot } from '../../src/domain/snapshot.ts';
import type { Store } from '../../src/store/contract.ts';
import { testOperation } from '../support/operation.ts';
import { someSpec } from './support/sandboxes.ts';
import { tempStore } from './support/stores.ts';

const op = testOperation();
const MIB = 2 ** 20;
const RUNS = 12;

const held = (...files: readonly number[]): Holding[] =>
  [...new Set(files)].map((file) => ({ what: `file:${file}`, bytes: (file + 1) * MIB }));

const some = (store: Store, createdAtMs: number, kind: NewSnapshot['kind'] = 'kept', parentId: SnapshotId | null = null): NewSnapshot => ({
  ...{ id: newId('snp', randomBytes), projectId: store.defaultProjectId, name: null, kind, contents: 'disk', sandboxId: null, parentId },
  ...{ spec: someSpec('web'), apparentBytes: 100 * MIB, createdAtMs, detail: {} },
});

type Stored = { readonly at: number; readonly kind: string; readonly id: SnapshotId | null; readonly bytes: number | undefined };

async function ledgerOf(store: Store): Promise<readonly Stored[]> {
  const found: Stored[] = [];
  for (let after = 0; ; ) {
    const page = await store.query('ledger', { after });
    for (const { kind, reason, snapshotId, shape, atMs } of page)
      found.push({ at: atMs, kind: `${kind} ${reason}`, id: snapshotId, bytes: shape.storageBytes });
    const last = page.at(-1);
    if (last === undefined) return found;
    after = last.sequence;
  }
}

/** Of all that must be true at any time. `held`: what is really there. */
async function expectSound(store: Store, there: ReadonlyMap<SnapshotId, readonly Holding[]>): Promise<void> {
  const snapshots = await store.query('snapshots', {});
  expect(snapshots.map(({ id }) => id).toSorted()).toEqual([...there.keys()].toSorted());
  const once = new Map([...there.values()].flat().map(({ what, bytes }) => [what, bytes]));
  const bytes = [...once.values()].reduce((sum, each) => sum + each, 0);
  expect(snapshots.reduce((sum, { ownBytes }) => sum + ownBytes, 0)).toBe(bytes);
  expect((await store.query('quotas', { atMs: 0 }))[0]?.use.snapshotMiB).toBe(bytes / MIB);
  const open = new Map<SnapshotId | null, Stored>();
  for (const entry of await ledgerOf(store)) {
    const before = open.get(entry.id);
    if (entry.kind.startsWith('snap.storage.start')) {
      expect(before).toBeUndefined();
      open.set(entry.id, entry);
    } else {
      expect(before?.bytes).toBe(entry.bytes);
      expect(entry.at).toBeGreaterThanOrEqual(before?.at ?? Number.POSITIVE_INFINITY);
      open.delete(entry.id);
    }
  }
  const billed = [...open.values()].map((entry) => [entry.id, entry.bytes]);
  expect(new Map(billed as [SnapshotId, number][])).toEqual(new Map(snapshots.map(({ id, ownBytes }) => [id, ownBytes])));
  expect(await store.query('checkLedger', { from: { sequence: 0, hash: '0'.repeat(64) }, limit: 10_000 })).toMatchObject({
    state: expect.stringMatching(/more|whole/),
  });
}

test('what the oldest one held counts for the next that holds it, with one time for the change', async () => {
  await using store = await tempStore();
  const [first, second, third] = [some(store, 1, 'undo'), some(store, 2), some(store, 3)];
  const create = (snapshot: NewSnapshot, holdings: readonly Holding[]) =>
    store.commit(op, [{ change: 'createSnapshot', snapshot, holdings }]);
  await create(first, held(0, 1, 2));
  await create(second, held(1, 2, 3));
  await create(third, held(2, 3, 4));
  const own = async () => (await store.query('snapshots', {})).map(({ id, ownBytes }) => [id, ownBytes / MIB]).toReversed();
  expect(await own()).toEqual([
    [first.id, 1 + 2 + 3],
    [second.id, 4],
    [third.id, 5],
  ]);
  const [removed] = await store.commit(op, [{ change: 'removeSnapshot', id: first.id, cascade: false, atMs: 10 }]);
  expect(removed.map(({ ownBytes }) => ownBytes / MIB)).toEqual([6]);
  expect(await own()).toEqual([
    [second.id, 4 + 2 + 3],
    [third.id, 5],
  ]);
  // The clock was stepped back: nothing ends before it began.
  await store.commit(op, [{ change: 'removeSnapshot', id: second.id, cascade: false, atMs: 5 }]);
  expect(await own()).toEqual([[third.id, 3 + 4 + 5]]);
  const entries = (await ledgerOf(store)).map(({ at, kind, id, bytes = 0 }) => [
    at,
    kind,
    [first, second, third].findIndex((one) => one.id === id),
    bytes / MIB,
  ]);
  expect(entries.slice(3)).toEqual([
    [10, 'snap.storage.stop snap-rm', 0, 6],
    [10, 'snap.storage.stop recount', 1, 4],
    [10, 'snap.storage.start recount', 1, 9],
    [10, 'snap.storage.stop snap-rm', 1, 9],
    [10, 'snap.storage.stop recount', 2, 5],
    [10, 'snap.storage.start recount', 2, 12],
  ]);
  await expectSound(store, new Map([[third.id, held(2, 3, 4)]]));
  const sum = new LedgerSum({ by: 'project', sinceMs: 0, untilMs: 20 });
  for (const entry of await store.query('ledger', { after: 0 })) sum.add(entry);
  expect(sum.end().rows.reduce((all, { ms, shape }) => all + ms * ((shape.storageBytes ?? 0) / MIB), 0)).toBe(
    9 * 6 + 8 * 4 + 7 * 5 + 10 * 12,
  );
  const events = await store.query('events', { limit: 100 });
  expect(
    events
      .filter(({ type }) => type === 'snapshot.recounted')
      .map(({ detail }) => [detail['snapshotId'], detail['ownBytes'], detail['wasBytes']]),
  ).toEqual([
    [second.id, 9 * MIB, 4 * MIB],
    [third.id, 12 * MIB, 5 * MIB],
  ]);
});

test('what has to go for one that is taken makes room only with what nobody else holds', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  await store.commit(op, [{ change: 'setQuota', projectId, tier: null, own: { snapshotMiB: 16 } }]);
  const [shared, alone, fresh, large] = ['undo', 'undo', 'undo', 'undo'].map((_, at) => some(store, at, 'undo')) as [
    NewSnapshot,
    NewSnapshot,
    NewSnapshot,
    NewSnapshot,
  ];
  await store.commit(op, [{ change: 'createSnapshot', snapshot: shared, holdings: held(7) }]); // 8 MiB
  await store.commit(op, [{ change: 'createSnapshot', snapshot: alone, holdings: held(5) }]); // 6 MiB
  const mayGo = [shared.id, alone.id];
  // It holds the same 8 MiB, and 4 of its own: that the first one goes is no help.
  await store.commit(op, [{ change: 'createSnapshot', snapshot: fresh, holdings: held(7, 3), mayGo }]);
  await expectSound(store, new Map([[fresh.id, held(7, 3)]]));
  await expect(
    store.commit(op, [{ change: 'createSnapshot', snapshot: large, holdings: held(7, 8), mayGo: [fresh.id] }]),
  ).rejects.toMatchObject({ code: 'resource_exhausted' });
  await expectSound(store, new Map([[fresh.id, held(7, 3)]]));
});

test('what is found on the disk replaces what is on record, of all of them at once', async () => {
  await using store = await tempStore();
  const [first, second, gone] = [some(store, 1), some(store, 2), some(store, 3)];
  for (const [at, snapshot] of [first, second].entries())
    await store.commit(op, [{ change: 'createSnapshot', snapshot, holdings: [{ what: `snapshot:${at}`, bytes: 50 * MIB }] }]);
  const settle = (of: readonly { id: SnapshotId; holdings: readonly Holding[] }[]) =>
    store.commit(op, [{ change: 'settleHoldings', of, atMs: 9 }]);
  // The younger one first: what both hold is the older one's all the same.
  await settle([
    { id: second.id, holdings: held(1, 2) },
    { id: gone.id, holdings: held(8) },
    { id: first.id, holdings: held(0, 1) },
  ]);
  const there = new Map([
    [first.id, held(0, 1)],
    [second.id, held(1, 2)],
  ]);
  await expectSound(store, there);
  expect((await store.query('snapshot', { id: first.id }))?.ownBytes).toBe(3 * MIB);
  const count = (await ledgerOf(store)).length;
  expect(count).toBe(2 + 4);
  // Other names of the same: nobody has more or less.
  await settle(
    [...there].map(([id, holdings]) => ({ id, holdings: holdings.map(({ what, bytes }) => ({ what: `other-${what}`, bytes })) })),
  );
  await expectSound(store, there);
  expect((await ledgerOf(store)).length).toBe(count);
});

const step = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({ do: fc.constant('create' as const), files: fc.array(fc.nat(11), { maxLength: 6 }), on: fc.option(fc.nat(9)) }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('remove' as const), nth: fc.nat(9), cascade: fc.boolean() }) },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('settle' as const), nth: fc.nat(9), files: fc.array(fc.nat(11), { maxLength: 6 }) }),
  },
);

test('in any order of coming and going the sum is what is there', { timeout: 180_000 }, async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.record({ step, clockMs: fc.integer({ min: -5, max: 20 }) }), { maxLength: 40 }), async (steps) => {
      await using store = await tempStore();
      const there = new Map<SnapshotId, readonly Holding[]>();
      let nowMs = 1_000;
      for (const { step: what, clockMs } of steps) {
        nowMs += clockMs;
        const ids = [...there.keys()];
        if (what.do === 'create') {
          const parentId = what.on === null ? null : (ids[what.on] ?? null);
          const snapshot = some(store, nowMs, 'kept', parentId);
          await store.commit(op, [{ change: 'createSnapshot', snapshot, holdings: held(...what.files) }]);
          there.set(snapshot.id, held(...what.files));
        } else {
          const id = ids[what.nth];
          if (id === undefined) continue;
          if (what.do === 'settle') {
            await store.commit(op, [{ change: 'settleHoldings', of: [{ id, holdings: held(...what.files) }], atMs: nowMs }]);
            there.set(id, held(...what.files));
          } else {
            const removing = store.commit(op, [{ change: 'removeSnapshot', id, cascade: what.cascade, atMs: nowMs }]);
            const [removed] = await removing.catch(() => [[]] as const); // others stand on it
            for (const each of removed) there.delete(each.id);
          }
        }
        await expectSound(store, there);
      }
    }),
    { numRuns: RUNS },
  );
});
