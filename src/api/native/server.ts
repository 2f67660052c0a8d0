// The native API on TCP and on the unix socket: admits a request, finds its verb, runs it as an
// operation and writes the answer. It decides nothing: what a verb does is in the services.
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { WebSocketServer } from 'ws';
import { chunksOf } from '../../domain/chunks.ts';
import { ERROR_CODES, HutchError } from '../../domain/errors.ts';
import type { OpId } from '../../domain/ids.ts';
import type { Log } from '../../host/operation.ts';
import type { Call, Caller } from '../../services/call.ts';
import type { ApiServices, ExecStartInput } from '../../services/handlers.ts';
import { type Ask, requestHash } from '../../services/operations.ts';
import { type Role, roleOf } from '../../services/roles.ts';
import type { Verb, VerbName } from '../../services/verbs.ts';
import { newPreviewProxy } from '../preview.ts';
import { becomeBytes, carryBytes, wantsBytes } from './bare-tunnel.ts';
import { carryExec, carryTunnel, FIRST_TAKEN, firstMessageOf, INPUT_WINDOW_BYTES, receiveExecRequest } from './exec-socket.ts';
import type { Peer } from './forward.ts';
import { admit, answerBrowser, bearerOf, type GuardOptions } from './guard.ts';
import { invalid, parseInput, queryOf, readJsonBody, takesBody } from './input.ts';
import { FIRST_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX, type Message, MessageSocket } from './message-socket.ts';
import { openApi } from './openapi.ts';
import { LineWriter, sendDownload, sendError, sendJson, tellLent } from './respond.ts';
import { newRoutes, type Route } from './routes.ts';

export type ApiOptions = {
  readonly version: string;
  readonly guard: GuardOptions;
  /** What this daemon is; the verbs of every other role go to the peer that has it, if there is one. */
  readonly roles: ReadonlySet<Role>;
  readonly peers: readonly Peer[];
  /** For one line per request. */
  readonly log: Log;
  readonly monotonicMs: () => number;
  /** Added to the answer of /health, which needs no key. */
  readonly health: () => object;
};

export type Api = {
  /** @throws the system's error when the address is taken. */
  listenTcp(address: { readonly host: string; readonly port: number }): Promise<{ readonly host: string; readonly port: number }>;
  listenUnix(path: string): Promise<void>;
  /** Takes no more connections and no more requests; what is under way goes on. */
  stopListening(): void;
  /** Takes no more connections; the idle ones end at once, the others with what they carry. */
  close(): Promise<void>;
};

const HEADER_BYTES_MAX = 64 * 1024;
const HEADERS_MS = 10_000;
const KEEP_ALIVE_MS = 75_000;
const CONNECTIONS_MAX = 4_096;
const IDEMPOTENCY_KEY = /^[\x21-\x7e]{1,128}$/;
/** Without a key nobody could learn the outcome of these later: a lost connection cancels them. */
const LOST_CANCELS: ReadonlySet<VerbName> = new Set(['sandbox.create', 'sandbox.restart', 'key.create']);

/** Whose content a client that may open our descriptors need not be sent. */
const LENT: ReadonlySet<VerbName> = new Set(['file.read', 'file.write']);

type Arrival = {
  opId: OpId;
  readonly from: 'tcp' | 'unix';
  readonly startedMs: number;
  /** Of the connection, which may carry many requests. */
  readonly bytesRead: number;
  readonly bytesWritten: number;
  verb?: VerbName;
  keyId?: string;
  code?: string;
};

export function newApi(services: ApiServices, options: ApiOptions): Api {
  const routes = newRoutes();
  /** Made when it is first asked for: it takes longer than all else that a start does in this process. */
  let description: string | null = null;
  const webSocketServer = (maxPayload: number) =>
    new WebSocketServer({ noServer: true, maxPayload, perMessageDeflate: false, clientTracking: false });
  const [anySockets, startSockets] = [webSocketServer(MESSAGE_BYTES_MAX), webSocketServer(FIRST_MESSAGE_BYTES_MAX)];
  const previewProxy = newPreviewProxy(services.previews);
  const servers: Server[] = [];
  const sockets = new Set<Duplex>();
  /** Their client sends its body once it is told to. */
  const expecting = new WeakSet<IncomingMessage>();
  /** What earlier requests of a connection have moved. */
  const counted = new WeakMap<Duplex, { bytesRead: number; bytesWritten: number }>();

  function arrive(request: IncomingMessage, from: 'tcp' | 'unix'): Arrival {
    const { socket } = request;
    const { bytesRead, bytesWritten } = counted.get(socket) ?? { bytesRead: 0, bytesWritten: 0 };
    return { opId: services.newOpId(), from, startedMs: options.monotonicMs(), bytesRead, bytesWritten };
  }

  async function onRequest(request: IncomingMessage, response: ServerResponse, from: 'tcp' | 'unix'): Promise<void> {
    if (from === 'tcp' && previewProxy.request(request, response)) return;
    const arrival = arrive(request, from);
    response.setHeader('Hutch-Op-Id', arrival.opId);
    response.once('close', () => {
      logRequest(options, arrival, request, response.statusCode, response.writableFinished);
      counted.set(request.socket, { bytesRead: request.socket.bytesRead, bytesWritten: request.socket.bytesWritten });
    });
    try {
      admit(request, from, options.guard);
      if (answerBrowser(request, response)) return;
      const url = new URL(request.url ?? '/', 'http://localhost');
      if (url.pathname === '/health' && request.method === 'GET') return sendJson(response, 200, { ok: true, ...options.health() });
      const route = routes(request.method ?? '', url.pathname);
      const caller = await authenticate(request, arrival);
      response.setHeader('Hutch-Op-Id', arrival.opId);
      if (url.pathname === '/openapi.json' && request.method === 'GET') {
        response.writeHead(200, { 'Content-Type': 'application/json' });
        description ??= JSON.stringify(openApi(options.version));
        return void response.end(description);
      }
      const { name, verb, params } = verbOf(route, request, response);
      arrival.verb = name;
      if (verb.kind === 'socket') throw invalid(`${name} is a WebSocket: connect with Upgrade: websocket`);
      if (takesBody(verb) && expecting.delete(request)) response.writeContinue();
      const given = takesBody(verb) ? await readJsonBody(request) : queryOf(url.search);
      const input = parseInput(verb, params, given);
      const peer = peerFor(name);
      if (peer !== null && expecting.delete(request)) response.writeContinue();
      if (peer !== null)
        return await peer.request(request, response, { opId: arrival.opId, verb, body: takesBody(verb) ? JSON.stringify(given) : null });
      await serve(request, response, { ask: askOf(request, arrival, name, verb, caller, input), name, verb, input, from });
    } catch (error) {
      const failure = toHutchError(error, arrival.opId);
      arrival.code = failure.code;
      sendError(request, response, failure);
    }
  }

  async function serve(
    request: IncomingMessage,
    response: ServerResponse,
    what: { ask: Ask; name: VerbName; verb: Verb; input: unknown; from: 'tcp' | 'unix' },
  ): Promise<void> {
    const { name, verb, input, from } = what;
    const lost = new AbortController();
    response.once('close', () => {
      if (!response.writableFinished) lost.abort(new HutchError({ code: 'cancelled', message: 'the client went away' }));
    });
    const cancels = verb.reads || verb.kind === 'upload' || (LOST_CANCELS.has(name) && what.ask.idempotency === undefined);
    const goOn = expecting.has(request) ? (): void => response.writeContinue() : (): void => {};
    const lends = from === 'unix' && LENT.has(name) && request.headers['hutch-lend'] !== undefined;
    if (!lends) goOn();
    const ask: Ask = {
      ...what.ask,
      ...(cancels ? { signal: lost.signal } : {}),
      ...clientDirectoryOf(request, from),
      ...(lends ? { onLend: (file) => tellLent(response, file, verb.kind === 'upload' ? goOn : null) } : {}),
      onRepeat: (firstOpId) => {
        if (response.headersSent) return;
        response.setHeader('Hutch-Op-Id', firstOpId);
        response.setHeader('Idempotency-Replayed', 'true');
      },
    };
    const handle = services.handlers[name] as (call: Call, input: unknown, source?: AsyncIterable<Uint8Array>) => Promise<unknown>;
    switch (verb.kind) {
      case 'unary':
        if (!acceptsLines(request))
          return sendJson(response, 200, (await services.operations.run(ask, (call) => handle(call, input))) ?? {});
        return await serveWithProgress(response, ask, (call) => handle(call, input));
      case 'upload': {
        const source = chunksOf(request);
        return sendJson(response, 200, await services.operations.run(ask, (call) => handle(call, input, source)));
      }
      case 'download':
        return await services.operations.run(ask, async (call) => sendDownload(response, (await handle(call, input)) as never));
      case 'lines':
        return await services.operations.run(ask, async (call) => {
          const lines = (await handle(call, input)) as AsyncIterable<unknown>;
          using writer = new LineWriter(response);
          try {
            for await (const line of lines) await writer.line(line);
          } catch (error) {
            if (!response.destroyed) writer.hint({ error: toHutchError(error, call.op.id).toBody() });
            writer.end();
            throw error;
          }
          writer.end();
        });
      case 'socket':
        throw new Error('a socket is no request');
    }
  }

  async function serveWithProgress(response: ServerResponse, ask: Ask, work: (call: Call) => Promise<unknown>): Promise<void> {
    using writer = new LineWriter(response);
    try {
      const result = await services.operations.run(
        { ...ask, onProgress: (progress) => writer.hint({ type: 'progress', ...progress }) },
        work,
      );
      if (!response.destroyed) await writer.line({ type: 'result', result: result ?? {} });
    } catch (error) {
      if (!response.destroyed) writer.hint({ type: 'error', error: toHutchError(error, ask.opId ?? null).toBody() });
    }
    writer.end();
  }

  async function onUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer, from: 'tcp' | 'unix'): Promise<void> {
    if (from === 'tcp' && previewProxy.upgrade(request, socket, head)) return;
    const arrival = arrive(request, from);
    socket.on('error', () => socket.destroy());
    try {
      admit(request, from, options.guard);
      const url = new URL(request.url ?? '/', 'http://localhost');
      const route = routes(request.method ?? '', url.pathname);
      const caller = await authenticate(request, arrival);
      const { name, verb, params } = verbOf(route, request, null);
      arrival.verb = name;
      if (verb.kind !== 'socket') throw invalid(`${name} is not a WebSocket`);
      const input = parseInput(verb, params, queryOf(url.search));
      const peer = peerFor(name);
      if (peer !== null) {
        socket.once('close', () => logRequest(options, arrival, request, 101, true));
        return await peer.upgrade(request, socket, head, { opId: arrival.opId, verb, body: null });
      }
      const ask = askOf(request, arrival, name, verb, caller, input);
      if (wantsBytes(request) && name === 'ssh.connect') return await serveBytes(request, socket, head, ask, input, arrival);
      const first = name === 'exec.start' ? firstMessageOf(request) : null;
      const onHeaders = (headers: string[], ours: IncomingMessage): void => {
        if (ours === request) headers.push(`Hutch-Op-Id: ${arrival.opId}`, ...(first === null ? [] : [FIRST_TAKEN]));
      };
      const webSockets = name === 'exec.start' ? startSockets : anySockets;
      webSockets.on('headers', onHeaders);
      webSockets.handleUpgrade(request, socket, head, (upgraded) => {
        const messages = new MessageSocket(upgraded, {
          isNear: from === 'unix',
          ...(name === 'port.connect' ? {} : { receiveWindowBytes: INPUT_WINDOW_BYTES }),
        });
        messages.gone.addEventListener('abort', () => logRequest(options, arrival, request, 101, true));
        void serveSocket(messages, { ...ask, signal: messages.gone }, name, input, arrival, first);
      });
      webSockets.off('headers', onHeaders);
    } catch (error) {
      const failure = toHutchError(error, arrival.opId);
      arrival.code = failure.code;
      const { httpStatus } = ERROR_CODES[failure.code];
      const body = `${JSON.stringify(failure.toBody())}\n`;
      const lines = [
        `HTTP/1.1 ${httpStatus} ${failure.code}`,
        'Connection: close',
        'Content-Type: application/json',
        `Content-Length: ${Buffer.byteLength(body)}`,
        `Hutch-Op-Id: ${arrival.opId}`,
      ];
      socket.end(`${lines.join('\r\n')}\r\n\r\n${body}`);
      logRequest(options, arrival, request, httpStatus, true);
    }
  }

  async function serveBytes(
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
    ask: Ask,
    input: unknown,
    arrival: Arrival,
  ): Promise<void> {
    const gone = new AbortController();
    socket.once('close', () => gone.abort(new HutchError({ code: 'cancelled', message: 'the client went away' })));
    let isAnswered = false;
    try {
      await services.operations.run({ ...ask, signal: gone.signal }, async (call) => {
        using tunnel = await services.handlers['ssh.connect'](call, input as never);
        becomeBytes(socket, arrival.opId);
        isAnswered = true;
        await carryBytes(socket, head, tunnel);
      });
    } catch (error) {
      if (!isAnswered) throw error;
      arrival.code = toHutchError(error, arrival.opId).code;
      socket.destroy();
    }
    logRequest(options, arrival, request, 101, true);
  }

  async function serveSocket(
    socket: MessageSocket,
    ask: Ask,
    name: VerbName,
    input: unknown,
    arrival: Arrival,
    first: Message | null,
  ): Promise<void> {
    try {
      const request = name === 'exec.start' ? await receiveExecRequest(socket, first) : null;
      await services.operations.run(ask, async (call) => {
        if (name === 'port.connect' || name === 'ssh.connect') {
          using tunnel = await services.handlers[name](call, input as never);
          return await carryTunnel(socket, tunnel);
        }
        await using session =
          name === 'exec.start'
            ? await services.handlers['exec.start'](call, { ...(input as object), request } as ExecStartInput)
            : await services.handlers['exec.attach'](call, input as never);
        await carryExec(socket, session);
      });
      socket.close(1000, 'done');
    } catch (error) {
      const failure = toHutchError(error, arrival.opId);
      arrival.code = failure.code;
      if (socket.gone.aborted) return;
      // A daemon that ends leaves commands running: no error, so that the client comes back.
      if (services.operations.isClosing) return socket.close(1012, 'the daemon is shutting down');
      await socket.sendJson({ type: 'error', error: failure.toBody() }).catch(() => {});
      socket.close(1011, failure.code);
    }
  }

  async function authenticate(request: IncomingMessage, arrival: Arrival): Promise<Caller> {
    const caller = await services.authenticate(bearerOf(request));
    if (caller === null) throw new HutchError({ code: 'unauthenticated', message: 'this API key does not exist or was revoked' });
    arrival.keyId = caller.actor;
    const told = request.headers['hutch-op-id'];
    if (typeof told === 'string') arrival.opId = (await services.adoptOpId(told)) ?? arrival.opId;
    return caller;
  }

  /** Null for what is done here. @throws HutchError `failed_precondition` for what is done nowhere. */
  function peerFor(verb: VerbName): Peer | null {
    const role = roleOf(verb);
    if (role === 'every' || options.roles.has(role)) return null;
    const peer = options.peers.find((candidate) => candidate.role === role);
    if (peer !== undefined) return peer;
    throw new HutchError({
      code: 'failed_precondition',
      message: `this daemon does not have the role ${role}, which ${verb} needs`,
      hint: `start it with --role all, or say where the other is: roles.${role} in the configuration`,
    });
  }

  function newServer(from: 'tcp' | 'unix'): Server {
    const server = createServer({
      maxHeaderSize: HEADER_BYTES_MAX,
      headersTimeout: HEADERS_MS,
      requestTimeout: 0,
      keepAliveTimeout: KEEP_ALIVE_MS,
      noDelay: true,
    });
    server.maxConnections = CONNECTIONS_MAX;
    server.on('request', (request, response) => void onRequest(request, response, from));
    server.on('checkContinue', (request, response) => {
      expecting.add(request);
      void onRequest(request, response, from);
    });
    server.on('upgrade', (request, socket: Duplex, head: Buffer) => void onUpgrade(request, socket, head, from));
    server.on('connection', (socket: Duplex) => {
      sockets.add(socket);
      socket.once('close', () => sockets.delete(socket));
    });
    servers.push(server);
    return server;
  }

  return {
    async listenTcp({ host, port }) {
      const server = newServer('tcp');
      await listening(server, { host, port });
      const address = server.address();
      if (address === null || typeof address === 'string') throw new Error('a TCP server without an address');
      return { host: address.address, port: address.port };
    },
    async listenUnix(path) {
      // Its mode must be right from the first moment: the file is made within `listen`.
      const umask = process.umask(0o177);
      const ready = listening(newServer('unix'), { path });
      process.umask(umask);
      await ready;
    },
    stopListening() {
      for (const server of servers) {
        server.close();
        server.closeIdleConnections();
      }
    },
    async close() {
      previewProxy.close();
      await Promise.all(
        servers.map(async (server) => {
          const closed = new Promise<void>((resolve) => server.close(() => resolve())); // also when it is closed already
          server.closeIdleConnections();
          const timer = setTimeout(() => {
            server.closeAllConnections();
            for (const socket of sockets) socket.destroy();
          }, 500);
          await closed;
          clearTimeout(timer);
        }),
      );
    },
  };
}

function listening(server: Server, where: { readonly host: string; readonly port: number } | { readonly path: string }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(where, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

function verbOf(route: Route, request: IncomingMessage, response: ServerResponse | null): Extract<Route, { kind: 'verb' }> {
  if (route.kind === 'verb') return route;
  if (route.kind === 'wrong-method') {
    response?.setHeader('Allow', route.allowed.join(', '));
    throw invalid(`this path takes ${route.allowed.join(' or ')}, not ${request.method}`);
  }
  throw new HutchError({ code: 'not_found', message: 'no such path in this API', hint: 'all of them are in /openapi.json' });
}

function askOf(request: IncomingMessage, arrival: Arrival, name: VerbName, verb: Verb, caller: Ask['caller'], input: unknown): Ask {
  const key = request.headers['idempotency-key'];
  if (key !== undefined && (typeof key !== 'string' || !IDEMPOTENCY_KEY.test(key)))
    throw invalid('Idempotency-Key must be 1 to 128 printable characters');
  const { traceparent } = request.headers;
  return {
    verb: name,
    caller,
    reads: verb.reads,
    opId: arrival.opId,
    ...(key === undefined || verb.reads ? {} : { idempotency: { key, requestHash: requestHash(name, input) } }),
    ...(typeof traceparent === 'string' ? { traceparent } : {}),
  };
}

/** Only the daemon's own user, and root, can open its unix socket. A peer that hands on does not carry this header. */
function clientDirectoryOf(request: IncomingMessage, from: 'tcp' | 'unix'): { readonly clientDirectory?: string } {
  const told = request.headers['hutch-client-directory'];
  if (from !== 'unix' || typeof told !== 'string') return {};
  const path = decoded(told);
  if (!path.startsWith('/') || path.includes('\0')) throw invalid('Hutch-Client-Directory must be an absolute path');
  return { clientDirectory: path };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid('Hutch-Client-Directory must be percent-encoded UTF-8');
  }
}

function acceptsLines(request: IncomingMessage): boolean {
  return (request.headers.accept ?? '').includes('application/x-ndjson');
}

function toHutchError(error: unknown, opId: string | null): HutchError {
  if (!(error instanceof HutchError))
    return new HutchError({
      code: 'internal',
      message: 'something went wrong inside Hutch',
      ...(opId === null ? {} : { opId }),
      cause: error,
    });
  if (error.opId !== null || opId === null) return error;
  const { code, message, hint } = error;
  return new HutchError({ code, message, opId, cause: error, ...(hint === null ? {} : { hint }) });
}

/** One line per request; the query may hold paths and is left out. */
function logRequest(options: ApiOptions, arrival: Arrival, request: IncomingMessage, status: number, whole: boolean): void {
  const { opId, keyId, verb, code, from, startedMs } = arrival;
  const facts = {
    op: opId,
    ...(keyId === undefined ? {} : { key: keyId }),
    ...(verb === undefined ? { method: request.method } : { verb }),
    status,
    ...(code === undefined ? {} : { code }),
    tookMs: Math.round((options.monotonicMs() - startedMs) * 10) / 10,
    bytesIn: request.socket.bytesRead - arrival.bytesRead,
    bytesOut: request.socket.bytesWritten - arrival.bytesWritten,
    from,
    whole,
  };
  options.log.info(facts, 'request');
}
