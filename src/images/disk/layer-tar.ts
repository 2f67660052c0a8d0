// A layer of an image as a container engine writes it, read for what it changes: what it has, and by names of a kind of their own
// (`.wh.NAME`) what it takes away.
import { createHash } from 'node:crypto';
import { ArchiveError, shown } from '../../domain/archive-error.ts';
import type { TarEntry } from '../../domain/tar/entry.ts';
import { TarReader } from '../../domain/tar/reader.ts';
import type { Layer, Node } from './changes.ts';

const ENTRIES_MAX = 1_000_000;
const GONE = '.wh.';
const OPAQUE = '.wh..wh..opq';
const CHARACTER = 0x2000;
const BLOCK = 0x6000;

/** Of a file that was read to its end. */
export type Digested = { readonly sizeBytes: number; readonly sha256: string };

/** `hides`: names at its top that are nobody's. @throws ArchiveError for what is no such layer. */
export async function readLayerTar(chunks: AsyncIterable<Uint8Array>, hides: readonly string[]): Promise<Layer<Digested>> {
  await using reader = new TarReader(chunks);
  const nodes = new Map<string, Node<Digested>>();
  const gone = new Set<string>();
  const opaque = new Set<string>();
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    if (nodes.size + gone.size >= ENTRIES_MAX) throw new ArchiveError(`there are more than ${ENTRIES_MAX} files in a layer`);
    const path = plain(entry.path);
    const [top = ''] = path.split('/');
    if (path === '' || hides.includes(top)) continue;
    const slash = path.lastIndexOf('/') + 1;
    const [above, name] = [path.slice(0, slash), path.slice(slash)];
    if (name === OPAQUE) opaque.add(above.slice(0, -1));
    else if (name.startsWith(GONE)) gone.add(`${above}${name.slice(GONE.length)}`);
    else nodes.set(path, await nodeOf(entry, path, nodes, reader));
  }
  return { nodes, gone, opaque };
}

async function nodeOf(
  entry: TarEntry,
  path: string,
  nodes: ReadonlyMap<string, Node<Digested>>,
  reader: TarReader,
): Promise<Node<Digested>> {
  if (entry.type === 'hardlink') {
    const same = nodes.get(plain(entry.link));
    if (same === undefined) throw new ArchiveError(`${shown(path)} is a hard link to what is not in its layer`);
    return same;
  }
  const { mode, uid, gid, devMajor, devMinor } = entry;
  const isDevice = entry.type === 'character' || entry.type === 'block';
  const device = `${entry.type === 'block' ? BLOCK : CHARACTER} ${devMajor}:${devMinor}`;
  const target = entry.type === 'symlink' ? entry.link : isDevice ? device : '';
  const hash = createHash('sha256');
  if (entry.type === 'file') for await (const chunk of reader.content()) hash.update(chunk);
  const inode = { sizeBytes: entry.sizeBytes, sha256: hash.digest('hex') };
  return { type: isDevice ? 'device' : entry.type, mode, uid, gid, target, inode };
}

function plain(path: string): string {
  const parts = path.split('/').filter((part) => part !== '' && part !== '.');
  if (parts.includes('..')) throw new ArchiveError(`${shown(path)} leads out of its layer`);
  return parts.join('/');
}
