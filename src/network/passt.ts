// One passt per sandbox: it turns the guest's packets into the sockets of its own user, without any
// privilege. Versions differ in options, so what is used is looked for in its own help text.
import { createHash } from 'node:crypto';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { GuestAddress } from './network.ts';

/**
 * The guest's side of every sandbox. 192.0.0.0/29 is set aside for exactly this (RFC 7335): no network
 * that a guest may want to reach is hidden by it.
 */
const GUEST = '192.0.0.2';
const GATEWAY = '192.0.0.1';
const DNS = '192.0.0.3';
const PREFIX = 29;
/** What passt offers by itself: the largest packet of IPv4 less the frame's header, in whole words. */
const MTU = 65_520;

/** Without these a sandbox could reach the host, or passt could not be handed its socket. */
const NEEDED = ['--fd', '--no-map-gw', '--dns-forward', '--no-dhcp', '--log-file'] as const;
/** Switched off where the version has them: mappings of the host's addresses that came later. */
const UNMAP = [
  ['--map-host-loopback', 'none'],
  ['--map-guest-addr', 'none'],
] as const;

/** The shim's end of the socket pair. */
const PAIR_FD = 3;

export type Passt = { readonly path: string; readonly options: readonly string[] };

/** What can be used of the installed passt, or why nothing can. */
export async function findPasst(op: Operation, host: Host): Promise<Passt | { readonly missing: string }> {
  const path = await host.which(op, 'passt');
  if (path === null) return { missing: 'passt is not installed' };
  const has = await optionsOf(op, host, path);
  const lacking = NEEDED.filter((option) => !has(option));
  if (lacking.length > 0) return { missing: `passt lacks ${lacking.join(', ')}: it is too old` };
  return { path, options: unmapOptions(has) };
}

/** Whether the program's help names an option. For pasta too, which is passt under another name. */
export async function optionsOf(op: Operation, host: Host, path: string): Promise<(option: string) => boolean> {
  using limited = op.within(10_000, `asking ${path} what it can do`);
  const { stdout, stderr } = await host.run(limited, [path, '--help']);
  const help = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  return (option) => new RegExp(`(^|[\\s,])${option}\\b`, 'm').test(help);
}

/** What switches off all mappings of the host's addresses that this version has. */
export function unmapOptions(has: (option: string) => boolean): readonly string[] {
  return UNMAP.filter(([option]) => has(option)).flat();
}

export function passtArgv(passt: Passt, logPath: string): readonly string[] {
  return [
    passt.path,
    ...['--foreground', '--quiet', '--log-file', logPath, '--fd', String(PAIR_FD)],
    // The host's addresses are not mapped into the guest, and nothing is forwarded to it.
    ...['--no-map-gw', ...passt.options, '--tcp-ports', 'none', '--udp-ports', 'none'],
    ...['--ipv4-only', '--address', GUEST, '--netmask', String(PREFIX), '--gateway', GATEWAY, '--mtu', String(MTU)],
    // The agent sets the address; names are asked for at an address that only passt knows.
    ...['--no-dhcp', '--dns-forward', DNS],
  ];
}

/** The same for all but the MAC, which is made from the sandbox's id: stable over its starts. */
export function guestAddress(id: string, resolvers: readonly string[]): GuestAddress {
  const [a, b, c, d, e] = createHash('sha256').update(id).digest();
  const mac = [0x02, a, b, c, d, e].map((byte) => (byte ?? 0).toString(16).padStart(2, '0')).join(':');
  return { mac, address: `${GUEST}/${PREFIX}`, gateway: GATEWAY, dns: resolvers.length === 0 ? [] : [DNS], mtu: MTU };
}
