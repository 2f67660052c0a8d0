// One HTTP exchange with the daemon, over its unix socket or TCP. Resolves with the head of a good
// answer, its body still to be read; everything else is a HutchError. Retries are the caller's.
import { HutchError } from '../domain/errors.ts';
import type { Address } from './address.ts';
import { ConnectionError, cancelled, errorFromBody, unreachable } from './errors.ts';
import type { NodeHttp } from './node-http.ts';
import { PlainConnections } from './plain-exchange.ts';
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

/** What was answered: its head, and its body still to come. */
export type Answer = AsyncIterable<Uint8Array> & {
  readonly statusCode?: number | undefined;
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  /** What is left of the body is not wanted. */
  resume(): unknown;
};

export class HttpClient implements Disposable {
  readonly address: Address;
  readonly #plain: PlainConnections | null;
  #node: Promise<NodeHttp> | null = null;

  constructor(address: Address) {
    this.address = address;
    this.#plain = address.type === 'unix' ? new PlainConnections(() => connectForBodies(address.path)) : null;
  }

  /** @throws ConnectionError when the daemon cannot be reached or is lost, HutchError as it says, `cancelled`. */
  async send(exchange: Exchange): Promise<Answer> {
    for (const asked of [exchange.signal, exchange.unsentSignal]) if (asked?.aborted) throw cancelled(asked);
    const plain = exchange.lend === true ? null : this.#plain;
    const response = plain === null ? await (await this.#withNode()).send(exchange) : await this.#sendPlain(plain, exchange);
    const status = response.statusCode ?? 0;
    if (status >= 200 && status < 300) return response;
    throw errorFromBody(await jsonBody(response).catch(() => null), { status, opId: opIdOf(response) });
  }

  async #sendPlain(plain: PlainConnections, { method, path, headers, body = null, signal, unsentSignal }: Exchange): Promise<Answer> {
    const ends = new AbortController(); // takes the listeners away
    const watcher = {
      begun(end: (reason?: Error) => void, isConnecting: () => boolean): void {
        signal?.addEventListener('abort', () => end(), ends);
        unsentSignal?.addEventListener('abort', () => isConnecting() && end(cancelled(unsentSignal)), ends);
      },
      over: () => ends.abort(),
    };
    try {
      return await plain.send({ method, path, headers, body }, watcher);
    } catch (cause) {
      if (cause instanceof HutchError) throw cause;
      if (signal?.aborted) throw cancelled(signal);
      throw unreachable(this.address, cause as NodeJS.ErrnoException);
    }
  }

  #withNode(): Promise<NodeHttp> {
    this.#node ??= import('./node-http.ts').then(({ NodeHttp: Client }) => new Client(this.address));
    return this.#node;
  }

  [Symbol.dispose](): void {
    this.#plain?.[Symbol.dispose]();
    this.#node?.then((node) => node[Symbol.dispose]()).catch(() => {});
  }
}

export function opIdOf(response: Answer): string | null {
  const value = response.headers['hutch-op-id'];
  return typeof value === 'string' ? value : null;
}

/** The whole body as JSON. @throws ConnectionError when it breaks off. */
export async function jsonBody(response: Answer, bytesMax = ERROR_BODY_BYTES_MAX): Promise<unknown> {
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
export async function* bodyBytes(response: Answer, signal?: AbortSignal): AsyncGenerator<Uint8Array, void, undefined> {
  try {
    yield* response;
  } catch (cause) {
    if (signal?.aborted) throw cancelled(signal);
    const opId = opIdOf(response);
    throw new ConnectionError('the connection to the daemon was lost before its answer was whole', {
      sent: true,
      cause,
      ...(opId === null ? {} : { opId }),
    });
  }
}
