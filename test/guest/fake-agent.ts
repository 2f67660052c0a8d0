// An agent at the wire, for tests. It checks that the host keeps the protocol (`violations` stays
// empty), answers `unimplemented` to what it was not told to do, and can send anything, true or not.
import { type Duplex, duplexPair } from 'node:stream';
import { encode } from '@msgpack/msgpack';
import { encodeFrame, type Frame, readU32, writeU32 } from '../../src/guest/frames.ts';
import { decodeMessage } from '../../src/guest/messagepack.ts';
import {
  CREDIT_START_BYTES,
  FRAME,
  FRAME_BYTES_MAX,
  FRAME_OVERHEAD_BYTES,
  type FrameType,
  HEADER_BYTES,
  OUTPUT_CREDIT_START_BYTES,
} from '../../src/guest/protocol.ts';

const FIXED = Buffer.from('HUTCH\x01\r\n', 'latin1');

export type FakeStream = {
  readonly id: number;
  readonly method: string;
  readonly params: unknown;
  /** Input that came so far. */
  readonly input: Uint8Array[];
  inputEnded: boolean;
  cancelled: boolean;
  /** What the host may still send, and what we may. */
  hostCredit: number;
  credit: number;
  reply(value?: unknown): void;
  /** The reply of a unary method. */
  answer(value?: unknown): void;
  refuse(code: string, message: string, errno?: string): void;
  data(channel: number, bytes: Uint8Array): void;
  event(value: object): void;
  end(channel: number): void;
  close(value?: unknown): void;
  fail(code: string, message: string): void;
  grant(bytes: number): void;
};

export type Handler = (stream: FakeStream, agent: FakeAgent) => void;

export class FakeAgent {
  readonly violations: string[] = [];
  readonly streams = new Map<number, FakeStream>();
  readonly handlers: Record<string, Handler>;
  readonly duplex: Duplex;
  mark = 0;
  nonce: Uint8Array = new Uint8Array(0);
  greetings = 0;
  pongs = 0;
  pings = 0;
  answersPing = true;
  answersPreamble = true;
  /** Grants input credit as it comes. */
  grantsInput = true;
  onCredit: (stream: FakeStream) => void = () => {};
  onInput: (stream: FakeStream) => void = () => {};
  /** A new preamble or rubbish came in place of a frame. */
  onBroken: () => void = () => {};
  onCancel: (stream: FakeStream) => void = (stream) => stream.fail('cancelled', 'given up');
  /** Not used up yet: while connected it begins with a frame. */
  #bytes: Buffer = Buffer.alloc(0);
  #isConnected = false;
  #lastStream = 0;
  readonly #parts: Frame[] = [];

  constructor(duplex: Duplex, handlers: Record<string, Handler> = {}) {
    this.duplex = duplex;
    this.handlers = handlers;
    duplex.on('error', () => {});
    duplex.on('data', (chunk: Uint8Array) => this.#onData(chunk));
  }

  /** Any bytes at all. */
  raw(bytes: Uint8Array): void {
    if (!this.duplex.destroyed) this.duplex.write(bytes);
  }

  frame(type: FrameType, flag: number, stream: number, payload: Uint8Array = new Uint8Array(0)): void {
    this.raw(encodeFrame(this.mark, type, flag, stream, payload));
  }

  #onData(chunk: Uint8Array): void {
    this.#bytes = this.#bytes.byteLength === 0 ? Buffer.from(chunk) : Buffer.concat([this.#bytes, chunk]);
    while (this.#isConnected ? this.#readFrame() : this.#greet());
  }

  /** Looks for a preamble; false when more bytes are needed. */
  #greet(): boolean {
    const at = this.#bytes.indexOf(FIXED);
    if (at === -1 || this.#bytes.byteLength < at + 16) {
      this.#bytes = this.#bytes.subarray(at === -1 ? Math.max(0, this.#bytes.byteLength - 7) : at);
      return false;
    }
    this.nonce = Uint8Array.from(this.#bytes.subarray(at + 8, at + 16));
    this.#bytes = this.#bytes.subarray(at + 16);
    this.mark = readU32(this.nonce, 0);
    this.greetings += 1;
    if (!this.answersPreamble) return true;
    this.raw(Buffer.concat([FIXED, this.nonce]));
    this.streams.clear();
    this.#lastStream = 0;
    this.#isConnected = true;
    return true;
  }

  /** One frame; false when more bytes are needed. A broken one ends the connection, and its bytes are searched for a preamble. */
  #readFrame(): boolean {
    const bytes = this.#bytes;
    if (bytes.byteLength < HEADER_BYTES) return false;
    const length = readU32(bytes, 0);
    const type = bytes[4] ?? 0;
    const looksRight = length <= FRAME_BYTES_MAX && [1, 3, 5, 6, 7, 9, 10, 11].includes(type) && bytes[6] === 0 && bytes[7] === 0;
    if (looksRight && bytes.byteLength < length + FRAME_OVERHEAD_BYTES) return false;
    if (!looksRight || readU32(bytes, HEADER_BYTES + length) !== this.mark) {
      this.#isConnected = false;
      this.onBroken();
      return true;
    }
    this.#bytes = bytes.subarray(length + FRAME_OVERHEAD_BYTES);
    const payload = bytes.subarray(HEADER_BYTES, HEADER_BYTES + length);
    this.#onFrame({ type: type as FrameType, flag: bytes[5] ?? 0, stream: readU32(bytes, 8), length, payload });
    return true;
  }

  #onFrame(frame: Frame): void {
    if (frame.type === FRAME.ping) {
      this.pings += 1;
      if (this.answersPing) this.frame(FRAME.pong, 0, 0, frame.payload);
      return;
    }
    if (frame.type === FRAME.pong) {
      this.pongs += 1;
      return;
    }
    if (frame.type === FRAME.part) {
      if (this.#parts.some((part) => part.stream !== frame.stream)) this.violations.push('parts of two calls at a time');
      this.#parts.push({ ...frame, payload: Uint8Array.from(frame.payload) });
      return;
    }
    if (frame.type === FRAME.open) {
      const parts = this.#parts.splice(0);
      if (parts.some((part) => part.stream !== frame.stream)) this.violations.push('a call within the parts of another');
      this.#open({ ...frame, payload: Buffer.concat([...parts, frame].map(({ payload }) => payload)) });
      return;
    }
    const stream = this.streams.get(frame.stream);
    if (stream === undefined) {
      // Frames that crossed our CLOSE on their way are allowed; of a number never opened they are not.
      if (frame.stream > this.#lastStream) this.violations.push(`frame of type ${frame.type} on stream ${frame.stream}, never opened`);
      return;
    }
    switch (frame.type) {
      case FRAME.data:
        if (frame.flag !== 0) this.violations.push(`input on channel ${frame.flag}`);
        if (stream.inputEnded) this.violations.push('input after its end');
        if (frame.length > stream.hostCredit) this.violations.push('input beyond the credit');
        stream.hostCredit -= frame.length;
        stream.input.push(Uint8Array.from(frame.payload));
        if (this.grantsInput) stream.grant(frame.length);
        this.onInput(stream);
        break;
      case FRAME.end:
        if (stream.inputEnded) this.violations.push('input ended twice');
        stream.inputEnded = true;
        this.onInput(stream);
        break;
      case FRAME.credit:
        stream.credit += readU32(frame.payload, 0);
        this.onCredit(stream);
        break;
      case FRAME.cancel:
        if (stream.cancelled) this.violations.push('cancelled twice');
        stream.cancelled = true;
        this.onCancel(stream);
        break;
      default:
        this.violations.push(`frame of type ${frame.type} from the host`);
    }
  }

  #open(frame: Frame): void {
    if (frame.stream <= this.#lastStream) this.violations.push(`stream ${frame.stream} after ${this.#lastStream}`);
    this.#lastStream = Math.max(this.#lastStream, frame.stream);
    const message = decodeMessage(frame.payload) as { m: string; p?: unknown };
    const stream = this.#newStream(frame.stream, message.m, message.p);
    this.streams.set(stream.id, stream);
    const handler = this.handlers[stream.method];
    if (handler === undefined) stream.refuse('unimplemented', `no ${stream.method} here`);
    else handler(stream, this);
  }

  #newStream(id: number, method: string, params: unknown): FakeStream {
    const message = (type: FrameType, flag: number, value: unknown) =>
      this.frame(type, flag, id, encode(value, { useBigInt64: true, ignoreUndefined: true }));
    const gone = () => void this.streams.delete(id);
    return {
      id,
      method,
      params,
      input: [],
      inputEnded: false,
      cancelled: false,
      hostCredit: CREDIT_START_BYTES,
      credit: OUTPUT_CREDIT_START_BYTES,
      reply: (value = null) => message(FRAME.reply, 0, value),
      answer(value = null) {
        message(FRAME.reply, 0, value);
        gone();
      },
      refuse(code, text, errno) {
        message(FRAME.reply, 1, { code, message: text, errno });
        gone();
      },
      data: (channel, bytes) => this.frame(FRAME.data, channel, id, bytes),
      event: (value) => message(FRAME.event, 0, value),
      end: (channel) => this.frame(FRAME.end, channel, id),
      close(value = null) {
        message(FRAME.close, 0, value);
        gone();
      },
      fail(code, text) {
        message(FRAME.close, 1, { code, message: text });
        gone();
      },
      grant: (bytes) => {
        const stream = this.streams.get(id);
        if (stream !== undefined) stream.hostCredit += bytes;
        const payload = new Uint8Array(4);
        writeU32(payload, 0, bytes);
        this.frame(FRAME.credit, 0, id, payload);
      },
    };
  }
}

/** A fake agent and the host's end of the stream to it. */
export function fakeAgent(handlers: Record<string, Handler> = {}): { readonly agent: FakeAgent; readonly duplex: Duplex } {
  const [ours, theirs] = duplexPair();
  return { agent: new FakeAgent(theirs, handlers), duplex: ours };
}

export const HELLO = {
  agentVersion: '0.1.0',
  features: [],
  bootId: 'b',
  pid: 1,
  isInit: true,
  kernel: '6.1',
  uptimeMs: 1,
  configured: false,
  generation: null,
};

export const EXIT = {
  code: 0,
  signal: null,
  coreDumped: false,
  oomKilled: false,
  endedAtMs: 1,
  stdoutBytes: 0,
  stderrBytes: 0,
  reason: 'exited',
};
