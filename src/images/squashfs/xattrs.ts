// Extended attributes of squashfs: sets of them, each once, and a number for each set.
import { NO_XATTR } from './format.ts';
import { indexed, lengthOf, MetadataTable } from './tables.ts';

const PREFIXES = ['user.', 'trusted.', 'security.'] as const;

export class XattrTable {
  readonly #values = new MetadataTable();
  readonly #sets = new MetadataTable();
  /** By what is in them. */
  readonly #known = new Map<string, number>();
  /** From the beginning of its blocks to its head, which is what the superblock points to. */
  headOffset = 0;

  get isEmpty(): boolean {
    return this.#known.size === 0;
  }

  /** The number of this set; `NO_XATTR` for none. */
  add(xattrs: ReadonlyMap<string, Buffer> | null): number {
    const pairs = [...(xattrs ?? [])].toSorted(([a], [b]) => (a < b ? -1 : 1)).flatMap(([name, value]) => pairOf(name, value));
    if (pairs.length === 0) return NO_XATTR;
    const bytes = Buffer.concat(pairs);
    const key = bytes.toString('latin1');
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const { block, offset } = this.#values.here;
    this.#values.append(bytes);
    const entry = Buffer.alloc(16);
    entry.writeBigUInt64LE((BigInt(block) << 16n) | BigInt(offset), 0);
    entry.writeUInt32LE(pairs.length, 8);
    entry.writeUInt32LE(bytes.byteLength, 12);
    this.#sets.append(entry);
    const number = this.#known.size;
    this.#known.set(key, number);
    return number;
  }

  /** All of it, to lie from `at` on: values, sets, head and index. */
  blocks(at: number): readonly Buffer[] {
    const values = this.#values.finish();
    const { blocks, index } = indexed(this.#sets, at + lengthOf(values));
    const head = Buffer.alloc(16);
    head.writeBigUInt64LE(BigInt(at), 0);
    head.writeUInt32LE(this.#known.size, 8);
    this.headOffset = lengthOf(values) + lengthOf(blocks);
    return [...values, ...blocks, head, index];
  }
}

function pairOf(name: string, value: Buffer): readonly Buffer[] {
  const type = PREFIXES.findIndex((prefix) => name.startsWith(prefix));
  if (type < 0) return [];
  const rest = Buffer.from(name.slice(PREFIXES[type]?.length), 'latin1');
  const key = Buffer.alloc(4);
  key.writeUInt16LE(type, 0);
  key.writeUInt16LE(rest.byteLength, 2);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(value.byteLength, 0);
  return [Buffer.concat([key, rest, length, value])];
}
