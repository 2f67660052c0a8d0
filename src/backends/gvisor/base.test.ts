// Images as they are unpacked for gVisor, with real files.
import { spawnSync } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import { nodeHost } from '../../host/node-host.ts';
import { Bases } from './base.ts';
import { RightsFinder } from './rights.ts';

const op = testOperation();
const CELL = resolve(import.meta.dirname, '../../../prebuilt/x86_64/hutch-cell');

test('what is unpacked of an image is counted, goes when it is told to, and is unpacked again when it is wanted', async (context) => {
  if (process.getuid?.() !== 0) context.skip('unpacking with owners takes root, or users of one\u2019s own');
  const dir = await mkdtemp(join(tmpdir(), 'hutch-bases-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  await writeFile(join(dir, 'file'), 'x'.repeat(100_000));
  const imagePath = join(dir, 'root.squashfs');
  expect(spawnSync('sh', ['-c', 'tar -C "$0" -c file | tar2sqfs --quiet --compressor=lz4 "$1"', dir, imagePath]).status).toBe(0);
  const host = nodeHost();
  const bases = new Bases(host, { basesDir: join(dir, 'bases'), workDir: dir, cellPath: CELL }, new RightsFinder(host, CELL));
  const imageDigest = `sha256:${'a'.repeat(64)}`;
  expect(await bases.list(op)).toEqual([]);
  expect(await bases.remove(op, imageDigest)).toBe(false);
  const ground = await bases.take(op, { imagePath, imageDigest });
  const path = 'basePath' in ground ? ground.basePath : '';
  expect(await bases.list(op)).toEqual([{ digest: imageDigest, sizeBytes: expect.any(Number) }]);
  expect((await bases.list(op))[0]?.sizeBytes).toBeGreaterThan(99_999);
  // One that is in the making is left alone.
  const lock = await host.lockFile(op, join(dir, 'bases', `.lock-${'a'.repeat(64)}`));
  expect(await bases.remove(op, imageDigest)).toBe(false);
  await lock?.[Symbol.asyncDispose]();
  expect(await bases.remove(op, imageDigest)).toBe(true);
  expect((await readdir(join(dir, 'bases'))).filter((name) => !name.startsWith('.lock-'))).toEqual([]);
  expect(await bases.take(op, { imagePath, imageDigest })).toEqual({ basePath: path });
  expect((await readFile(join(path, 'file'), 'utf8')).length).toBe(100_000);
});

test('what this machine has packed is mounted as it is; what a user gave, or cannot be mounted, is unpacked', async (context) => {
  if (process.getuid?.() !== 0) context.skip('mounting takes root');
  const dir = await mkdtemp(join(tmpdir(), 'hutch-bases-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  await writeFile(join(dir, 'file'), 'x');
  const pack = (name: string, compressor: string): string => {
    const path = join(dir, name);
    const argv = ['-c', 'tar -C "$0" -c file | tar2sqfs --quiet "--compressor=$1" "$2"', dir, compressor, path];
    expect(spawnSync('sh', argv).status).toBe(0);
    return path;
  };
  const imagePath = pack('root.squashfs', 'lz4');
  if (spawnSync(CELL, ['--look-at', imagePath, dir]).status !== 0) context.skip('no squashfs in a file can be mounted here');
  const newBases = () =>
    new Bases(nodeHost(), { basesDir: join(dir, 'bases'), workDir: dir, cellPath: CELL }, new RightsFinder(nodeHost(), CELL));
  const bases = newBases();
  const digest = (of: string) => `sha256:${of.repeat(64)}`;
  const mounted = { imagePath, imageDigest: digest('a'), isPackedHere: true };
  const underPath = join(dir, 'bases/under-1');
  expect(await bases.take(op, mounted)).toEqual({ imagePath, underPath });
  expect((await readdir(underPath)).sort()).toEqual(['dev', 'proc', 'sys', 'tmp']);
  expect(await bases.list(op)).toEqual([]);
  expect(await bases.take(op, { imagePath, imageDigest: digest('b') })).toEqual({ basePath: join(dir, 'bases', 'b'.repeat(64)) });
  // Sandboxes may stand on what was unpacked before.
  expect(await newBases().take(op, { ...mounted, imageDigest: digest('b') })).toEqual({ basePath: join(dir, 'bases', 'b'.repeat(64)) });
  // Whatever this kernel does not take: here a device block that it does not know.
  const odd = pack('odd.squashfs', 'gzip');
  const head = await readFile(odd);
  head.writeUInt16LE(99, 28);
  await writeFile(odd, head);
  await expect(bases.take(op, { imagePath: odd, imageDigest: digest('c'), isPackedHere: true })).rejects.toMatchObject({
    code: 'internal',
  });
});
