import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { newId } from '../../src/domain/ids.ts';
import type { NewSnapshot } from '../../src/domain/snapshot.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { openStore } from '../../src/store/store.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';
import { deleted, someSandboxId, someSpec, started, stopped } from './support/sandboxes.ts';
import { openAt, tempDir, tempStore } from './support/stores.ts';

const op = testOperation();
const UIDS = { first: 900_000, last: 900_999 };
const key = { apiKeyId: newId('key', () => new Uint8Array(17)), key: 'retry-1', requestHash: 'a'.repeat(64) };

test('a sandbox comes back as it was written, from every state', async () => {
  await using dir = await tempDir();
  const path = join(dir.path, 'hutch.db');
  const id = someSandboxId();
  let store = await openAt(path);
  const { defaultProjectId: projectId } = store;
  const [made] = await store.commit(op, [
    { change: 'createSandbox', id, projectId, spec: someSpec('web', { labels: { tier: 'front' } }), atMs: 1_000 },
  ]);
  expect(made).toMatchObject({ id, state: 'created', generation: 1, createdAtMs: 1_000 });
  for (const event of [
    started(2_000),
    { type: 'paused', atMs: 3_000, opId: op.id },
    { type: 'resumed', atMs: 4_000, opId: op.id },
    { type: 'failed', cause: 'the agent is silent', atMs: 5_000, opId: op.id },
    { type: 'recovered', deadlineAtMs: 9_000, atMs: 5_500, opId: op.id },
    { type: 'renamed', name: 'web-2', atMs: 5_700, opId: op.id },
    stopped(6_000),
    deleted(7_000),
  ] as const) {
    const [after] = await store.commit(op, [{ change: 'applyEvent', sandboxId: id, event }]);
    await store.close();
    store = await openAt(path);
    expect(store.lastClose).toBe('clean');
    expect(await store.query('sandbox', { id })).toEqual(after);
  }
  expect((await store.query('ledger', { after: 0 })).map(({ kind, reason, atMs }) => [kind, reason, atMs])).toEqual([
    ['vm.storage.start', 'boot', 1_000],
    ['vm.compute.start', 'boot', 2_000],
    ['vm.paused.start', 'pause', 3_000],
    ['vm.paused.stop', 'resume', 4_000],
    ['vm.compute.stop', 'stop-user', 6_000],
    ['vm.storage.stop', 'vm-rm', 7_000],
  ]);
  expect((await store.query('events', { sandboxId: id })).map(({ type, sandboxName }) => [type, sandboxName])).toEqual([
    ['sandbox.created', 'web'],
    ['sandbox.started', 'web'],
    ['sandbox.paused', 'web'],
    ['sandbox.resumed', 'web'],
    ['sandbox.failed', 'web'],
    ['sandbox.recovered', 'web'],
    ['sandbox.renamed', 'web-2'],
    ['sandbox.ended', 'web-2'],
    ['sandbox.deleted', 'web-2'],
  ]);
  await store.close();
});

test('a commit happens whole or not at all', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  const id = someSandboxId();
  const refused = store.commit(op, [
    { change: 'createSandbox', id, projectId, spec: someSpec('web'), atMs: 1 },
    { change: 'allocateUid', sandboxId: id, uids: UIDS },
    { change: 'applyEvent', sandboxId: id, event: { type: 'paused', atMs: 2, opId: op.id } },
  ]);
  await expect(refused).rejects.toMatchObject({
    code: 'failed_precondition',
    message: `sandbox web (${id}) is created; it cannot be paused`,
    opId: op.id,
  });
  expect(await store.query('sandbox', { id })).toBeNull();
  expect(await store.query('uids', {})).toEqual([]);
  expect(await store.query('ledger', { after: 0 })).toEqual([]);
  expect(await store.query('events', {})).toEqual([]);
});

test('commits that wait together share a transaction, and a refused one takes nobody with it', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  const names = Array.from({ length: 200 }, (_, index) => `web-${index % 150}`);
  const outcomes = await Promise.allSettled(
    names.map((name) => store.commit(op, [{ change: 'createSandbox', id: someSandboxId(), projectId, spec: someSpec(name), atMs: 1 }])),
  );
  expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(150);
  expect(await store.query('countSandboxes', {})).toBe(150);
  const entries = await store.query('ledger', { after: 0 });
  expect(entries.map(({ sequence }) => sequence)).toEqual(Array.from({ length: 150 }, (_, index) => index + 1));
});

test('a name is free again once its sandbox is deleted, and a reserved one is taken', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  const create = (name: string, id = someSandboxId()) =>
    store.commit(op, [{ change: 'createSandbox', id, projectId, spec: someSpec(name), atMs: 1 }]);
  const [first] = await create('web');
  await expect(create('web')).rejects.toMatchObject({ code: 'conflict', message: `the name web is taken by sandbox ${first.id}` });
  await store.commit(op, [{ change: 'applyEvent', sandboxId: first.id, event: deleted(2) }]);
  const [intent] = await store.commit(op, [{ change: 'addIntent', kind: 'create', projectId, reserveName: 'web', atMs: 3 }]);
  await expect(create('web')).rejects.toMatchObject({
    code: 'conflict',
    message: `the name web is being taken by ${op.id}, which is under way`,
  });
  await expect(store.commit(op, [{ change: 'addIntent', kind: 'create', projectId, reserveName: 'web', atMs: 3 }])).rejects.toMatchObject({
    code: 'conflict',
  });
  await store.commit(op, [
    { change: 'finishIntent', id: intent.id },
    { change: 'createSandbox', id: someSandboxId(), projectId, spec: someSpec('web'), atMs: 4 },
  ]);
  expect(await store.query('intents', {})).toEqual([]);
  await expect(create('sbx00000000000000000')).rejects.toMatchObject({ code: 'invalid_argument' });
});

test('a repeated request gets the first reply, another one with its key is refused', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  const id = someSandboxId();
  const begin = () => store.claim(op, { ...key, targetId: id }, [{ change: 'allocateUid', sandboxId: id, uids: UIDS }]);
  expect(await begin()).toEqual({ outcome: 'claimed', results: [900_000] });
  expect(await begin()).toMatchObject({ outcome: 'running', request: { opId: op.id, targetId: id, reply: null } });
  expect(await store.query('openRequests', {})).toHaveLength(1);
  await store.commit(op, [
    { change: 'createSandbox', id, projectId, spec: someSpec('web'), atMs: 1 },
    { change: 'finishRequest', ...key, reply: { id } },
  ]);
  expect(await begin()).toMatchObject({ outcome: 'done', request: { reply: { id } } });
  await expect(store.claim(op, { ...key, requestHash: 'b'.repeat(64) }, [])).rejects.toMatchObject({ code: 'conflict' });
});

test('a request that was released or is a day old starts anew', async () => {
  let nowMs = 1_000;
  await using store = await tempStore({ ...nodeHost(), nowMs: () => nowMs });
  const begin = async () => (await store.claim(op, key, [])).outcome;
  expect(await begin()).toBe('claimed');
  await store.commit(op, [{ change: 'releaseRequest', ...key }]);
  expect(await begin()).toBe('claimed');
  nowMs += 48 * 3_600_000;
  expect(await begin(), 'one under way does not expire').toBe('running');
  await store.commit(op, [{ change: 'finishRequest', ...key, reply: 'made' }]);
  expect(await begin(), 'but one that has a reply does').toBe('claimed');
});

test('two clients that race to delete: one deletes, the other is told that it is gone', async () => {
  await using store = await tempStore();
  const id = someSandboxId();
  await store.commit(op, [{ change: 'createSandbox', id, projectId: store.defaultProjectId, spec: someSpec('web'), atMs: 1 }]);
  const outcomes = await Promise.allSettled(
    [deleted(2), deleted(2)].map((event) => store.commit(op, [{ change: 'applyEvent', sandboxId: id, event }])),
  );
  expect(outcomes.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
  expect((await store.query('ledger', { after: 0 })).filter(({ kind }) => kind === 'vm.storage.stop')).toHaveLength(1);
});

test('uids differ among what lives, go round, and are kept when asked for again', async () => {
  await using store = await tempStore();
  const ids = Array.from({ length: 4 }, someSandboxId);
  const allocate = async (sandboxId: (typeof ids)[number], uids = UIDS) =>
    (await store.commit(op, [{ change: 'allocateUid', sandboxId, uids }]))[0];
  const [a, b, c, d] = ids as [(typeof ids)[0], (typeof ids)[0], (typeof ids)[0], (typeof ids)[0]];
  expect([await allocate(a), await allocate(b), await allocate(b)]).toEqual([900_000, 900_001, 900_001]);
  await store.commit(op, [{ change: 'releaseUid', sandboxId: a }]);
  expect(await allocate(c), 'one that was given back rests').toBe(900_002);
  expect(await allocate(d)).toBe(900_003);
  expect(await allocate(b, { first: 910_000, last: 910_001 }), 'one that is none of these any more').toBe(910_000);
  expect(await allocate(d, { first: 910_000, last: 910_001 })).toBe(910_001);
  expect(await allocate(d, { first: 910_000, last: 910_001 })).toBe(910_001);
  await expect(allocate(a, { first: 910_000, last: 910_001 })).rejects.toMatchObject({ code: 'resource_exhausted' });
  expect(await allocate(a), 'the others are free again').toBe(900_000);
});

test('lists go newest first, page by page, by label and state', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  await store.commit(
    op,
    Array.from({ length: 25 }, (_, index) => ({
      change: 'createSandbox' as const,
      id: someSandboxId(),
      projectId,
      spec: someSpec(`web-${index}`, { labels: index % 2 === 0 ? { even: 'yes' } : {} }),
      atMs: 100 + Math.floor(index / 3),
    })),
  );
  const seen: string[] = [];
  let cursor: string | null = null;
  do {
    const page: Awaited<ReturnType<typeof store.query<'sandboxes'>>> = await store.query('sandboxes', { limit: 10, cursor });
    seen.push(...page.sandboxes.map(({ id }) => id));
    cursor = page.nextCursor;
  } while (cursor !== null);
  expect(new Set(seen).size).toBe(25);
  const all = (await store.query('sandboxes', {})).sandboxes;
  expect(all.map(({ id }) => id)).toEqual(seen);
  expect(all.map(({ createdAtMs }) => createdAtMs)).toEqual(all.map(({ createdAtMs }) => createdAtMs).toSorted((x, y) => y - x));
  expect(await store.query('countSandboxes', { labels: [{ key: 'even', value: 'yes' }] })).toBe(13);
  expect(
    await store.query('countSandboxes', {
      labels: [
        { key: 'even', value: null },
        { key: 'odd', value: null },
      ],
    }),
  ).toBe(0);
  expect(await store.query('countSandboxes', { states: ['running'] })).toBe(0);
  await expect(store.query('sandboxes', { cursor: "1' OR 1=1" })).rejects.toMatchObject({ code: 'invalid_argument' });
});

test('a page of large sandboxes is short, and the next one goes on', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  const env = { DATA: 'x'.repeat(1_500_000) };
  for (let index = 0; index < 8; index += 1) {
    await store.commit(op, [
      { change: 'createSandbox', id: someSandboxId(), projectId, spec: someSpec(`web-${index}`, { env }), atMs: index },
    ]);
  }
  const first = await store.query('sandboxes', {});
  expect(first.sandboxes.map(({ spec }) => spec.name)).toEqual(['web-7', 'web-6', 'web-5']);
  const second = await store.query('sandboxes', { cursor: first.nextCursor, limit: 2 });
  expect(second.sandboxes.map(({ spec }) => spec.name)).toEqual(['web-4', 'web-3']);
  const third = await store.query('sandboxes', { cursor: second.nextCursor });
  expect([third.sandboxes.length, third.nextCursor]).toEqual([3, null]);
});

test('an operation ends once, and what still ran at the start was interrupted', async () => {
  await using store = await tempStore();
  await store.commit(op, [{ change: 'beginOperation', verb: 'sandbox.create', startedAtMs: 1 }]);
  await store.commit(op, [{ change: 'updateOperation', id: op.id, step: 'kernel', done: 5, total: 10 }], 'relaxed');
  expect(await store.query('operation', { id: op.id })).toMatchObject({ state: 'running', step: 'kernel', done: 5, total: 10 });
  const [interrupted] = await store.commit(testOperation(), [{ change: 'interruptOperations', endedAtMs: 9 }]);
  expect(interrupted).toMatchObject([{ id: op.id, state: 'interrupted', endedAtMs: 9 }]);
  const [late] = await store.commit(op, [{ change: 'endOperation', id: op.id, state: 'done', endedAtMs: 12 }]);
  expect(late).toMatchObject({ state: 'interrupted', endedAtMs: 9 });
  expect(await store.query('operationCandidates', { text: op.id.slice(3, 9) })).toHaveLength(1);
});

test('a key is known by its hash and its name is free once it is revoked', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  const create = (fill: number) => {
    const id = newId('key', () => new Uint8Array(17).fill(fill));
    return store.commit(op, [{ change: 'createKey', id, projectId, name: 'ci', sha256: String(fill).repeat(64), atMs: fill }]);
  };
  const [first] = await create(1);
  await expect(create(2)).rejects.toMatchObject({ code: 'conflict' });
  await store.commit(op, [{ change: 'revokeKey', id: first.id, atMs: 5 }]);
  const [again] = await store.commit(op, [{ change: 'revokeKey', id: first.id, atMs: 6 }]);
  expect(again.revokedAtMs).toBe(5);
  await create(2);
  await store.commit(op, [{ change: 'touchKey', id: first.id, atMs: 7 }], 'relaxed');
  expect(await store.query('keyByHash', { sha256: '1'.repeat(64) })).toMatchObject({ id: first.id, revokedAtMs: 5, lastUsedAtMs: 7 });
  expect(await store.query('keyByHash', { sha256: '9'.repeat(64) })).toBeNull();
});

function someImage(fill: number) {
  return {
    id: newId('img', () => new Uint8Array(17).fill(fill)),
    name: 'debian',
    digest: `sha256:${String(fill).repeat(64)}`,
    architecture: 'x86_64' as const,
    sizeBytes: 10,
    config: { env: { PATH: '/bin' }, entrypoint: [], command: ['sh'], workdir: null, user: null, stopSignal: null, exposedPorts: [] },
    createdAtMs: fill,
    detail: { packages: ['git'] },
  };
}

test('an image name moves to the newest image, and an image in use stays', async () => {
  await using store = await tempStore();
  const [first] = await store.commit(op, [{ change: 'putImage', image: someImage(1) }]);
  expect(first).toEqual({ ...someImage(1), names: ['debian'] });
  await store.commit(op, [{ change: 'putImage', image: { ...someImage(1), id: newId('img', () => new Uint8Array(17).fill(9)) } }]);
  await store.commit(op, [{ change: 'putImage', image: someImage(2) }]);
  expect((await store.query('images', {})).map(({ id, name }) => [id, name])).toEqual([
    [someImage(2).id, 'debian'],
    [someImage(1).id, null],
  ]);
  await store.commit(op, [
    {
      change: 'createSandbox',
      id: someSandboxId(),
      projectId: store.defaultProjectId,
      spec: someSpec('web', { imageId: first.id }),
      atMs: 1,
    },
    {
      change: 'addIntent',
      kind: 'create',
      projectId: store.defaultProjectId,
      reserveName: 'coming',
      atMs: 1,
      detail: { imageId: first.id },
    },
  ]);
  await expect(store.commit(op, [{ change: 'removeImage', id: first.id }])).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('coming, web'),
  });
  await store.commit(op, [{ change: 'removeImage', id: someImage(2).id }]);
  expect(await store.query('image', { id: someImage(2).id })).toBeNull();
});

test('an image that a sandbox of another one may go back to stays until that is let go', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  const [before] = await store.commit(op, [{ change: 'putImage', image: someImage(1) }]);
  const [now] = await store.commit(op, [{ change: 'putImage', image: { ...someImage(2), name: 'other' } }]);
  const sandboxId = someSandboxId();
  const snapshot: NewSnapshot = {
    ...{
      id: newId('snp', () => new Uint8Array(17).fill(3)),
      projectId,
      name: null,
      kind: 'undo',
      contents: 'disk',
      sandboxId,
      parentId: null,
    },
    ...{ spec: someSpec('web', { imageId: before.id }), apparentBytes: 1, createdAtMs: 2, detail: {} },
  };
  await store.commit(op, [
    { change: 'createSandbox', id: sandboxId, projectId, spec: someSpec('web', { imageId: now.id }), atMs: 1 },
    { change: 'createSnapshot', snapshot, holdings: [] },
  ]);
  await expect(store.commit(op, [{ change: 'removeImage', id: before.id }])).rejects.toMatchObject({
    code: 'failed_precondition',
    message: `image ${before.id} is used by what is kept to undo in sandbox web`,
    hint: 'let go of that: hutch set --no-undo web',
  });
  await store.commit(op, [{ change: 'removeSnapshot', id: snapshot.id, cascade: false, atMs: 3 }]);
  await store.commit(op, [{ change: 'removeImage', id: before.id }]);
  expect(await store.query('image', { id: before.id })).toBeNull();
});

test('an image has several names, and each goes to one image at a time', async () => {
  await using store = await tempStore();
  const [one, two] = await store.commit(op, [
    { change: 'putImage', image: someImage(1) },
    { change: 'putImage', image: { ...someImage(2), name: null } },
  ]);
  expect(two.name).toBeNull();
  await store.commit(op, [{ change: 'nameImage', id: one.id, name: 'web:1', atMs: 5 }]);
  expect(await store.query('image', { id: one.id })).toMatchObject({ name: 'debian', names: ['debian', 'web:1'] });
  const [moved] = await store.commit(op, [{ change: 'nameImage', id: two.id, name: 'web:1', atMs: 6 }]);
  expect(moved.names).toEqual(['web:1']);
  const [same] = await store.commit(op, [{ change: 'unnameImage', id: one.id, name: 'web:1' }]);
  expect(same.names).toEqual(['debian']);
  expect(await store.query('image', { id: two.id })).toMatchObject({ names: ['web:1'] });
  // The last one goes with the image.
  await store.commit(op, [{ change: 'unnameImage', id: two.id, name: 'web:1' }]);
  expect(await store.query('image', { id: two.id })).toMatchObject({ name: 'web:1', names: ['web:1'] });
});

test('old events, operations, tombstones and requests go; the ledger and cursors stay', async () => {
  await using store = await tempStore();
  const id = someSandboxId();
  await store.commit(op, [
    { change: 'createSandbox', id, projectId: store.defaultProjectId, spec: someSpec('web'), atMs: 1 },
    { change: 'applyEvent', sandboxId: id, event: deleted(2) },
    { change: 'beginOperation', verb: 'sandbox.delete', startedAtMs: 1 },
    { change: 'endOperation', id: op.id, state: 'done', endedAtMs: 2 },
  ]);
  const before = { eventsBeforeMs: 10, operationsBeforeMs: 10, tombstonesBeforeMs: 10, nowMs: 10 };
  const [pruned] = await store.commit(op, [{ change: 'prune', ...before }]);
  expect(pruned).toEqual({ dropped: 4, more: false });
  expect(await store.query('sandbox', { id })).toBeNull();
  expect(await store.query('ledger', { after: 0 })).toHaveLength(2);
  const [cursor] = await store.commit(op, [{ change: 'addEvent', type: 'daemon.started', atMs: 20 }]);
  expect(cursor).toBe(3);
});

test('listeners hear of each commit that adds something, with the last cursor', async () => {
  await using store = await tempStore();
  const heard: unknown[] = [];
  const end = store.onCommit((news) => heard.push(news));
  const create = {
    change: 'createSandbox',
    id: someSandboxId(),
    projectId: store.defaultProjectId,
    spec: someSpec('web'),
    atMs: 1,
  } as const;
  await store.commit(op, [create]);
  await store.commit(op, [{ change: 'setSetting', key: 'a', value: 1 }]);
  end();
  await store.commit(op, [{ change: 'addEvent', type: 'daemon.started', atMs: 20 }]);
  expect(heard).toEqual([{ lastEventCursor: 1, lastLedgerSequence: 1 }]);
});

test('the file is for its owner alone, and is not left half open', async () => {
  await using dir = await tempDir();
  const path = join(dir.path, 'hutch.db');
  const store = await openAt(path);
  expect(store.lastClose).toBe('new');
  for (const file of [path, `${path}-wal`]) expect((await stat(file)).mode & 0o777).toBe(0o600);
  await store.close();
  await store.close();
  await expect(store.query('projects', {})).rejects.toMatchObject({ code: 'unavailable', message: `the store ${path} is closed` });
  const { readdir } = await import('node:fs/promises');
  expect(await readdir(dir.path)).toEqual(['hutch.db']);
});

test('an answer that takes too long is `unavailable`, and says that nothing is known', async () => {
  await using dir = await tempDir();
  const store = await openStore({ path: join(dir.path, 'hutch.db'), host: nodeHost(), op, answerMs: 20 });
  const { defaultProjectId: projectId } = store;
  const asked = Array.from({ length: 3_000 }, (_, index) =>
    store.commit(op, [{ change: 'createSandbox', id: someSandboxId(), projectId, spec: someSpec(`web-${index}`), atMs: 1 }]),
  );
  const outcomes = await Promise.allSettled(asked);
  const late = outcomes.find((outcome) => outcome.status === 'rejected');
  expect(late?.reason).toMatchObject({
    code: 'unavailable',
    message: `the store ${store.path} has not answered for 20 ms; whether the change was made is not known`,
    opId: op.id,
  });
  // What was asked is carried out all the same.
  await eventually('all to be there', async () => (await store.query('countSandboxes', {}).catch(() => 0)) === 3_000);
  await store.close();
});

test('what nobody knows is a bug of ours, and takes nothing with it', async () => {
  await using store = await tempStore();
  const nonsense = [{ change: 'nonsense' }] as unknown as readonly [{ change: 'beat' }];
  await expect(store.commit(op, nonsense)).rejects.toMatchObject({ code: 'internal', message: 'the store met a bug of its own' });
  const unsendable = store.commit(op, [{ change: 'setSetting', key: 'a', value: () => 1 }]);
  await expect(unsendable).rejects.toThrow('could not be cloned');
  const [beat] = await store.commit(op, [{ change: 'beat' }]);
  expect(await store.query('heartbeat', {})).toEqual(beat);
  expect(await store.query('heartbeat', { bootId: 'another' })).toBeNull();
});

test('after a reboot the last heartbeat of the boot before is still known', async () => {
  let boot = { bootId: 'first', nowMs: 1_000 };
  await using store = await tempStore({ ...nodeHost(), bootId: () => boot.bootId, nowMs: () => boot.nowMs });
  await store.commit(op, [{ change: 'beat' }], 'relaxed');
  boot = { bootId: 'first', nowMs: 2_000 };
  await store.commit(op, [{ change: 'beat' }], 'relaxed');
  boot = { bootId: 'second', nowMs: 9_000 };
  await store.commit(op, [{ change: 'beat' }], 'relaxed');
  expect(await store.query('heartbeat', { otherThan: 'second' })).toMatchObject({ bootId: 'first', atMs: 2_000 });
  expect(await store.query('heartbeat', { bootId: 'second' })).toMatchObject({ atMs: 9_000 });
  expect(await store.query('heartbeat', {})).toMatchObject({ bootId: 'second' });
});

test('what is too large to keep is refused by name', async () => {
  await using store = await tempStore();
  const detail = { text: 'x'.repeat(300_000) };
  await expect(store.commit(op, [{ change: 'addEvent', type: 'noise', atMs: 1, detail }])).rejects.toMatchObject({
    code: 'payload_too_large',
    message: 'the detail of event noise takes 300011 bytes; at most 262144 are kept',
  });
});

test('tombstones are found by their whole id alone', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  const id = someSandboxId();
  await store.commit(op, [
    { change: 'createSandbox', id, projectId, spec: someSpec('web'), atMs: 1 },
    { change: 'applyEvent', sandboxId: id, event: deleted(2) },
  ]);
  const candidates = async (text: string) => (await store.query('sandboxCandidates', { projectId, text })).map((sandbox) => sandbox.id);
  expect([await candidates(id), await candidates('web'), await candidates(id.slice(0, 8)), await candidates('%')]).toEqual([
    [id],
    [],
    [],
    [],
  ]);
  expect(await store.query('countSandboxes', { states: ['deleted', 'running'] })).toBe(1);
  expect(await store.query('liveSandboxIds', {})).toEqual([]);
});
