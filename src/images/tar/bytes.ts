// Bytes out of a stream of chunks, in the amounts that a parser asks for. Nothing is kept but the chunk
// at hand, and what of a small amount lies across two of them.

export class ByteSource {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #chunk: Buffer = Buffer.alloc(0);
  #at = 0;
  #offset = 0;
  #isEnded = false;

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks[Symbol.asyncIterator]();
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
      parts.push(part);
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
    for (let left = length; left > 0; ) {
      const part = await this.some(left);
      if (part === null) return false;
      left -= part.byteLength;
    }
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
