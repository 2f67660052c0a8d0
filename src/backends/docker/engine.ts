// The Engine's HTTP API, over its unix socket or TCP: one connection a request, so that an Engine that was
// restarted is simply there again. Requests and answers have bounds; what the Engine refuses becomes
// an error of ours with its own sentence in it.
import { type IncomingMessage, request } from 'node:http';
import type { Duplex } from 'node:stream';
import * as z from 'zod';
import type { ErrorCode } from '../../domain/errors.ts';
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { pause } from '../wait.ts';
import { API_MAX, API_MIN, type DockerEnvironment, PING_MS, REQUEST_MS, SSH_PING_MS } from './config.ts';
import { type Endpoint, findEndpoint } from './endpoint.ts';
import { notReached, notTrusted, tlsCode } from './reach.ts';
import { connectSsh, endSsh, sshFailed } from './ssh.ts';

export type Ask = {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE' | 'HEAD';
  /** Without the version, such as `/containers/json`. */
  readonly path: string;
  readonly query?: Readonly<Record<string, string | number | boolean>>;
  readonly body?: object;
  readonly headers?: Readonly<Record<string, string>>;
  /** In place of `body`. */
  readonly content?: { readonly type: string; readonly chunks: AsyncIterable<Uint8Array> };
};

/** An answer that takes longer may be none: then the Engine is asked whether it is there at all, and again each time. */
const HANG_MS = 1_000;
/** What one that hung has for its first word. */
const AGAIN_MS = 1_000;
/** One that has said it before has at least this long, or so many times what it took: it may be far, or slow. */
const WORD = { msMin: 2_000, times: 20 } as const;
/** `ID` alone is the same for two of one machine, of older releases. */
const which = z.object({ ID: z.string(), DockerRootDir: z.string() });
const ANSWER_BYTES_MAX = 16 * 1024 * 1024;
const MESSAGE_CHARS_MAX = 600;

const CODES: Readonly<Record<number, ErrorCode>> = {
  400: 'invalid_argument',
  401: 'permission_denied',
  403: 'permission_denied',
  404: 'not_found',
  409: 'conflict',
  503: 'unavailable',
};

export class Engine {
  readonly #host: Host;
  readonly #env: DockerEnvironment;
  readonly #sshDir: string | null;
  #endpoint: Endpoint | null = null;
  /** `/v1.41`; asked anew after the Engine was away: another one may have come back. */
  #version: string | null = null;
  /** Which one it is; asked anew after it was away. */
  #identity: string | null = null;
  /** It let the last ping wait in vain. */
  #hangs = false;
  /** What its first word took at the least; null until it has said one. */
  #wordMs: number | null = null;

  /** `sshDir`: where connections by ssh are shared, in sockets of this user alone. */
  constructor(host: Host, env: DockerEnvironment, sshDir: string | null = null) {
    this.#host = host;
    this.#env = env;
    this.#sshDir = sshDir;
  }

  async endpoint(op: Operation): Promise<Endpoint> {
    this.#endpoint ??= await findEndpoint(op, this.#host, this.#env);
    return this.#endpoint;
  }

  /** The answer as JSON, parsed. @throws HutchError as the status says; `unavailable` without an Engine. */
  async json<T>(op: Operation, schema: z.ZodType<T>, ask: Ask, ms: number = REQUEST_MS): Promise<T> {
    using limited = op.within(ms, `Docker's answer to ${ask.method} ${ask.path}`);
    const text = await collect(limited, await this.#send(limited, ask));
    try {
      return schema.parse(JSON.parse(text));
    } catch (cause) {
      throw op.error('internal', `Docker's answer to ${ask.method} ${ask.path} is not understood`, { cause });
    }
  }

  /** Which Engine it is, of all that there are. `now`: another one may answer since it was asked. */
  async identity(op: Operation, when: 'as known' | 'now' = 'as known'): Promise<string> {
    if (this.#identity !== null && when === 'as known') return this.#identity;
    const { ID, DockerRootDir } = await this.json(op, which, { method: 'GET', path: '/info' });
    this.#identity = `${ID} ${DockerRootDir}`;
    return this.#identity;
  }

  /** What its first word may take. */
  async pingMs(op: Operation): Promise<number> {
    return (await this.endpoint(op)).kind === 'ssh' ? SSH_PING_MS : PING_MS;
  }

  /** @throws HutchError `unavailable` when it is away, or hangs. */
  async ping(op: Operation): Promise<void> {
    await this.#hello(op);
  }

  /** Its first word. One that hung has less time for it, where a connection takes none. */
  async #hello(op: Operation): Promise<{ readonly answer: IncomingMessage; readonly said: string }> {
    const ms = await this.#patienceMs(op);
    using limited = op.within(ms, 'Docker');
    const askedMs = this.#host.monotonicMs();
    try {
      const answer = await this.#exchange(limited, { method: 'GET', path: '/_ping' }, '');
      const said = await collect(limited, answer);
      this.#hangs = false;
      this.#wordMs = Math.min(this.#wordMs ?? Number.POSITIVE_INFINITY, this.#host.monotonicMs() - askedMs);
      return { answer, said };
    } catch (cause) {
      if (op.signal.aborted || !limited.signal.aborted) throw cause;
      this.#hangs = true;
      throw op.error('unavailable', `the Docker Engine has not answered in ${ms / 1_000} s`, {
        hint: 'does it hang? see: docker info',
        cause,
      });
    }
  }

  async #patienceMs(op: Operation): Promise<number> {
    const usual = await this.pingMs(op);
    if (usual !== PING_MS) return usual;
    if (this.#hangs) return AGAIN_MS;
    if (this.#wordMs === null) return PING_MS;
    return Math.min(PING_MS, Math.max(WORD.msMin, Math.ceil((WORD.times * this.#wordMs) / 1_000) * 1_000));
  }

  /** For its effect. */
  async call(op: Operation, ask: Ask, ms: number = REQUEST_MS): Promise<void> {
    using limited = op.within(ms, `Docker's answer to ${ask.method} ${ask.path}`);
    await collect(limited, await this.#send(limited, ask));
  }

  /** The answer as it comes, for as long as the operation lasts. */
  async stream(op: Operation, ask: Ask): Promise<IncomingMessage> {
    return await this.#send(op, ask);
  }

  /** A connection that is ours after the Engine has agreed: HTTP's upgrade to raw bytes. */
  async hijack(op: Operation, ask: Ask): Promise<Duplex> {
    const version = await this.#awakeVersion(op);
    return await this.#unlessHung(op, (waiting) => this.#upgrade(waiting, ask, version));
  }

  async #versioned(op: Operation): Promise<string> {
    if (this.#version !== null) return this.#version;
    const { answer, said } = await this.#hello(op);
    const endpoint = await this.endpoint(op);
    if (endpoint.kind === 'tcp' && endpoint.tls === null && /HTTP request to an HTTPS server/i.test(said)) {
      throw op.error('failed_precondition', `the Docker Engine at ${endpoint.address} wants TLS (from ${endpoint.source})`, {
        hint: 'set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the directory with ca.pem, cert.pem and key.pem',
      });
    }
    const offered = /^(\d+)\.(\d+)$/.exec(String(answer.headers['api-version'] ?? ''));
    const [major, minor] = [Number(offered?.[1] ?? 0), Number(offered?.[2] ?? 0)];
    if (major !== API_MIN[0] || minor < API_MIN[1]) {
      throw op.error('failed_precondition', `the Docker Engine is too old: it speaks API ${major}.${minor}`, {
        hint: 'Hutch needs Engine 20.10 (API 1.41) or newer',
      });
    }
    this.#version = `/v${major}.${Math.min(minor, API_MAX[1])}`;
    return this.#version;
  }

  async #send(op: Operation, ask: Ask): Promise<IncomingMessage> {
    const version = await this.#awakeVersion(op);
    const answer = await this.#unlessHung(op, (waiting) => this.#exchange(waiting, ask, version));
    const status = answer.statusCode ?? 0;
    if (status < 400) return answer;
    throw refused(op, ask, status, await collect(op, answer));
  }

  /** One that hung is asked whether it is back before anything else. */
  async #awakeVersion(op: Operation): Promise<string> {
    if (this.#hangs) await this.ping(op);
    return await this.#versioned(op);
  }

  /** @throws HutchError `unavailable` when the Engine hangs before the answer has begun. */
  async #unlessHung<T>(op: Operation, ask: (waiting: Operation) => Promise<T>): Promise<T> {
    const over = new AbortController();
    const hung = new AbortController();
    void this.#watch({ ...op, signal: AbortSignal.any([op.signal, over.signal]) }, hung);
    try {
      return await ask({ ...op, signal: AbortSignal.any([op.signal, hung.signal]) });
    } finally {
      over.abort();
    }
  }

  /** Aborts `hung` when the Engine does not even answer a ping: nobody waits for what it was asked. Ends with the operation. */
  async #watch(op: Operation, hung: AbortController): Promise<void> {
    try {
      for (;;) {
        await pause(op, HANG_MS);
        await this.ping(op);
      }
    } catch (cause) {
      if (!op.signal.aborted) hung.abort(cause);
    }
  }

  async #exchange(op: Operation, ask: Ask, prefix: string): Promise<IncomingMessage> {
    const { socket, endpoint } = await this.#connect(op);
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const sent = request({ ...this.#head(ask, prefix), createConnection: () => socket as never });
    const onAbort = (): void => void sent.destroy(reasonOf(op));
    op.signal.addEventListener('abort', onAbort, { once: true });
    sent.once('response', (answer) => {
      answer.once('close', () => {
        op.signal.removeEventListener('abort', onAbort);
        socket.destroy();
      });
      resolve(answer);
    });
    sent.once('error', (cause) => {
      op.signal.removeEventListener('abort', onAbort);
      socket.destroy();
      reject(this.#lost(op, endpoint, cause));
    });
    if (op.signal.aborted) onAbort();
    else if (ask.content === undefined) sent.end(ask.body === undefined ? undefined : JSON.stringify(ask.body));
    else feed(sent, ask.content.chunks);
    return await promise;
  }

  async #upgrade(op: Operation, ask: Ask, prefix: string): Promise<Duplex> {
    const { socket, endpoint } = await this.#connect(op);
    const { promise, resolve, reject } = Promise.withResolvers<Duplex>();
    const head = this.#head(ask, prefix);
    const sent = request({
      ...head,
      headers: { ...head.headers, Connection: 'Upgrade', Upgrade: 'tcp' },
      createConnection: () => socket as never,
    });
    const onAbort = (): void => void sent.destroy(reasonOf(op));
    op.signal.addEventListener('abort', onAbort, { once: true });
    const over = (): void => op.signal.removeEventListener('abort', onAbort);
    sent.once('upgrade', (_answer, raw: Duplex, first: Buffer) => {
      over();
      if (first.byteLength > 0) raw.unshift(first);
      resolve(raw);
    });
    sent.once('response', (answer) => {
      over();
      collect(op, answer).then((text) => reject(refused(op, ask, answer.statusCode ?? 0, text)), reject);
    });
    sent.once('error', (cause) => {
      over();
      socket.destroy();
      reject(this.#lost(op, endpoint, cause));
    });
    if (op.signal.aborted) onAbort();
    else sent.end();
    return await promise;
  }

  #head({ method, path, query = {}, body, headers = {}, content }: Ask, prefix: string) {
    const search = new URLSearchParams(Object.entries(query).map(([key, value]): [string, string] => [key, String(value)])).toString();
    const type = content?.type ?? (body === undefined ? undefined : 'application/json');
    return {
      method,
      path: `${prefix}${path}${search === '' ? '' : `?${search}`}`,
      host: 'docker',
      headers: { Host: 'docker', ...(type === undefined ? {} : { 'Content-Type': type }), ...headers },
    };
  }

  /** With the endpoint that it leads to: while one request asks, another may fail and forget it. */
  async #connect(op: Operation): Promise<{ readonly socket: Duplex; readonly endpoint: Endpoint }> {
    const endpoint = await this.endpoint(op);
    try {
      if (endpoint.kind === 'unix') return { socket: await this.#host.connectUnix(op, endpoint.socketPath), endpoint };
      if (endpoint.kind === 'ssh') return { socket: await connectSsh(op, this.#host, this.#env, endpoint, this.#sshDir), endpoint };
      return { socket: await this.#host.connectTcp(op, endpoint, endpoint.tls ?? undefined), endpoint };
    } catch (cause) {
      if (op.signal.aborted || endpoint.kind === 'ssh') throw cause;
      this.#forget();
      throw notReached(op, endpoint, cause);
    }
  }

  /** Gives back what connections to it have on this machine. */
  async close(op: Operation): Promise<void> {
    const endpoint = await this.endpoint(op);
    if (endpoint.kind === 'ssh' && this.#sshDir !== null) await endSsh(op, this.#host, this.#env, endpoint, this.#sshDir);
  }

  /** Another Engine may come back, or be configured, with other certificates. */
  #forget(): void {
    this.#version = null;
    this.#identity = null;
    this.#endpoint = null;
  }

  /** The connection ended in the middle. */
  #lost(op: Operation, endpoint: Endpoint, cause: unknown): Error {
    if (op.signal.aborted) return reasonOf(op);
    if (cause instanceof HutchError) return cause;
    this.#forget();
    if (endpoint.kind === 'ssh') return sshFailed(op, endpoint, cause);
    const refusal = tlsCode(cause);
    if (refusal !== null) return notTrusted(op, endpoint, refusal, cause);
    return op.error('unavailable', 'the Docker Engine hung up before it had answered', { cause });
  }
}

function feed(sent: ReturnType<typeof request>, chunks: AsyncIterable<Uint8Array>): void {
  const write = async (): Promise<void> => {
    for await (const chunk of chunks) {
      if (sent.destroyed) return;
      if (!sent.write(chunk)) await new Promise<void>((resolve) => sent.once('drain', resolve).once('close', resolve));
    }
    sent.end();
  };
  write().catch((error: unknown) => sent.destroy(error instanceof Error ? error : new Error(String(error))));
}

async function collect(op: Operation, answer: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of answer) {
      bytes += (chunk as Buffer).byteLength;
      if (bytes > ANSWER_BYTES_MAX) throw op.error('internal', `Docker's answer has more than ${ANSWER_BYTES_MAX} bytes`);
      chunks.push(chunk as Buffer);
    }
  } catch (cause) {
    if (op.signal.aborted) throw reasonOf(op);
    if (cause instanceof HutchError) throw cause;
    throw op.error('unavailable', 'the Docker Engine hung up in the middle of its answer', { cause });
  }
  return Buffer.concat(chunks).toString();
}

function refused(op: Operation, { method, path }: Ask, status: number, text: string): HutchError {
  const message = messageOf(text) || `HTTP ${status}`;
  const said = `Docker refused ${method} ${path}: ${message}`;
  if (/no space left on device|disk quota exceeded/i.test(message))
    return op.error('resource_exhausted', said, {
      hint: 'make room where the Docker Engine keeps its data; what takes it: docker system df',
    });
  return op.error(CODES[status] ?? 'internal', said);
}

/** The Engine's own sentence, without what could act on a terminal. */
function messageOf(text: string): string {
  let message = text;
  try {
    const body: unknown = JSON.parse(text);
    if (typeof body === 'object' && body !== null && 'message' in body && typeof body.message === 'string') message = body.message;
  } catch {
    // not JSON: as it is
  }
  return message
    .replaceAll(/[^\x20-\x7e]+/g, ' ')
    .trim()
    .slice(0, MESSAGE_CHARS_MAX);
}

function reasonOf(op: Operation): Error {
  const reason: unknown = op.signal.reason;
  return reason instanceof HutchError ? reason : op.error('cancelled', 'the operation was cancelled', { cause: reason });
}
