// Whom a registry may send us to. A name on the internet that redirects to this machine, to the network
// around it or to a cloud's metadata would make us its hands there.
import { BlockList, isIPv4 } from 'node:net';

/** How near an address is; a registry may send us to what is as far as itself, or farther. */
export type Nearness = 0 | 1 | 2 | 3;
export const PUBLIC = 0;
export const PRIVATE = 1;
export const LOOPBACK = 2;
/** Of this link alone, with the metadata of clouds: nobody is sent there. */
export const LINK = 3;

const NETS: readonly [Nearness, readonly string[]][] = [
  [LINK, ['169.254.0.0/16', 'fe80::/10', 'fd00:ec2::254/128', '0.0.0.0/8', '::/128', '224.0.0.0/4', 'ff00::/8', '255.255.255.255/32']],
  [LOOPBACK, ['127.0.0.0/8', '::1/128']],
  [
    PRIVATE,
    [
      '10.0.0.0/8',
      '172.16.0.0/12',
      '192.168.0.0/16',
      '100.64.0.0/10',
      '192.0.0.0/24',
      '198.18.0.0/15',
      '240.0.0.0/4',
      'fc00::/7',
      'fec0::/10',
      '64:ff9b:1::/48',
    ],
  ],
];

const LISTS: readonly [Nearness, BlockList][] = NETS.map(([nearness, nets]) => {
  const list = new BlockList();
  for (const net of nets) {
    const [address = '', bits = ''] = net.split('/');
    list.addSubnet(address, Number(bits), isIPv4(address) ? 'ipv4' : 'ipv6');
  }
  return [nearness, list];
});

export function nearnessOf(address: string): Nearness {
  if (isIPv4(address)) return listed(address, 'ipv4');
  const own = listed(address, 'ipv6');
  const inside = embedded(address);
  const theirs = inside === null ? PUBLIC : listed(inside, 'ipv4');
  return Math.max(own, theirs) as Nearness;
}

function listed(address: string, family: 'ipv4' | 'ipv6'): Nearness {
  for (const [nearness, list] of LISTS) if (list.check(address, family)) return nearness;
  return PUBLIC;
}

/**
 * The IPv4 address to which an IPv6 address leads on: mapped (`::ffff:0:0/96`), translated (NAT64, RFC 6052: `64:ff9b::/96`),
 * tunnelled (6to4, RFC 3056: `2002::/16`) or of the oldest form (`::/96`); null: none.
 */
function embedded(address: string): string | null {
  const words = wordsOf(address);
  if (words === null) return null;
  const front = words.slice(0, 6).join();
  if (words[0] === 0x2002) return dotted(words[1], words[2]);
  if (front === '0,0,0,0,0,65535' || front === '100,65435,0,0,0,0') return dotted(words[6], words[7]);
  return front === '0,0,0,0,0,0' && (words[6] ?? 0) > 0 ? dotted(words[6], words[7]) : null;
}

/** Its eight parts. */
function wordsOf(address: string): readonly number[] | null {
  const host = URL.parse(`http://[${address.replace(/%.*$/s, '')}]/`)?.hostname; // in its one short form, and without a dotted end
  if (host === undefined) return null;
  const [head = '', tail] = host.slice(1, -1).split('::');
  const parts = (text: string): number[] => (text === '' ? [] : text.split(':').map((part) => Number.parseInt(part, 16)));
  const [first, last] = [parts(head), parts(tail ?? '')];
  return [...first, ...Array.from({ length: 8 - first.length - last.length }, () => 0), ...last];
}

function dotted(high = 0, low = 0): string {
  return [high >> 8, high & 255, low >> 8, low & 255].join('.');
}
