// Small frames of one turn, put together in one place: one write in place of one for each. What is gathered is copied
// out when it is written, so the place is used again at once.
import type { Duplex } from 'node:stream';
import { writeHeader, writeU32 } from './frames.ts';
import { FRAME_OVERHEAD_BYTES, type FrameType, HEADER_BYTES } from './protocol.ts';

const PLACE_BYTES = 65_536;

/** One for all connections: nothing is left in it between two turns. */
const place = new Uint8Array(PLACE_BYTES);

export class Gather {
  readonly #duplex: Duplex;
  readonly #mark: number;
  #bytes = 0;

  constructor(duplex: Duplex, mark: number) {
    this.#duplex = duplex;
    this.#mark = mark;
  }

  /** False when the pipe is full. */
  add(type: FrameType, flag: number, stream: number, payload: Uint8Array): boolean {
    const length = payload.byteLength;
    const accepted = this.#bytes + length + FRAME_OVERHEAD_BYTES <= PLACE_BYTES || this.flush();
    writeHeader(place, this.#bytes, type, flag, stream, length);
    place.set(payload, this.#bytes + HEADER_BYTES);
    writeU32(place, this.#bytes + HEADER_BYTES + length, this.#mark);
    this.#bytes += length + FRAME_OVERHEAD_BYTES;
    return accepted;
  }

  /** To be called before anything else is written, and at the end. */
  flush(onWritten?: (error?: Error | null) => void): boolean {
    if (this.#bytes === 0) return true;
    const bytes = Buffer.allocUnsafe(this.#bytes);
    bytes.set(place.subarray(0, this.#bytes));
    this.#bytes = 0;
    return this.#duplex.write(bytes, onWritten);
  }
}
