// Backends against what they are made of: the `docker` command over the same Engine, with the same image.
import { existsSync, mkdtempSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Sandbox } from '../../src/sdk/sandbox.ts';
import { DockerEngine } from '../../test/support/docker-engine.ts';
import type { Bench, Measurement } from '../context.ts';
import { figures, judge, type Row, short, timed } from '../harness.ts';
import { execOk, mustRun, Place } from '../place.ts';
import { gvisor } from './gvisor.ts';
import { fileRows, workRows } from './native.ts';
import { WORK } from './work.ts';

const IMAGE_PREFIX = 'hutch/img';
const RUN_FACTOR = 0.8;
const EXEC_FACTOR = 0.1;
const AT_ONCE_FACTOR = 1.3;
const WORK_FACTOR = 1.05;

const FILES = {
  push: 'The file is on the disk at the end, synced, and replaces the old one whole; the bytes of the baseline go through one socket, and stay nowhere. In a container of a local Engine the client writes into the file that the daemon lends it; elsewhere they go through the client, the daemon and the agent: three sockets. Bound by the file, and not by the way to it: a program alone takes 170 ms of the processor for 512 MiB of the cache’s pages, which is 0.6 of the baseline’s rate before the first byte is on the disk, and the sync as long again. Past the cache (O_DIRECT) it takes 65 ms of the processor, but waits for the disk throughout, which gives no more in all: steadily 490 to 630 MiB/s beside other work, where with cache and sync it is 170 to 290 as long as a machine’s memory is new to it, and 950 to 1250 when it is not.',
  pull: 'In a container of a local Engine the client reads the file that the daemon lends it, four pieces of 1 MiB at once, each into memory of its own, where the baseline uses the same again: new memory is more than half of the processor time (512 MiB into the same buffer take 42 ms of it, into new ones 90), with pieces of 256 KiB to 4 MiB, and cut from one of 16, alike. Elsewhere through the agent, the daemon and the client: three sockets where the baseline has one.',
};

const median = (taken: readonly number[]) => figures(taken).median;

async function docker(bench: Bench): Promise<readonly Row[]> {
  await using own = bench.scope();
  const engine = own.use(await DockerEngine.start());
  if (engine === null) throw new Error('no Docker Engine can be started here: it takes root, and dockerd');
  const place = own.use(await Place.make());
  Object.assign(place.env, engine.env, { HUTCH_SANDBOX_BACKEND: 'docker', HUTCH_SANDBOX_NETWORK: 'none' });
  await place.startDaemon();
  const { api } = place.hutch;

  /** From the request until nothing of it is left, as `docker run --rm`. */
  const whole = async (): Promise<void> => {
    const { id } = await api.call('sandbox.create', { main: { argv: ['true'] } });
    const { exitCode } = await api.call('sandbox.wait', { ref: id });
    if (exitCode !== 0) throw new Error(`true ended with ${exitCode}`);
    await api.call('sandbox.delete', { ref: id });
  };
  const cli = (...argv: string[]) => mustRun(['docker', ...argv], { ...process.env, ...engine.env });

  await whole(); // brings the image into the Engine
  const image = (await cli('images', '--format', '{{.Repository}}:{{.Tag}}', IMAGE_PREFIX)).trim();
  const bare = () => cli('run', '--rm', '--network', 'none', '--log-driver', 'none', image, 'true');
  const [runBase, runOurs]: [number[], number[]] = [[], []];
  const runs = bench.runs(15);
  for (let i = -1; i < runs; i += 1) {
    const base = await timed(bare);
    const ours = await timed(whole);
    if (i < 0) continue;
    runBase.push(base);
    runOurs.push(ours);
  }

  const name = (await cli('run', '-d', '--network', 'none', '--log-driver', 'none', image, 'sleep', '100000')).trim();
  const sandbox = await place.hutch.create();
  const [execBase, execOurs]: [number[], number[]] = [[], []];
  const execs = bench.runs(40, 3);
  for (let i = -2; i < execs; i += 1) {
    const base = await timed(() => cli('exec', name, 'true'));
    const ours = await timed(() => execOk(sandbox, ['true']));
    if (i < 0) continue;
    execBase.push(base);
    execOurs.push(ours);
  }
  await cli('rm', '-f', name);
  const inside = [...(await work(bench, sandbox)), ...(await fileRows(bench, 'docker', sandbox, FILES))];
  await sandbox.delete();

  const count = bench.pick({ quick: 3, usual: 20, long: 20 });
  const [manyBase, manyOurs]: [number[], number[]] = [[], []];
  const rounds = bench.runs(3, 1);
  for (let i = 0; i < rounds; i += 1) {
    const several = Array.from({ length: count });
    manyBase.push(
      await timed(() => Promise.all(several.map(() => cli('run', '-d', '--rm', '--network', 'none', image, 'sleep', '100000')))),
    );
    await cli('kill', ...(await cli('ps', '-q')).trim().split('\n'));
    manyOurs.push(await timed(() => Promise.all(several.map(() => api.call('sandbox.create', {})))));
    await place.deleteAll();
  }

  return [
    judge(
      {
        what: 'docker: `run --rm` to exit, through the API',
        unit: 'ms',
        baselineName: '`docker run --rm IMAGE true`',
        target: `≤ ${RUN_FACTOR}×`,
        meets: (ratio) => ratio <= RUN_FACTOR,
        note: 'The Engine makes, starts, stops and removes a container in both, and its start of one (runc, mounts, a shim) is the greater part of either. Ours waits for the record of each step to be on the disk, and asks the Engine about ten times how the container is; the other starts a program of 40 MB. What the container has used is read from its cgroup at its end: asked of the Engine, which takes its figures once a second, it was two thirds of a life (3.1 times the baseline). In turn with the baseline on a machine with a load of 15 on two processors: 0.65 to 0.86 times in four runs.',
      },
      runBase,
      runOurs,
    ),
    judge(
      {
        what: 'docker: exec round trip, p50',
        unit: 'ms',
        baselineName: '`docker exec C true`',
        target: `≤ ${EXEC_FACTOR}×`,
        meets: (ratio) => ratio <= EXEC_FACTOR,
        note: `The agent starts the program; the Engine is not asked. \`docker exec\` starts a shim and runc each time (${short(median(execBase))} ms).`,
      },
      execBase,
      execOurs,
    ),
    judge(
      {
        what: `docker: ${count} sandboxes at once`,
        unit: 'ms',
        baselineName: `${count} × \`docker run -d\` at once`,
        target: `≤ ${AT_ONCE_FACTOR}×`,
        meets: (ratio) => ratio <= AT_ONCE_FACTOR,
        note: 'Until each has said that it runs. Bound by the processors: runc, and the mounts of each container.',
      },
      manyBase,
      manyOurs,
    ),
    ...inside,
  ];
}

async function work(bench: Bench, sandbox: Sandbox): Promise<readonly Row[]> {
  const here = mkdtempSync(join(tmpdir(), 'hutch-bench-work-'));
  try {
    writeFileSync(join(here, 'work.py'), WORK);
    await sandbox.files.write('/root/work.py', WORK);
    const python = existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3'; // the distribution’s, as in the image
    return await workRows(bench, 'docker', sandbox, {
      name: 'the host',
      run: (kind, size) => mustRun([python, join(here, 'work.py'), kind, String(size), here]),
      factor: WORK_FACTOR,
      note: 'The same kernel; small files lie on the overlayfs of the Engine, and on the host’s own file system in the baseline.',
    });
  } finally {
    await rm(here, { recursive: true, force: true });
  }
}

export const BACKENDS: readonly Measurement[] = [
  { name: 'backends', about: 'Docker against the `docker` command', rows: docker },
  { name: 'gvisor', about: 'gVisor against `runsc`', rows: gvisor },
];
