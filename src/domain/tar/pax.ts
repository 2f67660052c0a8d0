// PAX records: `LENGTH KEY=VALUE\n`, in front of the entry that they are about.
import { ArchiveError } from '../archive-error.ts';

const XATTR = 'SCHILY.xattr.';
/** As the kernel allows: XATTR_NAME_MAX, XATTR_SIZE_MAX. */
const XATTR_NAME_BYTES_MAX = 255;
const XATTR_VALUE_BYTES_MAX = 65_536;
/** Those of one file. A file system of Linux takes no more than 64 KiB in all. */
const XATTRS_BYTES_MAX = 256 * 1024;

export class PaxRecords {
  readonly #values = new Map<string, Buffer>();
  /** GNU's sparse form 0.0 has a record of the same name for each piece. */
  readonly #sparse: string[] = [];

  set(key: string, value: Buffer): void {
    if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') this.#sparse.push(value.toString('latin1'));
    // An empty value takes back what stood before.
    else if (value.byteLength === 0) this.#values.delete(key);
    else this.#values.set(key, value);
  }

  text(key: string): string | undefined {
    const value = this.#values.get(key)?.toString('latin1');
    if (value?.includes('\0')) throw new ArchiveError(`a PAX header has a NUL in its ${key}`);
    return value;
  }

  number(key: string): number | undefined {
    const text = this.text(key);
    if (text === undefined) return undefined;
    if (!/^\d{1,16}$/.test(text) || !Number.isSafeInteger(Number(text))) {
      throw new ArchiveError(`a PAX header has a ${key} that is no number, or too large`);
    }
    return Number(text);
  }

  /** Whole ones: no file system of ours keeps less. */
  seconds(key: string): number | undefined {
    const text = this.text(key);
    if (text === undefined) return undefined;
    if (!/^-?\d{1,15}(\.\d*)?$/.test(text)) throw new ArchiveError(`a PAX header has a ${key} that is no time`);
    return Math.floor(Number(text));
  }

  sparsePairs(): readonly string[] {
    return this.#sparse;
  }

  *xattrs(): Generator<[name: string, value: Buffer]> {
    for (const [key, value] of this.#values) if (key.startsWith(XATTR)) yield [key.slice(XATTR.length), value];
  }
}

/** On top of those of an earlier header of the same entry. */
export function parsePax(bytes: Buffer, before: PaxRecords | null): PaxRecords {
  const records = before ?? new PaxRecords();
  for (let at = 0; at < bytes.byteLength; ) {
    const space = bytes.indexOf(0x20, at);
    const digits = space < 0 ? '' : bytes.toString('latin1', at, Math.min(space, at + 8));
    const end = at + Number(digits);
    const equals = bytes.indexOf(0x3d, space);
    const isWhole = /^\d{1,7}$/.test(digits) && end <= bytes.byteLength && bytes[end - 1] === 0x0a && equals > space && equals < end;
    if (!isWhole) throw new ArchiveError('a PAX header is damaged');
    records.set(bytes.toString('latin1', space + 1, equals), bytes.subarray(equals + 1, end - 1));
    at = end;
  }
  return records;
}

export function xattrsOf(pax: PaxRecords | null): ReadonlyMap<string, Buffer> | null {
  if (pax === null) return null;
  const found = new Map<string, Buffer>();
  let total = 0;
  for (const [name, value] of pax.xattrs()) {
    if (name.length > XATTR_NAME_BYTES_MAX || /[\0\n]/.test(name))
      throw new ArchiveError('an extended attribute has a name that Linux does not allow');
    if (value.byteLength > XATTR_VALUE_BYTES_MAX) {
      throw new ArchiveError(`an extended attribute has ${value.byteLength} bytes; at most ${XATTR_VALUE_BYTES_MAX} are allowed`);
    }
    total += name.length + value.byteLength;
    if (total > XATTRS_BYTES_MAX) throw new ArchiveError(`the extended attributes of one file take more than ${XATTRS_BYTES_MAX} bytes`);
    found.set(name, value);
  }
  return found.size === 0 ? null : found;
}
