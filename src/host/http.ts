// Requests over HTTP and HTTPS to servers elsewhere. What they answer is not judged here, only carried:
// no redirect is followed, no cookie kept, and nothing but the given headers is sent.

import { lookup } from 'node:dns';
import { type ClientRequest, Agent as HttpAgent, type IncomingMessage, request as overHttp } from 'node:http';
import { Agent as HttpsAgent, request as overHttps } from 'node:https';
import { isIP, type LookupFunction } from 'node:net';
import { rootCertificates } from 'node:tls';
import { type ErrorCode, HutchError } from '../domain/errors.ts';
import { abortError, heed } from './errors.ts';
import type { HttpAnswer, HttpRequest } from './host.ts';
import type { Operation } from './operation.ts';

export function request(op: Operation, asked: HttpRequest): Promise<HttpAnswer> {
  const { url } = asked;
  return heed(
    op,
    `ask ${url.host}`,
    () => answered(op, asked),
    (late) => late[Symbol.dispose](),
  );
}

async function answered(op: Operation, asked: HttpRequest): Promise<HttpAnswer> {
  const { url, mayConnect } = asked;
  const literal = hostOf(url);
  if (mayConnect !== undefined && isIP(literal) !== 0 && !mayConnect(literal)) throw refused(op, url, literal);
  const isProxied = asked.proxy !== undefined && Object.keys(asked.proxy).length > 0 && !isLoopbackName(literal);
  const agentOptions = { keepAlive: false, ...(isProxied ? { proxyEnv: asked.proxy } : {}) } as object;
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
  const common = {
    method: asked.method,
    headers: { ...asked.headers, ...(asked.body === undefined ? {} : { 'Content-Length': String(lengthOf(asked.body)) }) },
    signal: op.signal,
    ...(mayConnect === undefined || isProxied ? {} : { lookup: guarded(op, url, mayConnect) }),
  };
  const outgoing =
    url.protocol === 'https:'
      ? overHttps(url, {
          ...common,
          agent: new HttpsAgent(agentOptions),
          rejectUnauthorized: asked.anyCertificate !== true,
          ...(asked.trusted === undefined ? {} : { ca: [...rootCertificates, asked.trusted] }),
        })
      : overHttp(url, { ...common, agent: new HttpAgent(agentOptions) });
  outgoing.on('error', reject);
  outgoing.on('response', resolve);
  outgoing.setTimeout(asked.idleMs, () => outgoing.destroy(silent(op, url, asked.idleMs)));
  if (asked.body === undefined || !isStream(asked.body)) outgoing.end(asked.body);
  else sent(outgoing, asked.body.chunks).catch(reject);
  const late = asked.headMs === undefined ? undefined : setTimeout(() => outgoing.destroy(unanswered(op, asked)), asked.headMs);
  try {
    const incoming = await promise;
    return answerOf(op, asked, incoming);
  } catch (error) {
    outgoing.destroy();
    throw networkError(op, url, error);
  } finally {
    clearTimeout(late);
  }
}

type Body = NonNullable<HttpRequest['body']>;

function isStream(body: Body): body is Extract<Body, { readonly sizeBytes: number }> {
  return typeof body === 'object' && 'chunks' in body;
}

function lengthOf(body: Body): number {
  return isStream(body) ? body.sizeBytes : Buffer.byteLength(body);
}

/** A server that has answered need not take the rest: then it is not read either. */
async function sent(outgoing: ClientRequest, chunks: AsyncIterable<Uint8Array>): Promise<void> {
  let isOver = false;
  const over = (): void => {
    isOver = true;
  };
  outgoing.once('response', over).once('close', over);
  for await (const chunk of chunks) {
    if (isOver) return;
    if (!outgoing.write(chunk)) await drained(outgoing);
  }
  outgoing.end();
}

/** It takes more again, or never will. */
async function drained(outgoing: ClientRequest): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const go = (): void => resolve();
  const events = ['drain', 'response', 'close', 'error'] as const;
  for (const event of events) outgoing.once(event, go);
  await promise;
  for (const event of events) outgoing.off(event, go);
}

function answerOf(op: Operation, { url }: HttpRequest, incoming: IncomingMessage): HttpAnswer {
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(incoming.headers)) if (value !== undefined) headers[name] = String(value);
  return {
    status: incoming.statusCode ?? 0,
    headers,
    body: {
      async *[Symbol.asyncIterator]() {
        try {
          for await (const chunk of incoming) yield chunk as Uint8Array;
        } catch (error) {
          throw networkError(op, url, error);
        }
      },
    },
    [Symbol.dispose]() {
      incoming.on('error', () => {});
      incoming.destroy();
    },
  };
}

/** Looks the name up, and refuses when any of its addresses may not be connected to. */
function guarded(op: Operation, url: URL, mayConnect: (address: string) => boolean): LookupFunction {
  return (hostname, options, callback) => {
    lookup(hostname, { ...options, all: true }, (error, addresses) => {
      if (error !== null) return callback(error, '', 0);
      const bad = addresses.find(({ address }) => !mayConnect(address));
      if (bad !== undefined) return callback(refused(op, url, bad.address), '', 0);
      const [first] = addresses;
      if (options.all === true) return callback(null, addresses);
      callback(null, first?.address ?? '', first?.family ?? 0);
    });
  };
}

function hostOf(url: URL): string {
  return url.hostname.replace(/^\[(.*)\]$/, '$1');
}

export function isLoopbackName(host: string): boolean {
  return host === 'localhost' || host.endsWith('.localhost') || /^127(\.\d{1,3}){3}$/.test(host) || host === '::1';
}

function refused(op: Operation, url: URL, address: string): HutchError {
  return op.error('permission_denied', `${url.host} leads to ${address}, an address of a private network, where it must not lead`);
}

function unanswered(op: Operation, { url, headMs = 0 }: HttpRequest): HutchError {
  return op.error('unavailable', `${url.host} has not answered within ${Math.round(headMs / 1000)} seconds`);
}

function silent(op: Operation, url: URL, idleMs: number): HutchError {
  return op.error('unavailable', `${url.host} has sent nothing for ${Math.round(idleMs / 1000)} seconds`);
}

const UNTRUSTED = 'its certificate is signed by nobody who is trusted here';

/** Whether a request failed because nobody who is trusted signed the server's certificate. */
export function isUntrusted({ cause }: HutchError): boolean {
  return cause instanceof Error && 'code' in cause && REASONS[String(cause.code)]?.[1] === UNTRUSTED;
}

const REASONS: Readonly<Record<string, [code: ErrorCode, reason: string]>> = {
  ENOTFOUND: ['unavailable', 'its name cannot be resolved'],
  EAI_AGAIN: ['unavailable', 'its name cannot be resolved now'],
  ECONNREFUSED: ['unavailable', 'nothing listens there'],
  ECONNRESET: ['unavailable', 'it broke the connection off'],
  ETIMEDOUT: ['unavailable', 'it does not answer'],
  EHOSTUNREACH: ['unavailable', 'there is no way to it'],
  ENETUNREACH: ['unavailable', 'there is no way to it'],
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: ['unavailable', UNTRUSTED],
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: ['unavailable', UNTRUSTED],
  SELF_SIGNED_CERT_IN_CHAIN: ['unavailable', UNTRUSTED],
  DEPTH_ZERO_SELF_SIGNED_CERT: ['unavailable', UNTRUSTED],
  CERT_HAS_EXPIRED: ['unavailable', 'its certificate has expired'],
  CERT_NOT_YET_VALID: ['unavailable', 'its certificate is not valid yet'],
};

function networkError(op: Operation, url: URL, error: unknown): HutchError {
  if (op.signal.aborted) return abortError(op, `ask ${url.host}`);
  for (let at: unknown = error, depth = 0; at instanceof Error && depth < 8; at = at.cause, depth += 1)
    if (at instanceof HutchError) return at;
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  const [errorCode, reason] = REASONS[code] ?? ['unavailable', error instanceof Error ? error.message.slice(0, 300) : String(error)];
  return op.error(errorCode, `${url.host} cannot be reached: ${reason}`, { cause: error });
}
