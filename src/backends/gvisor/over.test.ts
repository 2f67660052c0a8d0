// The layer over an image, with real files.
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import { nodeHost } from '../../host/node-host.ts';
import { Overs } from './over.ts';

async function place() {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-over-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  const library = join(dir, 'library.so');
  await writeFile(library, 'one');
  const take = () => new Overs(nodeHost(), join(dir, 'bases'), library).take(testOperation());
  return { dir, library, take };
}

test('a library and the list that names it lie over an image; another library makes another layer', async () => {
  const { dir, library, take } = await place();
  const first = await take();
  const list = await readFile(join(first, 'etc/ld.so.preload'), 'utf8');
  expect(await readFile(join(first, list.trim()), 'utf8')).toBe('one');
  // Every user of a sandbox loads it, and nobody writes it.
  expect(((await stat(join(first, list.trim()))).mode & 0o777).toString(8)).toBe('755');
  expect(((await stat(join(first, 'etc/ld.so.preload'))).mode & 0o777).toString(8)).toBe('444');
  await writeFile(library, 'two');
  const second = await take();
  expect(await readFile(join(first, list.trim()), 'utf8')).toBe('one');
  expect(await readFile(join(second, list.trim()), 'utf8')).toBe('two');
  expect(await take()).toBe(second);
  expect(await readdir(join(dir, 'bases'))).toHaveLength(2);
});

test('what a crash left of a layer is made whole', async () => {
  const { take } = await place();
  const path = await take();
  await rm(join(path, 'etc/ld.so.preload'));
  await writeFile(join(path, 'etc/ld.so.hutch'), 'half');
  expect(await take()).toBe(path);
  expect(await readFile(join(path, 'etc/ld.so.hutch'), 'utf8')).toBe('one');
});
