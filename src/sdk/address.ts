// Where a daemon listens: a unix socket, or TCP with or without TLS.
import { HutchError } from '../domain/errors.ts';

export type Address =
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'tcp'; readonly host: string; readonly port: number; readonly tls: boolean };

const DEFAULT_PORT = 4880;

/** `unix:/run/hutch/hutch.sock`, `http://127.0.0.1:4880`, `https://…`. @throws HutchError `invalid_argument`. */
export function parseAddress(text: string): Address {
  const bad = () =>
    new HutchError({
      code: 'invalid_argument',
      message: `${JSON.stringify(text)} is no address of a daemon`,
      hint: 'write it like unix:/run/hutch/hutch.sock or http://127.0.0.1:4880',
    });
  if (text.startsWith('/')) return { type: 'unix', path: text };
  const unix = /^unix:(?:\/\/)?(\/.*)$/.exec(text)?.[1];
  if (unix !== undefined) return { type: 'unix', path: unix };
  const url = URL.parse(text);
  if (url === null || (url.protocol !== 'http:' && url.protocol !== 'https:') || url.hostname === '') throw bad();
  if (url.pathname !== '/' || url.search !== '' || url.username !== '') throw bad();
  const tls = url.protocol === 'https:';
  return {
    type: 'tcp',
    host: url.hostname.replace(/^\[(.*)\]$/, '$1'),
    port: url.port === '' ? (tls ? 443 : DEFAULT_PORT) : Number(url.port),
    tls,
  };
}

export function formatAddress(address: Address): string {
  if (address.type === 'unix') return `unix:${address.path}`;
  const host = address.host.includes(':') ? `[${address.host}]` : address.host;
  return `${address.tls ? 'https' : 'http'}://${host}:${address.port}`;
}
