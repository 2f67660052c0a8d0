// What lies under Hutch's roots and is nobody's: told in every folder, by name and kind; what is somebody's is not, whichever
// line of the list of belongings it is; what only a daemon at work has is gone with the next start.
import { existsSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { BELONGINGS, type Line, lookedInto, pathOf } from '../../src/services/belongings.ts';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

/** Every folder that Hutch makes, but for those that are somebody's with all that is in them. */
const FOLDERS = [
  ...['data/', 'data/sandboxes', 'data/snapshots', 'data/volumes', 'data/forks', 'data/images', 'data/kernels', 'data/initramfs'],
  ...['data/blobs', 'data/staging', 'data/templates', 'data/bases', 'data/builds', 'data/builds/cache', 'data/builds/mounts'],
  ...['data/ssh', 'data/docker', 'data/docker/ssh', 'data/docker/duties', 'data/docker/volumes'],
  ...['run/', 'run/uids', 'run/sandboxes', 'run/work', 'log/', 'log/sandboxes', 'log/ended', 'log/failed'],
];

/** The list has a regular expression for each name: some name that fits it. */
const nameFor = (line: Line): string => fc.sample(fc.stringMatching(line.name), { seed: 7, numRuns: 1 })[0] ?? '';
const at = (line: Line, name = nameFor(line)): string =>
  join(
    pathOf({ dataDir: join(daemon.home, 'data'), runDir: join(daemon.home, 'run'), logDir: join(daemon.home, 'log') }, line.root, line.in),
    name,
  );
const isHutchs = ({ owner }: Line): boolean => owner === 'hutch' || owner === 'cache';
/** Not the daemon's own files: it is at work on them. */
const plantable = BELONGINGS.filter((line) => !/^hutch\.(db|lock|sock)|^hutchd\.log/.test(nameFor(line)));

async function planting(paths: AsyncIterable<string> | Iterable<string>): Promise<AsyncDisposable & { readonly paths: readonly string[] }> {
  const planted: string[] = [];
  const above: string[] = [];
  for await (const path of paths) {
    for (let dir = dirname(path); !existsSync(dir); dir = dirname(dir)) above.unshift(dir);
    await mkdir(dirname(path), { recursive: true });
    planted.push(path);
  }
  const removed = [...planted, ...above.toReversed()];
  return {
    paths: planted,
    async [Symbol.asyncDispose]() {
      for (const path of removed) await rm(path, { recursive: true, force: true });
    },
  };
}

test('a stray file and a stray directory are told in every folder below the roots, and nothing else is', async () => {
  const { id } = await daemon.call('sandbox.create', { main: { argv: ['sleep', '100000'] } });
  await daemon.call('volume.create', { name: 'kept', sizeMiB: 64 });
  // Whoever only looks on, waits or has a command open is at work on nothing that lies here.
  await using open = new AsyncDisposableStack();
  const logs = await daemon.open('GET', `/v1/sandboxes/${id}/logs?follow=true`);
  open.defer(() => void logs.destroy());
  const events = await daemon.open('GET', '/v1/events?follow=true');
  open.defer(() => void events.destroy());
  const command = await daemon.exec(id, { argv: ['sleep', '100000'] });
  await command.saw('started');
  open.defer(() => command.socket.terminate());
  const places = lookedInto();
  expect(places.map(({ root, place }) => `${root}/${place}`)).toEqual(FOLDERS);
  await using strays = await planting(
    places.flatMap(({ root, place }) => ['stray.txt', 'stray'].map((name) => at({ root, in: place } as Line, name))),
  );
  for (const path of strays.paths) await (path.endsWith('.txt') ? writeFile(path, 'stray') : mkdir(path));
  const told = await daemon.leaks();
  const expected = strays.paths.map((what) => ({ kind: what.endsWith('.txt') ? 'file' : 'directory', what }));
  expect(told.toSorted((left, right) => left.what.localeCompare(right.what))).toEqual(
    expected.toSorted((left, right) => left.what.localeCompare(right.what)),
  );
  await strays[Symbol.asyncDispose]();
  expect(await daemon.leaks()).toEqual([]);
  await open.disposeAsync();
  await daemon.call('sandbox.delete', { ref: id, force: true });
  await daemon.call('volume.remove', { volume: 'kept' });
});

test('what carries the name of a row that there is none of, or is only a part, or is at work on while nobody is, is told', async () => {
  const lines = plantable.filter((line) => !isHutchs(line) || line.whole !== undefined);
  expect(new Set(lines.map(({ owner }) => owner))).toEqual(new Set(['sandbox', 'snapshot', 'volume', 'image', 'project', 'cache', 'work']));
  await using strays = await planting(lines.map((line) => at(line)));
  for (const path of strays.paths) await mkdir(path);
  const found = await daemon.leaksOnceThereAre(strays.paths.length);
  const told = found.filter(({ kind }) => kind === 'directory').map(({ what }) => what);
  expect(told.toSorted()).toEqual([...strays.paths].toSorted());
});

test('what the list says is Hutch’s own, or kept to be used again and whole, is not told', async () => {
  const lines = plantable.filter(isHutchs);
  expect(lines.length).toBeGreaterThan(20);
  const missing = lines.filter((line) => !existsSync(at(line)));
  await using planted = await planting(missing.map((line) => at(line)));
  for (const line of missing) {
    if (line.whole === undefined)
      await writeFile(at(line), '', { flag: 'a' }).catch(() => {}); // a folder of other lines is there by now
    else {
      await mkdir(at(line));
      await writeFile(join(at(line), line.whole), '{}');
    }
  }
  expect(planted.paths.every((path) => existsSync(path))).toBe(true);
  expect(await daemon.leaks()).toEqual([]);
});

test('what a daemon that was killed was at work on is removed by the next start', async () => {
  const lines = BELONGINGS.filter(({ owner }) => owner === 'work');
  expect(lines.length).toBeGreaterThan(10);
  // What is written beside a file until it is whole has one name everywhere.
  const ours = lookedInto().filter(({ place }) => place !== 'uids');
  const halves = ours.map(({ root, place }) => at({ root, in: place } as Line, '.hutch-tmp-0123456789abcdef'));
  await daemon.kill9();
  await using left = await planting([...lines.map((line) => at(line)), ...halves]);
  for (const path of left.paths)
    await (halves.includes(path) ? writeFile(path, 'half') : mkdir(join(path, 'with', 'more'), { recursive: true }));
  // A store that is half made is taken up by SQLite itself, not looked at as a directory.
  for (const path of left.paths.filter((each) => each.includes('hutch.db.'))) {
    await rm(path, { recursive: true });
    await writeFile(path, '');
  }
  await daemon.startAgain();
  expect(left.paths.filter((path) => existsSync(path))).toEqual([]);
  expect(await daemon.leaks()).toEqual([]);
});
