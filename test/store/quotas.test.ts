// Quotas where they are enforced: in the transaction that adds to what is used.
import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { newId, type SnapshotId } from '../../src/domain/ids.ts';
import type { Image } from '../../src/domain/image.ts';
import type { Snapshot, SnapshotKind } from '../../src/domain/snapshot.ts';
import { testOperation } from '../support/operation.ts';
import { someSandboxId, someSpec } from './support/sandboxes.ts';
import { tempStore } from './support/stores.ts';

const op = testOperation();
const SHAPE = { cpus: 1, memoryMiB: 512, diskMiB: 8_192 };

function someImage(at: number, sizeBytes: number, source: string): Image {
  return {
    id: newId('img', randomBytes),
    name: null,
    digest: `sha256:${String(at).repeat(64)}`,
    architecture: 'x86_64',
    sizeBytes,
    config: { env: {}, entrypoint: [], command: [], workdir: null, user: null, stopSignal: null, exposedPorts: [] },
    createdAtMs: 1,
    detail: { source: { kind: source } },
  };
}

test('one that is being made counts once, also in the commit that makes it a sandbox', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  await store.commit(op, [{ change: 'setQuota', projectId, tier: null, own: { sandboxes: 1 } }]);
  const id = someSandboxId();
  const intent = { change: 'addIntent', kind: 'create', projectId, atMs: 1, detail: { shape: SHAPE } } as const;
  const [{ id: intentId }] = await store.commit(op, [{ ...intent, sandboxId: id, reserveName: 'web' }]);
  await expect(store.commit(op, [{ ...intent, sandboxId: someSandboxId(), reserveName: 'other' }])).rejects.toThrow('the quota sandboxes');
  await store.commit(op, [
    { change: 'finishIntent', id: intentId },
    { change: 'createSandbox', id, projectId, spec: someSpec('web'), atMs: 2 },
  ]);
  expect((await store.query('quotas', { atMs: Date.now() }))[0]?.use).toMatchObject({
    sandboxes: 1,
    cpus: 1,
    memoryMiB: 512,
    diskMiB: 8_192,
  });
  // Whoever makes a sandbox in another way is counted as well.
  const another = { change: 'createSandbox', id: someSandboxId(), projectId, spec: someSpec('fork'), atMs: 3 } as const;
  await expect(store.commit(op, [another])).rejects.toMatchObject({ code: 'resource_exhausted' });
});

test('an image counts for the project whose key brought it, as long as it is there; what Hutch made does not', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  const keyId = newId('key', randomBytes);
  await store.commit(op, [{ change: 'createKey', id: keyId, projectId, name: 'ci', sha256: 'a'.repeat(64), atMs: 1 }]);
  await store.commit(op, [{ change: 'setQuota', projectId, tier: null, own: { imageMiB: 10 } }]);
  const asKey = { id: op.id, actor: keyId };
  const use = async () => (await store.query('quotas', { atMs: Date.now() }))[0]?.use.imageMiB;
  const first = someImage(1, 6 * 2 ** 20, 'oci');
  await store.commit(asKey, [{ change: 'putImage', image: first }]);
  await store.commit(asKey, [{ change: 'putImage', image: first }]);
  await store.commit(asKey, [{ change: 'putImage', image: someImage(2, 60 * 2 ** 20, 'mmdebstrap') }]);
  await store.commit(op, [{ change: 'putImage', image: someImage(3, 60 * 2 ** 20, 'oci') }]); // by the daemon itself
  expect(await use()).toBe(6);
  const refused = store.commit(asKey, [{ change: 'putImage', image: someImage(4, 5 * 2 ** 20, 'oci') }]);
  await expect(refused).rejects.toThrow('the quota imageMiB of project default is 10 MiB: 6 are in use, and 5 more are wanted');
  expect(await store.query('images', {})).toHaveLength(3);
  await store.commit(asKey, [{ change: 'removeImage', id: first.id }]);
  expect(await use()).toBe(0);
  await store.commit(asKey, [{ change: 'putImage', image: someImage(4, 5 * 2 ** 20, 'oci') }]);
  expect(await use()).toBe(5);
});

test('of many builds that begin at once no more do than may, and those of a day ago count no more', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  await store.commit(op, [{ change: 'setQuota', projectId, tier: null, own: { builds: 3, buildsPerDay: 5 } }]);
  const ids = Array.from({ length: 10 }, () => newId('bld', randomBytes));
  const begin = async (id: (typeof ids)[number], atMs = Date.now()) =>
    await store.commit(op, [{ change: 'beginBuild', id, projectId, atMs }]);
  const outcomes = await Promise.allSettled(ids.map((id) => begin(id)));
  const begun = ids.filter((_, at) => outcomes[at]?.status === 'fulfilled');
  expect(begun).toHaveLength(3);
  const use = async () => (await store.query('quotas', { atMs: Date.now() }))[0]?.use;
  expect(await use()).toMatchObject({ builds: 3, buildsPerDay: 3 });
  const end = { change: 'endBuild', atMs: Date.now() } as const;
  const [one, two, three] = begun as [(typeof ids)[0], (typeof ids)[0], (typeof ids)[0]];
  await store.commit(op, [
    { ...end, id: one, how: 'never-began' },
    { ...end, id: two, how: 'ended' },
    { ...end, id: three, how: 'ended' },
  ]);
  expect(await use()).toMatchObject({ builds: 0, buildsPerDay: 2 });
  const old = newId('bld', randomBytes);
  await begin(old, Date.now() - 25 * 60 * 60 * 1_000);
  await store.commit(op, [{ change: 'endAllBuilds', atMs: Date.now() }]);
  expect(await use()).toMatchObject({ builds: 0, buildsPerDay: 2 });
  for (let more = 0; more < 3; more += 1) await begin(newId('bld', randomBytes));
  await store.commit(op, [{ change: 'endAllBuilds', atMs: Date.now() }]);
  await expect(begin(newId('bld', randomBytes))).rejects.toThrow('the quota buildsPerDay of project default is 5: 5 are in use');
});

test('what is stored for snapshots alone counts, and of those that may go as few go as make room, or none', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  await store.commit(op, [{ change: 'setQuota', projectId, tier: null, own: { snapshotMiB: 10 } }]);
  const sandboxId = someSandboxId();
  await store.commit(op, [{ change: 'createSandbox', id: sandboxId, projectId, spec: someSpec('web'), atMs: 1 }]);
  const some = (mib: number, kind: SnapshotKind): Snapshot => ({
    ...{ id: newId('snp', randomBytes), projectId, name: null, kind, contents: 'disk', sandboxId, parentId: null },
    ...{ spec: someSpec('web'), ownBytes: mib * 2 ** 20, apparentBytes: 100 * 2 ** 20, createdAtMs: 2, detail: {} },
  });
  const take = async (snapshot: Snapshot, mayGo: readonly SnapshotId[] = []) =>
    await store.commit(op, [
      { change: 'createSnapshot', snapshot, holdings: [{ what: `file:${snapshot.id}`, bytes: snapshot.ownBytes }], mayGo },
    ]);
  const left = async () => (await store.query('snapshots', {})).map(({ id }) => id).toSorted();
  const use = async () => (await store.query('quotas', { atMs: Date.now() }))[0]?.use.snapshotMiB;
  const older = [some(3, 'undo'), some(3, 'undo'), some(2.5, 'undo')];
  for (const each of older) await take(each);
  expect(await use()).toBe(9);
  const ids = older.map(({ id }) => id);
  const refusal = 'the quota snapshotMiB of project default is 10 MiB: 9 are in use, and 5 more are wanted';
  await expect(take(some(5, 'kept'))).rejects.toThrow(refusal);
  await expect(store.query('snapshotRoom', { projectId, bytes: 2 * 2 ** 20, atMs: Date.now() })).rejects.toThrow('and 2 more are wanted');
  await store.query('snapshotRoom', { projectId, bytes: 2 ** 20, atMs: Date.now() });
  // Not enough although all went: then none goes.
  await expect(take(some(11, 'undo'), ids)).rejects.toMatchObject({
    code: 'resource_exhausted',
    hint: expect.stringContaining('hutch snapshot rm'),
  });
  expect(await left()).toEqual(ids.toSorted());
  const fresh = some(4, 'undo');
  await take(fresh, ids);
  expect(await left()).toEqual([...ids.slice(1), fresh.id].toSorted());
  expect(await use()).toBe(10);
  // What was kept by hand never goes for it.
  const kept = some(6, 'kept');
  await take(kept, [...ids, fresh.id]);
  expect(await left()).toEqual([fresh.id, kept.id].toSorted());
  await expect(take(some(5, 'undo'), [kept.id, fresh.id])).rejects.toMatchObject({ code: 'resource_exhausted' });
  expect(await left()).toEqual([fresh.id, kept.id].toSorted());
  const stored = (await store.query('ledger', { after: 0 })).filter(({ kind }) => kind.startsWith('snap.storage.'));
  const open = new Set(stored.filter(({ kind }) => kind.endsWith('start')).map(({ snapshotId }) => snapshotId));
  for (const { kind, snapshotId } of stored) if (kind.endsWith('stop')) open.delete(snapshotId);
  expect([...open].toSorted()).toEqual([fresh.id, kept.id].toSorted());
});

test('volumes count as disk, as large as they may become, also when they grow', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  await store.commit(op, [{ change: 'setQuota', projectId, tier: null, own: { diskMiB: 100 } }]);
  const id = newId('vol', randomBytes);
  const volume = { id, projectId, name: 'a', sizeMiB: 60, createdAtMs: Date.now(), guestWritten: false };
  await store.commit(op, [{ change: 'createVolume', volume }]);
  const use = async () => (await store.query('quotas', { atMs: Date.now() }))[0]?.use.diskMiB;
  expect(await use()).toBe(60);
  const second = { ...volume, id: newId('vol', randomBytes), name: 'b' };
  await expect(store.commit(op, [{ change: 'createVolume', volume: second }])).rejects.toThrow(
    'the quota diskMiB of project default is 100 MiB: 60 are in use, and 60 more are wanted',
  );
  const grow = async (sizeMiB: number) => await store.commit(op, [{ change: 'growVolume', id, sizeMiB, atMs: Date.now() }]);
  await expect(grow(101)).rejects.toThrow('60 are in use, and 41 more are wanted');
  await grow(100);
  expect(await use()).toBe(100);
  await store.commit(op, [{ change: 'removeVolume', id, atMs: Date.now() }]);
  expect(await use()).toBe(0);
});
