// One HTTP/1.1 exchange over the daemon's unix socket. Node's own client takes longer to load than a short command takes for all else, and is
// for proxies, TLS and servers of every kind; this one knows requests of ours and answers of the daemon. Always true: what an answer says of
// its length is kept to, its head is bounded, and a connection is used again only when both of its sides are whole.
import type { Socket } from 'node:net';
import { HttpAnswer, HttpAnswerReader } from './http-answer.ts';

/** Idle connections that are kept. */
const FREE_MAX = 4;
/** How much sooner than the server means to close one that is idle we leave it alone, milliseconds. */
const CLOSE_MARGIN_MS = 1_000;
const NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;
const PATH = /^[\x21-\x7e]+$/;

export type PlainRequest = {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | Uint8Array | AsyncIterable<Uint8Array> | null;
};

export type Watcher = {
  /** `end`: ends the exchange, with what `send`, or whoever reads the answer, is to be told. */
  begun(end: (reason?: Error) => void, isConnecting: () => boolean): void;
  /** The exchange is over: the answer is whole, or never will be. Perhaps more than once. */
  over(): void;
};

type Free = { readonly socket: Socket; readonly untilMs: number; readonly gone: () => void };

export class PlainConnections implements Disposable {
  readonly #connect: () => Socket;
  readonly #free: Free[] = [];
  #isOver = false;

  constructor(connect: () => Socket) {
    this.#connect = connect;
  }

  /** Resolves with the head of the answer. @throws what the exchange was ended with, the connection's own error, TypeError for what cannot be sent. */
  send(request: PlainRequest, watcher: Watcher): Promise<HttpAnswer> {
    const head = headOf(request); // what cannot be sent is refused before there is a connection
    const socket = this.#take() ?? this.#connect();
    const { promise, resolve, reject } = Promise.withResolvers<HttpAnswer>();
    let isSent = false;
    let answer: HttpAnswer | null = null;
    const reader = new HttpAnswerReader(request.method === 'HEAD', {
      onHead: (statusCode, headers) => {
        const flow = { pause: () => socket.pause(), resume: () => socket.resume(), leave: () => socket.destroy() };
        answer = new HttpAnswer(statusCode, headers, flow);
        resolve(answer);
        return answer;
      },
      onEnd: () => {
        release();
        if (isSent && reader.mayGoOn && !this.#isOver) this.#keep(socket, reader.keptForMs);
        else destroy(socket);
      },
    });
    const failed = (error: Error): void => {
      release();
      destroy(socket);
      reject(error);
      answer?.fail(error);
    };
    const closed = (): void => {
      if (!reader.end()) failed(Object.assign(new Error('the connection was closed'), { code: 'ECONNRESET' }));
    };
    const arrived = (bytes: Uint8Array): void => {
      try {
        reader.push(bytes);
      } catch (error) {
        failed(error as Error);
      }
    };
    const release = (): void => {
      socket.off('data', arrived).off('error', failed).off('close', closed);
      watcher.over();
    };
    socket.on('data', arrived).on('error', failed).on('close', closed);
    watcher.begun(
      (reason) => failed(reason ?? new Error('it was ended')),
      () => socket.connecting,
    );
    sendBody(socket, head, request.body).then(
      (whole) => {
        isSent = whole;
      },
      (error: unknown) => failed(error instanceof Error ? error : new Error(String(error))),
    );
    return promise;
  }

  [Symbol.dispose](): void {
    this.#isOver = true;
    for (const { socket } of this.#free.splice(0)) socket.destroy();
  }

  #take(): Socket | null {
    for (let free = this.#free.pop(); free !== undefined; free = this.#free.pop()) {
      const { socket, untilMs, gone } = free;
      socket.off('error', ignore).off('close', gone).off('data', gone);
      if (!socket.destroyed && Date.now() < untilMs) return socket.ref();
      socket.destroy();
    }
    return null;
  }

  #keep(socket: Socket, forMs: number): void {
    if (this.#free.length >= FREE_MAX || socket.destroyed) return void socket.destroy();
    const gone = (): void => {
      const at = this.#free.findIndex((free) => free.socket === socket);
      if (at >= 0) this.#free.splice(at, 1);
      socket.destroy();
    };
    socket.on('error', ignore).on('close', gone).on('data', gone);
    socket.resume();
    socket.unref();
    this.#free.push({ socket, untilMs: Date.now() + forMs - CLOSE_MARGIN_MS, gone });
  }
}

/** Told by its end. */
const ignore = (): void => {};

function destroy(socket: Socket): void {
  socket.on('error', ignore).destroy();
}

function headOf({ method, path, headers, body }: PlainRequest): string {
  if (!PATH.test(path)) throw new TypeError('the path of a request has a character that no path has');
  const lines = [`${method} ${path} HTTP/1.1`, 'Host: localhost', 'Connection: keep-alive'];
  for (const [name, value] of Object.entries(headers)) {
    if (!NAME.test(name) || !VALUE.test(value)) throw new TypeError(`the header ${name.slice(0, 64)} has a character that no header has`);
    lines.push(`${name}: ${value}`);
  }
  if (isStream(body)) lines.push('Transfer-Encoding: chunked');
  else if (!('Content-Length' in headers) && (body !== null || method.startsWith('P')))
    lines.push(`Content-Length: ${body === null ? 0 : Buffer.byteLength(body)}`);
  return `${lines.join('\r\n')}\r\n\r\n`;
}

function isStream(body: PlainRequest['body']): body is AsyncIterable<Uint8Array> {
  return body !== null && typeof body === 'object' && !(body instanceof Uint8Array);
}

/** Whether all of it was sent: who has answered need not take the rest. */
async function sendBody(socket: Socket, head: string, body: PlainRequest['body']): Promise<boolean> {
  if (!isStream(body)) {
    if (typeof body !== 'string') {
      socket.cork();
      socket.write(head, 'latin1');
      if (body !== null) socket.write(body);
      socket.uncork();
    } else socket.write(Buffer.concat([Buffer.from(head, 'latin1'), Buffer.from(body)]));
    return true;
  }
  socket.write(head, 'latin1'); // the daemon begins while the body is still put together
  // A source that waits for more would wait for ever when nobody takes it any more.
  const stop = (): void => {
    if ('destroy' in body && typeof body.destroy === 'function') body.destroy();
  };
  socket.once('close', stop);
  try {
    return await sendPieces(socket, body);
  } catch (error) {
    if (socket.destroyed) return false;
    throw error;
  } finally {
    socket.off('close', stop);
  }
}

async function sendPieces(socket: Socket, body: AsyncIterable<Uint8Array>): Promise<boolean> {
  for await (const chunk of body) {
    if (socket.destroyed) return false;
    if (chunk.byteLength === 0) continue;
    socket.cork();
    socket.write(`${chunk.byteLength.toString(16)}\r\n`, 'latin1');
    socket.write(chunk);
    const goesOn = socket.write('\r\n', 'latin1');
    socket.uncork();
    if (!goesOn) await drained(socket);
  }
  if (socket.destroyed) return false;
  socket.write('0\r\n\r\n', 'latin1');
  return true;
}

function drained(socket: Socket): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const go = (): void => {
    socket.off('drain', go).off('close', go);
    resolve();
  };
  socket.on('drain', go).on('close', go);
  return promise;
}
