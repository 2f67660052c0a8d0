// Frames to bytes and bytes to frames: pure, without I/O. The other side is hostile: whatever bytes
// come, in whatever pieces, the decoder gives frames or throws one FrameError, and it never holds
// more than one frame that is not whole.
import { takeBuffer } from '../host/large-buffers.ts';
import {
  CHANNEL,
  FRAME,
  FRAME_BYTES_MAX,
  FRAME_OVERHEAD_BYTES,
  type FrameType,
  HEADER_BYTES,
  MARK_BYTES,
  OUTCOME,
  OUTPUT_FRAME_BYTES_MAX,
} from './protocol.ts';

export type Frame = {
  readonly type: FrameType;
  /** DATA and END: the channel. REPLY and CLOSE: the outcome. Else 0. */
  readonly flag: number;
  readonly stream: number;
  /** Payload, in bytes. */
  readonly length: number;
  /** In memory of its own: the chunks that it came in may be written over. */
  readonly payload: Uint8Array;
};

export type FrameErrorReason = 'too_long' | 'wrong_length' | 'unknown_type' | 'wrong_flag' | 'wrong_stream' | 'reserved' | 'wrong_mark';

/** The bytes are no frames of this connection: it is over. */
export class FrameError extends Error {
  readonly reason: FrameErrorReason;

  constructor(reason: FrameErrorReason, message: string) {
    super(message);
    this.name = 'FrameError';
    this.reason = reason;
  }
}

/** What each type may look like. `from` is the side that may send it. */
const RULES: Readonly<
  Record<number, { from: 'host' | 'agent' | 'both'; flagMax: number; min: number; max: number; stream: 'zero' | 'other' }>
> = {
  [FRAME.open]: { from: 'host', flagMax: 0, min: 1, max: FRAME_BYTES_MAX, stream: 'other' },
  [FRAME.reply]: { from: 'agent', flagMax: OUTCOME.error, min: 1, max: FRAME_BYTES_MAX, stream: 'other' },
  [FRAME.data]: { from: 'both', flagMax: CHANNEL.stderr, min: 1, max: OUTPUT_FRAME_BYTES_MAX, stream: 'other' },
  [FRAME.event]: { from: 'agent', flagMax: 0, min: 1, max: FRAME_BYTES_MAX, stream: 'other' },
  [FRAME.credit]: { from: 'both', flagMax: 0, min: 4, max: 4, stream: 'other' },
  [FRAME.end]: { from: 'both', flagMax: CHANNEL.stderr, min: 0, max: 0, stream: 'other' },
  [FRAME.cancel]: { from: 'host', flagMax: 0, min: 0, max: 0, stream: 'other' },
  [FRAME.close]: { from: 'agent', flagMax: OUTCOME.error, min: 1, max: FRAME_BYTES_MAX, stream: 'other' },
  [FRAME.ping]: { from: 'both', flagMax: 0, min: 8, max: 8, stream: 'zero' },
  [FRAME.part]: { from: 'host', flagMax: 0, min: 1, max: FRAME_BYTES_MAX, stream: 'other' },
  [FRAME.pong]: { from: 'both', flagMax: 0, min: 8, max: 8, stream: 'zero' },
};

export function writeHeader(target: Uint8Array, at: number, type: FrameType, flag: number, stream: number, length: number): void {
  writeU32(target, at, length);
  target[at + 4] = type;
  target[at + 5] = flag;
  target[at + 6] = 0;
  target[at + 7] = 0;
  writeU32(target, at + 8, stream);
}

export function writeU32(target: Uint8Array, at: number, value: number): void {
  target[at] = value;
  target[at + 1] = value >>> 8;
  target[at + 2] = value >>> 16;
  target[at + 3] = value >>> 24;
}

/** The u32 at `at`, which must be there: callers have checked the length. */
export function readU32(source: Uint8Array, at: number): number {
  const [a = 0, b = 0, c = 0, d = 0] = [source[at], source[at + 1], source[at + 2], source[at + 3]];
  return (a | (b << 8) | (c << 16) | (d << 24)) >>> 0;
}

const NOTHING = new Uint8Array(0);

/** One whole frame in a buffer of its own. For payloads that are small or sent rarely. */
export function encodeFrame(
  mark: number,
  type: FrameType,
  flag: number,
  stream: number,
  payload: Uint8Array = NOTHING,
): Uint8Array<ArrayBuffer> {
  const length = payload.byteLength;
  const lengthMax = type === FRAME.data ? OUTPUT_FRAME_BYTES_MAX : FRAME_BYTES_MAX;
  if (length > lengthMax) throw new RangeError(`a frame carries at most ${lengthMax} bytes, not ${length}`);
  const frame = Buffer.allocUnsafe(FRAME_OVERHEAD_BYTES + length);
  writeHeader(frame, 0, type, flag, stream, length);
  frame.set(payload, HEADER_BYTES);
  writeU32(frame, HEADER_BYTES + length, mark);
  return frame;
}

export type DecoderOptions = {
  /** The first four bytes of the nonce, little-endian. */
  readonly mark: number;
  /** Who sends the frames that are decoded. */
  readonly from: 'host' | 'agent';
  /**
   * The answer to a preamble may come once more for each time that the preamble was repeated: `answer`
   * is skipped between two frames, at most `times` times.
   */
  readonly repeated?: { readonly answer: Uint8Array; readonly times: number };
};

/** Incremental: `push` a chunk, then call `next` until it gives null, before the next `push`. */
export class FrameDecoder {
  readonly #mark: number;
  readonly #from: 'host' | 'agent';
  readonly #answer: Uint8Array;
  #answersLeft: number;

  #chunk: Uint8Array = NOTHING;
  #at = 0;

  /** Header, mark or a repeated answer that arrived in parts. */
  readonly #part = new Uint8Array(16);
  #partBytes = 0;

  #state: 'header' | 'answer' | 'payload' | 'mark' = 'header';
  #type: FrameType = FRAME.ping;
  #flag = 0;
  #stream = 0;
  #length = 0;
  #payloadBytes = 0;
  #payload: Uint8Array = NOTHING;
  #broken: FrameError | null = null;

  constructor(options: DecoderOptions) {
    this.#mark = options.mark;
    this.#from = options.from;
    this.#answer = options.repeated?.answer ?? NOTHING;
    this.#answersLeft = options.repeated?.times ?? 0;
  }

  /** Bytes of the frame that is not whole yet. */
  get heldBytes(): number {
    return this.#partBytes + this.#payloadBytes;
  }

  push(chunk: Uint8Array): void {
    if (this.#at < this.#chunk.byteLength && this.#broken === null) throw new Error('push before the last chunk was used up');
    this.#chunk = chunk;
    this.#at = 0;
  }

  /** The next whole frame; null when more bytes are needed. Throws FrameError, and then always the same one. */
  next(): Frame | null {
    if (this.#broken !== null) throw this.#broken;
    try {
      return this.#next();
    } catch (error) {
      if (error instanceof FrameError) {
        this.#broken = error;
        this.#chunk = NOTHING;
        this.#payload = NOTHING;
      }
      throw error;
    }
  }

  #next(): Frame | null {
    for (;;) {
      switch (this.#state) {
        case 'header': {
          const header = this.#fixed(HEADER_BYTES);
          if (header === null) return null;
          if (this.#answersLeft > 0 && startsAnswer(header.bytes, header.at, this.#answer)) {
            // All of its bytes are compared below; the first twelve are put back for that.
            this.#part.set(header.bytes.subarray(header.at, header.at + HEADER_BYTES));
            this.#partBytes = HEADER_BYTES;
            this.#state = 'answer';
            break;
          }
          this.#readHeader(header.bytes, header.at);
          this.#state = this.#length === 0 ? 'mark' : 'payload';
          break;
        }
        case 'answer': {
          const answer = this.#fixed(this.#answer.byteLength);
          if (answer === null) return null;
          const got = answer.bytes.subarray(answer.at, answer.at + this.#answer.byteLength);
          if (Buffer.compare(got, this.#answer) !== 0) {
            throw new FrameError('unknown_type', 'an answer to another preamble came between two frames');
          }
          this.#answersLeft -= 1;
          this.#state = 'header';
          break;
        }
        case 'payload': {
          if (!this.#readPayload()) return null;
          this.#state = 'mark';
          break;
        }
        case 'mark': {
          const mark = this.#fixed(MARK_BYTES);
          if (mark === null) return null;
          const found = readU32(mark.bytes, mark.at);
          if (found !== this.#mark) throw new FrameError('wrong_mark', `a frame ends with the mark ${found}, not ${this.#mark}`);
          return this.#finish();
        }
      }
    }
  }

  /** `count` ≤ 16 bytes, straight from the chunk or put together from several. */
  #fixed(count: number): { bytes: Uint8Array; at: number } | null {
    const have = this.#chunk.byteLength - this.#at;
    if (this.#partBytes === 0 && have >= count) {
      const at = this.#at;
      this.#at += count;
      return { bytes: this.#chunk, at };
    }
    const take = Math.min(have, count - this.#partBytes);
    this.#part.set(this.#chunk.subarray(this.#at, this.#at + take), this.#partBytes);
    this.#at += take;
    this.#partBytes += take;
    if (this.#partBytes < count) return null;
    this.#partBytes = 0;
    return { bytes: this.#part, at: 0 };
  }

  #readHeader(bytes: Uint8Array, at: number): void {
    const length = readU32(bytes, at);
    const type = bytes[at + 4] ?? 0;
    const flag = bytes[at + 5] ?? 0;
    const stream = readU32(bytes, at + 8);
    const rule = RULES[type];
    if (rule === undefined || (rule.from !== 'both' && rule.from !== this.#from)) {
      throw new FrameError('unknown_type', `the ${this.#from} may not send frames of type ${type}`);
    }
    const lengthMax = type === FRAME.data && this.#from === 'agent' ? OUTPUT_FRAME_BYTES_MAX : FRAME_BYTES_MAX;
    if (length > lengthMax) {
      throw new FrameError('too_long', `a frame announces ${length} bytes; at most ${lengthMax} are allowed`);
    }
    if (bytes[at + 6] !== 0 || bytes[at + 7] !== 0) throw new FrameError('reserved', 'the reserved bytes of a frame are not zero');
    // Input has one channel.
    const flagMax = type === FRAME.data && this.#from === 'host' ? CHANNEL.content : rule.flagMax;
    if (flag > flagMax) {
      throw new FrameError('wrong_flag', `a frame of type ${type} has the flag ${flag}; at most ${flagMax} is allowed`);
    }
    if (length < rule.min || length > rule.max) {
      throw new FrameError('wrong_length', `a frame of type ${type} announces ${length} bytes; allowed are ${rule.min} to ${rule.max}`);
    }
    if ((stream === 0) !== (rule.stream === 'zero')) throw new FrameError('wrong_stream', `a frame of type ${type} is on stream ${stream}`);
    this.#type = type as FrameType;
    this.#flag = flag;
    this.#stream = stream;
    this.#length = length;
    this.#payload = length === 0 ? NOTHING : takeBuffer(length);
  }

  /** Takes what the chunk has of the payload; true when it is whole. */
  #readPayload(): boolean {
    const take = Math.min(this.#chunk.byteLength - this.#at, this.#length - this.#payloadBytes);
    this.#payload.set(this.#chunk.subarray(this.#at, this.#at + take), this.#payloadBytes);
    this.#at += take;
    this.#payloadBytes += take;
    return this.#payloadBytes === this.#length;
  }

  #finish(): Frame {
    const payload = this.#payload;
    this.#payload = NOTHING;
    this.#payloadBytes = 0;
    this.#state = 'header';
    return { type: this.#type, flag: this.#flag, stream: this.#stream, length: this.#length, payload };
  }
}

function startsAnswer(bytes: Uint8Array, at: number, answer: Uint8Array): boolean {
  for (let index = 0; index < HEADER_BYTES; index += 1) if (bytes[at + index] !== answer[index]) return false;
  return true;
}
