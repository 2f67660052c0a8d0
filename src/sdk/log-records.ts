// The records of a main process's log, out of a stream that comes in any pieces: see docs/api.md.
// Pieces of one record are passed on as they come, so that nothing is held.
import { HutchError } from '../domain/errors.ts';

const HEADER_BYTES = 13;

export type LogPiece = {
  readonly channel: 'stdout' | 'stderr';
  readonly wallMs: number;
  readonly bytes: Uint8Array /** Whether a record ends here. */;
  readonly last: boolean;
};

export class LogRecordReader {
  readonly #header = Buffer.alloc(HEADER_BYTES);
  #have = 0;
  #remaining = 0;
  #pushed = 0;
  #whole = 0;

  /** Bytes up to the end of the last whole record that was given: where the log can be read on from. */
  get wholeBytes(): number {
    return this.#whole;
  }

  *push(chunk: Uint8Array): Generator<LogPiece, void, undefined> {
    let at = 0;
    while (at < chunk.byteLength) {
      if (this.#have < HEADER_BYTES) {
        const taken = Math.min(HEADER_BYTES - this.#have, chunk.byteLength - at);
        this.#header.set(chunk.subarray(at, at + taken), this.#have);
        this.#have += taken;
        at += taken;
        this.#pushed += taken;
        if (this.#have < HEADER_BYTES) return;
        this.#remaining = this.#header.readUInt32LE(9);
        if (this.#header[0] !== 1 && this.#header[0] !== 2)
          throw new HutchError({ code: 'internal', message: 'the log is not made of log records' });
        if (this.#remaining === 0) this.#endRecord();
        continue;
      }
      const taken = Math.min(this.#remaining, chunk.byteLength - at);
      this.#remaining -= taken;
      this.#pushed += taken;
      const last = this.#remaining === 0;
      const wallMs = Number(this.#header.readBigUInt64LE(1));
      if (last) this.#endRecord();
      yield { channel: this.#header[0] === 1 ? 'stdout' : 'stderr', wallMs, bytes: chunk.subarray(at, at + taken), last };
      at += taken;
    }
  }

  #endRecord(): void {
    this.#have = 0;
    this.#whole = this.#pushed;
  }
}
