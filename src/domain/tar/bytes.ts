// Bytes out of a stream of chunks, in the amounts that a parser asks for. Nothing is kept but the chunk
// at hand, and what of a small amount lies across two of them.

/** Of what lies in a file: its chunks from any place on, so that what nobody wants need not be read. */
export type Seekable = { readonly sizeBytes: number; readonly from: (offset: number) => AsyncIterable<Uint8Array> };

/** Less than this is read sooner than it is passed over. */
const SEEK_BYTES = 1024 * 1024;

export class ByteSource {
  #chunks: AsyncIterator<Uint8Array>;
  readonly #file: Seekable | null;
  #chunk: Buffer = Buffer.alloc(0);
  #at = 0;
  #offset = 0;
  #isEnded = false;

  constructor(source: AsyncIterable<Uint8Array> | Seekable) {
    this.#file = 'from' in source ? source : null;
    this.#chunks = ('from' in source ? source.from(0) : source)[Symbol.asyncIterator]();
  }

  /** How many bytes were taken. */
  get offset(): number {
    return this.#offset;
  }

  /** That many bytes, or those that are left when there are fewer. `length` is small: it is held in memory. */
  async take(length: number): Promise<Buffer> {
    if (this.#chunk.byteLength - this.#at >= length) return this.#cut(length);
    const parts: Buffer[] = [];
    for (let missing = length; missing > 0; ) {
      const part = await this.some(missing);
      if (part === null) break;
      parts.push(Buffer.from(part)); // a copy: the next chunk may lie in the same memory
      missing -= part.byteLength;
    }
    return Buffer.concat(parts);
  }

  /** At least one byte and at most so many, as they lie in memory; null at the end. */
  async some(lengthMax: number): Promise<Buffer | null> {
    while (this.#at === this.#chunk.byteLength) if (!(await this.#next())) return null;
    return this.#cut(Math.min(lengthMax, this.#chunk.byteLength - this.#at));
  }

  /** False when the stream ends before. */
  async skip(length: number): Promise<boolean> {
    const far = length - (this.#chunk.byteLength - this.#at);
    if (this.#file !== null && far > SEEK_BYTES) return await this.#seek(this.#file, this.#offset + length);
    for (let left = length; left > 0; ) {
      const part = await this.some(left);
      if (part === null) return false;
      left -= part.byteLength;
    }
    return true;
  }

  async #seek({ sizeBytes, from }: Seekable, offset: number): Promise<boolean> {
    if (offset > sizeBytes || this.#isEnded) return false;
    await this.#chunks.return?.();
    this.#chunks = from(offset)[Symbol.asyncIterator]();
    this.#chunk = Buffer.alloc(0);
    this.#at = 0;
    this.#offset = offset;
    return true;
  }

  /** Lets go of the stream, wherever it is. */
  async close(): Promise<void> {
    this.#isEnded = true;
    await this.#chunks.return?.();
  }

  #cut(length: number): Buffer {
    const part = this.#chunk.subarray(this.#at, this.#at + length);
    this.#at += length;
    this.#offset += length;
    return part;
  }

  async #next(): Promise<boolean> {
    if (this.#isEnded) return false;
    const { value, done } = await this.#chunks.next();
    if (done === true) {
      this.#isEnded = true;
      return false;
    }
    this.#chunk = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    this.#at = 0;
    return true;
  }
}
