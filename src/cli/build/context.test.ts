// Contexts as archives: what tar itself makes of them.
import { execFileSync } from 'node:child_process';
import { lstat, mkdir, mkdtemp, readFile, readlink, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { contextOf, sourceOf } from './context.ts';

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'hutch-context-'));
});
afterAll(async () => {
  await rm(root, { recursive: true, force: true });
});

test('a context is in its archive as it lies on the disk: long names, names that are no ASCII, links, large files, modes', async () => {
  const dir = join(root, 'context');
  const long = 'x'.repeat(200);
  const files: Readonly<Record<string, string>> = {
    Dockerfile: 'FROM scratch\n',
    'täglich/ünï ✓.txt': 'text\n',
    [`deep/${long}/${long}`]: 'deep',
    empty: '',
    block: 'b'.repeat(512),
    'below/large': 'l'.repeat(3 * 1024 * 1024 + 7),
    'below/after': 'after',
    'left/out': 'never',
  };
  for (const [path, content] of Object.entries(files)) {
    await mkdir(dirname(join(dir, path)), { recursive: true });
    await writeFile(join(dir, path), content, { mode: path === 'block' ? 0o750 : 0o644 });
  }
  await writeFile(join(dir, '.dockerignore'), 'left\n');
  await symlink(`${long}/ziel-ü`, join(dir, 'link'));
  const extra = { dockerfile: null, ignore: null, secrets: new Map(), settings: () => null };
  const pieces = await Array.fromAsync(contextOf(await sourceOf(dir, null), extra, new AbortController().signal));
  expect(Math.max(...pieces.map(({ byteLength }) => byteLength))).toBeLessThan(2 * 1024 * 1024);
  const out = join(root, 'out');
  await mkdir(out);
  execFileSync('tar', ['-x', '-p', '-C', out], { input: Buffer.concat(pieces) });
  for (const [path, content] of Object.entries(files)) {
    if (path.startsWith('left')) continue;
    expect((await readFile(join(out, path))).equals(Buffer.from(content)), path).toBe(true);
  }
  expect((await lstat(join(out, 'block'))).mode & 0o7777).toBe(0o750);
  expect(Math.floor((await lstat(join(out, 'block'))).mtimeMs / 1_000)).toBe(Math.floor((await lstat(join(dir, 'block'))).mtimeMs / 1_000));
  expect(await readlink(join(out, 'link'))).toBe(`${long}/ziel-ü`);
  await expect(lstat(join(out, 'left'))).rejects.toThrow('ENOENT');
});
