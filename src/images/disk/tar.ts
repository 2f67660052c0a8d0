// A file system as a tar stream: what an import of a root file system takes. Directories come before what is in them, and a file
// with several names once.

import { ArchiveError, shown } from '../../domain/archive-error.ts';
import { type EntryType, PATH_BYTES_MAX, padding } from '../../domain/tar/entry.ts';
import { type EntryToWrite, TAR_END, tarHeader } from '../../domain/tar/header.ts';
import { DEPTH_MAX } from '../layers/tree.ts';
import type { Ext4, Inode } from './ext4.ts';

const TYPES: Readonly<Record<number, EntryType>> = {
  4096: 'fifo',
  8192: 'character',
  16384: 'directory',
  24576: 'block',
  32768: 'file',
  40960: 'symlink',
};

export type TarLimits = { readonly entriesMax: number; readonly bytesMax: number };

export async function* tarOf(files: Ext4, limits: TarLimits): AsyncGenerator<Uint8Array> {
  /** Directories that were entered: each has one place. */
  const entered = new Set<number>();
  /** First paths of what has several. */
  const named = new Map<number, string>();
  let [entries, bytes] = [0, 0];

  async function* walk(directory: Inode, path: string, depth: number): AsyncGenerator<Uint8Array> {
    if (entered.has(directory.number)) throw new ArchiveError(`the directory ${shown(path)} is in two places`);
    if (depth > DEPTH_MAX) throw new ArchiveError(`${shown(path)} lies more than ${DEPTH_MAX} directories deep`);
    entered.add(directory.number);
    for (const { name, inode: number } of await files.children(directory)) {
      if (path === '' && name === 'lost+found') continue; // the file system's own
      const inside = `${path}${name}`;
      // In a layer such a name takes another one away.
      if (name.startsWith('.wh.')) throw new ArchiveError(`the name ${shown(inside)} means something else in images`);
      if (inside.length > PATH_BYTES_MAX) throw new ArchiveError(`the path ${shown(inside)} has more than ${PATH_BYTES_MAX} bytes`);
      entries += 1;
      if (entries > limits.entriesMax) throw new ArchiveError(`it has more than ${limits.entriesMax} entries`);
      const inode = await files.inode(number);
      const type = TYPES[inode.mode & 0xf000];
      if (type === undefined) continue; // a socket: it means nothing without who listens
      const first = type === 'directory' ? undefined : named.get(number);
      if (first !== undefined) {
        yield tarHeader({ ...entryOf(inode, 'hardlink', inside), link: first, sizeBytes: 0, xattrs: null });
        continue;
      }
      if (type !== 'directory' && inode.links > 1) named.set(number, inside);
      yield* one(inode, type, inside);
      if (type === 'directory') yield* walk(inode, `${inside}/`, depth + 1);
    }
  }

  async function* one(inode: Inode, type: EntryType, path: string): AsyncGenerator<Uint8Array> {
    if (type === 'symlink') return yield tarHeader({ ...entryOf(inode, type, path), link: await files.link(inode) });
    if (type !== 'file') return yield tarHeader(entryOf(inode, type, type === 'directory' ? `${path}/` : path));
    bytes += inode.sizeBytes;
    if (bytes > limits.bytesMax) throw new ArchiveError(`it has more than ${limits.bytesMax} bytes of files`);
    yield tarHeader({ ...entryOf(inode, type, path), sizeBytes: inode.sizeBytes });
    yield* files.content(inode);
    yield Buffer.alloc(padding(inode.sizeBytes));
  }

  const root = await files.root();
  if ((root.mode & 0xf000) !== 0x4000) throw new ArchiveError('its root is no directory');
  yield tarHeader(entryOf(root, 'directory', './'));
  yield* walk(root, '', 1);
  yield TAR_END;
}

function entryOf(inode: Inode, type: EntryType, path: string): EntryToWrite {
  const { mode, uid, gid, mtimeSeconds, xattrs } = inode;
  const device = type === 'character' || type === 'block' ? deviceOf(inode.block) : { devMajor: 0, devMinor: 0 };
  return { type, path, link: '', mode: mode & 0o7777, uid, gid, mtimeSeconds, sizeBytes: 0, xattrs, ...device };
}

/** In the old form, else in the new one, as the kernel's `old_decode_dev` and `new_decode_dev`. */
export function deviceOf(block: Buffer): { readonly devMajor: number; readonly devMinor: number } {
  const [old, wide] = [block.readUInt32LE(0), block.readUInt32LE(4)];
  if (old !== 0) return { devMajor: (old >>> 8) & 0xff, devMinor: old & 0xff };
  return { devMajor: (wide & 0xf_ff00) >>> 8, devMinor: (wide & 0xff) | ((wide >>> 12) & 0xf_ff00) };
}
