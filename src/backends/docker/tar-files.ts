// The files of a tar archive that the Engine streams, one after the other, without holding more of it than a piece. It is Go's own
// writer that makes it: ustar, and PAX records where a length or a name does not fit.
import { BLOCK_BYTES, padding } from '../../domain/tar-entry.ts';
import type { Operation } from '../../host/operation.ts';

const PAX_BYTES_MAX = 1024 * 1024;

/** What nobody takes of `content` is passed over when the next one is asked for. */
export type TarFile = { readonly name: string; readonly bytes: number; readonly content: AsyncIterable<Uint8Array> };

export async function* filesOf(op: Operation, chunks: AsyncIterable<Uint8Array>): AsyncGenerator<TarFile, void, undefined> {
  const source = new Pieces(op, chunks);
  let long: { readonly name?: string; readonly bytes?: number } = {};
  for (;;) {
    const header = await source.take(BLOCK_BYTES);
    if (header.every((byte) => byte === 0)) break;
    const flag = String.fromCharCode(header[156] ?? 0);
    const said = lengthOf(op, header);
    if (flag === 'x' || flag === 'g') {
      if (said > PAX_BYTES_MAX) throw notUnderstood(op);
      const records = await source.take(said);
      await source.take(padding(said));
      if (flag === 'x') long = recordsOf(op, records);
      continue;
    }
    const { name = text(header.subarray(0, 100)), bytes = said } = long;
    long = {};
    let left = bytes;
    const content = async function* (): AsyncGenerator<Uint8Array> {
      while (left > 0) {
        const piece = await source.some(left);
        left -= piece.byteLength;
        yield piece;
      }
    };
    if (flag === '0' || flag === '\0') yield { name, bytes, content: content() };
    while (left > 0) left -= (await source.some(left)).byteLength;
    await source.take(padding(bytes));
  }
  await source.rest();
}

function lengthOf(op: Operation, header: Buffer): number {
  const field = header.subarray(124, 136);
  // Above 8 GiB as a number in base 256, with the highest bit set.
  const length = ((field[0] ?? 0) & 0x80) === 0 ? Number.parseInt(text(field).trim() || '0', 8) : Number(field.readBigUInt64BE(4));
  if (!Number.isSafeInteger(length) || length < 0) throw notUnderstood(op);
  return length;
}

function recordsOf(op: Operation, bytes: Buffer): { readonly name?: string; readonly bytes?: number } {
  const found: { name?: string; bytes?: number } = {};
  for (let at = 0; at < bytes.byteLength; ) {
    const space = bytes.indexOf(0x20, at);
    const length = Number.parseInt(bytes.subarray(at, space).toString('latin1'), 10);
    if (space < 0 || !(length > space - at + 1) || at + length > bytes.byteLength) throw notUnderstood(op);
    const [key, ...value] = bytes
      .subarray(space + 1, at + length - 1)
      .toString('latin1')
      .split('=');
    if (key === 'path') found.name = value.join('=');
    if (key === 'size') found.bytes = Number(value.join('='));
    at += length;
  }
  if (found.bytes !== undefined && !(Number.isSafeInteger(found.bytes) && found.bytes >= 0)) throw notUnderstood(op);
  return found;
}

function text(field: Buffer): string {
  const end = field.indexOf(0);
  return field.subarray(0, end < 0 ? undefined : end).toString('latin1');
}

function notUnderstood(op: Operation): Error {
  return op.error('internal', "an archive of the Docker Engine's is not understood");
}

class Pieces {
  readonly #op: Operation;
  readonly #chunks: AsyncIterator<Uint8Array>;
  #have: Buffer = Buffer.alloc(0);

  constructor(op: Operation, chunks: AsyncIterable<Uint8Array>) {
    this.#op = op;
    this.#chunks = chunks[Symbol.asyncIterator]();
  }

  /** At least one byte, at most `most`. */
  async some(most: number): Promise<Buffer> {
    if (this.#have.byteLength === 0 && !(await this.#more()))
      throw this.#op.error('unavailable', 'the Docker Engine hung up in the middle of an archive');
    const piece = this.#have.subarray(0, most);
    this.#have = this.#have.subarray(piece.byteLength);
    return piece;
  }

  async take(length: number): Promise<Buffer> {
    const pieces: Buffer[] = [];
    for (let left = length; left > 0; ) {
      const piece = await this.some(left);
      left -= piece.byteLength;
      pieces.push(piece);
    }
    return Buffer.concat(pieces);
  }

  /** To the end of the stream. */
  async rest(): Promise<void> {
    while (await this.#more());
  }

  async #more(): Promise<boolean> {
    const next = await this.#chunks.next();
    if (next.done === true) return false;
    this.#have = Buffer.from(next.value.buffer, next.value.byteOffset, next.value.byteLength);
    return true;
  }
}
