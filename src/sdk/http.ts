// One HTTP exchange with the daemon, over its unix socket or TCP. Resolves with the head of a good
// answer, its body still to be read; everything else is a HutchError. Retries are the caller's.
import { Agent, type AgentOptions, type IncomingMessage, type RequestOptions, request as startRequest } from 'node:http';
import type { Socket } from 'node:net';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { chunksOf } from '../domain/chunks.ts';
import { HutchError } from '../domain/errors.ts';
import type { Address } from './address.ts';
import { cancelled, errorFromBody, lostMidway, unreachable } from './errors.ts';
import { wroteLent } from './lent.ts';
import { connectForBodies } from './reading.ts';

const ERROR_BODY_BYTES_MAX = 1024 * 1024;

export type Exchange = {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array | AsyncIterable<Uint8Array> | null;
  /** The body may go into the file itself, if the daemon lends it. */
  readonly lend?: boolean;
  readonly signal?: AbortSignal | undefined;
  /** Ends it only while there is no connection. */
  readonly unsentSignal?: AbortSignal | undefined;
};

class UnixAgent extends Agent {
  readonly #path: string;

  constructor(path: string, options: AgentOptions) {
    super(options);
    this.#path = path;
  }

  override createConnection(): Socket {
    return connectForBodies(this.#path);
  }
}

export class HttpClient implements Disposable {
  readonly address: Address;
  readonly #agent: Agent;

  constructor(address: Address) {
    this.address = address;
    const options = { keepAlive: true, maxFreeSockets: 4 };
    this.#agent = address.type === 'unix' ? new UnixAgent(address.path, options) : new Agent(options);
  }

  /** @throws ConnectionError when the daemon cannot be reached or is lost, HutchError as it says, `cancelled`. */
  async send(exchange: Exchange): Promise<IncomingMessage> {
    const { method, path, headers, body = null, signal, unsentSignal } = exchange;
    for (const asked of [signal, unsentSignal]) if (asked?.aborted) throw cancelled(asked);
    const { address } = this;
    const options: RequestOptions = {
      method,
      path,
      headers,
      agent: this.#agent,
      // For TLS alone; Node would look whether the host is an address, by patterns that it compiles first.
      ...(address.type === 'tcp' && address.tls ? {} : { servername: '' }),
      ...(signal === undefined ? {} : { signal }),
      ...(address.type === 'unix' ? { socketPath: address.path } : { host: address.host, port: address.port }),
    };
    const start = address.type === 'tcp' && address.tls ? (await import('node:https')).request : startRequest;
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    // The agent is for clear text; a TLS connection uses Node's own.
    const request = start(address.type === 'tcp' && address.tls ? { ...options, agent: undefined } : options);
    if (unsentSignal !== undefined) {
      const giveUp = (): void => {
        if (request.socket?.connecting !== false) request.destroy(cancelled(unsentSignal));
      };
      unsentSignal.addEventListener('abort', giveUp, { once: true });
      request.on('close', () => unsentSignal.removeEventListener('abort', giveUp));
    }
    request.on('response', resolve);
    request.on('error', (cause: NodeJS.ErrnoException | HutchError) => {
      if (cause instanceof HutchError) return reject(cause);
      if (signal?.aborted) return reject(cancelled(signal));
      reject(unreachable(address, cause));
    });
    if (body === null) request.end();
    else if (typeof body === 'string' || (body instanceof Uint8Array && exchange.lend !== true)) request.end(body);
    else {
      const content = body instanceof Uint8Array ? Readable.from([body]) : body;
      // A server may refuse before it has taken all: then its answer counts, not the broken pipe.
      const send = () =>
        pipeline(content, request).catch((cause: unknown) => {
          if (request.destroyed) return;
          request.destroy(cause instanceof Error ? cause : new Error(String(cause)));
        });
      if (exchange.lend === true) {
        request.flushHeaders();
        wroteLent(request, content)
          .then((wrote) => (wrote ? undefined : send()))
          .catch((cause: unknown) => {
            reject(cause);
            request.destroy();
          });
      } else {
        request.flushHeaders(); // the daemon begins while the body is still put together
        void send();
      }
    }
    const response = await promise;
    const status = response.statusCode ?? 0;
    if (status >= 200 && status < 300) return response;
    throw errorFromBody(await jsonBody(response).catch(() => null), { status, opId: opIdOf(response) });
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }
}

export function opIdOf(response: IncomingMessage): string | null {
  const value = response.headers['hutch-op-id'];
  return typeof value === 'string' ? value : null;
}

/** The whole body as JSON. @throws ConnectionError when it breaks off. */
export async function jsonBody(response: IncomingMessage, bytesMax = ERROR_BODY_BYTES_MAX): Promise<unknown> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of bodyBytes(response)) {
    chunks.push(chunk);
    bytes += chunk.byteLength;
    if (bytes > bytesMax) throw new HutchError({ code: 'internal', message: `the answer is longer than ${bytesMax} bytes` });
  }
  const text = Buffer.concat(chunks).toString('utf8');
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new HutchError({ code: 'unavailable', message: 'the answer did not come from a Hutch daemon: it is no JSON', cause });
  }
}

/** The body as it comes; leaving the loop ends the connection. @throws ConnectionError when it breaks off before its end. */
export async function* bodyBytes(response: IncomingMessage, signal?: AbortSignal): AsyncGenerator<Uint8Array, void, undefined> {
  try {
    yield* chunksOf(response);
  } catch (cause) {
    if (signal?.aborted) throw cancelled(signal);
    throw lostMidway(cause, opIdOf(response));
  } finally {
    if (!response.readableEnded) response.destroy();
  }
}
