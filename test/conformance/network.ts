// What a sandbox reaches, by canaries, in each network that its backend claims: the internet, private
// ranges only when it may, and this machine, on any of its addresses, never.
import { describe, expect, test } from 'vitest';
import { addressesIn, CANARY, neighbours, PROBE, REACHED, targetsIn } from '../network/neighbours.ts';
import type { Subject } from './subject.ts';

/** QEMU's own network and passt's show the host under these. */
const GATEWAYS = ['10.0.2.2', '192.0.0.1', '172.17.0.1'];

/** The probe, where there is no Python. */
const SHELL = `port=$1; shift; for a in "$@"; do (test "$(nc -w 2 $a $port < /dev/null)" = ${CANARY} && echo $a) & done | sort | tr "\\n" " "; wait`;

/** A program that talks to itself. */
const LOOPBACK = `if command -v python3 >/dev/null; then python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); socket.create_connection(s.getsockname(), 5)'; else nc -l -p 7412 </dev/null & sleep 1; nc -w 2 127.0.0.1 7412 </dev/null; fi`;

export function network(subject: Subject): void {
  const { daemon, can } = subject;

  describe('networks', () => {
    test('a sandbox reaches itself and what its network is for, the machine itself never', { timeout: 180_000 }, async () => {
      await using around = await neighbours();
      const targets = targetsIn(around, GATEWAYS);
      const attempt = `if command -v python3 >/dev/null; then exec python3 -c "$0" "$@"; else ${SHELL}; fi`;
      const reached = await Promise.all(
        can.networks.map(async (mode) => {
          const { id } = await subject.make({ network: mode });
          const alone = await daemon.run(id, ['sh', '-c', LOOPBACK]);
          expect([alone.exitCode, alone.stderr], `its own 127.0.0.1, with the network ${mode}`).toEqual([0, '']);
          const { stdout } = await daemon.run(id, ['sh', '-c', attempt, PROBE, String(around.port), ...targets]);
          await subject.remove(id);
          return [mode, addressesIn(stdout)] as const;
        }),
      );
      expect(Object.fromEntries(reached)).toEqual(Object.fromEntries(can.networks.map((mode) => [mode, REACHED[mode]])));
    });
  });
}
