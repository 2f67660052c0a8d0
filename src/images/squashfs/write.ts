// One squashfs of a tree and of layers that are packed already: their data is taken as it is, one after the other,
// and only the tables are made anew. The same tree over the same layers gives the same bytes, wherever
// the layers' data comes from.
import { setImmediate as turn } from 'node:timers/promises';
import type { Inode, Tree } from '../layers/tree.ts';
import {
  BLOCK_BYTES,
  DEVICE_BLOCK_BYTES,
  EXTENDED,
  LZ4,
  MAGIC,
  NO_FRAGMENT,
  NO_TABLE,
  NO_XATTR,
  type PackedFile,
  type PackedLayer,
  STORED,
  SUPERBLOCK_BYTES,
  TYPES,
} from './format.ts';
import { indexed, lengthOf, MetadataTable } from './tables.ts';
import { XattrTable } from './xattrs.ts';

/** The options of LZ4, in a block of their own: version 1, and nothing else. */
const OPTIONS = Buffer.from([0x08, STORED >> 8, 1, 0, 0, 0, 0, 0, 0, 0]);
export const DATA_AT = SUPERBLOCK_BYTES + OPTIONS.byteLength;
/** Tables, owners and extended attributes are not compressed. */
const FLAGS = { tablesStored: 0x1, noFragments: 0x10, noXattrs: 0x200, hasOptions: 0x400, ownersStored: 0x800 };
const ENTRIES_PER_HEADER = 256;
const INODES_PER_TURN = 2_000;
const NAMES_BYTES_MAX_BASIC = 65_535 - 3;

type Place = { readonly block: number; readonly offset: number };
type Made = { readonly number: number; place: Place; readonly nlink: number };
type Dir = Inode & { children: NonNullable<Inode['children']> };

/** `data` gives what of a layer lies in its file. */
export type Written = {
  /** All but the data: head, and tables behind it. */
  readonly head: Buffer;
  readonly tables: readonly Buffer[];
  readonly sizeBytes: number;
};

export async function squashfsOf(tree: Tree, layers: readonly PackedLayer[]): Promise<Written> {
  const bases = basesOf(layers);
  const inodes = new MetadataTable();
  const directories = new MetadataTable();
  const owners = new Owners();
  const xattrs = new XattrTable();
  const { made, order } = await numbered(tree.root);
  const write = (inode: Inode, body: InodeBody): void => {
    const known = made.get(inode);
    if (known === undefined) return;
    known.place = inodes.here;
    const { type, bytes } = body;
    const header = Buffer.alloc(16);
    header.writeUInt16LE(type, 0);
    header.writeUInt16LE(inode.mode & 0o7777, 2);
    header.writeUInt16LE(owners.indexOf(inode.uid), 4);
    header.writeUInt16LE(owners.indexOf(inode.gid), 6);
    header.writeUInt32LE(inode.mtimeSeconds, 8);
    header.writeUInt32LE(known.number, 12);
    inodes.append(header);
    inodes.append(bytes);
  };
  const written = new Set<Inode>();
  let count = 0;
  for (const { dir, parent } of order) {
    for (const name of namesOf(dir)) {
      const inode = dir.children.get(name)?.inode;
      if (inode === undefined || inode.children !== null || written.has(inode)) continue;
      written.add(inode);
      write(inode, bodyOf(inode, made.get(inode)?.nlink ?? 1, xattrs.add(inode.xattrs), layers, bases));
      count += 1;
      if (count % INODES_PER_TURN === 0) await turn();
    }
    const listing = listingOf(dir, made);
    const { block, offset } = directories.here;
    directories.append(listing);
    const known = made.get(dir);
    // The root is its own parent's: one more than all inodes, as everybody writes it.
    const parentNumber = parent === null ? made.size + 1 : (made.get(parent)?.number ?? 0);
    write(dir, directoryBody({ block, offset, bytes: listing.byteLength, nlink: known?.nlink ?? 2, parentNumber }, xattrs.add(dir.xattrs)));
  }
  return joined({ inodes, directories, owners, xattrs, layers, bases, made, root: tree.root });
}

/** Where the data and the fragments of each layer begin. */
type Base = { readonly data: number; readonly fragment: number };

function basesOf(layers: readonly PackedLayer[]): readonly Base[] {
  let [data, fragment] = [DATA_AT, 0];
  return layers.map((layer) => {
    const base = { data, fragment };
    data += layer.bytes;
    fragment += layer.fragments.length;
    return base;
  });
}

function joined({
  inodes,
  directories,
  owners,
  xattrs,
  layers,
  bases,
  made,
  root,
}: {
  readonly inodes: MetadataTable;
  readonly directories: MetadataTable;
  readonly owners: Owners;
  readonly xattrs: XattrTable;
  readonly layers: readonly PackedLayer[];
  readonly bases: readonly Base[];
  readonly made: ReadonlyMap<Inode, Made>;
  readonly root: Inode;
}): Written {
  const tables: Buffer[] = [];
  const inodesAt = layers.reduce((sum, { bytes }) => sum + bytes, DATA_AT);
  let at = inodesAt;
  const put = (...blocks: readonly Buffer[]): number => {
    const here = at;
    tables.push(...blocks);
    at += lengthOf(blocks);
    return here;
  };
  put(...inodes.finish());
  const directoriesAt = put(...directories.finish());
  const fragments = fragmentsOf(layers, bases);
  let fragmentsAt = NO_TABLE;
  if (fragments.count > 0) {
    const { blocks, index } = indexed(fragments.table, at);
    put(...blocks);
    fragmentsAt = BigInt(put(index));
  }
  const ids = indexed(owners.table(), at);
  put(...ids.blocks);
  const ownersAt = put(ids.index);
  const xattrsAt = xattrs.isEmpty ? null : put(...xattrs.blocks(at)) + xattrs.headOffset;
  const head = Buffer.alloc(SUPERBLOCK_BYTES);
  const place = made.get(root)?.place ?? { block: 0, offset: 0 };
  const flags =
    FLAGS.hasOptions |
    FLAGS.tablesStored |
    FLAGS.ownersStored |
    (fragments.count === 0 ? FLAGS.noFragments : 0) |
    (xattrsAt === null ? FLAGS.noXattrs : 0);
  head.writeUInt32LE(MAGIC, 0);
  head.writeUInt32LE(made.size, 4);
  head.writeUInt32LE(0, 8); // made at no time: the same image has the same bytes
  head.writeUInt32LE(BLOCK_BYTES, 12);
  head.writeUInt32LE(fragments.count, 16);
  head.writeUInt16LE(LZ4, 20);
  head.writeUInt16LE(Math.log2(BLOCK_BYTES), 22);
  head.writeUInt16LE(flags, 24);
  head.writeUInt16LE(owners.count, 26);
  head.writeUInt16LE(4, 28);
  head.writeUInt16LE(0, 30);
  head.writeBigUInt64LE((BigInt(place.block) << 16n) | BigInt(place.offset), 32);
  head.writeBigUInt64LE(BigInt(at), 40);
  head.writeBigUInt64LE(BigInt(ownersAt), 48);
  head.writeBigUInt64LE(xattrsAt === null ? NO_TABLE : BigInt(xattrsAt), 56);
  head.writeBigUInt64LE(BigInt(inodesAt), 64);
  head.writeBigUInt64LE(BigInt(directoriesAt), 72);
  head.writeBigUInt64LE(fragmentsAt, 80);
  head.writeBigUInt64LE(NO_TABLE, 88);
  put(Buffer.alloc((DEVICE_BLOCK_BYTES - (at % DEVICE_BLOCK_BYTES)) % DEVICE_BLOCK_BYTES));
  return { head: Buffer.concat([head, OPTIONS]), tables, sizeBytes: at };
}

function fragmentsOf(layers: readonly PackedLayer[], bases: readonly Base[]): { readonly table: MetadataTable; readonly count: number } {
  const table = new MetadataTable();
  let count = 0;
  for (const [at, { fragments }] of layers.entries()) {
    for (const { start, size } of fragments) {
      const entry = Buffer.alloc(16);
      entry.writeBigUInt64LE(BigInt(start + (bases[at]?.data ?? 0)), 0);
      entry.writeUInt32LE(size, 8);
      table.append(entry);
      count += 1;
    }
  }
  return { table, count };
}

/** Every inode with its number and its names; directories with what is below them first. */
async function numbered(root: Dir): Promise<{
  readonly made: ReadonlyMap<Inode, Made>;
  readonly order: readonly { readonly dir: Dir; readonly parent: Dir | null }[];
}> {
  const names = new Map<Inode, number>([[root, 0]]);
  const order: { readonly dir: Dir; readonly parent: Dir | null }[] = [];
  const stack: { readonly dir: Dir; readonly parent: Dir | null }[] = [{ dir: root, parent: null }];
  let seen = 0;
  for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
    const { dir } = next;
    order.push(next);
    for (const name of namesOf(dir)) {
      const inode = dir.children.get(name)?.inode;
      if (inode === undefined) continue;
      names.set(inode, (names.get(inode) ?? 0) + 1);
      if (inode.children !== null) stack.push({ dir: inode as Dir, parent: dir });
    }
    seen += dir.children.size;
    if (seen > INODES_PER_TURN) {
      seen = 0;
      await turn();
    }
  }
  order.reverse();
  const made = new Map<Inode, Made>();
  for (const [inode, count] of names) {
    const below = inode.children === null ? 0 : [...inode.children.values()].filter((child) => child.inode.children !== null).length;
    const nlink = inode.children === null ? count : 2 + below;
    made.set(inode, { number: made.size + 1, place: { block: 0, offset: 0 }, nlink });
  }
  return { made, order };
}

function namesOf(dir: Dir): string[] {
  return [...dir.children.keys()].sort();
}

/** Runs of entries whose inodes lie in one block of the table. */
function listingOf(dir: Dir, made: ReadonlyMap<Inode, Made>): Buffer {
  const parts: Buffer[] = [];
  let run: { readonly block: number; readonly number: number; readonly header: Buffer; count: number } | null = null;
  for (const name of namesOf(dir)) {
    const inode = dir.children.get(name)?.inode;
    const known = inode === undefined ? undefined : made.get(inode);
    if (inode === undefined || known === undefined) continue;
    const { place, number } = known;
    const isNear = run !== null && run.block === place.block && run.count < ENTRIES_PER_HEADER && Math.abs(number - run.number) < 0x7fff;
    if (run === null || !isNear) {
      const header = Buffer.alloc(12);
      header.writeUInt32LE(place.block, 4);
      header.writeUInt32LE(number, 8);
      parts.push(header);
      run = { block: place.block, number, header, count: 0 };
    }
    run.header.writeUInt32LE(run.count, 0); // one less than there are
    run.count += 1;
    const bytes = Buffer.from(name, 'latin1');
    const entry = Buffer.alloc(8);
    entry.writeUInt16LE(place.offset, 0);
    entry.writeInt16LE(number - run.number, 2);
    entry.writeUInt16LE(TYPES[inode.type], 4);
    entry.writeUInt16LE(bytes.byteLength - 1, 6);
    parts.push(entry, bytes);
  }
  return Buffer.concat(parts);
}

type InodeBody = { readonly type: number; readonly bytes: Buffer };

function directoryBody(
  {
    block,
    offset,
    bytes,
    nlink,
    parentNumber,
  }: { readonly block: number; readonly offset: number; readonly bytes: number; readonly nlink: number; readonly parentNumber: number },
  xattr: number,
): InodeBody {
  const size = bytes + 3; // with `.` and `..`, as it has always been counted
  if (bytes <= NAMES_BYTES_MAX_BASIC && xattr === NO_XATTR) {
    const body = Buffer.alloc(16);
    body.writeUInt32LE(block, 0);
    body.writeUInt32LE(nlink, 4);
    body.writeUInt16LE(size, 8);
    body.writeUInt16LE(offset, 10);
    body.writeUInt32LE(parentNumber, 12);
    return { type: TYPES.directory, bytes: body };
  }
  const body = Buffer.alloc(24);
  body.writeUInt32LE(nlink, 0);
  body.writeUInt32LE(size, 4);
  body.writeUInt32LE(block, 8);
  body.writeUInt32LE(parentNumber, 12);
  body.writeUInt16LE(0, 16);
  body.writeUInt16LE(offset, 18);
  body.writeUInt32LE(xattr, 20);
  return { type: TYPES.directory + EXTENDED, bytes: body };
}

function bodyOf(inode: Inode, nlink: number, xattr: number, layers: readonly PackedLayer[], bases: readonly Base[]): InodeBody {
  const { place } = inode;
  switch (inode.type) {
    case 'file': {
      const packed = place === null ? undefined : layers[place.layer]?.files.get(place.ordinal);
      if (place !== null && packed === undefined) throw new Error(`entry ${place.ordinal} of layer ${place.layer} was not packed`);
      return fileBody(packed ?? EMPTY, bases[place?.layer ?? -1] ?? { data: 0, fragment: 0 }, nlink, xattr);
    }
    case 'symlink': {
      const target = Buffer.from(inode.link, 'latin1');
      const numbers = Buffer.alloc(8);
      numbers.writeUInt32LE(nlink, 0);
      numbers.writeUInt32LE(target.byteLength, 4);
      return withXattr('symlink', Buffer.concat([numbers, target]), xattr);
    }
    case 'character':
    case 'block': {
      const numbers = Buffer.alloc(8);
      numbers.writeUInt32LE(nlink, 0);
      const { devMajor: major, devMinor: minor } = inode;
      numbers.writeUInt32LE(((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0, 4);
      return withXattr(inode.type, numbers, xattr);
    }
    default: {
      const numbers = Buffer.alloc(4);
      numbers.writeUInt32LE(nlink, 0);
      return withXattr('fifo', numbers, xattr);
    }
  }
}

const EMPTY: PackedFile = { start: 0, sizeBytes: 0, blocks: [], fragment: null, fragmentOffset: 0 };

function withXattr(type: 'symlink' | 'character' | 'block' | 'fifo', body: Buffer, xattr: number): InodeBody {
  if (xattr === NO_XATTR) return { type: TYPES[type], bytes: body };
  const last = Buffer.alloc(4);
  last.writeUInt32LE(xattr, 0);
  return { type: TYPES[type] + EXTENDED, bytes: Buffer.concat([body, last]) };
}

function fileBody({ start, sizeBytes, blocks, fragment, fragmentOffset }: PackedFile, base: Base, nlink: number, xattr: number): InodeBody {
  const at = blocks.length === 0 ? 0 : start + base.data;
  const index = fragment === null ? NO_FRAGMENT : fragment + base.fragment;
  const holes = blocks.filter((size) => size === 0).length;
  const isBasic = at <= 0xffff_ffff && sizeBytes <= 0xffff_ffff && nlink === 1 && xattr === NO_XATTR && holes === 0;
  const body = Buffer.alloc((isBasic ? 16 : 40) + 4 * blocks.length);
  let list = 16;
  if (isBasic) {
    body.writeUInt32LE(at, 0);
    body.writeUInt32LE(index, 4);
    body.writeUInt32LE(fragmentOffset, 8);
    body.writeUInt32LE(sizeBytes, 12);
  } else {
    body.writeBigUInt64LE(BigInt(at), 0);
    body.writeBigUInt64LE(BigInt(sizeBytes), 8);
    // Bytes that a stat does not count as stored; the kernel takes it from the size.
    body.writeBigUInt64LE(BigInt(Math.min(holes * BLOCK_BYTES, Math.max(0, sizeBytes - 1))), 16);
    body.writeUInt32LE(nlink, 24);
    body.writeUInt32LE(index, 28);
    body.writeUInt32LE(fragmentOffset, 32);
    body.writeUInt32LE(xattr, 36);
    list = 40;
  }
  for (const [number, size] of blocks.entries()) body.writeUInt32LE(size, list + 4 * number);
  return { type: isBasic ? TYPES.file : TYPES.file + EXTENDED, bytes: body };
}

/** Users and groups, each once. */
class Owners {
  readonly #indexes = new Map<number, number>();

  get count(): number {
    return this.#indexes.size;
  }

  indexOf(id: number): number {
    const known = this.#indexes.get(id);
    if (known !== undefined) return known;
    const index = this.#indexes.size;
    if (index > 0xfffe) throw new TooManyOwners();
    this.#indexes.set(id, index);
    return index;
  }

  table(): MetadataTable {
    const table = new MetadataTable();
    for (const id of this.#indexes.keys()) {
      const bytes = Buffer.alloc(4);
      bytes.writeUInt32LE(id, 0);
      table.append(bytes);
    }
    return table;
  }
}

/** squashfs has numbers for so many. */
export class TooManyOwners extends Error {}
