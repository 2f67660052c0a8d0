// One HTTP exchange by Node's own client: over TCP and TLS, and where a file is lent. It is loaded when the first one is asked for.
import { Agent, type AgentOptions, type IncomingMessage, type RequestOptions, request as startRequest } from 'node:http';
import type { Socket } from 'node:net';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { chunksOf } from '../domain/chunks.ts';
import { HutchError } from '../domain/errors.ts';
import type { Address } from './address.ts';
import { cancelled, unreachable } from './errors.ts';
import type { Answer, Exchange } from './http.ts';
import { wroteLent } from './lent.ts';
import { connectForBodies } from './reading.ts';

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

export class NodeHttp implements Disposable {
  readonly #address: Address;
  readonly #agent: Agent;

  constructor(address: Address) {
    this.#address = address;
    const options = { keepAlive: true, maxFreeSockets: 4 };
    this.#agent = address.type === 'unix' ? new UnixAgent(address.path, options) : new Agent(options);
  }

  /** The head of an answer, whatever it says. @throws as `HttpClient.send`. */
  async send(exchange: Exchange): Promise<Answer> {
    const { method, path, headers, body = null, signal, unsentSignal } = exchange;
    const address = this.#address;
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
    const { statusCode, headers: heads } = response;
    return { statusCode, headers: heads, resume: () => response.resume(), [Symbol.asyncIterator]: () => bodyOf(response) };
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }
}

/** Leaving the loop ends the connection. */
async function* bodyOf(response: IncomingMessage): AsyncGenerator<Uint8Array, void, undefined> {
  try {
    yield* chunksOf(response);
  } finally {
    if (!response.readableEnded) response.destroy();
  }
}
