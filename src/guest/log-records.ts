// The kept log of a process as the agent wrote it: records of a channel, a wall-clock time and bytes.
// Read as it comes, without waiting for a whole record: what a record announces is never allocated.
import type { OutputChannel } from './agent-process.ts';
import { CHANNEL } from './protocol.ts';

/** Channel, wall milliseconds, length. */
const RECORD_HEADER_BYTES = 1 + 8 + 4;

/** The bytes are no log. */
export class LogRecordError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'LogRecordError';
  }
}

export type LogPiece = {
  readonly channel: OutputChannel;
  readonly writtenAtMs: number;
  readonly bytes: Uint8Array;
  /** Where the log can be read on from after this piece; null within a record. */
  readonly nextOffset: number | null;
};

export class LogRecords {
  readonly #header = Buffer.alloc(RECORD_HEADER_BYTES);
  #headerBytes = 0;
  #channel: OutputChannel = 'stdout';
  #writtenAtMs = 0;
  #left = 0;
  #offset: number;

  /** `offset` is that of the first record, as the agent said. */
  constructor(offset: number) {
    this.#offset = offset;
  }

  /** What the chunk holds, as views into it. A long record may come in several pieces. @throws LogRecordError */
  *push(chunk: Uint8Array): Generator<LogPiece, void, undefined> {
    for (let at = 0; at < chunk.byteLength; ) {
      if (this.#left === 0) {
        const take = Math.min(RECORD_HEADER_BYTES - this.#headerBytes, chunk.byteLength - at);
        this.#header.set(chunk.subarray(at, at + take), this.#headerBytes);
        this.#headerBytes += take;
        at += take;
        this.#offset += take;
        if (this.#headerBytes === RECORD_HEADER_BYTES) this.#begin();
        continue;
      }
      const bytes = chunk.subarray(at, at + this.#left);
      this.#left -= bytes.byteLength;
      at += bytes.byteLength;
      this.#offset += bytes.byteLength;
      yield { channel: this.#channel, writtenAtMs: this.#writtenAtMs, bytes, nextOffset: this.#left === 0 ? this.#offset : null };
    }
  }

  #begin(): void {
    this.#headerBytes = 0;
    const channel = this.#header.readUInt8(0);
    if (channel !== CHANNEL.stdout && channel !== CHANNEL.stderr) throw new LogRecordError(`a record of channel ${channel}`);
    this.#channel = channel === CHANNEL.stdout ? 'stdout' : 'stderr';
    this.#writtenAtMs = Math.min(Number(this.#header.readBigUInt64LE(1)), Number.MAX_SAFE_INTEGER);
    this.#left = this.#header.readUInt32LE(9);
  }
}
