// The host's name servers, from resolv.conf: the only addresses of the host or its network that a
// sandbox may ask, and that only on port 53.
import { isIP } from 'node:net';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

const RESOLV_CONF = '/etc/resolv.conf';
const FILE_BYTES_MAX = 65_536;
const RESOLVERS_MAX = 3; // as in the C library

/** As the host has them now. */
export async function hostResolvers(op: Operation, host: Host): Promise<readonly string[]> {
  if ((await host.stat(op, RESOLV_CONF)) === null) return [];
  return parseResolvers(new TextDecoder().decode(await host.readRange(op, RESOLV_CONF, 0, FILE_BYTES_MAX)));
}

/** Addresses in the order of the file; what is no plain address is left out. */
export function parseResolvers(text: string): readonly string[] {
  const addresses = [...text.matchAll(/^[ \t]*nameserver[ \t]+(\S+)/gm)].map(([, address = '']) => address);
  return addresses.filter((address) => isIP(address) !== 0).slice(0, RESOLVERS_MAX);
}
