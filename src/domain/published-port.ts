// A port of this machine at which a port of a sandbox answers, and how people write one down: as with
// `docker -p`, but on the loopback unless an address is given.
import type { ParsedText } from './size.ts';

export type PublishedPort = {
  /** An address of this machine, or `0.0.0.0` or `::` for all of them. */
  readonly hostAddress: string;
  /** 1 to 65,535; in what is asked for also 0: one that is free. */
  readonly hostPort: number;
  readonly guestPort: number;
};

/** Of one sandbox. */
export const PUBLISHED_PORTS_MAX = 64;
export const LOOPBACK = '127.0.0.1';

const PORT_MAX = 65_535;
const TEXT_CHARS_MAX = 120;
const RANGE = String.raw`\d{1,5}(?:-\d{1,5})?`;
const ADDRESS = String.raw`\[[0-9a-fA-F:.]+\]|[0-9.]+`;
const FORM = new RegExp(`^(?:(?<address>${ADDRESS}):(?<there>${RANGE})?:|(?<host>${RANGE}):)?(?<guest>${RANGE})(?<protocol>/[a-z]+)?$`);

/**
 * `[ADDRESS:][HOST:]GUEST[/tcp]`, such as `8080:80`, `0.0.0.0:8080:80`, `127.0.0.1::80`, `80` or `8000-8009:8000-8009`.
 * Without HOST a free port is taken. IPv6 addresses stand in brackets.
 */
export function parsePublish(text: string): ParsedText<readonly PublishedPort[]> {
  const shown = text.slice(0, TEXT_CHARS_MAX);
  const hint = 'write it [ADDRESS:]HOST:GUEST, like 8080:80; GUEST alone takes a free port';
  const found = text.length > TEXT_CHARS_MAX ? null : FORM.exec(text)?.groups;
  if (found === null || found === undefined) return { ok: false, message: `'${shown}' is no port to publish`, hint };
  const { address, there, guest = '', protocol = '/tcp' } = found;
  const host = there ?? found['host'];
  if (protocol !== '/tcp') return { ok: false, message: `'${shown}': only TCP ports can be published`, hint: 'leave the protocol out' };
  const inside = range(guest, 1);
  const outside = host === undefined ? null : range(host, 0);
  if (inside === null || (host !== undefined && outside === null)) {
    return { ok: false, message: `'${shown}': a port is from 1 to ${PORT_MAX}, and a range begins with its lower end`, hint };
  }
  if (outside !== null && outside.length !== inside.length) {
    return { ok: false, message: `'${shown}': the two ranges are not of the same length`, hint };
  }
  if (inside.length > PUBLISHED_PORTS_MAX) {
    return { ok: false, message: `'${shown}': a sandbox has at most ${PUBLISHED_PORTS_MAX} published ports`, hint };
  }
  const hostAddress = (address ?? LOOPBACK).replace(/^\[(.*)\]$/, '$1');
  return { ok: true, value: inside.map((guestPort, at) => ({ hostAddress, hostPort: outside?.[at] ?? 0, guestPort })) };
}

function range(text: string, min: number): readonly number[] | null {
  const [first = 0, last = first] = text.split('-').map(Number);
  if (first < min || last > PORT_MAX || last < first) return null;
  return Array.from({ length: last - first + 1 }, (_, at) => first + at);
}

/** Whether both cannot be had at one time. */
export function sharePort(a: Omit<PublishedPort, 'guestPort'>, b: Omit<PublishedPort, 'guestPort'>): boolean {
  if (a.hostPort !== b.hostPort) return false;
  if (a.hostAddress === b.hostAddress) return true;
  // `::` takes IPv4 too.
  if (a.hostAddress === '::' || b.hostAddress === '::') return true;
  const isV6 = (address: string): boolean => address.includes(':');
  return (a.hostAddress === '0.0.0.0' || b.hostAddress === '0.0.0.0') && !isV6(a.hostAddress) && !isV6(b.hostAddress);
}

/** `127.0.0.1:8080`, `[::1]:8080`. */
export function hostSide({ hostAddress, hostPort }: Omit<PublishedPort, 'guestPort'>): string {
  return `${hostAddress.includes(':') ? `[${hostAddress}]` : hostAddress}:${hostPort}`;
}

/** As people read it: `127.0.0.1:8080->80`. */
export function showPublished(port: PublishedPort): string {
  return `${hostSide(port)}->${port.guestPort}`;
}
