// Two layers over one image: what is told to differ is what a sandbox would see, whatever order of steps led there.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Change, changesBetween, joined, type Layer, type Node } from './changes.ts';
import type { Inode } from './ext4.ts';
import { parseListing } from './listing.ts';

const NAMES = ['a', 'b', 'c'];
/** All places of a tree three deep. */
const PATHS = NAMES.flatMap((a) => [a, ...NAMES.flatMap((b) => [`${a}/${b}`, ...NAMES.map((c) => `${a}/${b}/${c}`)])]);

type Model = Map<string, Node>;

/** `number` stands for its content. */
function node(type: Node['type'], number: number | null): Node {
  return { type, mode: 0o644, uid: 0, gid: 0, target: '', inode: number === null ? null : ({ number, sizeBytes: 1 } as Inode) };
}

const parentOf = (path: string): string => path.slice(0, Math.max(0, path.lastIndexOf('/')));
const isBelow = (path: string, above: string): boolean => path.startsWith(`${above}/`);

/** Only what a file system can hold: what lies in something lies in a directory. */
function treeOf(paths: readonly string[]): Model {
  const tree: Model = new Map();
  for (const path of [...paths].sort()) {
    for (let at = parentOf(path); at !== ''; at = parentOf(at)) tree.set(at, node('directory', null));
    if (!tree.has(path)) tree.set(path, node('file', null));
  }
  return tree;
}

type Step = { readonly what: 'write' | 'remove' | 'mkdir'; readonly path: string };

/** As overlayfs writes it down, and as it is seen. */
function after(image: Model, steps: readonly Step[]): { layer: Layer; seen: Model } {
  const [nodes, gone, opaque] = [new Map<string, Node>(), new Set<string>(), new Set<string>()];
  const seen: Model = new Map(image);
  const drop = (path: string): void => {
    for (const other of [...seen.keys()]) if (other === path || isBelow(other, path)) seen.delete(other);
    for (const other of [...nodes.keys()]) if (other === path || isBelow(other, path)) nodes.delete(other);
    for (const set of [gone, opaque]) for (const other of [...set]) if (other === path || isBelow(other, path)) set.delete(other);
  };
  for (const [at, { what, path }] of steps.entries()) {
    const parent = parentOf(path);
    if (parent !== '' && seen.get(parent)?.type !== 'directory') continue;
    const was = seen.get(path);
    if (what === 'write' && was?.type === 'directory') continue;
    if (what === 'mkdir' && was !== undefined) continue;
    if (what === 'remove' && was === undefined) continue;
    for (let above = parent; above !== ''; above = parentOf(above)) {
      const copied = node('directory', 1_000);
      if (!nodes.has(above)) nodes.set(above, copied);
      seen.set(above, nodes.get(above) ?? copied);
    }
    const wasGone = gone.has(path);
    drop(path);
    if (what === 'remove') {
      if (image.has(path)) gone.add(path);
      continue;
    }
    const made = node(what === 'write' ? 'file' : 'directory', at);
    nodes.set(path, made);
    seen.set(path, made);
    if (what === 'mkdir' && (wasGone || image.has(path))) opaque.add(path);
  }
  return { layer: { nodes, gone, opaque }, seen };
}

const images = fc.subarray(PATHS, { maxLength: 12 }).map(treeOf);
const steps = fc.array(fc.record({ what: fc.constantFrom<Step['what'][]>('write', 'remove', 'mkdir'), path: fc.constantFrom(...PATHS) }), {
  maxLength: 20,
});

async function all(changes: AsyncIterable<Change>): Promise<Change[]> {
  const found: Change[] = [];
  for await (const change of changes) found.push(change);
  return found;
}

const isSame = async (_: string, left: Node, right: Node): Promise<boolean> => left.inode?.number === right.inode?.number;

test('a layer over its image is what a sandbox sees', () => {
  fc.assert(
    fc.property(images, steps, (image, made) => {
      const { layer, seen } = after(image, made);
      expect([...joined(image, layer).keys()].sort()).toEqual([...seen.keys()].sort());
      for (const [path, own] of joined(image, layer)) expect(own, path).toEqual(seen.get(path));
    }),
    { numRuns: 500 },
  );
});

test('what differs, done to the one, gives the other, and nothing else is told', async () => {
  await fc.assert(
    fc.asyncProperty(images, steps, steps, async (image, first, second) => {
      const [old, now] = [after(image, first).seen, after(image, second).seen];
      const changes = await all(changesBetween(old, now, isSame));
      const done = new Map(old);
      for (const { path, change, after: node } of changes) {
        if (change === 'removed') done.delete(path);
        else if (node !== null) done.set(path, node);
      }
      expect([...done.keys()].sort()).toEqual([...now.keys()].sort());
      for (const [path, own] of now) {
        const other = done.get(path);
        expect([other?.type, own.type === 'file' ? other?.inode?.number : null], path).toEqual([
          own.type,
          own.type === 'file' ? own.inode?.number : null,
        ]);
      }
      for (const { path, change, what } of changes) if (change === 'changed') expect(what, path).not.toEqual([]);
      expect(await all(changesBetween(now, now, isSame))).toEqual([]);
    }),
    { numRuns: 300 },
  );
});

test('mode, owner and where a link leads are told apart from content', async () => {
  const before = new Map([
    ['file', node('file', 1)],
    ['link', { ...node('symlink', 2), target: 'a' }],
  ]);
  const now = new Map([
    ['file', { ...node('file', 1), mode: 0o600, uid: 7 }],
    ['link', { ...node('symlink', 2), target: 'b' }],
  ]);
  expect((await all(changesBetween(before, now, isSame))).map(({ path, what }) => [path, ...what])).toEqual([
    ['file', 'mode', 'owner'],
    ['link', 'target'],
  ]);
});

test('a listing of an image is read, whatever its names are', () => {
  const text = [
    'dir etc 0755 0 0',
    'file etc/motd 0644 0 7',
    'file "a \\"b\\" \\\\c" 0600 1 2',
    'slink bin 0777 0 0 usr/bin',
    'slink odd 0777 0 0 "with blank"',
    'nod dev/null 0666 0 0 c 1 3',
    'pipe p 0600 0 0',
    'what is this',
    '',
  ].join('\n');
  const found = parseListing(text);
  expect([...found.keys()]).toEqual(['etc', 'etc/motd', 'a "b" \\c', 'bin', 'odd', 'dev/null', 'p']);
  expect(found.get('etc/motd')).toEqual({ type: 'file', mode: 0o644, uid: 0, gid: 7, target: '', inode: null });
  expect([found.get('bin')?.target, found.get('odd')?.target, found.get('dev/null')?.target]).toEqual([
    'usr/bin',
    'with blank',
    '8192 1:3',
  ]);
});
