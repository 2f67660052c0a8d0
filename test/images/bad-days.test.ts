// Pulls on bad days: killed at any call, on a full disk, by two processes at once, while others clear up.
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openImage, verifyImage } from '../../src/images/image.ts';
import { countCalls, type FaultyHost } from '../support/host-faults.ts';
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

test('a pull that is killed at any call leaves nothing that the next start does not remove, and the next pull works', {
  timeout: 240_000,
}, async () => {
  await using registry = await fakeRegistry();
  registry.put('web', '1', MADE);
  const name = `${registry.name}/web:1`;
  const seen: { host: FaultyHost | null } = { host: null };
  {
    await using counting = await place({
      host: (host) => {
        seen.host = countCalls(host);
        return seen.host;
      },
    });
    await counting.pull(name);
  }
  const calls = seen.host?.calls.length ?? 0;
  expect(calls).toBeGreaterThan(30);
  const stride = isLong ? 1 : Math.ceil(calls / 4);
  for (let nth = 1 + (seed % stride); nth <= calls; nth += stride) {
    await using dir = await scratch();
    const child = spawn(
      process.execPath,
      [join(import.meta.dirname, 'killed.ts'), dir.path, name, `die-${nth % 2 === 0 ? 'before' : 'after'}:${nth}`],
      {
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
    const [, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
    expect(signal, `call ${nth}`).toBe('SIGKILL');
    await using here = await place({ dir: dir.path });
    const digest = digestOf(MADE.config);
    // What is there under its digest is whole.
    if ((await openImage(op, here.host, here.library.paths, digest)) !== null) await verifyImage(op, here.host, here.library.paths, digest);
    await here.library.sweep(op);
    expect((await here.left()).staging, `call ${nth}`).toEqual([]);
    await verifyImage(op, here.host, here.library.paths, (await here.pull(name)).record.digest);
  }
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
  expect(spawnSync('mount', ['-o', 'remount,size=20m', dir.path]).status).toBe(0);
  const found = await here.pull(name);
  await verifyImage(op, here.host, here.library.paths, found.record.digest);
  expect((await here.library.import(op, archive())).images).toHaveLength(1);
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
