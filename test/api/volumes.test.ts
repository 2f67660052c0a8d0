// Volumes over the API of a daemon of its own: names, bounds, users, and what a daemon that was killed leaves.
import { existsSync } from 'node:fs';
import { mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

const refusal = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'ok',
    (error: unknown) => (error instanceof ApiError ? `${error.message} [${error.body.hint}]` : Promise.reject(error as Error)),
  );
const dirOf = (id = ''): string => join(daemon.home, 'data/volumes', id);

test('a volume takes what is written to it, is found by name and prefix, and what is wrong with one is told', async () => {
  const made = await daemon.call('volume.create', { name: 'data', sizeMiB: 1024 });
  expect(made).toMatchObject({ name: 'data', sizeMiB: 1024, fileSystem: 'ext4', usedBy: [], guestWritten: false });
  expect(made.allocatedBytes).toBeLessThan(64 * 2 ** 20);
  expect(await daemon.call('volume.get', { volume: 'dat' })).toEqual(made);
  expect((await daemon.call('volume.list', {})).volumes).toEqual([made]);
  const create = (input: object): Promise<string> => refusal(daemon.call('volume.create', input as never));
  expect(await create({ name: 'data' })).toMatch(/^conflict: the name data is taken by volume vol.*\[.*hutch volume rm data\]$/);
  expect(await create({ name: 'No Name' })).toMatch(/^invalid_argument: /);
  expect(await create({ name: 'a', sizeMiB: 1 })).toMatch(/^invalid_argument: .*sizeMiB/);
  expect(await create({ name: 'a', sizeMiB: 200_000 })).toMatch(/sizeMiB/);
  expect(await create({})).toMatch(/^invalid_argument: .*name/);
  expect((await readdir(dirOf())).filter((name) => name.startsWith('vol'))).toEqual([made.id]);
  const mount = (source: string, more: object[] = []): Promise<string> =>
    refusal(daemon.call('sandbox.create', { start: false, mounts: [{ source, target: '/a' }, ...(more as never[])] }));
  expect(await mount('none-such')).toMatch(
    /^not_found: there is no volume 'none-such' \[make it: hutch volume create NAME; a directory .* \.\//,
  );
  await daemon.call('volume.remove', { volume: 'data' });
  expect(existsSync(dirOf(made.id))).toBe(false);
  expect(await refusal(daemon.call('volume.get', { volume: 'data' }))).toMatch(/^not_found/);
});

test('the ledger has each volume from when it is made to when it is removed, anew with each size; Cocoon hears nothing of it', async () => {
  const { id } = await daemon.call('volume.create', { name: 'billed', sizeMiB: 16 });
  await daemon.call('volume.grow', { volume: id, sizeMiB: 16 });
  await daemon.call('volume.grow', { volume: id, sizeMiB: 32 });
  expect(await refusal(daemon.call('volume.create', { name: 'billed', sizeMiB: 64 }))).toMatch(/^conflict/);
  await daemon.call('volume.remove', { volume: id });
  const lines = async (input: object): Promise<Record<string, unknown>[]> => {
    const found: Record<string, unknown>[] = [];
    for await (const line of daemon.lines('ledger.list', input)) found.push(line as Record<string, unknown>);
    return found;
  };
  const all = await lines({});
  const own = all.filter(({ volumeId }) => volumeId === id);
  const bytes = (mib: number) => ({ storageBytes: mib * 2 ** 20 });
  expect(own.map(({ kind, reason, shape }) => [kind, reason, shape])).toEqual([
    ['volume.storage.start', null, bytes(16)],
    ['volume.storage.stop', 'set', bytes(16)],
    ['volume.storage.start', 'set', bytes(32)],
    ['volume.storage.stop', 'volume-rm', bytes(32)],
  ]);
  expect(all.filter(({ kind }) => String(kind).startsWith('volume.')).every(({ volumeId }) => typeof volumeId === 'string')).toBe(true);
  expect((await lines({ format: 'cocoon' })).filter(({ kind }) => !/^(vm|snap)\./.test(String(kind)))).toEqual([]);
  expect(await daemon.call('ledger.verify', {})).toMatchObject({ ok: true, firstBreak: null });
});

test('one whose file somebody has removed does not grow into an empty one', async () => {
  const { id } = await daemon.call('volume.create', { name: 'lost', sizeMiB: 16 });
  await rm(join(dirOf(id), 'disk.img'));
  expect(await refusal(daemon.call('volume.grow', { volume: 'lost', sizeMiB: 32 }))).toMatch(
    /^failed_precondition: volume lost is gone: there is no file .*\[put the file back; or give it up: hutch volume rm/,
  );
  expect(await readdir(dirOf(id))).toEqual([]);
  expect(await daemon.call('volume.get', { volume: 'lost' })).toMatchObject({ sizeMiB: 16 });
  await daemon.call('volume.remove', { volume: 'lost' });
});

test('of two who want to write a volume one gets it, and the other is told who has it', async () => {
  const { id } = await daemon.call('volume.create', { name: 'shared', sizeMiB: 32 });
  const wants = (name: string) => refusal(daemon.call('sandbox.create', { name, mounts: [{ source: 'shared', target: '/s' }] }));
  const both = await Promise.all([wants('left'), wants('right')]);
  expect(both.filter((said) => said === 'ok')).toHaveLength(1);
  expect(both.find((said) => said !== 'ok')).toMatch(
    /^failed_precondition: volume shared cannot be used: it is in use by sandbox (left|right) \[/,
  );
  const { sandboxes } = await daemon.call('sandbox.list', {});
  expect(sandboxes.map(({ mounts }) => mounts)).toEqual([[{ source: 'shared', volumeId: id, target: '/s', readOnly: false }]]);
  await daemon.deleteAll();
  await daemon.call('volume.remove', { volume: 'shared' });
});

test('a daemon that was killed while it made a volume leaves nothing of it, and those on record are there', async () => {
  const { id } = await daemon.call('volume.create', { name: 'stays', sizeMiB: 16 });
  const torn = `vol${'7'.repeat(17)}`;
  await mkdir(dirOf(torn));
  await writeFile(join(dirOf(torn), 'disk.img'), 'half of it');
  const making = daemon.call('volume.create', { name: 'half', sizeMiB: 131_072 }).catch(() => null);
  await daemon.kill9();
  await making;
  await daemon.startAgain();
  const { volumes } = await daemon.call('volume.list', {});
  expect(volumes.map(({ name }) => name)).toContain('stays');
  expect((await readdir(dirOf())).filter((name) => name.startsWith('vol')).sort()).toEqual(volumes.map((volume) => volume.id).sort());
  expect(volumes.map((volume) => volume.id)).toContain(id);
  for (const volume of volumes) await daemon.call('volume.remove', { volume: volume.id });
});
