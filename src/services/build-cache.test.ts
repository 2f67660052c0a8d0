import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import type { Host } from '../host/host.ts';
import { nodeHost } from '../host/node-host.ts';
import { Blobs } from '../images/blobs.ts';
import { BuildCache } from '../images/build/cache.ts';
import type { Key } from '../images/build/keys.ts';
import { imagePaths } from '../images/layout.ts';
import type { ImageLibrary } from '../images/library.ts';
import { type Kept, lostItsName, newBuildCacheKeeping, staleOf, surplusOf, unusedSince } from './build-cache.ts';
import type { Core } from './core.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const KIB = 1024;
/** Files that are made within one tick of the kernel's clock have the same time. */
const TICK_MS = 50;
const op = testOperation();
let dir = '';
let laterMs = 0;
let isBuilding = false;
/** Files keep their real times; only what time it is now can be chosen. */
const host: Host = { ...nodeHost(), nowMs: () => Date.now() + laterMs };

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-build-cache-'));
  laterMs = 0;
  isBuilding = false;
});
afterEach(async () => rm(dir, { recursive: true, force: true }));

const key = (digit: string): Key => digit.repeat(64) as Key;

async function world(cacheMiBMax: number) {
  const blobs = new Blobs(host, imagePaths(dir));
  const cache = new BuildCache(host, join(dir, 'cache'), blobs);
  const mountsDir = join(dir, 'mounts');
  await mkdir(mountsDir);
  const settings = { retention: { cacheMs: 30 * DAY_MS, cacheMiBMax } };
  const core = { deps: { host, settings } } as unknown as Core;
  const library = { blobs } as unknown as ImageLibrary;
  const kept = newBuildCacheKeeping(core, { cache: () => cache, library: () => library, mountsDir, isBuilding: () => isBuilding });
  /** A step with a layer of its own, of so many KiB. */
  const step = async (digit: string, sizeKiB: number): Promise<string> => {
    const content = Buffer.alloc(sizeKiB * KIB, digit);
    const digest = `sha256:${createHash('sha256').update(content).digest('hex')}`;
    await writeFile(join(dir, digit), content);
    await blobs.adopt(op, join(dir, digit), digest);
    await cache.put(op, key(digit), { layer: { digest, sizeBytes: content.byteLength, diffId: digest, mediaType: 'tar' }, atMs: 1 });
    return digest;
  };
  return { blobs, cache, kept, step, mountsDir };
}

test('layers, steps and mounts that nothing has used for long go, with why; those of images stay, and so does all that is recent', async () => {
  const { cache, kept, step, mountsDir } = await world(1_000);
  const [alone, ofImage] = [await step('a', 4), await step('b', 4)];
  await writeFile(join(mountsDir, `${'c'.repeat(64)}.tar`), 'mounted');
  laterMs = 29 * DAY_MS;
  expect(await kept.sweep(op, new Set([ofImage]), true)).toEqual([]);
  laterMs = 31 * DAY_MS;
  const would = await kept.sweep(op, new Set([ofImage]), false);
  expect(would.map(({ kind, name, why }) => [kind, name, why]).sort()).toEqual([
    ['layer', alone, 'nothing has used it for 31 days (retention.cache)'],
    ['mount', `${'c'.repeat(64)}.tar`, 'nothing has used it for 31 days (retention.cache)'],
    ['step', key('b'), 'nothing has used it for 31 days (retention.cache)'],
  ]);
  expect(await cache.get(op, key('a')), 'only told').not.toBeNull();
  isBuilding = true;
  expect(await kept.sweep(op, new Set([ofImage]), true), 'a build may want it at any moment').toEqual([]);
  isBuilding = false;
  expect(await kept.sweep(op, new Set([ofImage]), true)).toHaveLength(3);
  expect([await cache.get(op, key('a')), await cache.get(op, key('b')), await readdir(join(dir, 'cache'))]).toEqual([null, null, []]);
  expect([await readdir(join(dir, 'blobs')), await readdir(mountsDir)]).toEqual([[ofImage.slice(7)], []]);
});

test('past the bound in bytes goes what was not used for longest, and a use counts', async () => {
  const { blobs, cache, kept, step } = await world(1);
  const first = await step('a', 400);
  const second = await step('b', 400);
  await setTimeout(TICK_MS);
  await step('c', 400);
  laterMs = HOUR_MS / 2;
  expect(await cache.get(op, key('a')), 'used after all others').not.toBeNull();
  expect(await kept.sweep(op, new Set(), true), 'all of it is recent').toEqual([]);
  laterMs = 2 * HOUR_MS;
  expect(await kept.sweep(op, new Set(), true)).toMatchObject([{ name: second, why: expect.stringContaining('all of 1 MiB') }]);
  expect([await blobs.has(op, first, 400 * KIB), await cache.get(op, key('b'))]).toEqual([true, null]);
});

test('a layer that somebody holds stays with its steps; a step whose layer is gone goes when all is cleared', async () => {
  const { blobs, cache, kept, step } = await world(1_000);
  const digest = await step('a', 4);
  laterMs = 31 * DAY_MS;
  {
    using _held = blobs.hold([digest]);
    expect(await kept.sweep(op, new Set(), true)).toEqual([]);
  }
  expect(await cache.get(op, key('a'))).not.toBeNull();
  await blobs.remove(op, digest);
  await kept.clear(op, true);
  expect(await readdir(join(dir, 'cache'))).toEqual([]);
});

test('what goes by age does not count for the bound, and a step without bytes never goes by it', () => {
  const each = (name: string, usedAtMs: number, sizeBytes: number): Kept => ({ kind: 'layer', name, steps: [], sizeBytes, usedAtMs });
  const all = [each('old', 0, 90), each('new', 10 * HOUR_MS, 60), each('between', 8 * HOUR_MS, 40), each('nothing', 7 * HOUR_MS, 0)];
  const stale = staleOf([...all, each('more', 6 * HOUR_MS, 1)], { nowMs: 12 * HOUR_MS, unusedMs: 11 * HOUR_MS, bytesMax: 100 });
  expect(stale.map(({ name }) => name)).toEqual(['more', 'old']);
});

test('an image without a name goes when it came, and was last used, long enough ago', () => {
  const images = [
    { id: 'old', createdAtMs: 10 },
    { id: 'used', createdAtMs: 10 },
    { id: 'new', createdAtMs: 30 },
  ];
  expect(unusedSince(images, [{ id: 'used', atMs: 25 }], 20).map(({ id }) => id)).toEqual(['old']);
});

test('of the images that builds began with the four stay that were used last, and those of the last hour', () => {
  const beginnings = Array.from({ length: 7 }, (_, at) => ({ id: `${at}`, createdAtMs: at }));
  const uses = [
    { id: '0', atMs: 10 * HOUR_MS },
    { id: '1', atMs: 9 * HOUR_MS + 1 },
  ];
  expect(surplusOf(beginnings, uses, 10 * HOUR_MS).map(({ id }) => id)).toEqual(['4', '3', '2']);
  const recent = Array.from({ length: 6 }, (_, at) => ({ id: `${at}`, createdAtMs: 9 * HOUR_MS + at }));
  expect(surplusOf(recent, [], 10 * HOUR_MS).map(({ id }) => id)).toEqual(['0']);
});

test('an image that never had a name, or that nothing can make again, stays without one', () => {
  const oci = { kind: 'oci' as const, manifest: null, layers: [] };
  expect(lostItsName({ source: oci, record: { name: 'web:1' } })).toBe(true);
  expect(lostItsName({ source: oci, record: { name: null } })).toBe(false);
  expect(lostItsName({ source: { kind: 'file' }, record: { name: 'mine' } })).toBe(false);
  expect(lostItsName(null), 'damaged').toBe(false);
});
