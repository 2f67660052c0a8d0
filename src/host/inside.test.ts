import { execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import { openInside, wholePages } from './inside.ts';

let dir: string;
let root: string;
beforeAll(async () => {
  dir = await mkdtemp('/var/tmp/hutch-inside-'); // /tmp may lie in memory
  root = join(dir, 'root');
  await mkdir(join(root, 'deep/er'), { recursive: true });
  await writeFile(join(dir, 'secret'), 'of the host');
  await writeFile(join(root, 'deep/er/file'), 'what is in it');
});
afterAll(() => rm(dir, { recursive: true, force: true }));

test('a file below a directory is read and written where it lies', async () => {
  const op = testOperation();
  await using into = await openInside(op, root, '/deep/er/file', 'write');
  await into?.write(Buffer.from('of two'), 13);
  await into?.sync();
  await using from = await openInside(op, root, '/deep/er/file', 'read');
  expect(await from?.stat()).toMatchObject({ sizeBytes: 19, uid: process.getuid?.() });
  const read = Buffer.alloc(64);
  expect(await from?.read(read, 5)).toBe(14);
  expect(read.subarray(0, 14).toString()).toBe('is in itof two');
  expect(await readFile(join(root, 'deep/er/file'), 'utf8')).toBe('what is in itof two');
});

test('whole blocks are written past the cache, and what is none of them as ever, wherever its memory begins', async () => {
  await writeFile(join(root, 'blocks'), '');
  await using file = await openInside(testOperation(), root, '/blocks', 'write');
  const pages = wholePages(3 * 4096).fill(1);
  await file?.write(pages, 0);
  expect(execFileSync('fincore', ['-nb', '-o', 'RES', join(root, 'blocks')], { encoding: 'utf8' }).trim(), 'bytes in the cache').toBe('0');
  await file?.write(Buffer.alloc(2 * 4096 + 1, 2).subarray(1), 4096); // whole, but of memory that no disk takes
  await file?.write(pages.fill(3).subarray(0, 5), 3 * 4096);
  await file?.sync();
  const written = await readFile(join(root, 'blocks'));
  expect([written.byteLength, ...[0, 4095, 4096, 12_287, 12_288, 12_292].map((at) => written[at])]).toEqual([12_293, 1, 1, 2, 2, 3, 3]);
});

test('no path below a directory leads out of it, through a symlink or up, and nothing but a plain file is had', async () => {
  await symlink(join(dir, 'secret'), join(root, 'last'));
  await symlink(dir, join(root, 'way'));
  await symlink('er/file', join(root, 'deep/near'));
  execFileSync('mkfifo', [join(root, 'pipe')]);
  const paths = ['/last', '/way/secret', '/deep/near', '/../secret', '/deep/../deep/er/file', '/deep/./er/file', '//deep/er/file', '/pipe'];
  for (const path of [...paths, '/deep', '/', '', 'deep/er/file', '/deep/er/file/', '/none', '/deep/er/file/x', '/d'.repeat(200)]) {
    for (const access of ['read', 'write'] as const)
      expect(await openInside(testOperation(), root, path, access), `${path} ${access}`).toBe(null);
  }
  expect(await openInside(testOperation(), join(dir, 'none'), '/deep/er/file', 'read')).toBe(null);
  expect(await openInside(testOperation(), '/proc', '/self/status', 'read')).toBe(null);
});
