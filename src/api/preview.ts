// Shared ports over HTTP: what comes for a host of theirs is no call of the API, and what comes for the API is none of theirs.
// A link is opened once by its token, and from then on by a cookie of that host alone. Neither reaches the sandbox or a log.
import { request as ask, type IncomingHttpHeaders, type IncomingMessage, type OutgoingHttpHeaders, type ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { ERROR_CODES, HutchError } from '../domain/errors.ts';
import { isPreviewHost, parsePreviewHost } from '../domain/preview.ts';
import type { Preview, Previews } from '../services/previews.ts';
import { duplexOf, newPreviewConnections } from './preview-connections.ts';

const TOKEN = 'hutch_preview';
/** Between two proxies only (RFC 9110, 7.6.1), and keys for the API. */
const NOT_PASSED = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'x-api-key',
]);
/** Of which a second one changes nothing (RFC 9110, 9.2.1). */
const REPEATED = new Set(['GET', 'HEAD', 'OPTIONS']);
const OUR_KEY = /^bearer +e2b_[0-9a-f]{40}$/i;

export type PreviewProxy = {
  /** Whether it was for a shared port, and is answered. */
  request(request: IncomingMessage, response: ServerResponse): boolean;
  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): boolean;
  /** Connections that wait for a next request. */
  close(): void;
};

export function newPreviewProxy(previews: Previews): PreviewProxy {
  const connections = newPreviewConnections(previews);
  const isOurs = (request: IncomingMessage): boolean => isPreviewHost(request.headers.host ?? '', previews.domain);

  async function admitted(
    request: IncomingMessage,
  ): Promise<{ readonly preview: Preview; readonly path: string; readonly given: string | null }> {
    const host = parsePreviewHost(request.headers.host ?? '', previews.domain);
    if (host === null) throw new HutchError({ code: 'not_found', message: 'nothing is shared at this address' });
    const { path, token } = withoutToken(request.url ?? '/');
    return { preview: await previews.admit(token ?? cookieOf(request), host), path, given: token };
  }

  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { preview, path, given } = await admitted(request);
    const cookie = given === null ? null : setCookie(given, preview);
    if (cookie !== null && request.method === 'GET' && wantsPage(request)) {
      response.writeHead(303, { Location: path, 'Set-Cookie': cookie, 'Referrer-Policy': 'no-referrer', 'Cache-Control': 'no-store' });
      return void response.end();
    }
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    const answer = await answered(preview, path, request, response, gone.signal);
    response.writeHead(answer.statusCode ?? 502, answerHeaders(answer.headers, cookie));
    await pipeline(answer, response);
  }

  /** Once its head is there. What may be asked twice goes over a connection that others have used, and again should that one end just then. */
  async function answered(
    preview: Preview,
    path: string,
    request: IncomingMessage,
    response: ServerResponse,
    signal: AbortSignal,
  ): Promise<IncomingMessage> {
    const { method = 'GET', headers } = request;
    const mayRepeat = REPEATED.has(method) && !('content-length' in headers) && !('transfer-encoding' in headers);
    for (;;) {
      const way = mayRepeat ? connections.kept(preview) : connections.own(preview);
      const inside = ask({ ...way, method, path, headers: passedOn(request, mayRepeat ? 'keep' : 'close'), setHost: false, signal });
      const answer = new Promise<IncomingMessage>((resolve, reject) => {
        inside.once('response', resolve).on('error', reject);
        inside.once('close', () => reject(new Error('it ended without an answer'))); // as one that upgrades unasked
      });
      inside.once('continue', () => response.writeContinue());
      if (mayRepeat) inside.end();
      else pipeline(request, inside).catch(() => {}); // it may answer before it has read all
      try {
        return await answer;
      } catch (error) {
        if (!mayRepeat || !inside.reusedSocket || signal.aborted) throw error;
      }
    }
  }

  async function carry(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    const { origin, host } = request.headers;
    // A page elsewhere may open a WebSocket to anywhere, and the browser sends no question first.
    if (origin !== undefined && URL.parse(origin)?.host !== host?.toLowerCase())
      throw new HutchError({ code: 'permission_denied', message: 'pages of other addresses may not connect here' });
    const { preview, path } = await admitted(request);
    const gone = new AbortController();
    socket.once('close', () => gone.abort());
    await previews.connect(preview, gone.signal, async (tunnel) => {
      const inside = duplexOf(tunnel);
      const headers = Object.entries({ ...passedOn(request, 'upgrade'), connection: 'Upgrade', upgrade: request.headers.upgrade ?? '' });
      const lines = headers.flatMap(([name, value]) => [value].flat().map((one) => `${name}: ${one}\r\n`));
      inside.write(`${request.method} ${path} HTTP/1.1\r\n${lines.join('')}\r\n`);
      if (head.byteLength > 0) inside.write(head);
      await Promise.all([pipeline(socket, inside), pipeline(inside, socket)]).catch(() => {}); // either side went
    });
  }

  return {
    close: connections.close,
    request(request, response) {
      if (!isOurs(request)) return false;
      serve(request, response).catch((error: unknown) => {
        if (response.headersSent) response.destroy();
        else refuse(request, response, toError(error));
      });
      return true;
    },
    upgrade(request, socket, head) {
      if (!isOurs(request)) return false;
      socket.on('error', () => socket.destroy());
      carry(request, socket, head).catch((error: unknown) => {
        const { code, message } = toError(error);
        const body = `${JSON.stringify({ code, message })}\n`;
        socket.end(
          `HTTP/1.1 ${statusOf(code)} ${code}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
        );
      });
      return true;
    },
  };
}

/** A path without a scheme, whatever was asked for, and what stood in it for us. */
function withoutToken(url: string): { readonly path: string; readonly token: string | null } {
  const asked = URL.parse(url, 'http://preview.invalid') ?? new URL('http://preview.invalid/');
  const token = asked.searchParams.get(TOKEN);
  if (token === null) return { path: `${asked.pathname}${asked.search}`, token };
  // What else stands there stays as it was written.
  const rest = asked.search
    .slice(1)
    .split('&')
    .filter((part) => !part.startsWith(`${TOKEN}=`));
  return { path: `${asked.pathname.replace(/^\/\/+/, '/')}${rest.length === 0 ? '' : `?${rest.join('&')}`}`, token };
}

function cookieOf({ headers }: IncomingMessage): string | null {
  const own = cookies(headers.cookie).find((part) => part.startsWith(`${TOKEN}=`));
  return own === undefined ? null : own.slice(TOKEN.length + 1);
}

function cookies(text = ''): readonly string[] {
  return text
    .split(';')
    .map((part) => part.trim())
    .filter((part) => part !== '');
}

function setCookie(token: string, { expiresAtMs }: Preview): string {
  return `${TOKEN}=${token}; Path=/; HttpOnly; SameSite=Lax; Expires=${new Date(expiresAtMs).toUTCString()}`;
}

function wantsPage({ headers }: IncomingMessage): boolean {
  return (headers.accept ?? '').includes('text/html');
}

/** What the sandbox is told: nothing of ours. */
function passedOn({ headers, socket }: IncomingMessage, then: 'keep' | 'close' | 'upgrade'): OutgoingHttpHeaders {
  const named = new Set(
    (headers.connection ?? '')
      .toLowerCase()
      .split(',')
      .map((name) => name.trim()),
  );
  const passed: OutgoingHttpHeaders = {};
  for (const [name, value] of Object.entries(headers))
    if (value !== undefined && !NOT_PASSED.has(name) && !named.has(name)) passed[name] = value;
  const own = cookies(headers.cookie).filter((part) => !part.startsWith(`${TOKEN}=`));
  if (own.length > 0) passed['cookie'] = own.join('; ');
  else delete passed['cookie'];
  if (OUR_KEY.test(headers.authorization ?? '')) delete passed['authorization'];
  if (headers.referer?.includes(TOKEN) === true) delete passed['referer'];
  return {
    ...passed,
    'x-forwarded-for': socket.remoteAddress ?? '',
    'x-forwarded-host': headers.host ?? '',
    'x-forwarded-proto': 'http',
    ...(then === 'close' ? { connection: 'close' } : {}),
  };
}

function answerHeaders(headers: IncomingHttpHeaders, cookie: string | null): OutgoingHttpHeaders {
  const passed: OutgoingHttpHeaders = {};
  for (const [name, value] of Object.entries(headers)) if (value !== undefined && !NOT_PASSED.has(name)) passed[name] = value;
  // A sandbox sets cookies for its own host: neither for its neighbours, nor in place of ours.
  const own = (headers['set-cookie'] ?? [])
    .filter((line) => !line.trimStart().startsWith(`${TOKEN}=`))
    .map((line) => line.replaceAll(/;\s*domain\s*=[^;]*/gi, ''));
  const all = [...own, ...(cookie === null ? [] : [cookie])];
  delete passed['set-cookie'];
  return { ...passed, ...(all.length === 0 ? {} : { 'set-cookie': all }) };
}

function toError(error: unknown): HutchError {
  if (error instanceof HutchError && error.code !== 'internal') return error;
  return new HutchError({ code: 'unavailable', message: 'nothing answers at that port of the sandbox', cause: error });
}

function statusOf(code: HutchError['code']): number {
  return code === 'unavailable' ? 502 : ERROR_CODES[code].httpStatus;
}

/** A page for who reads it, JSON for programs. */
function refuse(request: IncomingMessage, response: ServerResponse, { code, message, hint }: HutchError): void {
  const status = statusOf(code);
  const isPage = wantsPage(request);
  const text = [message, hint].filter((part) => part !== null).join('. ');
  const body = isPage
    ? `<!doctype html><meta charset="utf-8"><title>${status}</title><body style="font:1em/1.5 sans-serif;margin:4em auto;max-width:36em"><h1>${status}</h1><p>${escaped(text)}.</p>\n`
    : `${JSON.stringify({ code, message, hint })}\n`;
  response.writeHead(status, {
    'Content-Type': isPage ? 'text/html; charset=utf-8' : 'application/json',
    'Content-Length': Buffer.byteLength(body),
    'Cache-Control': 'no-store',
    'Content-Security-Policy': "default-src 'none'; style-src 'unsafe-inline'",
    Connection: 'close',
  });
  response.end(body);
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
}
