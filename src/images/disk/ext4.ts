// ext2, ext3 and ext4, read as the kernel's Documentation/filesystems/ext4 describes them, and never mounted: a file system that
// somebody gave us is no reason to trust it with a kernel. Every number is checked before it is used; what turns in circles,
// is encrypted, or waits for its journal is refused.
import { ArchiveError } from '../../domain/archive-error.ts';
import { type Disk, number64, remembering } from './bytes.ts';

export type Inode = {
  readonly number: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly sizeBytes: number;
  readonly mtimeSeconds: number;
  readonly links: number;
  readonly flags: number;
  /** Extents, block numbers, a short symlink, or what device it is. */
  readonly block: Buffer;
  readonly xattrs: ReadonlyMap<string, Buffer> | null;
};

export type Child = { readonly name: string; readonly inode: number };

const SUPER_AT = 1_024;
const ROOT = 2;
const EXTENTS = 0x8_0000;
const INLINE = 0x1000_0000;
const ENCRYPTED = 0x800;
const EXTENT_DEPTH_MAX = 5;
const DIRECTORY_BYTES_MAX = 256 * 1024 * 1024;
const CHILDREN_MAX = 1_000_000;
const LINK_BYTES_MAX = 4_095;
const XATTR_MAGIC = 0xea02_0000;
const XATTR_PREFIXES: Readonly<Record<number, string>> = { 1: 'user.', 4: 'trusted.', 6: 'security.' };
const READ_BYTES = 1024 * 1024;

/** What a reader must understand (`s_feature_incompat`), and why it cannot be read with us; the others do not matter to a reader. */
const REFUSED: readonly (readonly [number, string])[] = [
  [0x1, 'is compressed'],
  [0x4, 'was not unmounted, and its journal holds changes that are not in it yet: run e2fsck on it first'],
  [0x8, 'is only a journal'],
  [0x10, 'has its tables in meta groups, which are not understood'],
  [0x1000, 'has data in its directories, which is not understood'],
  [0x8000, 'has data in its inodes (inline_data), which is not understood'],
  [0x1_0000, 'is encrypted'],
];
/** Types in directories, extents, 64 bits, MMP, flexible groups, values in inodes, checksum seed, large directories, case folding. */
const UNDERSTOOD = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x2_0000;

export class Ext4 {
  readonly #data: Disk;
  readonly #tables: Disk;
  readonly #blockBytes: number;
  readonly #blocks: number;
  readonly #inodes: number;
  readonly #perGroup: number;
  readonly #inodeBytes: number;
  readonly #descriptorBytes: number;
  readonly #descriptorsAt: number;
  readonly #is64: boolean;

  private constructor(disk: Disk, block: Buffer) {
    const incompat = block.readUInt32LE(0x60);
    for (const [bit, why] of REFUSED) if ((incompat & bit) !== 0) throw new ArchiveError(`its file system ${why}`);
    if ((incompat & ~UNDERSTOOD) !== 0) throw new ArchiveError('its file system has features that are not understood');
    const log = block.readUInt32LE(0x18);
    if (log > 6) throw new ArchiveError('its file system has blocks of an impossible size');
    this.#data = disk;
    this.#tables = remembering(disk);
    this.#blockBytes = 1_024 << log;
    this.#is64 = (incompat & 0x80) !== 0;
    this.#blocks = block.readUInt32LE(4) + (this.#is64 ? block.readUInt32LE(0x150) * 2 ** 32 : 0);
    this.#inodes = block.readUInt32LE(0);
    this.#perGroup = block.readUInt32LE(0x28);
    this.#inodeBytes = block.readUInt32LE(0x4c) === 0 ? 128 : block.readUInt16LE(0x58);
    this.#descriptorBytes = this.#is64 ? block.readUInt16LE(0xfe) : 32;
    this.#descriptorsAt = (block.readUInt32LE(0x14) + 1) * this.#blockBytes;
    const isSane =
      this.#blocks * this.#blockBytes <= disk.sizeBytes &&
      this.#perGroup > 0 &&
      this.#inodeBytes >= 128 &&
      this.#inodeBytes <= this.#blockBytes &&
      this.#descriptorBytes >= (this.#is64 ? 64 : 32) &&
      this.#descriptorBytes <= 1_024;
    if (!isSane) throw new ArchiveError('its file system is cut off or damaged: its superblock contradicts itself');
  }

  static async open(disk: Disk): Promise<Ext4> {
    const block = await disk.read(SUPER_AT, 1_024);
    if (block.readUInt16LE(0x38) !== 0xef53) throw new ArchiveError('there is no ext4 file system in it');
    return new Ext4(disk, block);
  }

  async root(): Promise<Inode> {
    return await this.inode(ROOT);
  }

  async inode(number: number): Promise<Inode> {
    if (number < 1 || number > this.#inodes) throw new ArchiveError(`its file system names inode ${number} of ${this.#inodes}`);
    const [group, index] = [Math.floor((number - 1) / this.#perGroup), (number - 1) % this.#perGroup];
    const descriptor = await this.#tables.read(this.#descriptorsAt + group * this.#descriptorBytes, this.#descriptorBytes);
    const table = descriptor.readUInt32LE(0x8) + (this.#is64 ? descriptor.readUInt32LE(0x28) * 2 ** 32 : 0);
    const raw = await this.#tables.read(table * this.#blockBytes + index * this.#inodeBytes, this.#inodeBytes);
    const flags = raw.readUInt32LE(0x20);
    if ((flags & ENCRYPTED) !== 0) throw new ArchiveError(`inode ${number} of its file system is encrypted`);
    if ((flags & INLINE) !== 0)
      throw new ArchiveError(`inode ${number} of its file system has its data in itself, which is not understood`);
    const mode = raw.readUInt16LE(0);
    const isLarge = (mode & 0xf000) === 0x8000;
    return {
      number,
      mode,
      uid: raw.readUInt16LE(2) + raw.readUInt16LE(0x78) * 65_536,
      gid: raw.readUInt16LE(0x18) + raw.readUInt16LE(0x7a) * 65_536,
      sizeBytes: number64(BigInt(raw.readUInt32LE(4)) + (isLarge ? BigInt(raw.readUInt32LE(0x6c)) << 32n : 0n), 'a file'),
      mtimeSeconds: mtimeOf(raw),
      links: raw.readUInt16LE(0x1a),
      flags,
      block: Buffer.from(raw.subarray(0x28, 0x64)),
      xattrs: await this.#xattrs(raw),
    };
  }

  /** Its entries but `.` and `..`, in the order in which they stand. */
  async children(directory: Inode): Promise<readonly Child[]> {
    if (directory.sizeBytes > DIRECTORY_BYTES_MAX)
      throw new ArchiveError(`a directory of its file system has ${directory.sizeBytes} bytes`);
    const found: Child[] = [];
    for await (const bytes of this.content(directory)) {
      for (let start = 0; start < bytes.byteLength; start += this.#blockBytes) {
        readEntries(bytes.subarray(start, start + this.#blockBytes), found);
      }
    }
    return found;
  }

  async link(inode: Inode): Promise<string> {
    if (inode.sizeBytes > LINK_BYTES_MAX) throw new ArchiveError(`a symlink of its file system has ${inode.sizeBytes} bytes`);
    if ((inode.flags & EXTENTS) === 0 && inode.sizeBytes < inode.block.byteLength)
      return inode.block.toString('latin1', 0, inode.sizeBytes);
    const parts: Buffer[] = [];
    for await (const bytes of this.content(inode)) parts.push(bytes);
    return Buffer.concat(parts).toString('latin1', 0, inode.sizeBytes);
  }

  /** Holes are zeros. Each chunk is whole blocks, but for the last. */
  async *content(inode: Inode): AsyncGenerator<Buffer> {
    let at = 0;
    /** Where the last run ended, also beyond the file: runs that do not go on would let a few tables stand for any number. */
    let over = 0;
    const blocks = Math.ceil(inode.sizeBytes / this.#blockBytes);
    for await (const { logical, physical, count } of this.#runs(inode, blocks)) {
      if (logical < over) throw new ArchiveError(`the blocks of inode ${inode.number} overlap`);
      over = logical + count;
      if (logical >= blocks) continue; // room that was kept beyond its end
      yield* this.#zeros(at, logical, inode.sizeBytes);
      const end = Math.min(logical + count, blocks);
      if (physical === null) yield* this.#zeros(logical, end, inode.sizeBytes);
      else yield* this.#bytes(physical, logical, end, inode.sizeBytes);
      at = end;
    }
    yield* this.#zeros(at, blocks, inode.sizeBytes);
  }

  async *#bytes(physical: number, from: number, to: number, sizeBytes: number): AsyncGenerator<Buffer> {
    if (physical + (to - from) > this.#blocks) throw new ArchiveError('its file system has data beyond its own end');
    const step = Math.floor(READ_BYTES / this.#blockBytes);
    for (let at = from; at < to; at += step) {
      const bytes = Math.min(Math.min(step, to - at) * this.#blockBytes, sizeBytes - at * this.#blockBytes);
      yield await this.#data.read((physical + at - from) * this.#blockBytes, bytes);
    }
  }

  *#zeros(from: number, to: number, sizeBytes: number): Generator<Buffer> {
    for (let left = Math.min(to * this.#blockBytes, sizeBytes) - from * this.#blockBytes; left > 0; left -= READ_BYTES) {
      yield Buffer.alloc(Math.min(left, READ_BYTES));
    }
  }

  async *#runs(inode: Inode, blocks: number): AsyncGenerator<Run> {
    if ((inode.flags & EXTENTS) !== 0) yield* this.#extents(inode.block, EXTENT_DEPTH_MAX, inode.number);
    else yield* this.#mapped(inode.block, blocks);
  }

  async *#extents(node: Buffer, depthMax: number, number: number): AsyncGenerator<Run> {
    const [magic, count, depth] = [node.readUInt16LE(0), node.readUInt16LE(2), node.readUInt16LE(6)];
    // Only a root may be empty: below, each has a run, or a few of them would lead to any number.
    const isEmpty = count === 0 && depthMax !== EXTENT_DEPTH_MAX;
    if (magic !== 0xf30a || 12 + count * 12 > node.byteLength || depth > depthMax || isEmpty) {
      throw new ArchiveError(`the extents of inode ${number} are damaged`);
    }
    for (let index = 0; index < count; index += 1) {
      const at = 12 + index * 12;
      if (depth > 0) {
        const child = node.readUInt32LE(at + 4) + node.readUInt16LE(at + 8) * 2 ** 32;
        yield* this.#extents(await this.#tables.read(child * this.#blockBytes, this.#blockBytes), depth - 1, number);
        continue;
      }
      const length = node.readUInt16LE(at + 4);
      if (length === 0) throw new ArchiveError(`the extents of inode ${number} are damaged`);
      // More than 32768 is one that was kept and never written.
      const isWritten = length <= 0x8000;
      yield {
        logical: node.readUInt32LE(at),
        physical: isWritten ? node.readUInt16LE(at + 6) * 2 ** 32 + node.readUInt32LE(at + 8) : null,
        count: isWritten ? length : length - 0x8000,
      };
    }
  }

  /** The twelve blocks, and one, two and three levels of tables, of ext2 and ext3. */
  async *#mapped(block: Buffer, blocks: number): AsyncGenerator<Run> {
    const perTable = this.#blockBytes / 4;
    let logical = 0;
    for (let slot = 0; slot < 15 && logical < blocks; slot += 1) {
      const levels = Math.max(0, slot - 11);
      yield* this.#level(block.readUInt32LE(slot * 4), levels, logical, blocks);
      logical += perTable ** levels;
    }
  }

  async *#level(pointer: number, levels: number, logical: number, blocks: number): AsyncGenerator<Run> {
    if (pointer === 0 || logical >= blocks) return;
    if (levels === 0) return yield { logical, physical: pointer, count: 1 };
    const table = await this.#tables.read(pointer * this.#blockBytes, this.#blockBytes);
    const span = (this.#blockBytes / 4) ** (levels - 1);
    for (let index = 0; index * 4 < table.byteLength && logical + index * span < blocks; index += 1) {
      yield* this.#level(table.readUInt32LE(index * 4), levels - 1, logical + index * span, blocks);
    }
  }

  async #xattrs(raw: Buffer): Promise<ReadonlyMap<string, Buffer> | null> {
    const found = new Map<string, Buffer>();
    const extra = raw.byteLength > 130 ? raw.readUInt16LE(0x80) : 0;
    const at = 128 + extra;
    if (at + 4 <= raw.byteLength && raw.readUInt32LE(at) === XATTR_MAGIC) readXattrs(raw.subarray(at + 4), 0, found);
    const block = raw.readUInt32LE(0x68) + raw.readUInt16LE(0x76) * 2 ** 32;
    if (block !== 0) {
      const bytes = await this.#tables.read(block * this.#blockBytes, this.#blockBytes);
      if (bytes.readUInt32LE(0) !== XATTR_MAGIC) throw new ArchiveError('extended attributes of its file system are damaged');
      readXattrs(bytes, 32, found);
    }
    return found.size === 0 ? null : found;
  }
}

type Run = { readonly logical: number; readonly physical: number | null; readonly count: number };

/** Two bits of the part that later kernels added reach beyond 2038. */
function mtimeOf(raw: Buffer): number {
  const seconds = raw.readInt32LE(0x10);
  const hasMore = raw.byteLength >= 0x8c && raw.readUInt16LE(0x80) >= 0x0c;
  return hasMore ? seconds + (raw.readUInt32LE(0x88) & 3) * 2 ** 32 : seconds;
}

function readEntries(block: Buffer, found: Child[]): void {
  for (let at = 0; at + 8 <= block.byteLength; ) {
    const [inode, length, nameLength] = [block.readUInt32LE(at), block.readUInt16LE(at + 4), block.readUInt8(at + 6)];
    if (length < 8 || length % 4 !== 0 || at + length > block.byteLength || 8 + nameLength > length) {
      throw new ArchiveError('a directory of its file system is damaged');
    }
    const name = block.toString('latin1', at + 8, at + 8 + nameLength);
    at += length;
    if (inode === 0 || nameLength === 0 || name === '.' || name === '..') continue;
    if (found.length >= CHILDREN_MAX) throw new ArchiveError(`a directory of its file system has more than ${CHILDREN_MAX} entries`);
    if (/[/\0]/.test(name)) throw new ArchiveError('a name in its file system has a slash or a NUL');
    found.push({ name, inode });
  }
}

/** Values are where their entry says, from the beginning of `bytes`. */
function readXattrs(bytes: Buffer, start: number, found: Map<string, Buffer>): void {
  for (let at = start; at + 16 <= bytes.byteLength; ) {
    const [nameLength, index] = [bytes.readUInt8(at), bytes.readUInt8(at + 1)];
    if (nameLength === 0 && index === 0) return;
    const [offset, inode, size] = [bytes.readUInt16LE(at + 2), bytes.readUInt32LE(at + 4), bytes.readUInt32LE(at + 8)];
    if (at + 16 + nameLength > bytes.byteLength || (inode === 0 && offset + size > bytes.byteLength)) {
      throw new ArchiveError('extended attributes of its file system are damaged');
    }
    const prefix = XATTR_PREFIXES[index];
    if (prefix !== undefined) {
      if (inode !== 0)
        throw new ArchiveError('an extended attribute of its file system lies in an inode of its own, which is not understood');
      found.set(prefix + bytes.toString('latin1', at + 16, at + 16 + nameLength), Buffer.from(bytes.subarray(offset, offset + size)));
    }
    at += 16 + Math.ceil(nameLength / 4) * 4;
  }
}
