// How long the daemon's event loop is held up while its disk is slow: streams go through that loop, so
// a commit that blocks it would be felt by every sandbox. The baseline is the same work with a quick disk.
import { request } from 'node:http';
import type { Bench, Measurement } from '../context.ts';
import { judge, type Row } from '../harness.ts';
import { execOk, type Place, runProgram, type Wrapped } from '../place.ts';

const FSYNC_MS = 30;
const BLOCKED_MS_MAX = 20;
const SYNCS = 'fsync,fdatasync,sync_file_range,msync';

/** Both run under strace: it costs something itself. */
const slowed = (ms: number): Wrapped => ({
  program: 'strace',
  args: [
    '-f',
    '--seccomp-bpf',
    '-qq',
    '-o',
    '/dev/null',
    '-e',
    `trace=${SYNCS}`,
    ...(ms === 0 ? [] : ['-e', `inject=${SYNCS}:delay_enter=${ms}ms`]),
  ],
});

async function longestMs(place: Place): Promise<number> {
  const text = await new Promise<string>((resolve, reject) => {
    const asking = request({ socketPath: place.socketPath, path: '/health', agent: false }, (answer) => {
      let body = '';
      answer.on('data', (chunk: Buffer) => {
        body += chunk.toString();
      });
      answer.on('end', () => resolve(body));
    });
    asking.on('error', reject);
    asking.end();
  });
  const { eventLoopDelay } = JSON.parse(text) as { eventLoopDelay?: { maxMs: number } };
  if (eventLoopDelay === undefined) throw new Error('the daemon does not measure its event loop');
  return eventLoopDelay.maxMs;
}

/** Sandboxes come and go, each of which is several durable commits; gives the longest hold-up of each. */
async function rounds(place: Place, ms: number, count: number): Promise<number[]> {
  await place.stopDaemon();
  await place.startDaemon(slowed(ms), ['--measure-loop']);
  const taken: number[] = [];
  for (let i = -1; i < count; i += 1) {
    await longestMs(place); // begins anew
    await using sandbox = await place.hutch.create({ network: 'none' });
    for (let nth = 0; nth < 5; nth += 1) await execOk(sandbox, ['true']);
    await sandbox.delete();
    if (i >= 0) taken.push(await longestMs(place));
  }
  return taken;
}

async function loop(bench: Bench): Promise<readonly Row[]> {
  const { place } = bench;
  const { code } = await runProgram(['strace', '--version']);
  if (code !== 0) throw new Error('strace is not installed: ./dev installs it');
  const count = bench.runs(8, 1);
  try {
    const base = await rounds(place, 0, count);
    const ours = await rounds(place, FSYNC_MS, count);
    return [
      judge(
        {
          what: `event loop held up at the longest, each fsync slowed by ${FSYNC_MS} ms`,
          unit: 'ms',
          baselineName: 'fsync as it is',
          target: `never > ${BLOCKED_MS_MAX} ms`,
          meets: (_ratio, candidate) => candidate.p99 <= BLOCKED_MS_MAX,
          note: 'The longest of each round, in which a sandbox is made, runs five commands and is deleted. The store’s commits are made by a worker, so what remains is garbage collection, the code’s own work, and the two processors that the daemon shares with the guests.',
        },
        base,
        ours,
      ),
    ];
  } finally {
    await place.stopDaemon();
    await place.startDaemon();
  }
}

export const LOOP: readonly Measurement[] = [{ name: 'loop', about: 'the event loop while the disk is slow', rows: loop }];
