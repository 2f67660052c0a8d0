// The least that speaks to the agent (docs/agent-protocol.md): no flow control, no keep-alive, no
// reconnection, one promise per stream. It is the baseline's client, so it must do nothing that
// starting a program and seeing its end does not need.
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { decode, encode } from '@msgpack/msgpack';

const FIXED = Buffer.from('HUTCH\x01\r\n', 'latin1');
const OPEN = 1;
const REPLY = 2;
const CLOSE = 8;
const HEADER_BYTES = 12;
const MARK_BYTES = 4;
const PREAMBLE_BYTES = 16;
const FILLER = Buffer.alloc(65_536 + 64);
const REPEAT_MS = 100;
/** Frames that end or answer a stream; everything else is dropped. */
type Answer = { readonly type: number; readonly flag: number; readonly value: unknown };

export class BareAgent implements Disposable {
  readonly #socket: Socket;
  readonly #mark: number;
  readonly #waiting = new Map<string, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  #bytes = Buffer.alloc(0);
  #lastStream = 0;
  #lost: Error | null = null;

  private constructor(socket: Socket, nonce: Buffer, rest: Buffer) {
    this.#socket = socket;
    this.#mark = nonce.readUInt32LE(0);
    socket.on('data', (chunk) => this.#read(chunk));
    socket.on('close', () => this.#lose(new Error('the agent hung up')));
    this.#read(rest);
  }

  /** Greets the agent behind a connected socket, which belongs to it from here on. */
  static connect(socket: Socket): Promise<BareAgent> {
    const nonce = randomBytes(8);
    nonce[0] = 1;
    return new Promise((resolve, reject) => {
      const preamble = Buffer.concat([FIXED, nonce]);
      // What a guest was sent while it was not looking may be lost.
      const repeat = setInterval(() => socket.write(Buffer.concat([FILLER, preamble])), REPEAT_MS);
      let seen = Buffer.alloc(0);
      const onClose = () => {
        clearInterval(repeat);
        reject(new Error('the agent hung up before it answered'));
      };
      const onData = (chunk: Buffer) => {
        seen = Buffer.concat([seen, chunk]);
        const at = seen.indexOf(nonce);
        if (at < 0) return;
        clearInterval(repeat);
        socket.off('data', onData).off('close', onClose);
        resolve(new BareAgent(socket, nonce, seen.subarray(at + nonce.byteLength)));
      };
      socket.on('data', onData).on('close', onClose);
      socket.write(preamble);
    });
  }

  /** Until the program has ended. */
  async run(argv: readonly string[]): Promise<{ readonly code: number | null }> {
    const id = `b${randomBytes(6).toString('hex')}`;
    const stream = this.#open('process.start', { id, argv, stdin: 'null', whenUnread: 'block' });
    const ended = stream.answer(CLOSE);
    ended.catch(() => {}); // the reply says it first
    await stream.answer(REPLY);
    return (await ended) as { code: number | null };
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }

  #open(method: string, params: object): { answer: (type: number) => Promise<unknown> } {
    this.#lastStream += 1;
    const stream = this.#lastStream;
    const payload = encode({ m: method, p: params });
    const frame = Buffer.alloc(HEADER_BYTES + payload.byteLength + MARK_BYTES);
    frame.writeUInt32LE(payload.byteLength, 0);
    frame.writeUInt8(OPEN, 4);
    frame.writeUInt32LE(stream, 8);
    frame.set(payload, HEADER_BYTES);
    frame.writeUInt32LE(this.#mark, HEADER_BYTES + payload.byteLength);
    this.#socket.write(frame);
    return {
      answer: (type) =>
        new Promise((resolve, reject) => {
          if (this.#lost !== null) return reject(this.#lost);
          this.#waiting.set(`${stream}:${type}`, { resolve, reject });
        }),
    };
  }

  #read(chunk: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, chunk]);
    for (;;) {
      if (this.#bytes.byteLength < HEADER_BYTES) return;
      if (this.#bytes.subarray(0, FIXED.byteLength).equals(FIXED)) {
        if (this.#bytes.byteLength < PREAMBLE_BYTES) return;
        this.#bytes = this.#bytes.subarray(PREAMBLE_BYTES); // the answer to a repetition
        continue;
      }
      const length = this.#bytes.readUInt32LE(0);
      const whole = HEADER_BYTES + length + MARK_BYTES;
      if (this.#bytes.byteLength < whole) return;
      const frame = this.#bytes.subarray(0, whole);
      this.#bytes = this.#bytes.subarray(whole);
      const type = frame.readUInt8(4);
      if (type !== REPLY && type !== CLOSE) continue;
      const value = length === 0 ? null : decode(frame.subarray(HEADER_BYTES, HEADER_BYTES + length));
      this.#settle(frame.readUInt32LE(8), { type, flag: frame.readUInt8(5), value });
    }
  }

  #settle(stream: number, { type, flag, value }: Answer): void {
    const waiter = this.#waiting.get(`${stream}:${type}`);
    this.#waiting.delete(`${stream}:${type}`);
    if (flag === 0) waiter?.resolve(value);
    else waiter?.reject(new Error(`the agent refused: ${JSON.stringify(value)}`));
  }

  #lose(error: Error): void {
    this.#lost = error;
    for (const waiter of this.#waiting.values()) waiter.reject(error);
    this.#waiting.clear();
  }
}
