// The image `debian` as it is made on this machine. It is shared with the other tests: made once.
import { readFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { beforeAll, expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { prepareDefaultImage } from '../../src/images/default-image.ts';
import { openImage, type PreparedImage, verifyImage } from '../../src/images/image.ts';
import { imagePaths } from '../../src/images/layout.ts';
import { runArchive } from '../../src/images/run-directory.ts';
import { testOperation } from '../support/operation.ts';

const host = nodeHost();
const op = testOperation();
const paths = imagePaths(join(import.meta.dirname, '../../.tools/data'));
let image: PreparedImage;
/** Path → its line of the listing: type and mode, owner, size or target. */
let listing: ReadonlyMap<string, string>;

beforeAll(async () => {
  image = await prepareDefaultImage(op, host, paths);
  const described = await host.run(op, ['rdsquashfs', '--describe', image.path], { outputBytesMax: 64 * 1024 * 1024 });
  expect(described.exitCode).toBe(0);
  listing = new Map(
    Buffer.from(described.stdout)
      .toString()
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => [`/${(line.split(' ')[1] ?? '').replace(/^\//, '')}`, line]),
  );
}, 600_000);

async function fileOf(path: string): Promise<string> {
  const read = await host.run(op, ['rdsquashfs', '--cat', path, image.path], { outputBytesMax: 8 * 1024 * 1024 });
  expect(read.exitCode, path).toBe(0);
  return Buffer.from(read.stdout).toString();
}

test('it is recorded by the digest of its file, with what its processes need', async () => {
  expect(image.record).toMatchObject({ name: 'debian', architecture: 'x86_64', digest: `sha256:${await host.sha256(op, image.path)}` });
  expect(image.record.id).toMatch(/^img[0-9a-z]{17}$/);
  expect(image.record.config.env['LANG']).toBe('C.UTF-8');
  expect(await openImage(op, host, paths, image.record.digest)).toEqual(image);
  await verifyImage(op, host, paths, image.record.digest);
});

test('it has python3, git, curl, rsync and what a person at a terminal expects', () => {
  for (const program of ['python3', 'python', 'git', 'curl', 'top', 'ip', 'less', 'rsync', 'vi', 'vim', 'sudo', 'bash', 'apt-get']) {
    const found = ['/usr/bin/', '/usr/sbin/', '/bin/', '/sbin/'].some((dir) => listing.has(dir + program));
    expect(found, program).toBe(true);
  }
  expect(listing.has('/etc/ssl/certs/ca-certificates.crt')).toBe(true);
  expect(listing.has('/usr/share/zoneinfo/Europe/Berlin')).toBe(true);
});

test('it is at most 120 MB', () => {
  expect(image.record.sizeBytes).toBeLessThanOrEqual(120e6);
});

test("its package sources are Debian's public ones", async () => {
  const lines = (await fileOf('/etc/apt/sources.list')).trim().split('\n');
  expect(lines).toEqual([
    'deb http://deb.debian.org/debian bookworm main',
    'deb http://deb.debian.org/debian bookworm-updates main',
    'deb http://deb.debian.org/debian-security bookworm-security main',
  ]);
  const others = [...listing.keys()].filter((path) => /^\/etc\/apt\/(sources\.list\.d|apt\.conf\.d)\/./.test(path));
  for (const path of others) expect(await fileOf(path), path).not.toMatch(/proxy|https?:/i);
});

test('it has no identity, address, key, log or cache of the machine that made it', async () => {
  expect(await fileOf('/etc/machine-id')).toBe('');
  expect(await fileOf('/etc/resolv.conf')).toBe('');
  expect(await fileOf('/etc/hostname')).toBe('debian\n');
  expect(await fileOf('/etc/hosts')).not.toContain(`${hostname()}\n`);
  const files = [...listing.keys()];
  expect(files.length).toBeGreaterThan(5000);
  expect(files.filter((path) => /ssh_host_|\/var\/lib\/dbus\/machine-id|random-seed/.test(path))).toEqual([]);
  expect(files.filter((path) => /\.deb$|^\/(tmp|run|var\/tmp|var\/log\/apt)\/(?!lock$)/.test(path))).toEqual([]);
  expect(files.filter((path) => /^\/var\/lib\/apt\/lists\/(?!lock$|partial$)/.test(path))).toEqual([]);
  // The unprivileged way of making it must not leave its users either: every owner is one of the image's own.
  const known = new Set((await fileOf('/etc/passwd')).split('\n').map((line) => line.split(':')[2]));
  const owners = new Set([...listing.values()].map((line) => line.split(' ')[3]));
  for (const owner of owners) expect(known).toContain(owner);
  const root = await host.run(op, ['rdsquashfs', '--stat', '/', image.path]);
  expect(Buffer.from(root.stdout).toString()).toMatch(/^Access: 0755\nUID: 0 .*\nGID: 0 /m);
});

test('root and an ordinary user who may use sudo have their homes', async () => {
  const accounts = (await fileOf('/etc/passwd')).split('\n');
  expect(accounts).toContain('root:x:0:0:root:/root:/bin/bash');
  expect(accounts).toContain('user:x:1000:1000::/home/user:/bin/bash');
  expect(await fileOf('/etc/group')).toMatch(/^sudo:x:27:user$/m);
  expect(await fileOf('/etc/sudoers.d/user')).toContain('NOPASSWD');
  expect(listing.get('/etc/sudoers.d/user')).toMatch(/ 0440 0 0/);
  expect(listing.get('/home/user')).toMatch(/ 07\d\d 1000 1000/);
  expect(listing.get('/home/user/.bashrc')).toMatch(/ 1000 1000/);
});

test('what it has in /run lies beside it, for sandboxes to begin with: /var/lock leads there', async () => {
  const { stdout } = await host.run(op, [
    'tar',
    '--list',
    '--verbose',
    '--numeric-owner',
    '--file',
    runArchive(paths, image.record.digest),
  ]);
  expect(Buffer.from(stdout).toString()).toMatch(/^drwxrwxrwt 0\/0 +0 .* lock\/?\n$/m);
});

test('python finds its modules compiled, so that the first start is quick', async () => {
  expect([...listing.keys()].filter((path) => /python3\.\d+\/__pycache__\/ssl\.cpython-\d+\.pyc$/.test(path))).toHaveLength(1);
});

test.runIf(process.env['HUTCH_TEST_LONG'])('made again on the same day it is the same to the byte', { timeout: 600_000 }, async () => {
  const before = image.record;
  const again = imagePaths(join(import.meta.dirname, '../../.tools', `again-${process.pid}`));
  try {
    const made = await prepareDefaultImage(op, host, again);
    const sameDay = Math.floor(before.createdAtMs / 86_400_000) === Math.floor(made.record.createdAtMs / 86_400_000);
    if (sameDay) expect(made.record.digest).toBe(before.digest);
  } finally {
    await host.remove(op, join(again.images, '..'));
  }
});

test('the manifest says how it was made', async () => {
  const manifest: unknown = JSON.parse(await readFile(join(image.path, '../manifest.json'), 'utf8'));
  expect(manifest).toMatchObject({ source: { kind: 'mmdebstrap', suite: 'bookworm' }, fileSystem: 'squashfs' });
});
