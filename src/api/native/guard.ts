// Who may talk to us at all, before any key is looked at. A web page that the user visits can make
// the browser send requests to loopback: such requests carry an Origin, or, after DNS rebinding, a
// Host that is not ours. Both are refused unless the composition root names them.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { HutchError } from '../../domain/errors.ts';

export type GuardOptions = {
  /** Names, beside the loopback ones, under which clients may address us (without port). */
  readonly hosts: readonly string[];
  /** Whole origins (`https://dash.example.com`) whose pages may call us. */
  readonly origins: readonly string[];
};

const LOOPBACK = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\]|[a-z0-9-]+(?:\.[a-z0-9-]+)*\.localhost)$/;

/** @throws HutchError `permission_denied`. */
export function admit(request: IncomingMessage, from: 'tcp' | 'unix', options: GuardOptions): void {
  const { host, origin } = request.headers;
  if (from === 'tcp' && !isOurs(host, options.hosts)) {
    throw new HutchError({
      code: 'permission_denied',
      message: `requests for the host ${JSON.stringify(host ?? '').slice(0, 128)} are not served here`,
      hint: 'address it as 127.0.0.1 or localhost, or use the unix socket; or allow the name: daemon.allowed_hosts in the configuration',
    });
  }
  if (origin !== undefined && !options.origins.includes(origin)) {
    throw new HutchError({
      code: 'permission_denied',
      message: `web pages from ${origin.slice(0, 128)} may not call this API`,
      hint: 'allow them: daemon.allowed_origins in the configuration',
    });
  }
}

/**
 * Lets the pages of an allowed origin (whose request `admit` has passed) read our answers. True: it was a
 * browser's question whether it may ask at all, which is answered; no key comes with it.
 */
export function answerBrowser(request: IncomingMessage, response: ServerResponse): boolean {
  const { origin } = request.headers;
  if (origin === undefined) return false;
  response.setHeader('Access-Control-Allow-Origin', origin);
  response.setHeader('Vary', 'Origin');
  response.setHeader('Access-Control-Expose-Headers', 'Hutch-Op-Id, Hutch-Entry, Hutch-Log-Offset, Idempotency-Replayed');
  if (request.method !== 'OPTIONS') return false;
  response.setHeader('Access-Control-Allow-Methods', 'GET, POST, PUT, DELETE');
  response.setHeader('Access-Control-Allow-Headers', 'Authorization, Content-Type, Accept, Idempotency-Key, Traceparent');
  response.setHeader('Access-Control-Max-Age', String(BROWSER_REMEMBERS_S));
  response.writeHead(204).end();
  return true;
}

const BROWSER_REMEMBERS_S = 600;

function isOurs(host: string | undefined, allowed: readonly string[]): boolean {
  if (host === undefined) return false;
  const name = host.toLowerCase().replace(/:\d+$/, '');
  return LOOPBACK.test(name) || allowed.includes(name);
}

/** The key of `Authorization: Bearer KEY`. @throws HutchError `unauthenticated`. */
export function bearerOf(request: IncomingMessage): string {
  const [, secret] = /^Bearer +([\x21-\x7e]{1,512})$/i.exec(request.headers.authorization ?? '') ?? [];
  if (secret === undefined) {
    throw new HutchError({
      code: 'unauthenticated',
      message: 'an API key is needed: Authorization: Bearer KEY',
      hint: 'the owner’s key is in the file owner.key among the daemon’s data',
    });
  }
  return secret;
}
