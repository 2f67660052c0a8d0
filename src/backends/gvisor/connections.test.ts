import { expect, test } from 'vitest';
import { parseConnections } from './connections.ts';

const HEAD = '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode';
const line = (at: number, local: string, remote: string, state: string, uid: number): string =>
  `   ${at}: ${local} ${remote} ${state} 00000000:00000000 00:00000000 00000000 ${String(uid).padStart(5)}        0 4711 1 0 100 0 0 10 0`;

test('what is open of one user is read from the kernel’s table, with addresses as people write them', () => {
  const table = [
    HEAD,
    line(0, '0100007F:0050', '00000000:0000', '0A', 1000), // listens
    line(1, '01FEA8C0:8E12', '4D7100CB:0007', '01', 1000),
    line(2, '01FEA8C0:8E13', '4D7100CB:01BB', '02', 1000), // begins
    line(3, '01FEA8C0:8E14', '4D7100CB:01BB', '06', 1000), // over
    line(4, '01FEA8C0:8E15', '4D7100CB:01BB', '08', 1000), // ended by the other side alone
    line(5, '01FEA8C0:8E16', '4D7100CB:01BB', '01', 1001),
    '',
  ].join('\n');
  const open = ['203.0.113.77:7', '203.0.113.77:443', '203.0.113.77:443'];
  expect(parseConnections(table, 1000).map(({ remote }) => remote)).toEqual(open);
  expect(parseConnections(table, 1000)[0]?.local).toBe('192.168.254.1:36370');
  expect(parseConnections(table, null)).toHaveLength(open.length + 1);
  expect(parseConnections('', 1000)).toEqual([]);
});
