// A tree and the layers that its files lie in, as one tar stream: what a COPY puts into a layer. No file is ever made on this machine
// but the result. The same layers give the same stream.
import { createHash } from 'node:crypto';
import { setImmediate as turn } from 'node:timers/promises';
import { ArchiveError } from '../../domain/archive-error.ts';
import { hashed } from '../../domain/hashed.ts';
import { PATH_BYTES_MAX, padding } from '../../domain/tar/entry.ts';
import { TAR_END, tarHeader } from '../../domain/tar/header.ts';
import { TarReader } from '../../domain/tar/reader.ts';
import { gathered } from '../chunks.ts';
import type { Inode, Tree } from '../layers/tree.ts';

/** One layer, unpacked, from its beginning, each time that it is asked for. */
export type LayerSource = () => AsyncIterable<Uint8Array>;

/** So many entries are looked at before others get their turn. */
const ENTRIES_PER_TURN = 2_000;

/** Reads a layer into the tree; gives the `sha256:…` of the whole of it, unpacked. */
export async function applyLayer(tree: Tree, layer: number, open: LayerSource): Promise<string> {
  const hash = createHash('sha256');
  await using reader = new TarReader(hashed(open(), hash));
  for (let ordinal = 0; ; ordinal += 1) {
    const entry = await reader.next();
    if (entry === null) break;
    tree.apply(layer, ordinal, entry);
    if (ordinal % ENTRIES_PER_TURN === 0) await turn();
  }
  await reader.drain();
  return `sha256:${hash.digest('hex')}`;
}

/** The tree as one tar archive: first what has no content, then files layer by layer, then further names of files. */
export function flattened(tree: Tree, layers: readonly LayerSource[]): AsyncGenerator<Uint8Array> {
  return gathered(entries(tree, layers));
}

type Kept = { readonly path: string; readonly inode: Inode };
type FurtherName = { readonly path: string; readonly inode: Inode; readonly first: string };

async function* entries(tree: Tree, layers: readonly LayerSource[]): AsyncGenerator<Uint8Array> {
  const wanted = layers.map(() => new Map<number, Kept>());
  const further: FurtherName[] = [];
  const firsts = new Map<Inode, string>();
  let count = 0;
  for (const [path, inode] of walk(tree)) {
    count += 1;
    if (count % ENTRIES_PER_TURN === 0) await turn();
    const first = firsts.get(inode);
    if (first !== undefined) {
      further.push({ path, inode, first });
      continue;
    }
    if (inode.type !== 'directory') firsts.set(inode, path);
    if (inode.place === null) yield tarHeader({ ...inode, path });
    else wanted[inode.place.layer]?.set(inode.place.ordinal, { path, inode });
  }
  for (const [at, open] of layers.entries()) yield* contents(open, wanted[at] ?? new Map());
  for (const { path, inode, first } of further)
    yield tarHeader({ ...inode, type: 'hardlink', path, link: first, sizeBytes: 0, xattrs: null });
  yield TAR_END;
}

async function* contents(open: LayerSource, wanted: ReadonlyMap<number, Kept>): AsyncGenerator<Uint8Array> {
  let missing = wanted.size;
  if (missing === 0) return;
  await using reader = new TarReader(open());
  for (let ordinal = 0; missing > 0; ordinal += 1) {
    if ((await reader.next()) === null) throw new ArchiveError('a layer is not what it was a moment ago');
    if (ordinal % ENTRIES_PER_TURN === 0) await turn();
    const kept = wanted.get(ordinal);
    if (kept === undefined) continue;
    missing -= 1;
    yield tarHeader({ ...kept.inode, path: kept.path });
    yield* reader.content();
    yield Buffer.alloc(padding(kept.inode.sizeBytes));
  }
}

/** Every name in the tree, directories before what is in them, in the order of their bytes. */
function* walk(tree: Tree): Generator<[path: string, inode: Inode]> {
  yield ['./', tree.root];
  const stack: { readonly prefix: string; readonly names: Iterator<[string, Inode]> }[] = [{ prefix: '', names: sorted(tree.root) }];
  for (let top = stack.at(-1); top !== undefined; top = stack.at(-1)) {
    const { value, done } = top.names.next();
    if (done === true) {
      stack.pop();
      continue;
    }
    const [name, inode] = value;
    const path = top.prefix + name;
    // Through symlinks a path can become longer than any that was written.
    if (path.length > PATH_BYTES_MAX) throw new ArchiveError(`a path has more than ${PATH_BYTES_MAX} bytes`);
    yield [path, inode];
    if (inode.children !== null) stack.push({ prefix: `${path}/`, names: sorted(inode) });
  }
}

function sorted(inode: Inode): Iterator<[string, Inode]> {
  const names = [...(inode.children ?? new Map()).keys()].sort() as string[];
  return (function* () {
    for (const name of names) {
      const named = inode.children?.get(name);
      if (named !== undefined) yield [name, named.inode] as [string, Inode];
    }
  })();
}
