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
  [PRIVATE, ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10', '192.0.0.0/24', '198.18.0.0/15', '240.0.0.0/4', 'fc00::/7']],
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
  // An IPv4 address in the clothes of IPv6.
  const plain = /^::ffff:(\d{1,3}(?:\.\d{1,3}){3})$/i.exec(address)?.[1] ?? address;
  const family = isIPv4(plain) ? 'ipv4' : 'ipv6';
  for (const [nearness, list] of LISTS) if (list.check(plain, family)) return nearness;
  return PUBLIC;
}
