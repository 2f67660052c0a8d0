// A WebSocket that is pulled: messages are read when they are asked for, and sending waits while the
// client does not read. Never more than a window is held in either direction.
import type { RawData, WebSocket } from 'ws';
import { HutchError } from '../../domain/errors.ts';

export type Message = { readonly type: 'text'; readonly text: string } | { readonly type: 'bytes'; readonly bytes: Uint8Array };

/** Bytes that may wait for a client that reads slowly. */
const SEND_WINDOW_BYTES = 512 * 1024;
/** Bytes that may wait for us; then the client is not read from. */
const RECEIVE_WINDOW_BYTES = 256 * 1024;
/** After so many bytes the client is asked whether they have arrived. */
const PROBE_EVERY_BYTES = 64 * 1024;
const PROBE_BYTES = 8;
/** The close code of a connection that nobody has closed. */
const LOST = 1006;
export const MESSAGE_BYTES_MAX = 1024 * 1024;
/** The first message may hold all the arguments and variables of a command: as much as a JSON body. */
export const FIRST_MESSAGE_BYTES_MAX = 8 * 1024 * 1024;
const PING_EVERY_MS = 15_000;
/** Quiet for so many pings while we read: the client is gone. */
const PINGS_UNANSWERED_MAX = 3;
const CLOSE_MS = 2_000;
/** The close code of WebSockets for it. */
const TOO_BIG = 1009;

export class MessageSocket {
  readonly #socket: WebSocket;
  readonly #queue: Message[] = [];
  readonly #gone = new AbortController();
  readonly #pinging: NodeJS.Timeout;
  #queuedBytes = 0;
  #unanswered = 0;
  #hasReceived = false;
  #wake: (() => void) | null = null;
  #wasLost = false;
  #sendFailed = false;
  readonly #receiveWindowBytes: number;
  readonly #isNear: boolean;
  /** Bytes of binary messages that were sent; that were, when the client was last asked; that have arrived as far as it has said. */
  readonly #bytes = { sent: 0, probed: 0, arrived: 0 };
  #onArrived = (): void => {};

  /** `isNear`: the client is on this machine, whose system tells when it is gone. */
  constructor(socket: WebSocket, { receiveWindowBytes = RECEIVE_WINDOW_BYTES, isNear = false } = {}) {
    this.#socket = socket;
    this.#isNear = isNear;
    this.#receiveWindowBytes = receiveWindowBytes;
    socket.binaryType = 'nodebuffer';
    socket.on('message', (data, isBinary) => this.#onMessage(data, isBinary));
    socket.on('pong', (said: Buffer) => {
      this.#unanswered = 0;
      if (said.byteLength !== PROBE_BYTES) return;
      this.#bytes.arrived = Math.max(this.#bytes.arrived, Math.min(Number(said.readBigUInt64LE()), this.#bytes.probed));
      this.#onArrived();
    });
    socket.on('error', () => {}); // 'close' follows
    socket.on('close', (code) => {
      this.#wasLost = code === LOST;
      clearInterval(this.#pinging);
      this.#gone.abort(new HutchError({ code: 'cancelled', message: 'the client went away' }));
      this.#wake?.();
      this.#onArrived();
    });
    this.#pinging = setInterval(() => this.#ping(), PING_EVERY_MS);
  }

  /** Aborted once the client is gone, or we have closed. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  /** Whether the connection broke, and nobody closed it: the client may come again. What fails to be sent fails before that is known. */
  async wasLost(): Promise<boolean> {
    const { readyState, OPEN, CLOSED } = this.#socket;
    if (readyState !== CLOSED && (readyState !== OPEN || this.#sendFailed)) {
      await new Promise((resolve) => this.#socket.once('close', resolve));
    }
    return this.#wasLost;
  }

  /** Bytes that the system has not taken yet. */
  get unsentBytes(): number {
    return this.#socket.bufferedAmount;
  }

  /** The next message; null when there is none any more. One reader at a time. */
  async receive(): Promise<Message | null> {
    while (this.#queue.length === 0) {
      if (this.#gone.signal.aborted) return null;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = null;
    }
    const message = this.#queue.shift() ?? null;
    this.#queuedBytes -= message === null ? 0 : sizeOf(message);
    if (this.#socket.isPaused && this.#queuedBytes < this.#receiveWindowBytes / 2) this.#socket.resume();
    return message;
  }

  sendJson(value: unknown): Promise<void> {
    const socket = this.#socket;
    if (socket.readyState !== socket.OPEN || socket.bufferedAmount >= SEND_WINDOW_BYTES) return this.#sent(JSON.stringify(value));
    socket.send(JSON.stringify(value), () => {}); // a failure is followed by 'close'
    return Promise.resolve();
  }

  /** Resolves once the system has the bytes: what is only ours is lost with the daemon, and must not count as taken. */
  sendBytes(bytes: Uint8Array): Promise<void> {
    const sent = this.#sent(bytes);
    this.#bytes.sent += bytes.byteLength;
    if (this.#bytes.sent - this.#bytes.probed >= PROBE_EVERY_BYTES) this.#probe();
    return sent;
  }

  /**
   * Resolves once at most so many bytes of binary messages are still on their way: each client answers a ping behind them.
   * Not waited for while so much waits for us that the client is not read from: its answer could not be either.
   * @throws HutchError `cancelled` when the client is gone: then they are not known to have arrived.
   */
  async arrivedBut(bytesMax: number): Promise<void> {
    const { sent, arrived } = this.#bytes;
    if (sent - arrived <= bytesMax) return;
    if (this.#bytes.probed < sent) this.#probe();
    while (this.#bytes.sent - this.#bytes.arrived > bytesMax && !this.#socket.isPaused) {
      this.#gone.signal.throwIfAborted();
      await new Promise<void>((resolve) => {
        this.#onArrived = resolve;
      });
    }
  }

  close(code: number, reason: string): void {
    if (this.#socket.isPaused) this.#socket.resume(); // else the client's answer is never read
    this.#socket.close(code, reason.slice(0, 100));
    const timer = setTimeout(() => this.#socket.terminate(), CLOSE_MS);
    this.#socket.once('close', () => clearTimeout(timer));
  }

  #sent(data: string | Uint8Array): Promise<void> {
    const socket = this.#socket;
    const gone = (cause?: Error) => new HutchError({ code: 'cancelled', message: 'the client went away', cause });
    if (socket.readyState !== socket.OPEN) return Promise.reject(gone());
    return new Promise((resolve, reject) => {
      socket.send(data, (error) => {
        if (error === undefined || error === null) return resolve();
        this.#sendFailed = true;
        reject(gone(error));
      });
    });
  }

  #probe(): void {
    if (this.#socket.readyState !== this.#socket.OPEN) return;
    this.#bytes.probed = this.#bytes.sent;
    const said = Buffer.alloc(PROBE_BYTES);
    said.writeBigUInt64LE(BigInt(this.#bytes.sent));
    this.#socket.ping(said);
  }

  #onMessage(data: RawData, isBinary: boolean): void {
    const bytes = Array.isArray(data) ? Buffer.concat(data) : Buffer.isBuffer(data) ? data : Buffer.from(data);
    const message: Message = isBinary ? { type: 'bytes', bytes } : { type: 'text', text: bytes.toString('utf8') };
    if (bytes.byteLength > MESSAGE_BYTES_MAX && (this.#hasReceived || isBinary)) {
      this.#socket.close(TOO_BIG, `a message has at most ${MESSAGE_BYTES_MAX} bytes`);
      return;
    }
    this.#hasReceived = true;
    this.#queue.push(message);
    this.#queuedBytes += sizeOf(message);
    this.#unanswered = 0;
    if (this.#queuedBytes >= this.#receiveWindowBytes) {
      this.#socket.pause();
      this.#onArrived();
    }
    this.#wake?.();
  }

  #ping(): void {
    if (this.#socket.readyState !== this.#socket.OPEN) return;
    // While we do not read, a pong cannot arrive; while the client reads nothing, as its own reader is slow, it sends none.
    const isExpected = !this.#isNear && !this.#socket.isPaused && this.#bytes.arrived >= this.#bytes.probed;
    if (isExpected) this.#unanswered += 1;
    if (this.#unanswered > PINGS_UNANSWERED_MAX) this.#socket.terminate();
    else this.#socket.ping();
  }
}

/** An empty message still takes room. */
const MESSAGE_OVERHEAD_BYTES = 64;

function sizeOf(message: Message): number {
  return MESSAGE_OVERHEAD_BYTES + (message.type === 'text' ? message.text.length : message.bytes.byteLength);
}
