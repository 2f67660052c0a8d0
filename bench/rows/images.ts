// Images: from a registry on the loopback to what boots, against the usual tools; from an archive, against the
// Engine; and the first program in an image that nobody has run yet.
import { createReadStream, readFileSync, writeFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SENT_BYTES } from '../../src/cli/archive-file.ts';
import { LOGIN, Registry } from '../../test/support/debian-registry.ts';
import { DockerEngine } from '../../test/support/docker-engine.ts';
import { BareGuest } from '../bare/guest.ts';
import type { Bench, Measurement } from '../context.ts';
import { alone, figures, judge, type Row, short, timed } from '../harness.ts';
import { busybox, layerOf, made, mebibytes, smallFiles, writeLayout } from '../images-made.ts';
import { mustRun, Place, processes } from '../place.ts';

const PULL_FACTOR = 0.5;
const SHARED_FACTOR = 0.35;
const IMPORT_FACTOR = 0.8;
const SMALL_FACTOR = 1;
const FIRST_EXEC_FACTOR = 1.2;
const MEMORY_MIB_MAX = 150;
const WATCH_MS = 20;
const KIB_PER_MIB = 1_024;

const median = (taken: readonly number[]) => figures(taken).median;

/** The most that it has had resident, MiB; `reset` begins anew. */
function peakMiB(pid: number): number {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / KIB_PER_MIB;
}

async function pulls(bench: Bench): Promise<readonly Row[]> {
  await using own = bench.scope();
  const dir = await mkdtemp(join(tmpdir(), 'hutch-bench-images-'));
  own.defer(() => rm(dir, { recursive: true, force: true }));
  const registry = own.use(await Registry.start());
  const size = bench.pick({ quick: 3, usual: 50, long: 50 });
  const shared = [busybox('shared'), ...[1, 2, 3, 4].map((seed) => layerOf(seed, mebibytes(size)))];
  const images = { one: made([...shared, layerOf(5, mebibytes(2 * size))]), two: made([...shared, layerOf(6, mebibytes(size / 3))]) };
  await writeLayout(join(dir, 'layout'), images);
  const creds = `${LOGIN.username}:${LOGIN.password}`;
  for (const tag of Object.keys(images)) {
    await mustRun([
      'skopeo',
      'copy',
      '-q',
      '--dest-tls-verify=false',
      '--dest-creds',
      creds,
      `oci:${dir}/layout:${tag}`,
      `docker://${registry.name}/${tag}:1`,
    ]);
  }
  const usual = async (): Promise<void> => {
    const out = join(dir, 'usual');
    await mkdir(out);
    await mustRun([
      'skopeo',
      'copy',
      '-q',
      '--src-tls-verify=false',
      '--src-creds',
      creds,
      `docker://${registry.name}/one:1`,
      `oci:${out}/oci:one`,
    ]);
    await mustRun(['umoci', 'unpack', ...(process.getuid?.() === 0 ? [] : ['--rootless']), '--image', `${out}/oci:one`, `${out}/bundle`]);
    await mustRun(['truncate', '-s', '1G', `${out}/root.ext4`]);
    await mustRun(['mkfs.ext4', '-q', '-d', `${out}/bundle/rootfs`, `${out}/root.ext4`]);
  };
  const place = own.use(await Place.make('empty', { HOME: dir }));
  await place.startDaemon();
  const { api } = place.hutch;
  await api.call('image.login', { registry: registry.name, ...LOGIN });
  const pull = (tag: string) => api.call('image.pull', { name: `${registry.name}/${tag}:1` });
  const clear = async (): Promise<void> => {
    for (const { id } of (await api.call('image.list', {})).images) await api.call('image.remove', { image: id });
    await api.call('image.prune', {});
    await rm(join(dir, 'usual'), { recursive: true, force: true });
    await mustRun(['sync']);
  };
  const [base, first, second, peaks]: [number[], number[], number[], number[]] = [[], [], [], []];
  const children: number[] = [];
  const rounds = bench.runs(5, 1);
  for (let round = bench.size === 'quick' ? 0 : -1; round < rounds; round += 1) {
    const usually = await timed(usual);
    await clear();
    writeFileSync(`/proc/${place.daemonPid}/clear_refs`, '5'); // its peak begins anew
    const ours = await timed(() => pull('one'));
    const peak = peakMiB(place.daemonPid);
    const again = await timed(() => pull('two'));
    await clear();
    if (round < 0) continue;
    base.push(usually);
    first.push(ours);
    second.push(again);
    peaks.push(peak);
  }
  {
    // Once more, not timed: looking at processes takes time itself.
    const watching = setInterval(() => {
      for (const { pid, parent, name } of processes())
        if (parent === place.daemonPid && name.startsWith('tar2sqfs')) children.push(resident(pid));
    }, WATCH_MS);
    own.defer(() => clearInterval(watching));
    await pull('one');
    clearInterval(watching);
  }
  return [
    judge(
      {
        what: `pull + make bootable, ${6 * size} MiB in 6 layers`,
        unit: 'ms',
        baselineName: '`skopeo copy` + `umoci unpack` + `mkfs.ext4 -d`',
        target: `≤ ${PULL_FACTOR}×`,
        meets: (ratio) => ratio <= PULL_FACTOR,
        note: 'From a registry on the loopback, to a file system on the disk, synced. Each layer is unpacked once; the content of its files goes to tar2sqfs as it comes, and what that made is put together while the next layer is packed. Bound by unpacking gzip, hashing, and one thread of JavaScript that carries the bytes between the two.',
      },
      base,
      first,
    ),
    alone(
      {
        what: 'memory of the daemon while it pulls',
        unit: 'MiB',
        target: `≤ ${MEMORY_MIB_MAX} MiB RSS`,
        met: median(peaks) <= MEMORY_MIB_MAX,
        note: `The peak of each pull. tar2sqfs, one at a time, had ${short(Math.max(0, ...children))} MiB beside it. The daemon has about 95 MiB when it does nothing; the rest are buffers that wait for the collector. Reading a layer’s file into one memory instead of a new one for each 256 KiB took 14 to 17 MiB from the peak of unpacking alone. Tried without gain: smaller pieces out of the unpacker (16 instead of 64 KiB: half as much processor time again), gathering into buffers that are used again.`,
      },
      peaks,
    ),
    judge(
      {
        what: 'a second image, 5 of whose 6 layers are here',
        unit: 'ms',
        baselineName: 'the first',
        target: `≤ ${SHARED_FACTOR}×`,
        meets: (ratio) => ratio <= SHARED_FACTOR,
        note: 'Five layers are copied out of the first image’s file system and checked while they are; one is pulled and packed.',
      },
      first,
      second,
    ),
  ];
}

/** MiB; 0 of one that is gone. */
function resident(pid: number): number {
  try {
    return peakMiB(pid);
  } catch {
    return 0;
  }
}

async function archives(bench: Bench): Promise<readonly Row[]> {
  await using own = bench.scope();
  const engine = own.use(await DockerEngine.start());
  if (engine === null) throw new Error('no Docker Engine can be started here: it takes root, and dockerd');
  const dir = await mkdtemp(join(tmpdir(), 'hutch-bench-images-'));
  own.defer(() => rm(dir, { recursive: true, force: true }));
  const size = bench.pick({ quick: 3, usual: 50, long: 50 });
  const count = bench.pick({ quick: 300, usual: 30_000, long: 30_000 });
  const images = {
    large: made([busybox('large'), ...[1, 2, 3, 4].map((seed) => layerOf(seed, mebibytes(size)))]),
    small: made([busybox('small'), smallFiles(count)]),
  };
  await writeLayout(join(dir, 'layout'), images);
  for (const tag of Object.keys(images))
    await mustRun(['skopeo', 'copy', '-q', `oci:${dir}/layout:${tag}`, `docker-archive:${dir}/${tag}.tar:bench/${tag}:1`]);
  const cli = (...argv: string[]) => mustRun(['docker', ...argv], { ...process.env, ...engine.env });
  const place = own.use(await Place.make('empty', { HOME: dir, HUTCH_SANDBOX_BACKEND: 'gvisor', HUTCH_SANDBOX_NETWORK: 'none' }));
  await place.startDaemon();
  const { api } = place.hutch;
  const importing = (tag: string) =>
    api.upload('image.import', {}, createReadStream(join(dir, `${tag}.tar`), { highWaterMark: SENT_BYTES }));
  const clear = async (tag: string): Promise<void> => {
    await cli('rmi', '-f', `bench/${tag}:1`);
    for (const { id } of (await api.call('image.list', {})).images) await api.call('image.remove', { image: id });
    await api.call('image.prune', {});
    await mustRun(['sync']);
  };
  const run = async (): Promise<void> => {
    await importing('small');
    const { id } = await api.call('sandbox.create', { image: 'bench/small:1', main: { argv: ['/bin/true'] } });
    const { exitCode } = await api.call('sandbox.wait', { ref: id });
    if (exitCode !== 0) throw new Error(`true ended with ${exitCode}`);
    await api.call('sandbox.delete', { ref: id });
  };
  const taken = { load: [] as number[], imported: [] as number[], loadRun: [] as number[], importRun: [] as number[] };
  const rounds = bench.runs(5, 1);
  for (let round = bench.size === 'quick' ? 0 : -1; round < rounds; round += 1) {
    const load = await timed(() => cli('load', '-q', '-i', `${dir}/large.tar`));
    const imported = await timed(() => importing('large'));
    await clear('large');
    const loadRun = await timed(async () => {
      await cli('load', '-q', '-i', `${dir}/small.tar`);
      await cli('run', '--rm', '--network', 'none', '--log-driver', 'none', 'bench/small:1', '/bin/true');
    });
    const importRun = await timed(run);
    await clear('small');
    if (round < 0) continue;
    taken.load.push(load);
    taken.imported.push(imported);
    taken.loadRun.push(loadRun);
    taken.importRun.push(importRun);
  }
  return [
    judge(
      {
        what: `import of a docker-save archive, ${4 * size} MiB`,
        unit: 'ms',
        baselineName: '`docker load`',
        target: `≤ ${IMPORT_FACTOR}×`,
        meets: (ratio) => ratio <= IMPORT_FACTOR,
        note: 'The archive’s layers are not packed. `docker load` writes their files and leaves them to the page cache; ours is packed, whole and synced on the disk, and the layers as they came are kept for export beside it. While the archive comes, each layer goes into a file of its own, past the host’s cache, and is hashed and packed out of the memory that it came in; it becomes what is kept. What is packed is put together when the manifest has come, which `docker save` writes last, and is hashed meanwhile. So a byte is written once as it came and twice packed, and hashed once as it came and twice packed. A second thread takes two of the three hashes and puts packed layers together: it is there for the import, and costs some 10 MB. Bound by the two processors: the client, the daemon’s thread, which carries the bytes, tar2sqfs (0.5 s), and the second thread. Tried without gain: packing two layers at once out of their files, beside the sender’s pace (each byte is read once more); larger pieces than 256 KiB from the client (with 64 KiB it takes half as much processor time again).',
      },
      taken.load,
      taken.imported,
    ),
    judge(
      {
        what: `import and run an image of ${count.toLocaleString('en')} small files, gVisor`,
        unit: 'ms',
        baselineName: '`docker load` + `docker run`',
        target: `≤ ${SMALL_FACTOR}×`,
        meets: (ratio) => ratio <= SMALL_FACTOR,
        note: 'The packed image is mounted, and nothing is unpacked. Bound by packing 30,000 files with one thread each of JavaScript and tar2sqfs, and by the syncs; `docker load` leaves its files to the page cache.',
      },
      taken.loadRun,
      taken.importRun,
    ),
  ];
}

async function firstExec(bench: Bench): Promise<readonly Row[]> {
  await using own = bench.scope();
  const dir = await mkdtemp(join(tmpdir(), 'hutch-bench-images-'));
  own.defer(() => rm(dir, { recursive: true, force: true }));
  const template = await bench.template();
  const bare = await bench.boot();
  const place = own.use(await Place.make('prepared', { HOME: dir, HUTCH_SANDBOX_NETWORK: 'none' }));
  await place.startDaemon();
  const { api } = place.hutch;
  const [base, ours]: [number[], number[]] = [[], []];
  const rounds = bench.runs(5, 1);
  for (let round = bench.size === 'quick' ? 0 : -1; round < rounds; round += 1) {
    let boot = 0;
    {
      await using guest = await BareGuest.boot(template, bare);
      boot = guest.firstLineMs;
    }
    const name = `first:${round + 1}`;
    await api.upload('image.import', { name }, busybox(name));
    const took = await timed(async () => {
      const sandbox = await place.hutch.create({ image: name });
      const { exitCode } = await sandbox.exec(['/bin/true']);
      if (exitCode !== 0) throw new Error(`true ended with ${exitCode}`);
    });
    // Waits for the template, which is made behind the first one: else that would be beside the next round.
    await place.hutch.create({ image: name });
    await place.deleteAll();
    if (round < 0) continue;
    base.push(boot);
    ours.push(took);
  }
  return [
    judge(
      {
        what: 'first exec in an image that was never run, QEMU',
        unit: 'ms',
        baselineName: 'a template-less boot: bare QEMU until the first user line',
        target: `≤ ${FIRST_EXEC_FACTOR}×`,
        meets: (ratio) => ratio <= FIRST_EXEC_FACTOR,
        note: 'In it: the cold boot of the sandbox’s own machine, its agent, its image and disk mounted, its network, and the exec; bare QEMU is not asked for a first program after its first line, but tests ciphers and waits for serial ports that our boot leaves out. The template that later starts come from is made behind it and not in it. Bound by the boot.',
      },
      base,
      ours,
    ),
  ];
}

export const IMAGES: readonly Measurement[] = [
  { name: 'images', about: 'images from a registry: time, memory, shared layers', rows: pulls },
  { name: 'archives', about: 'images from archives, against the Engine', rows: archives },
  { name: 'first-exec', about: 'the first program in a new image', rows: firstExec },
];
