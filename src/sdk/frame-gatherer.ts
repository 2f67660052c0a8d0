// Cuts what a WebSocket's server sends into whole frames, each in memory of its own. `ws` puts a message
// together from the reads of a socket, 64 KiB of new memory for each; of frames that come whole it copies
// nothing, and the reads can all use the same memory. Nothing is judged here: that is for `ws`.
// Always true: the bytes given out are the bytes taken in, in their order.

const HEAD_END = Buffer.from('\r\n\r\n');
const SWITCHED = Buffer.from('HTTP/1.1 101 ');
/** An answer's head beyond this is none that is waited for. */
const HEAD_BYTES_MAX = 64 * 1024;
const FRAME_HEAD_BYTES_MAX = 10;
const LENGTH_16 = 126;
const LENGTH_64 = 127;

export class FrameGatherer {
  readonly #frameBytesMax: number;
  readonly #out: (bytes: Buffer) => void;
  #state: 'head' | 'frames' | 'through' = 'head';
  /** What has come of an HTTP head or of a frame's head. */
  #begun: Buffer = Buffer.alloc(0);
  /** The frame that is being gathered. */
  #frame: Buffer | null = null;
  #have = 0;

  /** A frame with more payload passes through in pieces, and so does all after it: it will be refused. */
  constructor(payloadBytesMax: number, out: (bytes: Buffer) => void) {
    this.#frameBytesMax = payloadBytesMax + FRAME_HEAD_BYTES_MAX;
    this.#out = out;
  }

  /** The memory of `chunk` may be written over once this has returned. */
  push(chunk: Uint8Array): void {
    let rest = chunk;
    if (this.#state === 'head') rest = this.#head(rest);
    while (rest.byteLength > 0) {
      if (this.#state === 'frames') rest = this.#frames(rest);
      else {
        this.#out(Buffer.from(rest));
        return;
      }
    }
  }

  /** Up to the end of the HTTP answer's head; gives what comes after it. */
  #head(chunk: Uint8Array): Uint8Array {
    const before = this.#begun.byteLength;
    const all = Buffer.concat([this.#begun, chunk]);
    const end = all.indexOf(HEAD_END);
    if (end < 0 && all.byteLength < HEAD_BYTES_MAX) {
      this.#begun = all;
      return chunk.subarray(chunk.byteLength);
    }
    this.#begun = Buffer.alloc(0);
    if (end < 0 || !all.subarray(0, SWITCHED.byteLength).equals(SWITCHED)) {
      this.#state = 'through';
      this.#out(all);
      return chunk.subarray(chunk.byteLength);
    }
    this.#state = 'frames';
    const headBytes = end + HEAD_END.byteLength;
    this.#out(all.subarray(0, headBytes));
    return chunk.subarray(headBytes - before);
  }

  /** Takes from one frame what is there of it; gives the rest. */
  #frames(chunk: Uint8Array): Uint8Array {
    if (this.#frame === null) {
      // At most ten bytes are kept here, and usually none: heads are seldom cut.
      const kept = this.#begun.byteLength;
      const head = kept === 0 ? chunk : Buffer.concat([this.#begun, chunk.subarray(0, FRAME_HEAD_BYTES_MAX)]);
      const bytes = frameBytes(head);
      if (bytes === null) {
        this.#begun = Buffer.from(head);
        return chunk.subarray(chunk.byteLength);
      }
      if (bytes > this.#frameBytesMax) {
        this.#state = 'through';
        const begun = this.#begun;
        this.#begun = Buffer.alloc(0);
        if (kept > 0) this.#out(begun);
        return chunk;
      }
      this.#frame = Buffer.allocUnsafe(bytes);
      this.#frame.set(this.#begun);
      this.#have = kept;
      this.#begun = Buffer.alloc(0);
    }
    const frame = this.#frame;
    const take = Math.min(chunk.byteLength, frame.byteLength - this.#have);
    frame.set(chunk.subarray(0, take), this.#have);
    this.#have += take;
    if (this.#have === frame.byteLength) {
      this.#frame = null;
      this.#out(frame);
    }
    return chunk.subarray(take);
  }
}

/** Of the frame that begins there, its head included; null when more must be seen. */
function frameBytes(head: Uint8Array): number | null {
  const [, second] = head;
  if (second === undefined) return null;
  const short = second & 0x7f;
  const headBytes = 2 + (short === LENGTH_16 ? 2 : short === LENGTH_64 ? 8 : 0) + (second & 0x80 ? 4 : 0);
  if (short < LENGTH_16) return headBytes + short;
  const lengthBytes = short === LENGTH_16 ? 2 : 8;
  if (head.byteLength < 2 + lengthBytes) return null;
  const view = new DataView(head.buffer, head.byteOffset + 2, lengthBytes);
  return headBytes + (lengthBytes === 2 ? view.getUint16(0) : Number(view.getBigUint64(0)));
}
