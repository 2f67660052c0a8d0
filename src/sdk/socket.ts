// One WebSocket to the daemon, pushed to its owner and held back by it. `ws` is loaded at the first
// use: most calls need none. Always true: a socket ends exactly once, by `onClose`.
import { setImmediate as turn } from 'node:timers/promises';
import type { RawData, WebSocket } from 'ws';
import type { Address } from './address.ts';
import { formatAddress } from './address.ts';
import type { ApiClient, CallOptions, SocketVerb } from './client.ts';
import { cancelled, errorFromBody, unreachable } from './errors.ts';
import { jsonBody, opIdOf } from './http.ts';
import { connectForFrames } from './reading.ts';
import { encodeRequest } from './request.ts';
import { routes } from './routes.ts';

export const MESSAGE_BYTES_MAX = 1024 * 1024;
/** With the byte that names the channel, and some more. */
const PAYLOAD_BYTES_MAX = MESSAGE_BYTES_MAX + 64;
/** Beyond this many unsent bytes a writer waits. */
const SEND_WINDOW_BYTES = 512 * 1024;
const PING_EVERY_MS = 15_000;
const PINGS_UNANSWERED_MAX = 3;
/** How long we wait for the other side's goodbye. */
const LEAVE_MS = 1_000;
/** With the first message of a socket, percent-encoded, in the request for it: that spares a way there and back. */
const FIRST_HEADER = 'Hutch-First-Message';
/** A server takes 64 KiB of headers, a proxy before it perhaps 8. */
const FIRST_CHARS_MAX = 4_096;

export type SocketListener = {
  /** Before any message, which the opening's own promise is not. `tookFirst`: the first message has arrived already. */
  readonly onOpen?: (socket: Socket, tookFirst: boolean) => void;
  /** A message as JSON. */
  onJson(message: { readonly type?: unknown } & Readonly<Record<string, unknown>>): void;
  onBytes(bytes: Buffer): void;
  /** Last: the close code, 1006 when the connection was lost. */
  onClose(code: number): void;
};

/** Loads the WebSocket client, so that it is there when it is needed; `once-idle`: after what is being sent now. */
export async function preloadSockets(when: 'now' | 'once-idle'): Promise<void> {
  // One turn to be connected, one to send.
  for (let turns = when === 'now' ? 0 : 2; turns > 0; turns -= 1) await turn();
  await import('ws');
}

/** @throws ConnectionError when the daemon cannot be reached, HutchError as it says, `cancelled`. */
export async function openSocket(
  client: ApiClient,
  verb: SocketVerb,
  input: object,
  listener: SocketListener,
  options: CallOptions & { readonly first?: object } = {},
): Promise<Socket> {
  const { signal, first } = options;
  const { address } = client;
  const [{ WebSocket: Client }, headers] = await Promise.all([import('ws'), client.headers(options)]);
  if (signal?.aborted) throw cancelled(signal);
  const { path } = encodeRequest(routes[verb], input as Record<string, unknown>);
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  const socket = new Client(socketUrl(client.address, path), {
    headers: { ...headers, ...(first === undefined ? {} : besides(first)) },
    perMessageDeflate: false,
    maxPayload: PAYLOAD_BYTES_MAX,
    skipUTF8Validation: true,
    // Not a `ws+unix:` address: it cannot have a colon in its path.
    ...(address.type === 'unix' ? { createConnection: () => connectForFrames(address.path, PAYLOAD_BYTES_MAX) } : {}),
  });
  socket.binaryType = 'nodebuffer';
  const onAbort = (): void => {
    if (signal !== undefined) reject(cancelled(signal));
    if (socket.readyState === Client.OPEN) ours.leave();
    else socket.terminate();
  };
  signal?.addEventListener('abort', onAbort, { once: true });
  let tookFirst = false;
  socket.on('upgrade', (response) => {
    tookFirst = response.headers[FIRST_HEADER.toLowerCase()] === 'taken';
    const opId = opIdOf(response);
    if (opId !== null) options.onOpId?.(opId);
  });
  socket.on('unexpected-response', (_, response) => {
    const context = { status: response.statusCode ?? 0, opId: opIdOf(response) };
    jsonBody(response).then(
      (body) => reject(errorFromBody(body, context)),
      () => reject(errorFromBody(null, context)),
    );
  });
  socket.on('error', (cause: NodeJS.ErrnoException) => reject(signal?.aborted ? cancelled(signal) : unreachable(client.address, cause)));
  // Messages may come in the same packet as the answer: listen before anything else can run.
  const ours = new Socket(socket, listener, () => signal?.removeEventListener('abort', onAbort));
  socket.on('open', () => {
    listener.onOpen?.(ours, tookFirst);
    resolve(ours);
  });
  return await promise;
}

export class Socket {
  readonly #socket: WebSocket;
  readonly #waiting: (() => void)[] = [];
  readonly #pinging: NodeJS.Timeout;
  #unanswered = 0;
  #closed = false;

  constructor(socket: WebSocket, listener: SocketListener, onEnd: () => void) {
    this.#socket = socket;
    socket.on('message', (data: RawData, isBinary: boolean) => {
      this.#unanswered = 0;
      const bytes = data as Buffer;
      if (isBinary) listener.onBytes(bytes);
      else {
        const message = parsed(bytes);
        // A server that breaks the protocol is as good as lost.
        if (message === null) socket.terminate();
        else listener.onJson(message);
      }
    });
    socket.on('pong', () => {
      this.#unanswered = 0;
    });
    this.#pinging = setInterval(() => this.#ping(), PING_EVERY_MS);
    this.#pinging.unref();
    socket.on('close', (code) => {
      this.#closed = true;
      clearInterval(this.#pinging);
      onEnd();
      this.#wake();
      listener.onClose(code);
    });
  }

  get closed(): boolean {
    return this.#closed;
  }

  sendJson(message: object): void {
    if (this.#socket.readyState === this.#socket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  sendBytes(bytes: Uint8Array): void {
    if (this.#socket.readyState === this.#socket.OPEN) this.#socket.send(bytes, { binary: true }, () => this.#wake());
  }

  get isFull(): boolean {
    return !this.#closed && this.#socket.bufferedAmount > SEND_WINDOW_BYTES;
  }

  /** Resolves once more may be sent, or the socket has ended. */
  async drained(): Promise<void> {
    while (this.isFull) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** Reads nothing more until `resume`: the server waits then. */
  pause(): void {
    if (!this.#closed) this.#socket.pause();
  }

  resume(): void {
    if (!this.#closed) this.#socket.resume();
  }

  close(): void {
    this.#socket.resume();
    this.#socket.close(1000);
  }

  /** For good: nothing need be kept for us. */
  leave(): void {
    this.close();
    setTimeout(() => this.#socket.terminate(), LEAVE_MS).unref();
  }

  /** At once, without a goodbye: we may come again. */
  terminate(): void {
    this.#socket.terminate();
  }

  #wake(): void {
    if (this.isFull) return;
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  #ping(): void {
    if (this.#socket.readyState !== this.#socket.OPEN) return;
    // While we do not read no answer can come, nor is the server's ping seen: so it hears that we are there.
    if (this.#socket.isPaused) this.#socket.pong();
    else if (this.#unanswered < PINGS_UNANSWERED_MAX) {
      this.#unanswered += 1;
      this.#socket.ping();
    } else this.#socket.terminate();
  }
}

/** Nothing for one that is too long: it is sent as a message then. */
function besides(first: object): Readonly<Record<string, string>> {
  const text = encodeURIComponent(JSON.stringify(first));
  return text.length > FIRST_CHARS_MAX ? {} : { [FIRST_HEADER]: text };
}

function socketUrl(address: Address, path: string): string {
  if (address.type === 'unix') return `ws://localhost${path}`;
  return formatAddress(address).replace(/^http/, 'ws') + path;
}

function parsed(bytes: Buffer): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(bytes.toString('utf8'));
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}
