// Images as they are unpacked for gVisor, with real files.
import { spawnSync } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import { nodeHost } from '../../host/node-host.ts';
import { Bases } from './base.ts';
import { RightsFinder } from './rights.ts';

const op = testOperation();

test('what is unpacked of an image is counted, goes when it is told to, and is unpacked again when it is wanted', async (context) => {
  if (process.getuid?.() !== 0) context.skip('unpacking with owners takes root, or users of one\u2019s own');
  const dir = await mkdtemp(join(tmpdir(), 'hutch-bases-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  await writeFile(join(dir, 'file'), 'x'.repeat(100_000));
  const imagePath = join(dir, 'root.squashfs');
  expect(spawnSync('sh', ['-c', 'tar -C "$0" -c file | tar2sqfs --quiet --compressor=lz4 "$1"', dir, imagePath]).status).toBe(0);
  const host = nodeHost();
  const bases = new Bases(host, join(dir, 'bases'), new RightsFinder(host, ''));
  const imageDigest = `sha256:${'a'.repeat(64)}`;
  expect(await bases.list(op)).toEqual([]);
  expect(await bases.remove(op, imageDigest)).toBe(false);
  const path = await bases.take(op, { imagePath, imageDigest });
  expect(await bases.list(op)).toEqual([{ digest: imageDigest, sizeBytes: expect.any(Number) }]);
  expect((await bases.list(op))[0]?.sizeBytes).toBeGreaterThan(99_999);
  // One that is in the making is left alone.
  const lock = await host.lockFile(op, join(dir, 'bases', `.lock-${'a'.repeat(64)}`));
  expect(await bases.remove(op, imageDigest)).toBe(false);
  await lock?.[Symbol.asyncDispose]();
  expect(await bases.remove(op, imageDigest)).toBe(true);
  expect((await readdir(join(dir, 'bases'))).filter((name) => !name.startsWith('.lock-'))).toEqual([]);
  expect(await bases.take(op, { imagePath, imageDigest })).toBe(path);
  expect((await readFile(join(path, 'file'), 'utf8')).length).toBe(100_000);
});
