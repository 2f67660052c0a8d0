// A command in a sandbox, as its client holds it: output, input, exit. Always true:
//   1. Output is numbered by byte offset. After a lost connection (or a daemon that was killed) the
//      command is attached again at the offsets reached: nothing is missed and nothing comes twice.
//      Where bytes are gone for good, the process fails with `unavailable` instead of going on.
//   2. Input is kept until the server has acknowledged it, at most INPUT_WINDOW_BYTES.
//   3. `exit` comes only from the server's own `exit` message, after the last byte of output.
import { Readable, Writable } from 'node:stream';
import { HutchError } from '../domain/errors.ts';
import type { ExecRequest, Output } from '../services/verbs.ts';
import type { ApiClient } from './client.ts';
import { ConnectionError, cancelled, errorFromBody } from './errors.ts';
import { InputBuffer } from './input-buffer.ts';
import { openSocket, type Socket } from './socket.ts';
import { uniqueId } from './unique.ts';

export type ProcessExit = Output<'exec.start'>;
export type TerminalSize = { readonly cols: number; readonly rows: number };
export type Started = {
  readonly execId: string;
  readonly pid: number;
  readonly stdoutOffset: number;
  readonly stderrOffset: number;
  readonly inputOffset: number;
  readonly existing: boolean;
};

export type ProcessOptions = {
  readonly ref: string;
  readonly execId?: string;
  /** Lets go of the process; it goes on running. */
  readonly signal?: AbortSignal | undefined;
  /** How long a lost connection is tried again. */
  readonly reconnectForMs?: number;
  readonly onOpId?: (opId: string) => void;
  /** Others write to it too: whoever writes takes the input over, for as long as nobody else does. Without, it is lost to them for good. */
  readonly sharesInput?: boolean;
};

export type AttachOptions = ProcessOptions & {
  readonly execId: string;
  readonly stdoutOffset?: number;
  readonly stderrOffset?: number;
  /** Output from now on, instead of from the offsets. */
  readonly fromNow?: boolean;
  /** Whether to write to it as well; `when-written`: it is taken from nobody before there is something to write. */
  readonly input?: boolean | 'when-written';
};

const RECONNECT_FOR_MS = 30_000;
/** Bytes of output that wait here for a reader of one stream; then the server waits. */
const OUTPUT_WINDOW_BYTES = 256 * 1024;
/** Bytes of one input message. */
const INPUT_MESSAGE_BYTES = 64 * 1024;
const INPUT_CHANNEL = 0;
/** A connection that held this long is a new beginning for the bound on retries. */
const STEADY_MS = 1_000;

type Begin = { readonly how: 'start'; readonly request: ExecRequest } | { readonly how: 'attach'; readonly options: AttachOptions };

export class RemoteProcess implements AsyncDisposable {
  readonly execId: string;
  readonly stdout: Readable;
  readonly stderr: Readable;
  readonly stdin: Writable;
  /** Rejects when the process is lost for good; unhandled it is no crash: the streams fail as well. */
  readonly exit: Promise<ProcessExit>;
  readonly #client: ApiClient;
  readonly #options: ProcessOptions;
  readonly #begin: Begin;
  #input: InputBuffer;
  readonly #exit = Promise.withResolvers<ProcessExit>();
  readonly #started = Promise.withResolvers<Started>();
  readonly #next = { stdout: 0, stderr: 0 };
  readonly #full = new Set<Readable>();
  #socket: Socket | null = null;
  #hasStarted = false;
  #over = false;
  #size: TerminalSize | null = null;
  #inputTaken = false;
  /** Whether the next connection is to have the input. */
  #wantsInput: boolean;
  /** The input was somebody else's: its numbering begins anew with the connection that is being made. */
  #reclaiming = false;
  /** How often it was taken back. */
  #takes = 0;
  #wakeInput: (() => void) | null = null;
  /** Where the next byte of this connection stands; it may repeat what we have. */
  #arriving = { stdout: 0, stderr: 0 };
  /** Whether this connection has said where input goes on. */
  #inputOpen = false;

  private constructor(client: ApiClient, begin: Begin, options: ProcessOptions) {
    this.#client = client;
    this.#begin = begin;
    this.#options = options;
    this.execId = options.execId ?? `x-${uniqueId()}`;
    this.#wantsInput = begin.how === 'start' ? begin.request.stdin === 'open' : begin.options.input === true;
    this.#input = new InputBuffer();
    this.exit = this.#exit.promise;
    this.exit.catch(() => {});
    this.#started.promise.catch(() => {});
    this.stdout = this.#output();
    this.stderr = this.#output();
    this.stdin = new Writable({
      highWaterMark: INPUT_MESSAGE_BYTES,
      write: (chunk: Uint8Array, _, done) => void this.#write(chunk).then(() => done(), done),
      final: (done) => {
        this.#input.end(); // one that was never written to is not ours to end
        if (this.#inputOpen) this.#socket?.sendJson({ type: 'inputEnd' });
        done();
      },
    });
    this.stdin.on('error', () => {}); // a process that ends while it is written to is no crash of its client
    if (!this.#wantsInput && !this.#sharesInput()) this.stdin.end();
  }

  /** Starts a command and resolves when it runs. @throws HutchError when it cannot be started. */
  static async start(client: ApiClient, request: ExecRequest, options: ProcessOptions): Promise<RemoteProcess> {
    return await RemoteProcess.#open(new RemoteProcess(client, { how: 'start', request }, options));
  }

  static async attach(client: ApiClient, options: AttachOptions): Promise<RemoteProcess> {
    return await RemoteProcess.#open(new RemoteProcess(client, { how: 'attach', options }, options));
  }

  static async #open(process: RemoteProcess): Promise<RemoteProcess> {
    void process.#keepConnected();
    process.info = await process.#started.promise;
    return process;
  }

  /** What the server said first. */
  info: Started = { execId: '', pid: 0, stdoutOffset: 0, stderrOffset: 0, inputOffset: 0, existing: false };

  /** Somebody else writes to it now. */
  get inputTaken(): boolean {
    return this.#inputTaken;
  }

  resize(size: TerminalSize): void {
    this.#size = size;
    this.#socket?.sendJson({ type: 'resize', ...size });
  }

  /** To its process group. Lost with the connection: `exec.signal` is the verb that answers. */
  signal(name: string): void {
    this.#socket?.sendJson({ type: 'signal', signal: name });
  }

  /** Lets go of it; it goes on running. */
  detach(): void {
    this.#fail(new HutchError({ code: 'cancelled', message: 'the client let go of the process' }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.detach();
  }

  async #keepConnected(): Promise<void> {
    const { signal } = this.#options;
    const onAbort = (): void => this.#fail(signal === undefined ? new Error('aborted') : cancelled(signal));
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      let lostSince = performance.now();
      for (let attempt = 1; !this.#over; attempt += 1) {
        let lost: ConnectionError;
        const connectedAt = performance.now();
        try {
          await this.#connectOnce();
          if (this.#over) return;
          if (this.#reclaiming) continue;
          if (performance.now() - connectedAt > STEADY_MS) {
            lostSince = performance.now();
            attempt = 0;
          }
          lost = new ConnectionError('the connection to the daemon was lost', { sent: true });
        } catch (error) {
          if (!(error instanceof ConnectionError)) throw error;
          lost = error;
        }
        await this.#client.beforeRetry(lost, Math.max(attempt, 1), lostSince, signal, this.#options.reconnectForMs ?? RECONNECT_FOR_MS);
      }
    } catch (error) {
      this.#fail(error instanceof Error ? error : new Error(String(error)));
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  /** One connection, to its end. */
  async #connectOnce(): Promise<void> {
    const ended = Promise.withResolvers<void>();
    const { ref } = this.#options;
    const again = this.#hasStarted || this.#begin.how === 'attach';
    // Whatever comes by a connection that was given up for one with input is asked for again.
    const takes = this.#takes;
    const first = !again && this.#begin.how === 'start' ? this.#begin.request : null;
    const isOurs = (): boolean => takes === this.#takes;
    await openSocket(
      this.#client,
      again ? 'exec.attach' : 'exec.start',
      again ? this.#attachInput() : { ref, execId: this.execId },
      {
        onOpen: (socket, tookFirst) => {
          if (this.#over || !isOurs()) return socket.terminate();
          this.#socket = socket;
          if (first !== null && !tookFirst) socket.sendJson(first);
          this.#flow();
        },
        onJson: (message) => {
          if (isOurs()) this.#onMessage(message);
        },
        onBytes: (bytes) => {
          if (isOurs()) this.#onBytes(bytes);
        },
        onClose: () => ended.resolve(),
      },
      {
        signal: this.#options.signal,
        ...(first === null ? {} : { first }),
        ...(this.#options.onOpId === undefined ? {} : { onOpId: this.#options.onOpId }),
      },
    );
    await ended.promise;
    this.#socket = null;
    this.#inputOpen = false;
  }

  #attachInput(): object {
    const { ref } = this.#options;
    const offsets = this.#hasStarted ? { stdoutOffset: this.#next.stdout, stderrOffset: this.#next.stderr } : this.#askedOffsets();
    const input = this.#takesInput() ? { input: true, ...(this.#hasStarted ? { inputOffset: this.#input.acked } : {}) } : {};
    return { ref, execId: this.execId, ...offsets, ...input };
  }

  #askedOffsets(): object {
    if (this.#begin.how !== 'attach') return {};
    const { stdoutOffset, stderrOffset, fromNow } = this.#begin.options;
    if (fromNow === true) return { fromNow };
    return { ...(stdoutOffset === undefined ? {} : { stdoutOffset }), ...(stderrOffset === undefined ? {} : { stderrOffset }) };
  }

  #takesInput(): boolean {
    return this.#wantsInput && !this.#inputTaken;
  }

  #sharesInput(): boolean {
    return this.#options.sharesInput === true || (this.#begin.how === 'attach' && this.#begin.options.input === 'when-written');
  }

  /** The input is ours with the next connection, which is made at once. */
  #takeInput(): void {
    this.#wantsInput = true;
    this.#inputTaken = false;
    this.#inputOpen = false;
    this.#reclaiming = true;
    this.#takes += 1;
    this.#input = new InputBuffer();
    this.#socket?.terminate();
  }

  #onMessage(message: Readonly<Record<string, unknown>>): void {
    switch (message['type']) {
      case 'started':
        this.#onStarted(message as unknown as Started);
        break;
      case 'inputAck':
        this.#input.ack(Number(message['offset']));
        this.#wakeInput?.();
        break;
      case 'inputTaken':
        this.#inputTaken = true;
        this.#wakeInput?.();
        break;
      case 'dropped': {
        const { channel, offset, bytes } = message as { channel: 'stdout' | 'stderr'; offset: number; bytes: number };
        if (this.#begin.how === 'start' && this.#begin.request.whenUnread !== 'drop') {
          this.#failMissing(bytes);
          break;
        }
        this.#next[channel] = Math.max(this.#next[channel], offset + bytes);
        this.#arriving[channel] = offset + bytes;
        break;
      }
      case 'exit': {
        const { type: _, ...exit } = message;
        this.#onExit(exit as unknown as ProcessExit);
        break;
      }
      case 'error':
        this.#fail(errorFromBody(message['error'], {}));
        break;
      default: // of a newer server
    }
  }

  /** Never silently: output that was promised whole has a gap. */
  #failMissing(bytes: number): void {
    const message = `${bytes} bytes of output were lost while a connection was down`;
    const hint = 'the command goes on; what a main process wrote is in its log: hutch logs';
    this.#fail(new HutchError({ code: 'unavailable', message, hint }));
  }

  #onStarted(started: Started): void {
    if (this.#hasStarted) {
      const missed = this.#missing(started.stdoutOffset, started.stderrOffset);
      if (missed > 0) {
        this.#failMissing(missed);
        return;
      }
    } else {
      this.#hasStarted = true;
      this.#next.stdout = started.stdoutOffset;
      this.#next.stderr = started.stderrOffset;
      this.#input.startAt(started.inputOffset);
      this.#started.resolve(started);
    }
    if (this.#reclaiming) this.#input.startAt(started.inputOffset);
    this.#reclaiming = false;
    this.#arriving = { stdout: started.stdoutOffset, stderr: started.stderrOffset };
    if (this.#size !== null) this.#socket?.sendJson({ type: 'resize', ...this.#size });
    this.#sendAgain(started.inputOffset);
  }

  #sendAgain(from: number): void {
    if (!this.#takesInput()) return;
    this.#inputOpen = true;
    this.#input.ack(from);
    for (const chunk of this.#input.unacked()) this.#socket?.sendBytes(inputMessage(chunk));
    if (this.#input.ended) this.#socket?.sendJson({ type: 'inputEnd' });
    this.#wakeInput?.();
  }

  #onBytes(message: Buffer): void {
    const channel = message[0] === 1 ? 'stdout' : message[0] === 2 ? 'stderr' : null;
    if (channel === null || this.#over) return;
    const bytes = message.subarray(1);
    const repeated = Math.max(0, Math.min(this.#next[channel] - this.#arriving[channel], bytes.byteLength));
    this.#arriving[channel] += bytes.byteLength;
    if (repeated === bytes.byteLength) return;
    this.#next[channel] += bytes.byteLength - repeated;
    const stream = this[channel];
    if (!stream.push(bytes.subarray(repeated)) && !stream.destroyed) {
      this.#full.add(stream);
      this.#flow();
    }
  }

  #output(): Readable {
    const stream: Readable = new Readable({
      highWaterMark: OUTPUT_WINDOW_BYTES,
      // Node asks only when there is room again.
      read: () => {
        if (this.#full.delete(stream)) this.#flow();
      },
    });
    stream.on('error', () => {}); // `exit` rejects with the same
    return stream;
  }

  #flow(): void {
    if (this.#full.size > 0) this.#socket?.pause();
    else this.#socket?.resume();
  }

  #onExit(exit: ProcessExit): void {
    if (this.#over) return;
    // One that could not be started has an exit and nothing before it.
    this.#started.resolve({ execId: this.execId, pid: 0, stdoutOffset: 0, stderrOffset: 0, inputOffset: 0, existing: false });
    const missed = this.#missing(exit.stdoutBytes, exit.stderrBytes);
    const drops = this.#begin.how === 'start' && this.#begin.request.whenUnread === 'drop';
    if (missed > 0 && !drops) {
      const message = `${missed} bytes of output were lost; the command ended with ${exit.exitCode}`;
      this.#fail(new HutchError({ code: 'unavailable', message }));
      return;
    }
    this.#over = true;
    this.stdout.push(null);
    this.stderr.push(null);
    this.#endInput();
    this.#exit.resolve(exit);
    this.#socket?.close();
  }

  /** Bytes before these offsets that never came. */
  #missing(stdout: number, stderr: number): number {
    return Math.max(0, stdout - this.#next.stdout) + Math.max(0, stderr - this.#next.stderr);
  }

  #fail(error: Error): void {
    if (this.#over) return;
    this.#over = true;
    this.stdout.destroy(error);
    this.stderr.destroy(error);
    this.#endInput();
    this.#started.reject(error);
    this.#exit.reject(error);
    this.#socket?.leave();
  }

  #endInput(): void {
    this.#wakeInput?.();
    this.stdin.destroy();
  }

  async #write(chunk: Uint8Array): Promise<void> {
    if ((this.#inputTaken || !this.#wantsInput) && this.#sharesInput()) this.#takeInput();
    for (let at = 0; at < chunk.byteLength; at += INPUT_MESSAGE_BYTES) {
      const piece = chunk.subarray(at, at + INPUT_MESSAGE_BYTES);
      while (this.#input.isFull && !this.#over && !this.#inputTaken) await this.#acked();
      if (this.#over) throw new HutchError({ code: 'cancelled', message: 'the process has ended' });
      if (this.#inputTaken) throw new HutchError({ code: 'conflict', message: 'another client writes to this process now' });
      const message = inputMessage(piece);
      this.#input.push(message.subarray(1));
      if (this.#inputOpen) this.#socket?.sendBytes(message);
      await this.#socket?.drained();
    }
  }

  async #acked(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#wakeInput = resolve;
    });
    this.#wakeInput = null;
  }
}

/** A copy, so that the caller may use its memory again. */
function inputMessage(piece: Uint8Array): Buffer {
  const message = Buffer.allocUnsafe(piece.byteLength + 1);
  message[0] = INPUT_CHANNEL;
  message.set(piece, 1);
  return message;
}
