// Layers that are packed once: one file system is made of them as they are, whoever packed them first, and it is the
// same to the byte.
import { randomBytes } from 'node:crypto';
import { appendFile, chmod, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';
import { verifyImage } from '../../src/images/image.ts';
import { countCalls, type FaultyHost } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { image, type Member, tar } from './archives.ts';
import { type Place, place, readTree, type Seen, treeOf } from './place.ts';
import { fakeRegistry } from './registry.ts';

const op = testOperation();
const holes = (size: number, ...parts: readonly [at: number, text: string][]) => {
  const bytes = Buffer.alloc(size);
  for (const [at, text] of parts) bytes.write(text, at);
  return bytes;
};

/** All that squashfs writes in another way than the usual. */
const ODD: readonly Member[] = [
  { path: 'blocks/exact', content: randomBytes(2 * 65_536) },
  { path: 'blocks/more', content: randomBytes(2 * 65_536 + 1) },
  { path: 'blocks/holes', content: holes(5 * 65_536 + 7, [0, 'begin'], [5 * 65_536, 'end']) },
  { path: 'blocks/nothing-but-holes', content: holes(4 * 65_536) },
  { path: 'blocks/small', content: 'small' },
  { path: 'blocks/empty' },
  { path: 'blocks/linked', type: 'hardlink', link: 'blocks/more' },
  { path: 'blocks/again', type: 'hardlink', link: 'blocks/more' },
  { path: 'bare/', type: 'directory', mode: 0o1777, uid: 70_000, gid: 4_000_000_000 },
  { path: 'said/', type: 'directory', xattrs: new Map([['user.of', Buffer.from('a directory')]]) },
  {
    path: 'said/file',
    content: 'x',
    xattrs: new Map([
      ['security.capability', randomBytes(20)],
      ['trusted.t', Buffer.alloc(0)],
    ]),
  },
  { path: 'said/same', content: 'y', xattrs: new Map([['user.of', Buffer.from('a directory')]]) },
  { path: 'said/long', content: 'z', xattrs: new Map([['user.long', Buffer.alloc(3_000, 'v')]]) },
  { path: 'dev/tty', type: 'character', mode: 0o666, devMajor: 4, devMinor: 300 },
  { path: 'dev/disk', type: 'block', mode: 0o660, devMajor: 259, devMinor: 70_000 },
  { path: 'dev/pipe', type: 'fifo', mode: 0o600 },
  { path: 'link', type: 'symlink', link: 'blocks/small' },
  { path: `names/${'n'.repeat(255)}`, content: 'long' },
  { path: `${'d/'.repeat(300)}deep`, content: 'deep' },
  // More than fits a directory of the basic kind, and inodes in many blocks of the table.
  ...Array.from({ length: 3_000 }, (_, at): Member => ({ path: `many/${'x'.repeat(20)}-${at}`, content: String(at), uid: at % 500 })),
];

const rows = (tree: ReadonlyMap<string, Seen>) =>
  Object.fromEntries(
    [...tree]
      .filter(([path]) => path !== '')
      .map(([path, { type, mode, uid, gid, link, content, devMajor, devMinor, mtimeSeconds, xattrs }]) => [
        path,
        [
          type,
          type === 'symlink' ? 0 : mode,
          uid,
          gid,
          link,
          content.toString('latin1'),
          devMajor,
          devMinor,
          mtimeSeconds,
          [...(xattrs ?? [])].toSorted(),
        ],
      ]),
  );

/** Hard links as names of one file, whichever was written first. */
const unlinked = (tree: ReadonlyMap<string, Seen>) =>
  new Map([...tree].map(([path, seen]) => [path, seen.type === 'hardlink' ? (tree.get(seen.link) ?? seen) : seen]));

test('whatever a layer has is read from the file system as it was written: holes, links, owners, attributes, devices, long lists', {
  timeout: 60_000,
}, async () => {
  await using registry = await fakeRegistry();
  const layer = tar(...ODD);
  registry.put('odd', '1', image([layer]));
  await using here = await place();
  const found = await here.pull(`${registry.name}/odd:1`);
  const [ours, said] = [unlinked(await treeOf(found)), unlinked(await readTree(layer))];
  const written = rows(ours);
  for (const [path, row] of Object.entries(rows(said))) expect(written[path], path).toEqual(row);
  // And directories that nobody described, but nothing else.
  const further = [...ours.keys()].filter((path) => path !== '' && !said.has(path));
  expect(further.every((path) => ours.get(path)?.type === 'directory')).toBe(true);
});

const counted = async (): Promise<Place & { packed: () => number }> => {
  const seen: { host: FaultyHost | null } = { host: null };
  const made = await place({
    host: (host) => {
      seen.host = countCalls(host);
      return seen.host;
    },
  });
  const packed = () =>
    seen.host?.calls.filter(({ method, args }) => method === 'run' && String(args[0]).startsWith('tar2sqfs')).length ?? 0;
  return Object.assign(made, { packed });
};

const BASE = tar(
  { path: 'etc/', type: 'directory' },
  { path: 'etc/base', content: randomBytes(100_000) },
  { path: 'gone', content: 'gone' },
);
const MIDDLE = tar({ path: 'etc/middle', content: 'm' }, { path: 'etc/link', type: 'hardlink', link: 'etc/base' });
const ONE = image([BASE, MIDDLE, tar({ path: 'one', content: 'one' })]);
const TWO = image([BASE, MIDDLE, tar({ path: 'two', content: 'two' }, { path: '.wh.gone' })]);

test('an image packs only the layers that no other image here has, and is the same as one that packs all', {
  timeout: 60_000,
}, async () => {
  await using registry = await fakeRegistry();
  registry.put('one', '1', ONE);
  registry.put('two', '1', TWO);
  await using here = await counted();
  await using fresh = await counted();
  await here.pull(`${registry.name}/one:1`);
  expect(here.packed()).toBe(3);
  const two = await here.pull(`${registry.name}/two:1`);
  expect(here.packed()).toBe(4);
  const alone = await fresh.pull(`${registry.name}/two:1`);
  expect(fresh.packed()).toBe(3);
  expect(two.rootDigest).toBe(alone.rootDigest);
  expect(await readFile(two.path)).toEqual(await readFile(alone.path));
  const tree = await treeOf(two);
  expect([tree.get('two')?.content.toString(), tree.has('gone'), tree.has('one')]).toEqual(['two', false, false]);
  await verifyImage(op, here.host, here.library.paths, two.record.digest);
});

test('a layer whose image has changed on disk, or what is known of it, is read anew', { timeout: 60_000 }, async () => {
  await using registry = await fakeRegistry();
  registry.put('one', '1', ONE);
  registry.put('two', '1', TWO);
  await using fresh = await place();
  const { rootDigest } = await fresh.pull(`${registry.name}/two:1`);
  const damage: readonly ((path: string) => Promise<void>)[] = [
    async (path) => {
      const bytes = await readFile(path);
      bytes.writeUInt8(bytes.readUInt8(500) ^ 1, 500);
      await chmod(path, 0o600);
      await writeFile(path, bytes);
    },
    async (path) => await rm(path),
    async (path) => {
      await chmod(path, 0o600);
      await writeFile(path, (await readFile(path)).subarray(0, 2_000));
    },
    ...['', 'noise', '{}'].map((text) => async (path: string) => {
      for (const name of await readdir(dirname(path))) {
        if (!name.endsWith('.map')) continue;
        await chmod(join(dirname(path), name), 0o600);
        await (text === '' ? writeFile(join(dirname(path), name), '') : appendFile(join(dirname(path), name), text));
      }
    }),
  ];
  for (const harm of damage) {
    await using here = await place();
    await harm((await here.pull(`${registry.name}/one:1`)).path);
    const two = await here.pull(`${registry.name}/two:1`);
    expect(two.rootDigest).toBe(rootDigest);
    await verifyImage(op, here.host, here.library.paths, two.record.digest);
    expect((await here.left()).staging).toEqual([]);
  }
});
