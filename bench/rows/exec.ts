// One command in a sandbox that runs. The baseline is what it is made of: a round trip over the port
// and the start of a program, each measured in a guest without Hutch.
import type { Socket } from 'node:net';
import type { BareGuest } from '../bare/guest.ts';
import type { Bench, Measurement } from '../context.ts';
import { figures, judge, type Row, short } from '../harness.ts';
import { execOk } from '../place.ts';

/** Starts a program as often as asked and prints the milliseconds of each. */
const SPAWN = `import os, sys, time
for _ in range(int(sys.argv[1])):
    began = time.perf_counter_ns()
    os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)
    print((time.perf_counter_ns() - began) / 1e6)
`;
const ECHO_BYTES = 16;

async function echoMs(port: Socket, bytes: Buffer): Promise<number> {
  const started = performance.now();
  let left = bytes.byteLength;
  await new Promise<void>((resolve, reject) => {
    const onData = (chunk: Buffer) => {
      left -= chunk.byteLength;
      if (left > 0) return;
      port.off('data', onData).off('close', reject);
      resolve();
    };
    port.on('data', onData).on('close', reject);
    port.write(bytes);
  });
  return performance.now() - started;
}

async function spawnMs(guest: BareGuest, count: number): Promise<number[]> {
  return (await guest.run(`python3 /tmp/spawn.py ${count}`)).split('\n').map(Number);
}

async function exec(bench: Bench): Promise<readonly Row[]> {
  const guest = await bench.guest();
  await guest.write('/tmp/spawn.py', SPAWN);
  await guest.run('(exec cat <>$(echo /dev/vport*p1) >&0) & echo $! >/tmp/echo.pid');
  await using sandbox = await bench.place.hutch.create();
  const rounds = bench.pick({ quick: 1, usual: 10, long: 40 });
  const each = bench.runs(30, 3);
  const bytes = Buffer.alloc(ECHO_BYTES, 'e');
  const base: number[] = [];
  const ours: number[] = [];
  const echoes: number[] = [];
  await echoMs(guest.port, bytes);
  for (let i = 0; i < 5; i += 1) await execOk(sandbox, ['true']);
  await spawnMs(guest, 3);
  for (let round = 0; round < rounds; round += 1) {
    const spawned = await spawnMs(guest, each);
    for (const spawn of spawned) {
      const echo = await echoMs(guest.port, bytes);
      echoes.push(echo);
      base.push(echo + spawn);
    }
    for (let i = 0; i < each; i += 1) {
      const started = performance.now();
      await execOk(sandbox, ['true']);
      ours.push(performance.now() - started);
    }
  }
  await guest.run('kill $(cat /tmp/echo.pid)');
  const what = "`sandbox.exec(['true'])`, round trip";
  const baselineName = 'echo over the raw port + spawn timed in the guest';
  const note = `The echo alone took ${short(figures(echoes).median)} ms. It was a tenth slower while each folder of PATH in which the program is not was tried by execve, for which the kernel makes an address space before it looks. Beyond it an exec opens a WebSocket, which is a connection of its own, with what to run in the request for it (a message of its own was one way there and back more); and the guest makes pipes, starts and reaps the program and sends five frames, all under the same emulation. QEMU’s processor time for an exec is near that of a spawn within the guest (32 to 41 ms and 31 ms were measured on a busy machine); daemon and client add about 4 and 2 ms.`;
  return [
    judge(
      {
        ...{ what: `${what}, p50`, unit: 'ms', baselineName, note },
        target: '≤ 1.3× + 1 ms',
        meets: (_ratio, candidate, baseline) => candidate.median <= 1.3 * baseline.median + 1,
      },
      base,
      ours,
    ),
    judge(
      {
        ...{
          what: `${what}, p99`,
          unit: 'ms',
          by: 'p99',
          baselineName,
          note: `Of ${ours.length} execs. An exec is a chain of wake-ups: client, daemon, QEMU’s main loop, its processor’s thread, the guest, and all of them back; the baseline has a third of them. On a machine whose processors are busy each may wait for its turn, and the slowest of a hundred has met that: no pause of the daemon’s own (garbage, commits, sweeps) was found in it.`,
        },
        target: '≤ 2× + 5 ms',
        meets: (_ratio, candidate, baseline) => candidate.p99 <= 2 * baseline.p99 + 5,
      },
      base,
      ours,
    ),
  ];
}

export const EXEC: readonly Measurement[] = [{ name: 'exec', about: 'round trip of a command', rows: exec }];
