// Every verb of the API as a typed call. It adds the key, the idempotency key and the retries, and
// knows nothing of what the verbs mean. Always true: a call is sent again only when that cannot do
// a thing twice, and never after its caller gave up.
import type { IncomingMessage } from 'node:http';
import type { Input, Output, VerbName } from '../services/verbs.ts';
import type { Address } from './address.ts';
import { answerTo, isPlain, type Question } from './answer.ts';
import { ConnectionError, errorFromBody, lostMidway } from './errors.ts';
import type { HttpClient } from './http.ts';
import { begun, LEND_FROM_BYTES, lentBytes, lentOf, mayBeLent } from './lent.ts';
import { jsonLines } from './lines.ts';
import { encodeRequest } from './request.ts';
import { backOff } from './retry.ts';
import { type Route, routes } from './routes.ts';
import { uniqueId } from './unique.ts';

type OfKind<K extends Route['kind']> = { [N in VerbName]: (typeof routes)[N]['kind'] extends K ? N : never }[VerbName];
export type UnaryVerb = OfKind<'unary'>;
export type LinesVerb = OfKind<'lines'>;
export type DownloadVerb = OfKind<'download'>;
export type UploadVerb = OfKind<'upload'>;
export type SocketVerb = OfKind<'socket'>;

export type Progress = {
  readonly step: string;
  readonly detail?: string;
  readonly done?: number;
  readonly total?: number;
  readonly unit?: 'bytes' | 'items';
};

export type CallOptions = {
  readonly signal?: AbortSignal | undefined;
  /** The same key makes a repeated call run once. Made up for mutating calls when absent. */
  readonly idempotencyKey?: string;
  /** W3C trace context, passed on. */
  readonly traceparent?: string;
  /** Called with the operation's id as soon as it is known. */
  readonly onOpId?: (opId: string) => void;
};

type UnaryOptions = CallOptions & {
  readonly onProgress?: (progress: Progress) => void;
  /** Ends it only while no daemon has taken it; from then on the operation's id is what it is cancelled by. */
  readonly unsentSignal?: AbortSignal | undefined;
};

export type ClientOptions = {
  readonly address: Address;
  /** The API key, or how to get it: asked for before each try, so that a daemon's first start can mint it. */
  readonly key: string | (() => string | Promise<string>);
  /** How long an unreachable daemon is tried again. */
  readonly retryForMs?: number;
  /** Called before each new try; what it throws ends the call. The CLI starts the daemon here. */
  readonly onUnreachable?: (error: ConnectionError, attempt: number) => Promise<void>;
  /**
   * `one-each`: a short answer of our own daemon, over its unix socket, has a connection to itself, which ends with it. Who asks once or
   * twice has it sooner. `kept`, the default, is for who asks often.
   */
  readonly connections?: 'kept' | 'one-each';
};

/** One try. */
type Request = {
  readonly verb: VerbName;
  readonly input: object;
  readonly headers: Record<string, string>;
  readonly options: UnaryOptions;
  /** In place of a JSON text. */
  readonly content?: Uint8Array | AsyncIterable<Uint8Array>;
  readonly how?: 'send' | 'lend';
};

/** Their answer has a secret that is kept nowhere, so there is none to repeat. */
const NEVER_REPEATED: ReadonlySet<VerbName> = new Set(['key.create']);
const LEND = { 'Hutch-Lend': '1' };
/** Its length is not known: none of it is sent where the file is lent. */
const LENT_BODY = { ...LEND, Expect: '100-continue', 'Content-Type': 'application/octet-stream', 'Transfer-Encoding': 'chunked' };
const RETRY_FOR_MS = 5_000;
const ANSWER_BYTES_MAX = 64 * 1024 * 1024;

export type Downloaded = {
  readonly opId: string | null;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly bytes: AsyncIterable<Uint8Array>;
};

export class ApiClient implements Disposable {
  readonly #options: ClientOptions;
  #http: HttpClient | null = null;

  constructor(options: ClientOptions) {
    this.#options = options;
  }

  get address(): Address {
    return this.#options.address;
  }

  get retryForMs(): number {
    return this.#options.retryForMs ?? RETRY_FOR_MS;
  }

  /** A unary verb. With `onProgress` the server tells how far it is. */
  async call<N extends UnaryVerb>(verb: N, input: Input<N>, options: UnaryOptions = {}): Promise<Output<N>> {
    const { onProgress } = options;
    const route: Route = routes[verb];
    const key = route.reads || NEVER_REPEATED.has(verb) ? undefined : (options.idempotencyKey ?? uniqueId());
    return await this.#retrying(verb, options, key, async (plain) => {
      const headers = { ...plain, ...this.#whereWeStand(verb, input) };
      if (onProgress === undefined) return (await this.#answer({ verb, input, headers, options })) as Output<N>;
      const { bodyBytes, opIdOf } = await import('./http.ts');
      const response = await this.#send({ verb, input, headers: { ...headers, Accept: 'application/x-ndjson' }, options });
      for await (const line of jsonLines(bodyBytes(response, options.signal))) {
        const message = line as { type?: string; result?: Output<N>; error?: unknown } & Progress;
        if (message.type === 'progress') onProgress(message);
        else if (message.type === 'result') return message.result as Output<N>;
        else if (message.type === 'error') throw errorFromBody(message.error, { opId: opIdOf(response) });
      }
      throw lostMidway(undefined, null);
    });
  }

  /** A verb that answers lines. Only its beginning is tried again: a stream that breaks off says so. */
  async *lines<N extends LinesVerb>(verb: N, input: Input<N>, options: CallOptions = {}): AsyncGenerator<Output<N>, void, undefined> {
    const { bodyBytes, opIdOf } = await import('./http.ts');
    const response = await this.#retrying(verb, options, undefined, (headers) => this.#send({ verb, input, headers, options }));
    for await (const line of jsonLines(bodyBytes(response, options.signal))) {
      const failed = (line as { error?: unknown } | null)?.error;
      if (failed !== undefined && failed !== null && Object.keys(line as object).length === 1)
        throw errorFromBody(failed, { opId: opIdOf(response) });
      yield line as Output<N>;
    }
  }

  async download<N extends DownloadVerb>(verb: N, input: Input<N>, options: CallOptions = {}): Promise<Downloaded> {
    const lends = verb === 'file.read' && mayBeLent(this.address);
    const ask = (more: Record<string, string>) =>
      this.#retrying(verb, options, undefined, (headers) => this.#send({ verb, input, headers: { ...headers, ...more }, options }));
    const { bodyBytes, opIdOf } = await import('./http.ts');
    let response = await ask(lends ? LEND : {});
    const lent = lends ? lentOf(response) : null;
    if (lent !== null) {
      response.resume();
      const { offset, length } = input as { readonly offset?: number; readonly length?: number };
      const bytes = await lentBytes(lent, { offset, length }, options.signal);
      if (bytes !== null) return { opId: opIdOf(response), headers: response.headers, bytes };
      response = await ask({});
    }
    return { opId: opIdOf(response), headers: response.headers, bytes: bodyBytes(response, options.signal) };
  }

  /** Bytes given whole, or a short stream, are sent again where nobody was there; a long one cannot be. */
  async upload<N extends UploadVerb>(
    verb: N,
    input: Input<N>,
    content: Uint8Array | AsyncIterable<Uint8Array>,
    options: CallOptions = {},
  ): Promise<Output<N>> {
    const lends = verb === 'file.write' && (input as Input<'file.write'>).at === undefined && mayBeLent(this.address);
    // A short one is bytes given whole: one message, and no question before it whether anybody is there to take it.
    const body = content instanceof Uint8Array ? content : await begun(content);
    const isLarge = !(body instanceof Uint8Array) || body.byteLength >= LEND_FROM_BYTES;
    const send = async (headers: Record<string, string>) =>
      (await this.#answer({ verb, input, headers, options, content: body, how: lends && isLarge ? 'lend' : 'send' })) as Output<N>;
    const key = options.idempotencyKey;
    if (body instanceof Uint8Array) return await this.#retrying(verb, options, key, send);
    // What cannot be sent again is begun when there is somebody to take it: a daemon that does not run is started by this.
    await this.call('daemon.version', {}, { signal: options.signal });
    return await send(await this.headers({ ...options, ...(key === undefined ? {} : { idempotencyKey: key }) }));
  }

  /** Headers that every request carries. */
  async headers(options: CallOptions): Promise<Record<string, string>> {
    const { key } = this.#options;
    return {
      Authorization: `Bearer ${typeof key === 'string' ? key : await key()}`,
      ...(options.idempotencyKey === undefined ? {} : { 'Idempotency-Key': options.idempotencyKey }),
      ...(options.traceparent === undefined ? {} : { traceparent: options.traceparent }),
    };
  }

  /** Before try `attempt` (from 1) of what `error` ended. @throws the error when it is no use, or too late. */
  async beforeRetry(
    error: unknown,
    attempt: number,
    since: number,
    signal: AbortSignal | undefined,
    forMs: number = this.retryForMs,
  ): Promise<void> {
    if (!(error instanceof ConnectionError) || signal?.aborted) throw error;
    if (performance.now() - since > forMs) throw error;
    await this.#options.onUnreachable?.(error, attempt);
    await backOff(attempt, signal);
  }

  [Symbol.dispose](): void {
    this.#http?.[Symbol.dispose]();
  }

  /** A daemon of our own may mount what lies where we stand. */
  #whereWeStand(verb: UnaryVerb, input: object): Record<string, string> {
    if (verb !== 'sandbox.create' || !('mounts' in input) || this.address.type !== 'unix') return {};
    return { 'Hutch-Client-Directory': encodeURIComponent(process.cwd()) };
  }

  async #retrying<T>(
    verb: VerbName,
    options: UnaryOptions,
    key: string | undefined,
    attemptOnce: (headers: Record<string, string>) => Promise<T>,
  ): Promise<T> {
    const route: Route = routes[verb];
    // From the first failure on; nearly all calls have none, and asking for the time loads a module of Node's that counts in a short command.
    let since: number | null = null;
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await attemptOnce(await this.headers({ ...options, ...(key === undefined ? {} : { idempotencyKey: key }) }));
      } catch (error) {
        const safe = route.idempotent || key !== undefined || (error instanceof ConnectionError && !error.sent);
        if (!safe) throw error;
        since ??= performance.now();
        await this.beforeRetry(error, attempt, since, options.unsentSignal ?? options.signal);
      }
    }
  }

  /** JSON, whole. */
  async #answer(request: Request): Promise<unknown> {
    const { verb, input, headers, options, content, how = 'send' } = request;
    const { address, connections } = this.#options;
    if (
      connections === 'one-each' &&
      address.type === 'unix' &&
      how === 'send' &&
      (content === undefined || content instanceof Uint8Array)
    ) {
      const { method, path, body: text } = encodeRequest(routes[verb], input as Record<string, unknown>);
      const body = content ?? text;
      const { signal, unsentSignal, onOpId } = options;
      const question: Question = {
        ...{ method, path, body, signal, unsentSignal, onOpId },
        headers: { ...headers, ...bodyHeaders(body) },
      };
      if (isPlain(question)) return await answerTo(question, address, ANSWER_BYTES_MAX);
    }
    const { jsonBody } = await import('./http.ts');
    return await jsonBody(await this.#send(request), ANSWER_BYTES_MAX);
  }

  async #send({ verb, input, headers, options, content, how = 'send' }: Request): Promise<IncomingMessage> {
    const { HttpClient, opIdOf } = await import('./http.ts');
    this.#http ??= new HttpClient(this.address);
    const { method, path, body } = encodeRequest(routes[verb], input as Record<string, unknown>);
    const response = await this.#http.send({
      method,
      path,
      body: content ?? body,
      headers: { ...headers, ...(how === 'lend' ? LENT_BODY : bodyHeaders(content ?? body)) },
      signal: options.signal,
      unsentSignal: options.unsentSignal,
      lend: how === 'lend',
    });
    const opId = opIdOf(response);
    if (opId !== null) options.onOpId?.(opId);
    return response;
  }
}

function bodyHeaders(body: string | Uint8Array | AsyncIterable<Uint8Array> | null): Record<string, string> {
  if (body === null) return {};
  if (typeof body === 'string') return { 'Content-Type': 'application/json', 'Content-Length': String(Buffer.byteLength(body)) };
  const type = { 'Content-Type': 'application/octet-stream' };
  return body instanceof Uint8Array ? { ...type, 'Content-Length': String(body.byteLength) } : type;
}
