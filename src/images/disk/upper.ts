// The private layer of a sandbox, read from its disk by ourselves: what overlayfs has written there.
import { ArchiveError, shown } from '../../domain/archive-error.ts';
import { DEPTH_MAX } from '../layers/tree.ts';
import type { Layer, Node, NodeType } from './changes.ts';
import type { Ext4, Inode } from './ext4.ts';
import { deviceOf } from './tar.ts';

const ENTRIES_MAX = 1_000_000;
const OPAQUE = 'trusted.overlay.opaque';
const TYPES: Readonly<Record<number, NodeType>> = {
  4096: 'fifo',
  8192: 'device',
  16384: 'directory',
  24576: 'device',
  32768: 'file',
  40960: 'symlink',
  49152: 'socket',
};

/** `name`: of the directory at the top of the disk in which the layer lies. @throws ArchiveError for a disk that makes no sense. */
export async function readUpper(files: Ext4, name: string): Promise<Layer> {
  const top = (await files.children(await files.root())).find((child) => child.name === name);
  const upper = top === undefined ? null : await files.inode(top.inode);
  if (upper === null || TYPES[upper.mode & 0xf000] !== 'directory') throw new ArchiveError(`there is no ${name} on the disk`);
  const nodes = new Map<string, Node>();
  const gone = new Set<string>();
  const opaque = new Set<string>();
  const entered = new Set<number>();

  async function walk(directory: Inode, path: string, depth: number): Promise<void> {
    if (entered.has(directory.number)) throw new ArchiveError(`the directory ${shown(path)} is in two places`);
    if (depth > DEPTH_MAX) throw new ArchiveError(`${shown(path)} lies more than ${DEPTH_MAX} directories deep`);
    entered.add(directory.number);
    for (const child of await files.children(directory)) {
      const inside = `${path}${child.name}`;
      if (nodes.size + gone.size >= ENTRIES_MAX) throw new ArchiveError(`there are more than ${ENTRIES_MAX} files on the disk`);
      const inode = await files.inode(child.inode);
      const type = TYPES[inode.mode & 0xf000];
      if (type === undefined) throw new ArchiveError(`${shown(inside)} is of no type`);
      const { devMajor, devMinor } = type === 'device' ? deviceOf(inode.block) : { devMajor: -1, devMinor: -1 };
      if (type === 'device' && devMajor === 0 && devMinor === 0) {
        gone.add(inside);
        continue;
      }
      const target =
        type === 'symlink' ? await files.link(inode) : type === 'device' ? `${inode.mode & 0xf000} ${devMajor}:${devMinor}` : '';
      nodes.set(inside, { type, mode: inode.mode & 0o7777, uid: inode.uid, gid: inode.gid, target, inode });
      if (type !== 'directory') continue;
      if (inode.xattrs?.get(OPAQUE)?.toString('latin1') === 'y') opaque.add(inside);
      await walk(inode, `${inside}/`, depth + 1);
    }
  }

  await walk(upper, '', 1);
  return { nodes, gone, opaque };
}
