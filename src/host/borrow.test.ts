import { execFileSync } from 'node:child_process';
import { openSync } from 'node:fs';
import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import { borrowFile } from './borrow.ts';

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp('/var/tmp/hutch-borrow-'); // /tmp may lie in memory
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const through = (fd: number): string => `/proc/${process.pid}/fd/${fd}`;

test('a file that another has open is had by its descriptor, also when its name is gone', async () => {
  await using theirs = await open(join(dir, 'file'), 'w+');
  await rm(join(dir, 'file'));
  await using into = await borrowFile(testOperation(), through(theirs.fd), 'write');
  if (into === null) throw new Error('it was not to be had');
  await writeFile(into.path, 'theirs and ours');
  await using from = await borrowFile(testOperation(), through(theirs.fd), 'read');
  expect(await readFile(from?.path ?? '', 'utf8')).toBe('theirs and ours');
  expect(from).toMatchObject({ inode: String((await theirs.stat({ bigint: true })).ino) });
});

test('what a guest names that is no plain file is not opened, and nothing waits for it', async () => {
  execFileSync('mkfifo', [join(dir, 'pipe')]);
  for (const path of [
    '/proc/self/status',
    '/proc/sys/kernel/hostname',
    '/dev/null',
    '/dev/ptmx',
    dir,
    join(dir, 'pipe'),
    '/sys/kernel/mm/ksm/run',
  ]) {
    for (const access of ['read', 'write'] as const)
      expect(await borrowFile(testOperation(), path, access), `${path} ${access}`).toBe(null);
  }
  const kernel = openSync('/proc/self/oom_score_adj', 'r');
  expect(await borrowFile(testOperation(), through(kernel), 'write')).toBe(null);
  expect(await borrowFile(testOperation(), through(999), 'read')).toBe(null);
});
