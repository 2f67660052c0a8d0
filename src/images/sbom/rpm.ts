// The packages of an rpm database in its present form, a file of SQLite. It is read here, by the format that https://sqlite.org/fileformat2.html
// describes and the headers that rpm keeps in it (rpm's docs/manual/hregions.md): the file is an image's and may be anything, and no
// program is given it. Pure; what makes no sense is left out.

export type RpmPackage = {
  readonly name: string;
  /** `[EPOCH:]VERSION-RELEASE`. */
  readonly version: string;
  readonly architecture: string | null;
  readonly license: string | null;
};

const MAGIC = 'SQLite format 3\0';
const HEADER_BYTES = 100;
const INTERIOR = 5;
const LEAF = 13;
const ROW_BYTES_MAX = 16 * 1024 * 1024;
/** Its size, its number and where it lies. */
const CELL_BYTES_MIN = 4;
const ENTRY_BYTES = 16;
const INT32 = 4;
const TEXTS = new Set([6, 8, 9]);
const TAG = { name: 1000, version: 1001, release: 1002, epoch: 1003, license: 1014, architecture: 1022 };
/** Keys that signatures are checked with lie among the packages. */
const KEYS = 'gpg-pubkey';

/** Null: it is no such database. */
export function rpmPackages(content: Buffer): readonly RpmPackage[] | null {
  try {
    const pages = new Pages(content);
    const root = rootOf(pages, 'Packages');
    if (root === null) return null;
    const found: RpmPackage[] = [];
    for (const row of pages.rows(root)) {
      const blob = blobIn(row);
      const one = blob === null ? null : packageIn(blob);
      if (one !== null && one.name !== KEYS) found.push(one);
    }
    return found;
  } catch (error) {
    if (error instanceof RangeError || error instanceof NoDatabase) return null; // it leads out of itself
    throw error;
  }
}

class NoDatabase extends Error {}

class Pages {
  readonly #content: Buffer;
  readonly #size: number;
  readonly #usable: number;
  /** Each page belongs to one place. */
  readonly #seen = new Set<number>();
  /** Rows do not overlap. */
  #rowBytes = 0;

  constructor(content: Buffer) {
    if (content.toString('latin1', 0, MAGIC.length) !== MAGIC || content.byteLength < HEADER_BYTES) throw new NoDatabase();
    const said = content.readUInt16BE(16);
    this.#size = said === 1 ? 65_536 : said;
    this.#usable = this.#size - content.readUInt8(20);
    if (this.#size < 512 || this.#usable < 480) throw new NoDatabase();
    this.#content = content;
  }

  #page(number: number): Buffer {
    const at = (number - 1) * this.#size;
    if (number < 1 || at + this.#size > this.#content.byteLength || this.#seen.has(number)) throw new NoDatabase();
    this.#seen.add(number);
    return this.#content.subarray(at, at + this.#size);
  }

  /** What is in a table, row by row. */
  *rows(root: number): Generator<Buffer> {
    const waiting = [root];
    for (let number = waiting.pop(); number !== undefined; number = waiting.pop()) {
      const page = this.#page(number);
      const head = number === 1 ? HEADER_BYTES : 0;
      const kind = page.readUInt8(head);
      const cells = page.readUInt16BE(head + 3);
      if (kind !== INTERIOR && kind !== LEAF) throw new NoDatabase();
      const first = head + (kind === INTERIOR ? 12 : 8);
      if (kind === INTERIOR) waiting.push(page.readUInt32BE(head + 8));
      for (let cell = 0; cell < cells; cell += 1) {
        const at = page.readUInt16BE(first + 2 * cell);
        if (kind === INTERIOR) waiting.push(page.readUInt32BE(at));
        else yield this.#row(page, at);
      }
    }
  }

  #row(page: Buffer, at: number): Buffer {
    const size = varint(page, at);
    const start = varint(page, size.next).next;
    const bytes = size.value;
    this.#rowBytes += bytes + CELL_BYTES_MIN;
    if (bytes > ROW_BYTES_MAX || this.#rowBytes > this.#content.byteLength) throw new NoDatabase();
    const local = this.#localBytes(bytes);
    const pieces = [page.subarray(start, start + local)];
    let left = bytes - local;
    for (let next = left > 0 ? page.readUInt32BE(start + local) : 0; left > 0; ) {
      const more = this.#page(next);
      const taken = Math.min(left, this.#usable - 4);
      pieces.push(more.subarray(4, 4 + taken));
      left -= taken;
      next = more.readUInt32BE(0);
    }
    return pieces.length === 1 ? (pieces[0] ?? Buffer.alloc(0)) : Buffer.concat(pieces);
  }

  /** How much of a row lies in its page; the rest has pages of its own. */
  #localBytes(bytes: number): number {
    const most = this.#usable - 35;
    if (bytes <= most) return bytes;
    const least = Math.floor(((this.#usable - 12) * 32) / 255) - 23;
    const some = least + ((bytes - least) % (this.#usable - 4));
    return some <= most ? some : least;
  }
}

function varint(buffer: Buffer, at: number): { readonly value: number; readonly next: number } {
  let value = 0;
  for (let index = 0; index < 8; index += 1) {
    const byte = buffer.readUInt8(at + index);
    value = value * 128 + (byte & 0x7f);
    if (byte < 0x80) return { value, next: at + index + 1 };
  }
  return { value: value * 256 + buffer.readUInt8(at + 8), next: at + 9 };
}

type Column = { readonly type: number; readonly bytes: Buffer };

function columns(row: Buffer): readonly Column[] {
  const head = varint(row, 0);
  const found: Column[] = [];
  let data = head.value;
  for (let at = head.next; at < head.value; ) {
    const { value: type, next } = varint(row, at);
    const bytes = type >= 12 ? Math.floor((type - 12) / 2) : ([0, 1, 2, 3, 4, 6, 8, 8, 0, 0][type] ?? 0);
    found.push({ type, bytes: row.subarray(data, data + bytes) });
    data += bytes;
    at = next;
  }
  return found;
}

/** The first page of a table. */
function rootOf(pages: Pages, name: string): number | null {
  for (const row of pages.rows(1)) {
    const [kind, called, , root] = columns(row);
    if (kind?.bytes.toString() === 'table' && called?.bytes.toString() === name && root !== undefined && root.bytes.byteLength > 0)
      return root.bytes.readUIntBE(0, Math.min(root.bytes.byteLength, 6));
  }
  return null;
}

function blobIn(row: Buffer): Buffer | null {
  return columns(row).find(({ type }) => type >= 12 && type % 2 === 0)?.bytes ?? null;
}

function packageIn(header: Buffer): RpmPackage | null {
  if (header.byteLength < 8) return null;
  const [entries, data] = [header.readUInt32BE(0), 8 + header.readUInt32BE(0) * ENTRY_BYTES];
  if (data > header.byteLength) return null;
  const places = new Map<number, { readonly type: number; readonly at: number }>();
  for (let index = 0; index < entries; index += 1) {
    const at = 8 + index * ENTRY_BYTES;
    places.set(header.readUInt32BE(at), { type: header.readUInt32BE(at + 4), at: data + header.readUInt32BE(at + 8) });
  }
  const text = (tag: number): string | null => {
    const place = places.get(tag);
    if (place === undefined || !TEXTS.has(place.type)) return null;
    const end = header.indexOf(0, place.at);
    return place.at >= header.byteLength || end < 0 ? null : header.toString('utf8', place.at, end);
  };
  const [name, version, release] = [text(TAG.name), text(TAG.version), text(TAG.release)];
  if (name === null || version === null || release === null) return null;
  const epoch = places.get(TAG.epoch);
  const hasEpoch = epoch?.type === INT32 && epoch.at + 4 <= header.byteLength;
  return {
    name,
    version: `${hasEpoch ? `${header.readUInt32BE(epoch.at)}:` : ''}${version}-${release}`,
    architecture: text(TAG.architecture),
    license: text(TAG.license),
  };
}
