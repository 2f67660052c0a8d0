// The host's name servers, from resolv.conf: the only addresses of the host or its network that a
// sandbox may ask, and that only on port 53.
import { isIP } from 'node:net';

const RESOLVERS_MAX = 3; // as in the C library

/** Addresses in the order of the file; what is no plain address is left out. */
export function parseResolvers(text: string): readonly string[] {
  const addresses = [...text.matchAll(/^[ \t]*nameserver[ \t]+(\S+)/gm)].map(([, address = '']) => address);
  return addresses.filter((address) => isIP(address) !== 0).slice(0, RESOLVERS_MAX);
}
