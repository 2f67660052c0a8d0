// Pulls on bad days: killed at any call, on a full disk, by two processes at once, while others clear up.
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream } from 'node:fs';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openImage, verifyImage } from '../../src/images/image.ts';
import { testOperation } from '../support/operation.ts';
import { digestOf, image, tar } from './archives.ts';
import { place } from './place.ts';
import { fakeRegistry } from './registry.ts';

const op = testOperation();
const isLong = process.env['HUTCH_TEST_LONG'] !== undefined;
const seed = Number(process.env['HUTCH_TEST_SEED'] ?? 0);
const SHARED = tar({ path: 'etc/', type: 'directory' }, { path: 'etc/noise', content: randomBytes(300_000) });
const MADE = image([SHARED, tar({ path: 'upper', content: 'u' })]);
const OTHER = image([SHARED, tar({ path: 'other', content: 'o' })]);

async function scratch(): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await mkdtemp(join(tmpdir(), 'hutch-images-'));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

/** Runs killed.ts; how many calls it made, or null when the fault has killed it. */
async function ran(dir: string, fault: string, verb: string, what: string): Promise<number | null> {
  const child = spawn(process.execPath, [join(import.meta.dirname, 'killed.ts'), dir, fault, verb, what], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  if (signal === 'SIGKILL') return null;
  expect([code, signal], `${verb} ${fault}`).toEqual([0, null]);
  return Number(said);
}

/** Calls of all, or a sample of them that moves with the seed. */
async function eachCall(calls: number, samples: number, at: (nth: number, fault: string) => Promise<void>): Promise<void> {
  const stride = isLong ? 1 : Math.ceil(calls / samples);
  for (let nth = 1 + (seed % stride); nth <= calls; nth += stride) await at(nth, `die-${nth % 2 === 0 ? 'before' : 'after'}:${nth}`);
}

test('a pull that is killed at any call leaves nothing that the next start does not remove, and the next pull works', {
  timeout: 240_000,
}, async () => {
  await using registry = await fakeRegistry();
  registry.put('web', '1', MADE);
  const name = `${registry.name}/web:1`;
  await using counting = await scratch();
  const calls = (await ran(counting.path, '', 'pull', name)) ?? 0;
  expect(calls).toBeGreaterThan(30);
  await eachCall(calls, 4, async (nth, fault) => {
    await using dir = await scratch();
    expect(await ran(dir.path, fault, 'pull', name), `call ${nth}`).toBeNull();
    await using here = await place({ dir: dir.path });
    const digest = digestOf(MADE.config);
    // What is there under its digest is whole.
    if ((await openImage(op, here.host, here.library.paths, digest)) !== null) await verifyImage(op, here.host, here.library.paths, digest);
    await here.library.sweep(op);
    expect((await here.left()).staging, `call ${nth}`).toEqual([]);
    await verifyImage(op, here.host, here.library.paths, (await here.pull(name)).record.digest);
  });
});

test('an import that is killed at any call leaves nothing that the next start does not remove, and the next import works', {
  timeout: 240_000,
}, async () => {
  await using files = await scratch();
  const file = join(files.path, 'root.tar');
  await writeFile(file, SHARED);
  await using counting = await scratch();
  const calls = (await ran(counting.path, '', 'import', file)) ?? 0;
  expect(calls).toBeGreaterThan(20);
  await eachCall(calls, 3, async (nth, fault) => {
    await using dir = await scratch();
    expect(await ran(dir.path, fault, 'import', file), `call ${nth}`).toBeNull();
    await using here = await place({ dir: dir.path });
    await here.library.sweep(op);
    const left = await here.left();
    expect(left.staging, `call ${nth}`).toEqual([]);
    for (const image of left.images) await verifyImage(op, here.host, here.library.paths, `sha256:${image}`);
    const { images } = await here.library.import(op, createReadStream(file));
    for (const { image } of images) await verifyImage(op, here.host, here.library.paths, image.record.digest);
  });
});

test('a promotion that is killed at any call leaves the image as it was or promoted, and the next one works', {
  timeout: 240_000,
}, async () => {
  await using files = await scratch();
  const [tree, squashfs, initrd] = ['root.tar', 'root.squashfs', 'initrd'].map((name) => join(files.path, name)) as [
    string,
    string,
    string,
  ];
  await chmod(files.path, 0o711); // machines run as users of their own
  await writeFile(tree, SHARED);
  expect(spawnSync('sh', ['-c', 'tar2sqfs --quiet --compressor=lz4 "$1" < "$0"', tree, squashfs]).status).toBe(0);
  await writeFile(initrd, '070701 an initrd');
  const kernel = { digest: `sha256:${'a'.repeat(64)}`, files: [] };
  const registered = async (dir: string): Promise<string> => {
    await using here = await place({ dir });
    return (await here.library.register(op, { rootfs: squashfs, initrd, kernel })).record.digest;
  };
  await using counting = await scratch();
  const digest = await registered(counting.path);
  const calls = (await ran(counting.path, '', 'promote', digest)) ?? 0;
  expect(calls).toBeGreaterThan(15);
  await eachCall(calls, 3, async (nth, fault) => {
    await using dir = await scratch();
    expect(await registered(dir.path)).toBe(digest);
    expect(await ran(dir.path, fault, 'promote', digest), `call ${nth}`).toBeNull();
    await using here = await place({ dir: dir.path });
    await here.library.sweep(op);
    expect((await here.left()).staging, `call ${nth}`).toEqual([]);
    await verifyImage(op, here.host, here.library.paths, digest);
    const promoted = await here.library.promote(op, digest);
    expect([promoted.given, promoted.path.startsWith(dir.path)], `call ${nth}`).toEqual([[], true]);
    await verifyImage(op, here.host, here.library.paths, digest);
    expect(await readFile(squashfs)).toEqual(await readFile(promoted.path));
  });
});

test('on a full disk a pull and an import say so and leave nothing; with room they work', { timeout: 60_000 }, async (context) => {
  await using dir = await scratch();
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=700k', 'tmpfs', dir.path]);
  if (mounted.status !== 0) context.skip('this user cannot mount a small disk');
  await using _mount = { [Symbol.asyncDispose]: async () => void spawnSync('umount', ['-l', dir.path]) };
  await using registry = await fakeRegistry();
  registry.put('web', '1', MADE);
  const name = `${registry.name}/web:1`;
  await using here = await place({ dir: dir.path });
  await expect(here.pull(name)).rejects.toMatchObject({ code: 'resource_exhausted' });
  const archive = async function* () {
    yield SHARED;
  };
  await expect(here.library.import(op, archive())).rejects.toMatchObject({ code: 'resource_exhausted' });
  expect(await here.left()).toMatchObject({ staging: [], images: [] });
  // The layer comes, and is written half: what packs it takes that away again, and says nothing of a full disk.
  expect(spawnSync('mount', ['-o', 'remount,size=7m', dir.path]).status).toBe(0);
  registry.put('half', '1', image([tar({ path: 'noise', content: randomBytes(4 * 2 ** 20) })]));
  await expect(here.pull(`${registry.name}/half:1`)).rejects.toMatchObject({
    code: 'resource_exhausted',
    message: expect.stringMatching(/^layer 1 of 1 of .* cannot be packed: the disk is full$/),
  });
  expect(await here.left()).toMatchObject({ staging: [], images: [] });
  expect(spawnSync('mount', ['-o', 'remount,size=20m', dir.path]).status).toBe(0);
  const found = await here.pull(name);
  await verifyImage(op, here.host, here.library.paths, found.record.digest);
  expect((await here.library.import(op, archive())).images).toHaveLength(1);
});

test('on a full disk a promotion says so and leaves the image as it was; with room it works', { timeout: 60_000 }, async (context) => {
  await using files = await scratch();
  await using dir = await scratch();
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=700k', 'tmpfs', dir.path]);
  if (mounted.status !== 0) context.skip('this user cannot mount a small disk');
  await using _mount = { [Symbol.asyncDispose]: async () => void spawnSync('umount', ['-l', dir.path]) };
  await chmod(files.path, 0o711); // machines run as users of their own
  const [tree, rootfs] = [join(files.path, 'root.tar'), join(files.path, 'root.squashfs')];
  await writeFile(tree, tar({ path: 'noise', content: randomBytes(1024 * 1024) }));
  expect(spawnSync('sh', ['-c', 'tar2sqfs --quiet --compressor=lz4 "$1" < "$0"', tree, rootfs]).status).toBe(0);
  await using here = await place({ dir: dir.path });
  const { record, given } = await here.library.register(op, { rootfs, initrd: null, kernel: null });
  await expect(here.library.promote(op, record.digest)).rejects.toMatchObject({ code: 'resource_exhausted' });
  const after = await here.library.open(op, record.digest);
  expect([after?.path, after?.given]).toEqual([rootfs, given]);
  await verifyImage(op, here.host, here.library.paths, record.digest);
  expect((await here.left()).staging).toEqual([]);
  expect(spawnSync('mount', ['-o', 'remount,size=20m', dir.path]).status).toBe(0);
  const promoted = await here.library.promote(op, record.digest);
  expect([promoted.given, promoted.path.startsWith(dir.path)]).toEqual([[], true]);
  await verifyImage(op, here.host, here.library.paths, record.digest);
});

test('two processes that pull one image both have it, and it is there once', { timeout: 60_000 }, async () => {
  await using registry = await fakeRegistry();
  registry.put('web', '1', MADE);
  const name = `${registry.name}/web:1`;
  for (let round = 0; round < 2; round += 1) {
    await using dir = await scratch();
    const places = await Promise.all([1, 2, 3].map(() => place({ dir: dir.path })));
    const found = await Promise.all(places.map((one) => one.pull(name)));
    expect(new Set(found.map(({ rootDigest }) => rootDigest)).size).toBe(1);
    const [here] = places;
    if (here === undefined) throw new Error('no place');
    expect(await here.left()).toMatchObject({ staging: [], images: [expect.any(String)] });
    await verifyImage(op, here.host, here.library.paths, found[0]?.record.digest ?? '');
  }
});

test('layers and images that go while another image is made of them do not spoil it', { timeout: 60_000 }, async () => {
  await using registry = await fakeRegistry();
  registry.put('one', '1', MADE);
  registry.put('two', '1', OTHER);
  await using fresh = await place();
  const { rootDigest } = await fresh.pull(`${registry.name}/two:1`);
  for (let delayMs = 0; delayMs < 60; delayMs += isLong ? 3 : 12) {
    await using here = await place();
    const one = await here.pull(`${registry.name}/one:1`);
    const pulling = here.pull(`${registry.name}/two:1`);
    pulling.catch(() => {}); // looked at below
    await new Promise((resolve) => setTimeout(resolve, delayMs));
    await here.library.remove(op, one.record.digest);
    await here.library.dropLayers(op, new Set(), true);
    const two = await pulling;
    expect(two.rootDigest, `after ${delayMs} ms`).toBe(rootDigest);
    await verifyImage(op, here.host, here.library.paths, two.record.digest);
    expect((await here.left()).staging).toEqual([]);
  }
});

test('an image that is not let onto the record goes, and one that is removed while it is brought here is brought again', {
  timeout: 60_000,
}, async () => {
  await using registry = await fakeRegistry();
  registry.put('web', '1', MADE);
  const name = `${registry.name}/web:1`;
  await using here = await place();
  const digest = digestOf(MADE.config);
  const onRecord = new Set<string>();
  const isOnRecord = async (id: string) => onRecord.has(id);
  const put = async ({ record }: { record: { id: string } }) => void onRecord.add(record.id);
  const full = new Error('a quota would be passed');
  await expect(here.library.record(op, () => here.pull(name), { put: () => Promise.reject(full), isOnRecord })).rejects.toBe(full);
  expect((await here.left()).images).toEqual([]);
  // Refused for a second name, it stays as what it is.
  await here.library.record(op, () => here.pull(name), { put, isOnRecord });
  await expect(here.library.record(op, () => here.pull(name), { put: () => Promise.reject(full), isOnRecord })).rejects.toBe(full);
  expect((await here.left()).images).toEqual([digest.slice(7)]);
  // Removed between the end of the pull and the record.
  let pulls = 0;
  await here.library.record(
    op,
    async () => {
      pulls += 1;
      const image = await here.pull(name);
      if (pulls === 1) await here.library.unrecord(op, digest, async () => void onRecord.clear());
      return image;
    },
    { put, isOnRecord },
  );
  expect([pulls, onRecord.size]).toEqual([2, 1]);
  await verifyImage(op, here.host, here.library.paths, digest);
  const gone = async () => {
    const image = await here.pull(name);
    await here.library.remove(op, digest);
    return image;
  };
  await expect(here.library.record(op, gone, { put, isOnRecord })).rejects.toMatchObject({ code: 'conflict' });
});
