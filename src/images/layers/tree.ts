// The root file system that an image's layers make, in memory and without a byte of content: layers are
// applied from the lowest up, as OCI's image specification says, and what stands in it at the end is
// what is packed. Nothing of it is ever a path on this machine: `..`, absolute paths and links lead at
// most to this tree's own root. Every count has a bound.

import { ArchiveError, shown } from '../../domain/archive-error.ts';
import { NAME_BYTES_MAX, PATH_BYTES_MAX, type TarEntry } from '../../domain/tar/entry.ts';
import { ACCESS_ACL, modeWithoutAcl } from './acl.ts';

export type TreeLimits = {
  /** Files, directories and all else, of all layers. */
  readonly entriesMax: number;
  /** Names, links and extended attributes together. */
  readonly metadataBytesMax: number;
  /** All files as they are read, of all layers. */
  readonly contentBytesMax: number;
};

export const TREE_LIMITS: TreeLimits = {
  entriesMax: 1_000_000,
  metadataBytesMax: 96 * 1024 * 1024,
  contentBytesMax: 64 * 1024 ** 3,
};
export const DEPTH_MAX = 1_024;
/** As Linux follows in one path. */
const LINKS_FOLLOWED_MAX = 40;
/** What a device's number has room for in Linux. */
const MAJOR_MAX = 0xfff;
const MINOR_MAX = 0xf_ffff;

const WHITEOUT = '.wh.';
/** Of aufs, the file system that whiteouts come from: means nothing but in `OPAQUE`. */
const WHITEOUT_META = '.wh..wh.';
const OPAQUE = '.wh..wh..opq';

/** Where the content of a file is: which entry of which layer. */
export type Place = { readonly layer: number; readonly ordinal: number };

export type Inode = {
  type: Exclude<TarEntry['type'], 'hardlink'>;
  mode: number;
  uid: number;
  gid: number;
  mtimeSeconds: number;
  sizeBytes: number;
  link: string;
  devMajor: number;
  devMinor: number;
  xattrs: ReadonlyMap<string, Buffer> | null;
  place: Place | null;
  /** Of a directory. */
  children: Map<string, Named> | null;
};

/** A name in a directory, and the layer that put it there last. */
export type Named = { inode: Inode; layer: number };

type Dir = Inode & { children: Map<string, Named> };

export class Tree {
  readonly root: Dir;
  readonly #limits: TreeLimits;
  #entries = 0;
  #metadataBytes = 0;
  #contentBytes = 0;
  #layer = 0;

  constructor(limits: TreeLimits = TREE_LIMITS) {
    this.#limits = limits;
    this.root = newDirectory();
  }

  /** One entry of a layer; layers come in order, and so do the entries of each. */
  apply(layer: number, ordinal: number, entry: TarEntry): void {
    this.#layer = layer;
    this.count(entry);
    const parts = partsOf(entry.path);
    const name = parts.pop();
    if (name === undefined) this.#applyRoot(entry);
    else if (name.startsWith(WHITEOUT)) this.#whiteOut(parts, name, entry.path);
    else this.#place(this.#directory(parts, entry.path), name, ordinal, entry);
  }

  #place(parent: Dir, name: string, ordinal: number, entry: TarEntry): void {
    const layer = this.#layer;
    if (entry.type === 'hardlink') {
      parent.children.set(name, { inode: this.#linked(entry), layer });
      return;
    }
    const there = parent.children.get(name);
    if (entry.type === 'directory' && there?.inode.type === 'directory') {
      describe(there.inode, entry);
      there.layer = layer;
      return;
    }
    parent.children.set(name, { inode: newInode(entry, entry.type, layer, ordinal), layer });
  }

  /** Against the bounds alone. @throws ArchiveError beyond them. */
  count(entry: TarEntry): void {
    this.#entries += 1;
    if (this.#entries > this.#limits.entriesMax) throw new ArchiveError(`it has more than ${this.#limits.entriesMax} entries`);
    let bytes = entry.path.length + entry.link.length;
    for (const [name, value] of entry.xattrs ?? []) bytes += name.length + value.byteLength;
    this.#metadataBytes += bytes;
    if (this.#metadataBytes > this.#limits.metadataBytesMax) {
      throw new ArchiveError(`its names, links and attributes take more than ${this.#limits.metadataBytesMax} bytes`);
    }
    this.#contentBytes += entry.sizeBytes;
    if (this.#contentBytes > this.#limits.contentBytesMax) {
      throw new ArchiveError(`its files have more than ${this.#limits.contentBytesMax} bytes, at ${shown(entry.path)}`);
    }
  }

  #applyRoot(entry: TarEntry): void {
    if (entry.type !== 'directory') throw new ArchiveError(`${shown(entry.path)} would replace the root directory`);
    describe(this.root, entry);
  }

  /** Takes away what lower layers put there; what this layer has itself stays, whichever came first. */
  #whiteOut(parts: readonly string[], name: string, path: string): void {
    if (name !== OPAQUE && name.startsWith(WHITEOUT_META)) return;
    const gone = name.slice(WHITEOUT.length);
    if (gone === '' || gone === '.' || gone === '..') throw new ArchiveError(`${shown(path)} takes away something that has no name`);
    const parent = this.#find(parts, path);
    if (parent?.children == null) return;
    for (const child of name === OPAQUE ? [...parent.children.keys()] : [gone]) {
      const there = parent.children.get(child);
      if (there !== undefined && !this.#keepOwn(there)) parent.children.delete(child);
    }
  }

  /** Takes lower layers' names out of it; whether anything of this layer is left. */
  #keepOwn(named: Named): boolean {
    const { children } = named.inode;
    if (children === null) return named.layer === this.#layer;
    for (const [name, child] of children) if (!this.#keepOwn(child)) children.delete(name);
    return named.layer === this.#layer || children.size > 0;
  }

  #linked(entry: TarEntry): Inode {
    const parts = partsOf(entry.link);
    const last = parts.pop();
    const target = last === undefined ? undefined : this.#find(parts, entry.link)?.children?.get(last);
    if (target === undefined) throw new ArchiveError(`${shown(entry.path)} is a hard link to ${shown(entry.link)}, which is not there`);
    if (target.inode.type === 'directory') throw new ArchiveError(`${shown(entry.path)} is a hard link to a directory`);
    return target.inode;
  }

  /** The directory of that path; made, with the directories above it, where it is not there. */
  #directory(parts: readonly string[], path: string): Dir {
    const found = this.#walk(parts, path, 'make');
    if (found?.children != null) return found as Dir;
    throw new ArchiveError(`${shown(path)} lies below something that is no directory`);
  }

  #find(parts: readonly string[], path: string): Inode | null {
    return this.#walk(parts, path, 'look');
  }

  /** Follows symlinks, all of them: in this tree, as a process that has it for its root would. */
  #walk(parts: readonly string[], path: string, how: 'make' | 'look'): Inode | null {
    const stack: Dir[] = [this.root];
    const left = [...parts].reverse();
    let followed = 0;
    for (let name = left.pop(); name !== undefined; name = left.pop()) {
      const here = stack.at(-1) ?? this.root;
      if (name === '..') {
        if (stack.length > 1) stack.pop();
        continue;
      }
      let next = here.children.get(name)?.inode;
      if (next === undefined) {
        if (how === 'look') return null;
        this.#entries += 1;
        next = newDirectory();
        here.children.set(name, { inode: next, layer: this.#layer });
      }
      if (next.type === 'symlink') {
        followed += 1;
        if (followed > LINKS_FOLLOWED_MAX) throw new ArchiveError(`${shown(path)} goes through more than ${LINKS_FOLLOWED_MAX} symlinks`);
        if (next.link.startsWith('/')) stack.length = 1;
        left.push(...namesOf(next.link).reverse());
        continue;
      }
      if (next.children === null) return how === 'look' ? null : next;
      stack.push(next as Dir);
      if (stack.length > DEPTH_MAX) throw new ArchiveError(`${shown(path)} lies more than ${DEPTH_MAX} directories deep`);
    }
    return stack.at(-1) ?? this.root;
  }
}

/** @throws ArchiveError for a path that leads out, or that Linux does not allow. */
function partsOf(path: string): string[] {
  if (path.includes('\0')) throw new ArchiveError(`${shown(path)} has a NUL in it`);
  if (path.length > PATH_BYTES_MAX) throw new ArchiveError(`the path ${shown(path)} has more than ${PATH_BYTES_MAX} bytes`);
  const parts = namesOf(path);
  for (const part of parts) {
    if (part === '..') throw new ArchiveError(`the path ${shown(path)} leads out of the image`);
    if (part.length > NAME_BYTES_MAX) throw new ArchiveError(`a name in ${shown(path)} has more than ${NAME_BYTES_MAX} bytes`);
  }
  if (parts.length > DEPTH_MAX) throw new ArchiveError(`${shown(path)} lies more than ${DEPTH_MAX} directories deep`);
  return parts;
}

function namesOf(path: string): string[] {
  return path.split('/').filter((part) => part !== '' && part !== '.');
}

/** As the directories that nobody describes are made by everybody. */
function newDirectory(): Dir {
  return {
    type: 'directory',
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtimeSeconds: 0,
    sizeBytes: 0,
    link: '',
    devMajor: 0,
    devMinor: 0,
    xattrs: null,
    place: null,
    children: new Map(),
  };
}

function newInode(entry: TarEntry, type: Inode['type'], layer: number, ordinal: number): Inode {
  if (type === 'symlink' && (entry.link === '' || entry.link.length > PATH_BYTES_MAX || entry.link.includes('\0'))) {
    throw new ArchiveError(`the symlink ${shown(entry.path)} has a target that Linux does not allow`);
  }
  if (entry.devMajor > MAJOR_MAX || entry.devMinor > MINOR_MAX) {
    throw new ArchiveError(`the device ${shown(entry.path)} has a number that Linux does not have`);
  }
  const inode: Inode = {
    ...newDirectory(),
    type,
    children: type === 'directory' ? new Map() : null,
    sizeBytes: entry.sizeBytes,
    link: type === 'symlink' ? entry.link : '',
    devMajor: entry.devMajor,
    devMinor: entry.devMinor,
    place: type === 'file' && entry.sizeBytes > 0 ? { layer, ordinal } : null,
  };
  describe(inode, entry);
  return inode;
}

function describe(inode: Inode, entry: TarEntry): void {
  inode.mode = inode.type === 'symlink' ? 0o777 : modeWithoutAcl(entry.mode, entry.xattrs?.get(ACCESS_ACL));
  inode.uid = entry.uid;
  inode.gid = entry.gid;
  inode.mtimeSeconds = Math.max(0, Math.min(entry.mtimeSeconds, 0xffff_ffff));
  inode.xattrs = keptXattrs(entry.xattrs);
}

/**
 * Those that a read-only file system of ours has room for. Never those by which overlayfs remembers what it did: under
 * a sandbox's own layer they would mean what they say. POSIX ACLs have no place in squashfs: modeWithoutAcl.
 */
function keptXattrs(xattrs: TarEntry['xattrs']): Inode['xattrs'] {
  if (xattrs === null) return null;
  const kept = [...xattrs].filter(([name]) => /^(user|trusted|security)\../.test(name) && !/^(user|trusted)\.overlay\./.test(name));
  // Out of the header that they came in, or all of it would stay in memory.
  return kept.length === 0 ? null : new Map(kept.map(([name, value]) => [name, Buffer.from(value)]));
}
