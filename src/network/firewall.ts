// The rules that keep sandboxes away from the host and its neighbours, as nftables text. Each passt
// runs as its sandbox's own user, so packets are told apart by the user that sends them. One
// transaction installs everything and heals whatever is missing; nothing here depends on the guest.
import { isIP, isIPv6 } from 'node:net';
import type { UidRange } from '../domain/users.ts';

export type Ruleset = {
  /** Name of the table in the `inet` family. */
  readonly table: string;
  readonly uids: UidRange;
  /** Users beside those: of sandboxes that run since before their data directory had its block. */
  readonly others: Iterable<number>;
  /** The host's resolvers, which answer sandboxes on port 53 wherever they are. */
  readonly resolvers: readonly string[];
};

/** Never reached: this host by any name, link-local and metadata addresses, everything that is not one other machine. */
const NEVER_4 = ['0.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '192.0.0.0/24', '224.0.0.0/4', '255.255.255.255/32'];
const NEVER_6 = ['::/128', '::1/128', '::ffff:0:0/96', 'fe80::/10', 'fec0::/10', 'ff00::/8'];
/** Private, shared and translated ranges: only with `allow-lan`. */
const LAN_4 = ['10.0.0.0/8', '100.64.0.0/10', '172.16.0.0/12', '192.168.0.0/16'];
const LAN_6 = ['fc00::/7', '64:ff9b::/96', '64:ff9b:1::/48', '2002::/16'];

/** Metadata services inside a private range: not even with `allow-lan`. */
const METADATA_6 = ['fd00:ec2::254/128'];
const METADATA_4 = ['100.100.100.200/32'];

/**
 * Where a sandbox's packet may go, in the order of the rules: `goto refuse` where it may not, and the end of
 * the chain where it may. `lan`: what is true of a packet that may also go to private ranges.
 */
export function destinationRules(resolvers: readonly string[], lan: string): readonly string[] {
  const resolvers4 = resolvers.filter((address) => isIP(address) === 4);
  const resolvers6 = resolvers.filter((address) => isIPv6(address));
  const port53 = (family: 'ip' | 'ip6', addresses: readonly string[]): string[] =>
    addresses.length === 0 ? [] : [`${family} daddr { ${addresses.join(', ')} } meta l4proto { tcp, udp } th dport 53 accept`];
  return [
    ...port53('ip', resolvers4),
    ...port53('ip6', resolvers6),
    'fib daddr type { local, broadcast, anycast, multicast } goto refuse',
    `ip daddr { ${[...NEVER_4, ...METADATA_4].join(', ')} } goto refuse`,
    `ip6 daddr { ${[...NEVER_6, ...METADATA_6].join(', ')} } goto refuse`,
    `${lan} accept`,
    `ip daddr { ${LAN_4.join(', ')} } goto refuse`,
    `ip6 daddr { ${LAN_6.join(', ')} } goto refuse`,
  ];
}

/** Resets TCP at once, and says no to the rest. */
export const REFUSE_RULES = ['meta l4proto tcp reject with tcp reset', 'reject with icmpx admin-prohibited'] as const;

/** Everything but the sandboxes' own entries, which stay as they are. */
export function installScript({ table, uids, others, resolvers }: Ruleset): string {
  const name = tableName(table);
  const users = [`${uid(uids.first)}-${uid(uids.last)}`, ...[...others].map(uid)];
  const rules = destinationRules(resolvers, 'meta skuid @lan');
  return [
    `add table inet ${name}`,
    `add set inet ${name} lan { type uid; }`,
    `add chain inet ${name} refuse`,
    `add chain inet ${name} sandbox`,
    `add chain inet ${name} output { type filter hook output priority 0; policy accept; }`,
    `flush chain inet ${name} output`,
    `flush chain inet ${name} sandbox`,
    `flush chain inet ${name} refuse`,
    // A reset at once: passt passes that on to the guest (Debian 12's without its ACK, which the agent or the cell adds), and not what ICMP says.
    ...REFUSE_RULES.map((rule) => `add rule inet ${name} refuse ${rule}`),
    ...rules.map((rule) => `add rule inet ${name} sandbox ${rule}`),
    `add rule inet ${name} output meta skuid { ${users.join(', ')} } jump sandbox`,
    '',
  ].join('\n');
}

/** Whether these users also reach private ranges, and these not. */
export function lanScript(table: string, users: { readonly into: Iterable<number>; readonly outOf: Iterable<number> }): string {
  const name = tableName(table);
  const element = (what: 'add' | 'delete', user: number): string => `${what} element inet ${name} lan { ${uid(user)} }`;
  return [
    // As they are made with everything else, so that taking a user out is no error when there are no rules.
    `add table inet ${name}`,
    `add set inet ${name} lan { type uid; }`,
    ...[...users.into].map((user) => element('add', user)),
    // Added first, so that removing it is no error when it was not there.
    ...[...users.outOf].flatMap((user) => [element('add', user), element('delete', user)]),
    '',
  ].join('\n');
}

export function removeScript(table: string): string {
  return `add table inet ${tableName(table)}\ndelete table inet ${tableName(table)}\n`;
}

export function tableName(table: string): string {
  if (!/^[a-z][a-z0-9_]{0,30}$/.test(table)) throw new Error(`not a name for a table: ${JSON.stringify(table)}`);
  return table;
}

function uid(user: number): string {
  if (!Number.isInteger(user) || user < 0 || user > 0xffff_fffe) throw new Error(`not a user id: ${user}`);
  return user.toString();
}
