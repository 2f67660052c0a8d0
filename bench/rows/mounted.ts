// A directory of this machine in a sandbox (`-v HOST:GUEST`), under what installs packages: many small files, written and read.
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, realpath, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DockerEngine } from '../../test/support/docker-engine.ts';
import type { Bench, Measurement } from '../context.ts';
import { pair, type Row } from '../harness.ts';
import { execOk, mustRun, Place } from '../place.ts';
import { WORK } from './work.ts';

const DOCKER_FACTOR = 1.1;
const OWN_FACTOR = 1.5;
const INSIDE = '/mnt/dir';

type Setting = {
  readonly place: Place;
  /** The directory here, which is `INSIDE` there. */
  readonly here: string;
  /** Seconds that the work takes in the sandbox, in a directory of it. */
  inside(at: string): Promise<number>;
};

/** A sandbox of that backend which has a directory of this machine. */
async function setting(bench: Bench, own: AsyncDisposableStack, env: NodeJS.ProcessEnv, size: number): Promise<Setting> {
  const here = await realpath(await mkdtemp(join(tmpdir(), 'hutch-bench-mounted-')));
  own.defer(() => rm(here, { recursive: true, force: true }));
  const place = own.use(await Place.make());
  Object.assign(place.env, env, { HUTCH_SANDBOX_NETWORK: 'none', HUTCH_VOLUMES_ALLOW: here });
  await place.startDaemon();
  const shown = join(here, 'shown');
  await mkdir(shown);
  const sandbox = own.use(await place.hutch.create({ mounts: [{ source: shown, target: INSIDE, readOnly: false }] }));
  await sandbox.files.write('/root/work.py', WORK);
  const inside = async (at: string): Promise<number> =>
    Number(await execOk(sandbox, ['python3', '/root/work.py', 'files', String(size), at]));
  if (bench.size !== 'quick') await inside('/root');
  return { place, here: shown, inside };
}

async function docker(bench: Bench): Promise<readonly Row[]> {
  await using own = bench.scope();
  const engine = own.use(await DockerEngine.start());
  if (engine === null) throw new Error('no Docker Engine can be started here: it takes root, and dockerd');
  const size = bench.pick({ quick: 50, usual: 30_000, long: 30_000 });
  const { here, inside } = await setting(bench, own, { ...engine.env, HUTCH_SANDBOX_BACKEND: 'docker' }, size);
  const script = join(here, '..', 'work.py');
  await writeFile(script, WORK);
  const python = existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3'; // the distribution’s, as in the image
  return [
    await pair({
      what: `a mounted directory, docker: ${size.toLocaleString('en')} small files, written and read`,
      unit: 's',
      baselineName: 'the host, in the same directory',
      runs: bench.runs(3, 1),
      target: `≤ ${DOCKER_FACTOR}×`,
      meets: (ratio) => ratio <= DOCKER_FACTOR,
      baseline: async () => Number(await mustRun([python, script, 'files', String(size), here])),
      candidate: () => inside(INSIDE),
      note: 'The same kernel and the same file system.',
    }),
  ];
}

type Own = {
  readonly backend: 'gvisor' | 'qemu';
  readonly called: string;
  readonly files: number;
  readonly runs: number;
  readonly note: string;
};

const GVISOR: Own = {
  backend: 'gvisor',
  called: 'gVisor',
  files: 8_000,
  runs: 3,
  note: 'Fewer files, as each takes longer: what one takes does not depend on how many there are. Both go through the runtime’s own file server; under its own disk lies an overlay, under the directory the file system of this machine.',
};

const QEMU: Own = {
  backend: 'qemu',
  called: 'QEMU',
  files: 2_000,
  runs: 3,
  note: 'Fewer files, as it takes longer. Each file is made in one round trip to a program on this machine, and written in none; reading them in the order of their list takes one round trip for each 25 that are listed and each 64 that are read. Without hardware virtualization most of the rest is the emulator’s, for the changes of process in the guest that a question takes, also one that the agent answers: three for each file that is made, where its own disk has the page cache (docs/decisions/0033, 0047). The kernel tells what others change, so that the guest believes what it was told for 5 s.',
};

/** Against the sandbox's own disk. */
async function againstOwn(bench: Bench, { backend, called, files, runs, note }: Own): Promise<readonly Row[]> {
  await using own = bench.scope();
  const size = bench.pick({ quick: 50, usual: files, long: files });
  const { inside } = await setting(bench, own, { HUTCH_SANDBOX_BACKEND: backend }, size);
  return [
    await pair({
      what: `a mounted directory, ${called}: ${size.toLocaleString('en')} small files, written and read`,
      unit: 's',
      baselineName: 'its own disk',
      runs: bench.runs(runs, 1),
      target: `≤ ${OWN_FACTOR}×`,
      meets: (ratio) => ratio <= OWN_FACTOR,
      baseline: () => inside('/root'),
      candidate: () => inside(INSIDE),
      note,
    }),
  ];
}

export const MOUNTED: readonly Measurement[] = [
  { name: 'mounted', about: 'a mounted directory on Docker, against the host', rows: docker },
  { name: 'mounted', about: 'a mounted directory on gVisor, against its own disk', rows: (bench) => againstOwn(bench, GVISOR) },
  { name: 'mounted', about: 'a mounted directory on QEMU, against its own disk', rows: (bench) => againstOwn(bench, QEMU) },
];
