// Calls to the daemon that has another role: the request goes on as it came, under the same op id and
// trace, and its answer comes back as it is. Always true: a call that may have been carried out and cannot
// be repeated is sent once; whoever waits is told when the other falls silent; nothing is kept here.
import { Agent, request as httpRequest, type IncomingMessage, type ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { HutchError } from '../../domain/errors.ts';
import type { OpId } from '../../domain/ids.ts';
import { nextTryInMs, type RetryPolicy } from '../../domain/retry.ts';
import type { Log } from '../../host/operation.ts';
import type { Role } from '../../services/roles.ts';
import type { Verb } from '../../services/verbs.ts';
import { finishReading } from './respond.ts';

export type PeerAddress = { readonly socketPath: string } | { readonly host: string; readonly port: number };

export type PeerOptions = {
  readonly role: Role;
  readonly address: PeerAddress;
  /** Our API key there; asked for before each try, so that a peer's first start can mint it. */
  readonly key: () => Promise<string>;
  readonly log: Log;
  readonly monotonicMs: () => number;
  /** In [0, 1). */
  readonly random: () => number;
  readonly retry?: RetryPolicy;
  readonly pingMs?: number;
  readonly silentMs?: number;
};

export type Forwarding = { readonly opId: OpId; readonly verb: Verb; readonly body: string | null };

export type Peer = Disposable & {
  readonly role: Role;
  /** @throws HutchError as long as nothing of an answer has left. */
  request(request: IncomingMessage, response: ServerResponse, what: Forwarding): Promise<void>;
  /** @throws HutchError as long as nothing of an answer has left. */
  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer, what: Forwarding): Promise<void>;
};

const RETRY: RetryPolicy = { firstMs: 50, capMs: 1_000, forMs: 5_000 };
/** While anybody waits for it, a peer is asked this often whether it lives, and given so long to say so. */
const PING_MS = 2_000;
const SILENT_MS = 10_000;
const SOCKETS_MAX = 4_096;
/** What goes on as it came; all else is between the client and us. */
const CARRIED = ['accept', 'content-type', 'content-length', 'idempotency-key', 'traceparent', 'tracestate'] as const;
const CARRIED_UPGRADE = [
  'sec-websocket-key',
  'sec-websocket-version',
  'sec-websocket-extensions',
  'sec-websocket-protocol',
  'hutch-first-message',
] as const;
/** Of the connection, not of the answer. */
const HOP: ReadonlySet<string> = new Set(['connection', 'keep-alive', 'transfer-encoding', 'upgrade']);

/** The connection failed before any answer. */
class Unanswered extends Error {
  readonly arrived: 'no' | 'perhaps';

  constructor(cause: NodeJS.ErrnoException) {
    super(cause.message, { cause });
    this.arrived = cause.code === 'ECONNREFUSED' || cause.code === 'ENOENT' ? 'no' : 'perhaps';
  }
}

export function newPeer(options: PeerOptions): Peer {
  const { role, address, log, monotonicMs } = options;
  const agent = new Agent({ keepAlive: true, maxSockets: SOCKETS_MAX });
  const liveness = new Liveness(options);
  const where = 'socketPath' in address ? address.socketPath : `${address.host}:${address.port}`;

  async function headers(request: IncomingMessage, names: readonly string[], opId: OpId | null): Promise<Record<string, string>> {
    const carried = names.flatMap((name) => {
      const value = request.headers[name];
      return typeof value === 'string' ? [[name, value] as const] : [];
    });
    return {
      ...Object.fromEntries(carried),
      Host: 'localhost',
      Authorization: `Bearer ${await options.key()}`,
      ...(opId === null ? {} : { 'Hutch-Op-Id': opId }),
    };
  }

  function refused(): HutchError {
    return new HutchError({
      code: 'failed_precondition',
      message: `the daemon with the role ${role} at ${where} does not take the key that this one has for it`,
      hint: `make one there with: hutch keys create, and put it into the file that roles.${role}_key names`,
    });
  }

  function lost(cause: unknown): HutchError {
    return new HutchError({
      code: 'unavailable',
      message: `the daemon with the role ${role} at ${where} cannot be reached`,
      hint: `see whether it runs; its address is roles.${role} in the configuration`,
      cause,
    });
  }

  /** Tries until there is an answer, as the policy says. `attempt` sends once; the op id goes with the first alone, which may have arrived. */
  async function trying<T>(
    request: IncomingMessage,
    { opId, verb }: Forwarding,
    signal: AbortSignal,
    attempt: (opId: OpId | null) => Promise<T>,
  ): Promise<T> {
    const beganMs = monotonicMs();
    const repeatable = verb.idempotent || typeof request.headers['idempotency-key'] === 'string';
    for (let tries = 1; ; tries += 1) {
      try {
        return await attempt(tries === 1 ? opId : null);
      } catch (error) {
        if (signal.aborted) throw signal.reason;
        if (!(error instanceof Unanswered)) throw error;
        const failed = { tries, elapsedMs: monotonicMs() - beganMs, arrived: error.arrived, repeatable, random: options.random() };
        // What has been read of a stream cannot be sent again.
        const waitMs = verb.kind === 'upload' ? null : nextTryInMs(options.retry ?? RETRY, failed);
        if (waitMs === null) throw lost(error);
        log.info({ op: opId, role, tries, waitMs: Math.round(waitMs) }, 'a call to another role is made again');
        await sleep(waitMs, undefined, { signal }).catch(() => {});
        if (signal.aborted) throw signal.reason;
      }
    }
  }

  return {
    role,

    async request(request, response, what) {
      using watch = liveness.watch();
      const gone = new AbortController();
      const onClose = (): void => gone.abort(new HutchError({ code: 'cancelled', message: 'the client went away' }));
      response.once('close', onClose);
      const signal = AbortSignal.any([gone.signal, watch.signal]);
      const answer = await trying(request, what, signal, async (opId) => {
        const own = await headers(request, CARRIED, opId);
        const body = what.verb.kind === 'upload' ? request : what.body;
        if (typeof body === 'string') own['content-length'] = String(Buffer.byteLength(body));
        else if (body === null) delete own['content-length'];
        const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
        const outgoing = httpRequest({ ...address, method: request.method, path: request.url, headers: own, agent, signal }, resolve);
        outgoing.on('error', (cause) => reject(signal.aborted ? signal.reason : new Unanswered(cause)));
        if (body === null || typeof body === 'string') outgoing.end(body ?? undefined);
        else {
          // Not `pipeline`: a peer that refuses, or is not there, must not take the client's connection with it.
          body.pipe(outgoing);
          outgoing.once('close', () => body.unpipe(outgoing));
        }
        return await promise;
      });
      if (answer.statusCode === 401) {
        answer.resume();
        throw refused();
      }
      response.writeHead(answer.statusCode ?? 502, carriedBack(answer));
      response.flushHeaders();
      // Broken off on either side, it is broken off on the other.
      await pipeline(answer, response).catch(() => {
        answer.destroy();
        response.destroy();
      });
      if (!request.complete) finishReading(request);
    },

    async upgrade(request, socket, head, what) {
      const watch = liveness.watch();
      const gone = new AbortController();
      socket.once('close', () => gone.abort(new HutchError({ code: 'cancelled', message: 'the client went away' })));
      const signal = AbortSignal.any([gone.signal, watch.signal]);
      try {
        const { answer, upstream, first } = await trying(request, what, signal, async (opId) => {
          const own = {
            ...(await headers(request, [...CARRIED, ...CARRIED_UPGRADE], opId)),
            Connection: 'Upgrade',
            Upgrade: request.headers.upgrade ?? 'websocket',
          };
          type Upgraded = { answer: IncomingMessage; upstream: Duplex | null; first: Buffer };
          const { promise, resolve, reject } = Promise.withResolvers<Upgraded>();
          const outgoing = httpRequest({ ...address, method: request.method, path: request.url, headers: own, signal });
          outgoing.on('upgrade', (response, stream: Duplex, rest: Buffer) => resolve({ answer: response, upstream: stream, first: rest }));
          outgoing.on('response', (response) => resolve({ answer: response, upstream: null, first: Buffer.alloc(0) }));
          outgoing.on('error', (cause) => reject(signal.aborted ? signal.reason : new Unanswered(cause)));
          outgoing.end();
          return await promise;
        });
        if (answer.statusCode === 401) throw refused();
        socket.write(headOf(answer));
        if (upstream === null) {
          await pipeline(answer, socket).catch(() => {});
          return;
        }
        // `signal` of a request ends with its answer: from here on it is ours to heed.
        signal.addEventListener('abort', () => upstream.destroy(), { once: true });
        upstream.on('error', () => socket.destroy());
        if (first.byteLength > 0) socket.write(first);
        if (head.byteLength > 0) upstream.write(head);
        await Promise.all([
          pipeline(socket, upstream).catch(() => upstream.destroy()),
          pipeline(upstream, socket).catch(() => socket.destroy()),
        ]);
      } finally {
        watch[Symbol.dispose]();
      }
    },

    [Symbol.dispose]() {
      agent.destroy();
      liveness[Symbol.dispose]();
    },
  };
}

function carriedBack(answer: IncomingMessage): Record<string, string | string[]> {
  return Object.fromEntries(
    Object.entries(answer.headers).flatMap(([name, value]) => (value === undefined || HOP.has(name) ? [] : [[name, value] as const])),
  );
}

function headOf(answer: IncomingMessage): string {
  const lines = [`HTTP/1.1 ${answer.statusCode} ${answer.statusMessage}`];
  for (let at = 0; at < answer.rawHeaders.length; at += 2) lines.push(`${answer.rawHeaders[at]}: ${answer.rawHeaders[at + 1]}`);
  return `${lines.join('\r\n')}\r\n\r\n`;
}

/** Whether a peer that somebody waits for still lives: asked every now and then, and only then. */
class Liveness implements Disposable {
  readonly #options: PeerOptions;
  readonly #waiting = new Set<AbortController>();
  #timer: NodeJS.Timeout | null = null;
  #heardMs = 0;

  constructor(options: PeerOptions) {
    this.#options = options;
  }

  /** Its signal aborts with `deadline_exceeded` when the peer falls silent. */
  watch(): Disposable & { readonly signal: AbortSignal } {
    const one = new AbortController();
    if (this.#waiting.size === 0) this.#begin();
    this.#waiting.add(one);
    return {
      signal: one.signal,
      [Symbol.dispose]: () => {
        this.#waiting.delete(one);
        if (this.#waiting.size === 0) this[Symbol.dispose]();
      },
    };
  }

  #begin(): void {
    this.#heardMs = this.#options.monotonicMs();
    this.#timer = setInterval(() => this.#ask(), this.#options.pingMs ?? PING_MS);
    this.#timer.unref();
  }

  #ask(): void {
    const { address, role, monotonicMs, silentMs = SILENT_MS, pingMs = PING_MS } = this.#options;
    const silence = monotonicMs() - this.#heardMs;
    if (silence > silentMs) {
      const message = `the daemon with the role ${role} has said nothing for ${Math.round(silence / 1_000)} s`;
      for (const one of this.#waiting) one.abort(new HutchError({ code: 'deadline_exceeded', message }));
      return;
    }
    const request = httpRequest(
      { ...address, method: 'GET', path: '/health', headers: { Host: 'localhost' }, signal: AbortSignal.timeout(pingMs) },
      (answer) => {
        answer.resume();
        this.#heardMs = monotonicMs();
      },
    );
    // A peer that is not there answers whoever waits by the end of their connections.
    request.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNREFUSED' || error.code === 'ENOENT') this.#heardMs = monotonicMs();
    });
    request.end();
  }

  [Symbol.dispose](): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }
}
