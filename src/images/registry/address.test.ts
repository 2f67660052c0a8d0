import { expect, test } from 'vitest';
import { LINK, LOOPBACK, nearnessOf, PRIVATE, PUBLIC } from './address.ts';

test('an address is as near as it leads, in whatever clothes it comes', () => {
  const cases: readonly (readonly [string, number])[] = [
    ['8.8.8.8', PUBLIC],
    ['2606:4700::1111', PUBLIC],
    ['::ffff:8.8.8.8', PUBLIC],
    ['64:ff9b::808:808', PUBLIC],
    ['2002:808:808::1', PUBLIC],
    ...['10.0.0.1', '172.31.255.255', '192.168.1.1', '100.64.0.1', 'fd12::1', 'fec0::1', '64:ff9b:1::1'].map(
      (at) => [at, PRIVATE] as const,
    ),
    ...['::ffff:10.0.0.1', '::ffff:a00:1', '64:ff9b::10.0.0.1', '2002:a00:1::1', '::10.0.0.1'].map((at) => [at, PRIVATE] as const),
    ...['127.0.0.1', '127.255.0.1', '::1', '::ffff:7f00:1', '64:ff9b::7f00:1', '2002:7f00:1::', '::127.0.0.1'].map(
      (at) => [at, LOOPBACK] as const,
    ),
    ...['169.254.169.254', '0.0.0.0', '::', 'fe80::1', 'fe80::1%eth0', 'fd00:ec2::254', 'ff02::1', '255.255.255.255'].map(
      (at) => [at, LINK] as const,
    ),
    ...['::ffff:a9fe:a9fe', '64:ff9b::169.254.169.254', '2002:a9fe:a9fe::1', '::a9fe:a9fe'].map((at) => [at, LINK] as const),
  ];
  for (const [address, expected] of cases) expect(nearnessOf(address), address).toBe(expected);
});
