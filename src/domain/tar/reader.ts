// Reads a tar archive as a stream: ustar, PAX and GNU headers, sparse files of all four kinds. Whatever
// the bytes are, it gives entries or throws an ArchiveError: it never reads past a bound, and holds one
// header in memory. What a header says is checked for form here; what a path may do, by the tree.

import { ArchiveError, CutOffError, shown } from '../archive-error.ts';
import { ByteSource, type Seekable } from './bytes.ts';
import { BLOCK_BYTES, type DataPiece, type EntryType, PATH_BYTES_MAX, padding, type TarEntry } from './entry.ts';
import { fieldNumber, fieldText } from './fields.ts';
import { type PaxRecords, parsePax, xattrsOf } from './pax.ts';
import { checkPieces, gnuPieces, mapPieces, pieceLines, SPARSE_PIECES_MAX } from './sparse.ts';

/** Of one PAX header: extended attributes of Linux take at most 64 KiB each. */
const PAX_BYTES_MAX = 1024 * 1024;
/** Headers in front of one entry: more is an archive that goes in circles. */
const PREFIXES_MAX = 16;
const ZEROS = Buffer.alloc(64 * 1024);

const TYPES: Readonly<Record<string, EntryType>> = {
  '0': 'file',
  '\0': 'file',
  '7': 'file',
  S: 'file',
  '1': 'hardlink',
  '2': 'symlink',
  '3': 'character',
  '4': 'block',
  '5': 'directory',
  '6': 'fifo',
};

type Prefixes = { pax: PaxRecords | null; longPath: string | null; longLink: string | null };

/** Whoever has one disposes it: the stream behind it may hold a file open. */
export class TarReader implements AsyncDisposable {
  readonly #source: ByteSource;
  /** Bytes of the last entry's content that nobody took, with their padding. */
  #unread = 0;
  #padding = 0;
  #entry: TarEntry | null = null;
  /** Whether a block of zeros, and not the end of the stream, said that there are no more. */
  #hasEnd = false;

  constructor(source: AsyncIterable<Uint8Array> | Seekable) {
    this.#source = new ByteSource(source);
  }

  /** How far the archive was read: after `next`, where the content of its entry begins. */
  get offset(): number {
    return this.#source.offset;
  }

  /** The next entry; what is left of the last one's content is passed over. Null at the end of the archive. */
  async next(): Promise<TarEntry | null> {
    const prefixes: Prefixes = { pax: null, longPath: null, longLink: null };
    for (let count = 0; count < PREFIXES_MAX; count += 1) {
      await this.#passOver();
      const header = await this.#header();
      if (header === null) {
        if (count > 0) throw new ArchiveError('the archive ends after a header that announces an entry');
        return null;
      }
      const flag = String.fromCharCode(header[156] ?? 0);
      const size = fieldNumber(header, 124, 12, 'size');
      switch (flag) {
        case 'x':
          prefixes.pax = parsePax(await this.#content(size, PAX_BYTES_MAX, 'a PAX header'), prefixes.pax);
          break;
        case 'g': // of the whole archive: comments, in practice. Other tools pass over it as well.
          await this.#content(size, PAX_BYTES_MAX, 'a PAX header');
          break;
        case 'L':
          prefixes.longPath = untilNul(await this.#content(size, PATH_BYTES_MAX + 1, 'a long name'));
          break;
        case 'K':
          prefixes.longLink = untilNul(await this.#content(size, PATH_BYTES_MAX + 1, 'the target of a long link'));
          break;
        default:
          this.#entry = await this.#read(header, flag, size, prefixes);
          return this.#entry;
      }
    }
    throw new ArchiveError(`more than ${PREFIXES_MAX} headers stand before one entry`);
  }

  /** The content of the entry that `next` gave last, holes as zeros. What it yields is valid until the next step. */
  async *content(): AsyncGenerator<Uint8Array> {
    const entry = this.#entry;
    if (entry === null) return;
    const pieces = entry.sparse ?? [{ offset: 0, length: entry.sizeBytes }];
    let at = 0;
    for (const { offset, length } of pieces) {
      yield* zeros(offset - at);
      for (let left = length; left > 0; ) {
        const part = await this.#source.some(left);
        if (part === null) throw new CutOffError();
        left -= part.byteLength;
        this.#unread -= part.byteLength;
        yield part;
      }
      at = offset + length;
    }
    yield* zeros(entry.sizeBytes - at);
  }

  /** After the last entry. @throws ArchiveError where the archive has no proper end, or anything stands after it. */
  async finish(): Promise<void> {
    const end = await this.#source.take(BLOCK_BYTES);
    if (!this.#hasEnd || end.byteLength < BLOCK_BYTES) throw new CutOffError();
    for (let part: Buffer | null = end; part !== null; part = await this.#source.some(ZEROS.byteLength)) {
      if (ZEROS.compare(part, 0, part.byteLength, 0, part.byteLength) !== 0) throw new ArchiveError('something stands after its end');
    }
  }

  /** Takes the rest of the stream, whatever it is: what stands after an archive's end is no part of it, but of its digest. */
  async drain(): Promise<void> {
    while ((await this.#source.some(Number.MAX_SAFE_INTEGER)) !== null);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#source.close();
  }

  async #passOver(): Promise<void> {
    const length = this.#unread + this.#padding;
    this.#unread = 0;
    this.#padding = 0;
    this.#entry = null;
    if (!(await this.#source.skip(length))) throw new CutOffError();
  }

  async #header(): Promise<Buffer | null> {
    const at = this.#source.offset;
    const block = Buffer.from(await this.#source.take(BLOCK_BYTES)); // a copy: what comes next may lie in the same memory
    // Many an archive ends without its two blocks of zeros.
    this.#hasEnd = block.byteLength === BLOCK_BYTES;
    if (block.byteLength === 0 || ZEROS.compare(block, 0, block.byteLength, 0, block.byteLength) === 0) return null;
    if (block.byteLength < BLOCK_BYTES)
      throw at === 0 ? new CutOffError(`it is no tar archive, or one that is cut off after ${block.byteLength} bytes`) : new CutOffError();
    const said = /^[ \0]*([0-7]+)[ \0]*$/.exec(block.toString('latin1', 148, 156))?.[1];
    const { unsigned, signed } = checksums(block);
    if (said !== undefined && [unsigned, signed].includes(Number.parseInt(said, 8))) return block;
    throw new ArchiveError(`it is no tar archive: there is no header at byte ${at}`);
  }

  async #content(size: number, bytesMax: number, what: string): Promise<Buffer> {
    if (size > bytesMax) throw new ArchiveError(`${what} takes ${size} bytes; at most ${bytesMax} are read`);
    const content = Buffer.from(await this.#source.take(size));
    if (content.byteLength < size) throw new CutOffError();
    this.#padding = padding(size);
    return content;
  }

  async #read(header: Buffer, flag: string, headerSize: number, { pax, longPath, longLink }: Prefixes): Promise<TarEntry> {
    const ownPath = ustarPath(header);
    const path = pax?.text('GNU.sparse.name') ?? pax?.text('path') ?? longPath ?? ownPath;
    const known = TYPES[flag];
    if (known === undefined) throw new ArchiveError(`${shown(path)} is of a kind that is not known (${shown(flag)})`);
    // The oldest archives know no directories, only names that end so.
    const type = known === 'file' && flag !== 'S' && path.endsWith('/') ? 'directory' : known;
    const link = pax?.text('linkpath') ?? longLink ?? fieldText(header, 157, 100);
    const storedBytes = type === 'file' ? (pax?.number('size') ?? headerSize) : 0;
    this.#unread = storedBytes;
    this.#padding = padding(storedBytes);
    const { sparse, sizeBytes } = type === 'file' ? await this.#extent(header, flag, storedBytes, pax, path) : NOTHING;
    return {
      type,
      path,
      link,
      mode: fieldNumber(header, 100, 8, 'mode') & 0o7777,
      uid: id(pax?.number('uid') ?? fieldNumber(header, 108, 8, 'uid'), path),
      gid: id(pax?.number('gid') ?? fieldNumber(header, 116, 8, 'gid'), path),
      mtimeSeconds: pax?.seconds('mtime') ?? fieldNumber(header, 136, 12, 'mtime', 'signed'),
      sizeBytes,
      devMajor: isDevice(type) ? fieldNumber(header, 329, 8, 'devmajor') : 0,
      devMinor: isDevice(type) ? fieldNumber(header, 337, 8, 'devminor') : 0,
      xattrs: xattrsOf(pax),
      sparse,
    };
  }

  /** Size and holes of a file. `stored` is what the archive has of it. */
  async #extent(
    header: Buffer,
    flag: string,
    stored: number,
    pax: PaxRecords | null,
    path: string,
  ): Promise<{ sparse: readonly DataPiece[] | null; sizeBytes: number }> {
    let pieces: readonly DataPiece[];
    let sizeBytes: number;
    if (flag === 'S') {
      sizeBytes = fieldNumber(header, 483, 12, 'size');
      pieces = await gnuPieces(header, path, async () => {
        const block = await this.#source.take(BLOCK_BYTES);
        if (block.byteLength < BLOCK_BYTES) throw new CutOffError();
        return block;
      });
    } else if (pax?.text('GNU.sparse.major') === '1') {
      sizeBytes = pax.number('GNU.sparse.realsize') ?? stored;
      const map = await pieceLines(path, async () => {
        if (this.#unread < BLOCK_BYTES) throw new ArchiveError(`the map of the holes in ${shown(path)} is longer than the file`);
        this.#unread -= BLOCK_BYTES;
        const block = await this.#source.take(BLOCK_BYTES);
        if (block.byteLength < BLOCK_BYTES) throw new CutOffError();
        return Buffer.from(block);
      });
      pieces = map;
    } else if (pax?.text('GNU.sparse.size') !== undefined) {
      sizeBytes = pax.number('GNU.sparse.size') ?? stored;
      pieces = mapPieces(pax.text('GNU.sparse.map') ?? pax.sparsePairs().join(','), path);
    } else {
      return { sparse: null, sizeBytes: stored };
    }
    if (pieces.length > SPARSE_PIECES_MAX) throw new ArchiveError(`${shown(path)} has more than ${SPARSE_PIECES_MAX} pieces`);
    checkPieces(pieces, { sizeBytes, storedBytes: this.#unread, path });
    return { sparse: pieces, sizeBytes };
  }
}

/** Of a header, its own field counted as blanks; by index, as an iterator would make an object of each of millions of bytes. */
function checksums(block: Buffer): { readonly unsigned: number; readonly signed: number } {
  let unsigned = 8 * 0x20;
  let large = 0;
  for (let index = 0; index < BLOCK_BYTES; index += 1) {
    if (index >= 148 && index < 156) continue;
    const byte = block[index] ?? 0;
    unsigned += byte;
    if (byte > 127) large += 1;
  }
  return { unsigned, signed: unsigned - 256 * large };
}

const NOTHING = { sparse: null, sizeBytes: 0 } as const;

function* zeros(length: number): Generator<Uint8Array> {
  for (let left = length; left > 0; left -= ZEROS.byteLength) yield left >= ZEROS.byteLength ? ZEROS : ZEROS.subarray(0, left);
}

function ustarPath(header: Buffer): string {
  const name = fieldText(header, 0, 100);
  // GNU's own form has other things where ustar has the beginning of a long name.
  const isUstar = header.toString('latin1', 257, 263) === 'ustar\0';
  const prefix = isUstar ? fieldText(header, 345, 155) : '';
  return prefix === '' ? name : `${prefix}/${name}`;
}

function untilNul(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString('latin1', 0, end < 0 ? bytes.byteLength : end);
}

function id(value: number, path: string): number {
  if (value <= 0xffff_fffe) return value;
  throw new ArchiveError(`${shown(path)} belongs to user or group ${value}, which no Linux has`);
}

function isDevice(type: EntryType): boolean {
  return type === 'character' || type === 'block';
}
