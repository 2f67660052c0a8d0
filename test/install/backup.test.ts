// hutch system backup and restore, from outside: while the store is in use, with a daemon in the way, damaged, and too new.
// What a restore that is killed leaves is tried in test/store/backup.test.ts.
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { World } from '../cli/world.ts';
import { eventually } from '../support/eventually.ts';

let world: World;
let backup: string;
let before: Buffer;
const START_MS = 120_000;

beforeAll(async () => {
  world = await World.make();
  backup = join(world.dir, 'one.backup');
}, START_MS);
afterAll(async () => {
  await world[Symbol.asyncDispose]();
}, START_MS);

const storeFiles = (): string[] =>
  readdirSync(join(world.home, 'data')).filter((name) => name.startsWith('hutch.db') || name.startsWith('.backup'));

/** A backup whose first line and data are changed, with the checksum that they then have. */
function changed(name: string, header: object, change: (path: string) => void = () => {}): string {
  const path = join(world.dir, name);
  const end = before.indexOf(0x0a);
  writeFileSync(path, before.subarray(end + 1));
  change(path);
  const data = readFileSync(path);
  const sha256 = createHash('sha256').update(data).digest('hex');
  const first = { ...(JSON.parse(before.subarray(0, end).toString()) as object), sizeBytes: data.byteLength, sha256, ...header };
  writeFileSync(path, Buffer.concat([Buffer.from(`${JSON.stringify(first)}\n`), data]));
  return path;
}

test('a backup is made while sandboxes are made, and says what it has and has not', async () => {
  await world.ok('create', '--name', 'kept');
  const making = world.ok('create', '--name', 'meanwhile');
  const said = await world.ok('system', 'backup', '-o', backup);
  await making;
  expect(said).toMatch(/^wrote .*one\.backup: \S+ [KM]iB, schema \d+, \d+ ledger entries, unbroken\nnot in it: disks, images/);
  expect(statSync(backup).mode & 0o777).toBe(0o600);
  before = readFileSync(backup);
  const piped = await world.run(['system', 'backup']);
  expect(piped.bytes.subarray(0, 26).toString()).toBe('{"format":"hutch-backup-1"');
  // It goes when all of it is out, which a client has seen before the daemon has.
  await eventually('the copy is gone', () => storeFiles().every((name) => !name.startsWith('.backup')));
  const told = await world.json<{ ledgerEntries: number; file: string }>('system', 'backup', '-o', join(world.dir, 'two.backup'));
  expect(told).toMatchObject({ file: join(world.dir, 'two.backup'), ledgerEntries: expect.any(Number) });
});

test('restore is refused while a daemon runs, with what to do', async () => {
  const refused = await world.run(['system', 'restore', backup]);
  expect([refused.code, refused.stderr]).toEqual([4, expect.stringMatching(/a daemon has .*\n.*hutch daemon stop/)]);
});

test('what is damaged, of a newer Hutch, or no backup is refused, and the store is as it was', async () => {
  await world.ok('daemon', 'stop');
  const files = () =>
    storeFiles().map((name) => [
      name,
      createHash('sha256')
        .update(readFileSync(join(world.home, 'data', name)))
        .digest('hex'),
    ]);
  const as = files();
  const flipped = Buffer.from(before);
  flipped[flipped.length - 100] = (flipped[flipped.length - 100] ?? 0) ^ 0xff;
  writeFileSync(join(world.dir, 'flipped'), flipped);
  writeFileSync(join(world.dir, 'short'), before.subarray(0, before.length - 4_096));
  writeFileSync(join(world.dir, 'none'), 'nothing\n');
  const tampered = changed('tampered', {}, (path) => {
    const db = new DatabaseSync(path);
    db.exec('UPDATE ledger SET at_ms = at_ms + 1 WHERE sequence = 1');
    db.close();
  });
  const cases: readonly [string, RegExp][] = [
    [join(world.dir, 'flipped'), /is damaged: it does not have its checksum/],
    [join(world.dir, 'short'), /is damaged: it has \d+ bytes of data, and should have \d+/],
    [join(world.dir, 'none'), /is no backup of Hutch/],
    [join(world.dir, 'not-there'), /there is no file .*not-there/],
    [world.dir, /is a directory, and no backup/],
    [tampered, /its ledger is broken: entry 1 was changed/],
    [changed('newer', { schemaVersion: 99, version: '9.9.9' }), /has schema 99, of Hutch 9\.9\.9; this Hutch knows schemas up to/],
    [changed('kind', { format: 'hutch-backup-2' }), /a backup of another kind \(hutch-backup-2\)/],
  ];
  for (const [path, why] of cases) {
    const refused = await world.run(['system', 'restore', path]);
    expect([path, refused.code === 0, refused.stdout]).toEqual([path, false, '']);
    expect(refused.stderr).toMatch(why);
    expect(files(), path).toEqual(as);
  }
});

test('restore brings back what the backup has, keeps the store of before, and daemon and ledger go on', async () => {
  const later = (await world.ok('create', '--name', 'later')).trim();
  await world.ok('exec', 'later', '--', 'sh', '-c', 'echo of a day >/root/work; sync');
  const volume = (await world.json<{ id: string }>('volume', 'create', 'made-later')).id;
  await world.ok('daemon', 'stop');
  const said = await world.json<{ ledgerEntries: number; replaced: string }>('system', 'restore', backup);
  expect(existsSync(said.replaced)).toBe(true);
  expect(await world.ok('ls')).toContain('kept');
  expect(await world.ok('ls')).not.toContain('later');
  expect(await world.ok('ledger', 'verify')).toContain('unbroken');
  await world.ok('exec', 'kept', '--', 'true');
  // What the backup does not know has ended, and lies there still after another start.
  await world.ok('daemon', 'stop');
  const { leaks } = JSON.parse((await world.run(['doctor', '--leaks', '--json'])).stdout) as { leaks: { kind: string; what: string }[] };
  const lies = (directory: string, id: string) => ({ kind: 'directory', what: join(world.home, 'data', directory, id) });
  expect(leaks).toEqual(expect.arrayContaining([lies('sandboxes', later), lies('volumes', volume)]));
  expect(leaks.filter(({ kind }) => kind !== 'directory')).toEqual([]);
  await world.ok('daemon', 'stop');
  // Nothing is lost: what was replaced is a store like any other.
  for (const suffix of ['-wal', '-shm', '']) rmSync(join(world.home, 'data', `hutch.db${suffix}`), { force: true });
  renameSync(said.replaced, join(world.home, 'data', 'hutch.db'));
  await world.ok('start', 'later');
  expect(await world.ok('exec', 'later', '--', 'cat', '/root/work')).toBe('of a day');
  expect(await world.run(['doctor', '--leaks'])).toMatchObject({ code: 0, stdout: 'nothing is left over\n' });
});
