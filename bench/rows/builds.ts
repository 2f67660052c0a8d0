// Builds against `docker build` of a real Engine: with everything cached, and with the last of eight steps changed.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DockerEngine } from '../../test/support/docker-engine.ts';
import type { Bench, Measurement } from '../context.ts';
import { alone, judge, type Row, timed } from '../harness.ts';
import { busybox } from '../images-made.ts';
import { mustRun, Place } from '../place.ts';

const CACHED_FACTOR = 1;
const CHANGED_FACTOR = 1.3;

/** Eight steps, the last of them with `mark` in it. */
function dockerfile(mark: string): string {
  const runs = [1, 2, 3, 4].map((at) => `RUN echo ${at} > /step-${at}\n`).join('');
  return `FROM base:1\nENV A=1\nCOPY data /data\nWORKDIR /work\n${runs}RUN cat /data /step-4 > /work/last && echo ${mark}\n`;
}

async function builds(bench: Bench): Promise<readonly Row[]> {
  await using own = bench.scope();
  const engine = own.use(await DockerEngine.start());
  if (engine === null) throw new Error('no Docker Engine can be started here: it takes root, and dockerd');
  const dir = await mkdtemp(join(tmpdir(), 'hutch-bench-builds-'));
  own.defer(() => rm(dir, { recursive: true, force: true }));
  const context = join(dir, 'context');
  await mustRun(['mkdir', context]);
  await writeFile(join(context, 'data'), 'data\n');
  const base = busybox('builds');
  await engine.import('base', '1', { tar: base });
  const place = own.use(await Place.make('prepared', { HOME: dir, HUTCH_SANDBOX_NETWORK: 'none' }));
  await place.startDaemon();
  await place.hutch.api.upload('image.import', { name: 'base:1' }, base);
  const write = (mark: string) => writeFile(join(context, 'Dockerfile'), dockerfile(mark));
  const docker = { ...process.env, ...engine.env, DOCKER_BUILDKIT: '0' };
  const theirs = () => timed(() => mustRun(['docker', 'build', '-q', '--network', 'none', context], docker));
  const ours = (backend: string) =>
    timed(async () => {
      const { code, stderr } = await place.cli(['build', '-q', '--backend', backend, context]);
      if (code !== 0) throw new Error(stderr);
    });
  const taken = { cached: [[], []] as [number[], number[]], gvisor: [[], []] as [number[], number[]], qemu: [] as number[] };
  await write('first');
  for (const build of [theirs, () => ours('gvisor'), () => ours('qemu')]) await build();
  const rounds = bench.runs(7, 1);
  for (let round = bench.size === 'quick' ? 0 : -1; round < rounds; round += 1) {
    const cached = [await theirs(), await ours('gvisor')] as const;
    await write(`gvisor ${round}`);
    const changed = [await theirs(), await ours('gvisor')] as const;
    await write(`qemu ${round}`);
    const qemu = await ours('qemu');
    await theirs();
    if (round < 0) continue;
    taken.cached[0].push(cached[0]);
    taken.cached[1].push(cached[1]);
    taken.gvisor[0].push(changed[0]);
    taken.gvisor[1].push(changed[1]);
    taken.qemu.push(qemu);
  }
  return [
    judge(
      {
        what: 'build of 8 steps, everything cached',
        unit: 'ms',
        baselineName: '`docker build`, everything cached',
        target: `≤ ${CACHED_FACTOR}×`,
        meets: (ratio) => ratio <= CACHED_FACTOR,
        note: 'Both from the command to its exit. Bound by the start of the program: of 125 ms of processor time Node takes 32, its modules for HTTP 14, evaluating our modules 20, the verb itself 20, the shell that starts a checkout 12 (half of it looks whether a source is newer than the bundle), and the daemon 22 to 30 in many small pieces; that the certificates of this machine, 220 kB, go along each time shows there as no more than 2. The daemon looks the cache up, remembers what it has read, and writes the record of a build out of the cache once, at its end. Looking for certificates in the bundle, twice 220 kB, took 10 to 15 ms, and is not done where the bundle has them all. Tried and taken back: a client of HTTP of our own for the unix socket (85 in place of 99 ms for the command alone, and a parser of a protocol to trust). Tried without gain: V8 without threads of its own or with more compiled ahead, Node without what it loads for others; V8’s compiled code of all functions that such a command has used, kept by ourselves (what is compiled anew costs as little as loading more). Node’s snapshot of a started program crashed with its HTTP.',
      },
      ...taken.cached,
    ),
    judge(
      {
        what: 'build of 8 steps, the last one changed, gVisor',
        unit: 'ms',
        baselineName: '`docker build`, the last one changed',
        target: `≤ ${CHANGED_FACTOR}×`,
        meets: (ratio) => ratio <= CHANGED_FACTOR,
        note: 'A sandbox is started, the layers that are cached already are unpacked into it, and the new image is packed, whole and synced on the disk. Bound by gVisor’s start: of 0.9 s 0.33 go by until the sandbox answers, 0.16 until the cached layers are in it and have been looked at, 0.12 for the command (two processes under ptrace), 0.06 for its layer, 0.14 for the image. What does not need each other is done at once (layers go in while settings are written, what a command has left is looked at once, the image’s files are synced together): that took a sixth from it, paired. Beside other work all of this waits for a processor, and `docker build` for less of it.',
      },
      ...taken.gvisor,
    ),
    alone(
      {
        what: 'build of 8 steps, the last one changed, QEMU',
        unit: 'ms',
        target: 'reported',
        met: null,
        note: 'As above, in a machine restored from the template of the base image; under software emulation where there is no KVM.',
      },
      taken.qemu,
    ),
  ];
}

export const BUILDS: readonly Measurement[] = [{ name: 'builds', about: 'hutch build against docker build', rows: builds }];
