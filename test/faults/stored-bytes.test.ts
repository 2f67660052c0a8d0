// What snapshots have in common is there once, and always somebody's: it counts for the oldest of them, and for the next when that goes.
import { execFileSync } from 'node:child_process';
import { renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, afterEach, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { removeAll } from './saved-files.ts';
import { expectBytesCounted } from './stored-bytes.ts';
import { expectInOrder, options, shellOf, startDaemon } from './world.ts';

const TEST_MS = 180_000;
const MIB = 2 ** 20;

const OWN = { HUTCH_SANDBOX_BACKEND: 'qemu', HUTCH_SANDBOX_STOP_GRACE: '2s', HUTCH_SANDBOX_WARM: '0' };

const daemon = await startDaemon(OWN);
afterAll(() => daemon[Symbol.asyncDispose]());
afterEach(() => removeAll(daemon));

const sh = shellOf(daemon);
const bytesOf = async (snapshot: string): Promise<number> => (await daemon.call('snapshot.get', { snapshot })).ownBytes;

for (const backend of ['qemu', 'gvisor'] as const) {
  test(`${backend}: what was kept to undo goes, and what others have of it is theirs`, { timeout: TEST_MS }, async () => {
    await daemon.call('sandbox.create', { backend, name: 'web', network: 'none', undo: 1 });
    await sh('web', `head -c ${8 * MIB} /dev/urandom > /dev/shm/a`);
    await sh('web', 'true'); // what is kept before it has the 8 MiB
    const { ownBytes: before } = await daemon.call('snapshot.create', { ref: 'web', name: 'mine' });
    await expectBytesCounted(daemon);
    await sh('web', 'true');
    await expectBytesCounted(daemon);
    expect(await bytesOf('mine')).toBeGreaterThan(Math.max(8 * MIB, before - 1));
    await daemon.call('sandbox.undo', { ref: 'web' });
    await expectBytesCounted(daemon);
    await daemon.call('snapshot.create', { ref: 'web', name: 'later' });
    await daemon.call('snapshot.remove', { snapshot: 'mine', cascade: true });
    await expectBytesCounted(daemon);
    await daemon.call('sandbox.set', { ref: 'web', undo: 0 });
    await sh('web', 'true');
    const { id } = await daemon.call('snapshot.create', { ref: 'web' });
    await daemon.call('sandbox.delete', { ref: 'web', force: true });
    await expectBytesCounted(daemon);
    expect(await bytesOf(id)).toBeGreaterThan(8 * MIB); // all that it was made of has gone
    await expectInOrder(daemon);
  });

  test(`${backend}: what was saved of a suspended one is its snapshot's too, and stays that`, { timeout: TEST_MS }, async () => {
    await daemon.call('sandbox.create', { backend, name: 'web', network: 'none' });
    await sh('web', `head -c ${8 * MIB} /dev/urandom > /dev/shm/a`);
    await daemon.call('sandbox.suspend', { ref: 'web' });
    const [first, second] = [
      await daemon.call('snapshot.create', { ref: 'web', name: 'first' }),
      await daemon.call('snapshot.create', { ref: 'web', name: 'second' }),
    ];
    expect(first.ownBytes).toBeGreaterThan(8 * MIB);
    expect(second.ownBytes).toBeLessThan(8 * MIB); // the memory is the same
    await expectBytesCounted(daemon);
    await daemon.call('sandbox.resume', { ref: 'web' });
    expect([await bytesOf('first'), await bytesOf('second')]).toEqual([first.ownBytes, second.ownBytes]);
    const made = await daemon.call('sandbox.create', { from: 'second', name: 'copy', network: 'none' });
    await daemon.call('snapshot.remove', { snapshot: 'first', cascade: true });
    await daemon.call('snapshot.create', { ref: made.id, name: 'third' });
    await expectBytesCounted(daemon);
    await daemon.call('sandbox.delete', { ref: 'copy', force: true });
    for (const { id } of (await daemon.call('snapshot.list', {})).snapshots.filter(({ name }) => name !== 'third'))
      await daemon.call('snapshot.remove', { snapshot: id, cascade: true });
    await expectBytesCounted(daemon);
    await expectInOrder(daemon);
  });
}

test('what snapshots of two forks hold is free when the last of them goes', { timeout: TEST_MS }, async () => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  await sh('web', `head -c ${8 * MIB} /dev/urandom > /dev/shm/a`);
  await daemon.call('sandbox.fork', { ref: 'web', count: 2, namePrefix: 'kid' });
  for (const nth of [1, 2]) await daemon.call('snapshot.create', { ref: `kid-${nth}`, name: `of-${nth}` });
  await expectBytesCounted(daemon);
  expect([await bytesOf('of-1'), await bytesOf('of-2')].map((bytes) => bytes > 8 * MIB)).toEqual([true, false]);
  const policy = { bytesMax: 6 * MIB };
  const { removed, bytes } = await daemon.call('snapshot.prune', { ...policy, dryRun: true });
  expect([removed.map(({ name }) => name), bytes > 8 * MIB]).toEqual([['of-1', 'of-2'], true]);
  await daemon.call('snapshot.remove', { snapshot: 'of-1' });
  expect(await bytesOf('of-2')).toBeGreaterThan(8 * MIB);
  await expectBytesCounted(daemon);
  expect((await daemon.call('snapshot.prune', policy)).removed).toMatchObject([{ name: 'of-2' }]);
  await expectBytesCounted(daemon);
});

test('a daemon that dies when what others hold too is removed finds each byte counted once', { timeout: TEST_MS }, async () => {
  for (const when of ['before', 'after']) {
    await daemon.call('sandbox.create', { name: 'web', network: 'none', undo: 1 });
    await sh('web', `head -c ${4 * MIB} /dev/urandom > /dev/shm/a`);
    await sh('web', 'true');
    await daemon.call('snapshot.create', { ref: 'web', name: 'mine' });
    await daemon.terminate();
    await daemon.startAgain(options({ ...OWN, HUTCH_TEST_STORE_FAULT: `die-${when}:1:removeSnapshot` }));
    await daemon.run('web', ['true']).catch(() => {}); // another is kept for it, and the one before goes
    await daemon.kill9();
    await daemon.startAgain(options(OWN));
    await expectBytesCounted(daemon);
    await sh('web', 'true');
    await expectBytesCounted(daemon);
    expect(await bytesOf('mine')).toBeGreaterThan(4 * MIB);
    await removeAll(daemon);
  }
  await expectInOrder(daemon);
});

/** Comes about by itself, soon after a start. */
const settled = () =>
  eventually('each byte is counted once', () =>
    expectBytesCounted(daemon).then(
      () => true,
      () => false,
    ),
  );

test('what is on record follows what is on the disk: moved, of an older version, without its template', { timeout: TEST_MS }, async () => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  for (const name of ['first', 'second']) await daemon.call('snapshot.create', { ref: 'web', name });
  await daemon.call('sandbox.delete', { ref: 'web', force: true });
  await expectBytesCounted(daemon);
  const whileAway = async (work: () => void): Promise<void> => {
    await daemon.terminate();
    work();
    await daemon.startAgain(options(OWN));
    await settled();
  };
  const [dataDir, snapshots, templates] = ['', 'snapshots', 'templates'].map((name) => join(daemon.home, 'data', name)) as [
    string,
    string,
    string,
  ];
  const before = await bytesOf('first');
  await whileAway(() => renameSync(templates, `${templates}.away`));
  expect(await bytesOf('first')).toBeGreaterThan(before + 8 * MIB); // the memory of its template is its own now
  await whileAway(() => {
    rmSync(templates, { recursive: true, force: true });
    renameSync(`${templates}.away`, templates);
  });
  expect(await bytesOf('first')).toBe(before);
  await whileAway(() => {
    renameSync(snapshots, `${snapshots}.away`);
    execFileSync('cp', ['--archive', '--sparse=always', `${snapshots}.away`, snapshots]);
    rmSync(`${snapshots}.away`, { recursive: true });
  });
  await whileAway(() => {
    using db = new DatabaseSync(join(dataDir, 'hutch.db'));
    db.exec('DELETE FROM snapshot_holdings');
    db.exec(
      "INSERT INTO snapshot_holdings (snapshot_id, holding, bytes, counted) SELECT id, 'snapshot:' || id, own_bytes, 1 FROM snapshots",
    );
  });
});
