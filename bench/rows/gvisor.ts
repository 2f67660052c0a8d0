// gVisor against the runtime itself: the same `runsc`, platform and image, without Hutch around it.
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ROOTFS } from '../../src/images/image.ts';
import type { Bench } from '../context.ts';
import { figures, judge, pair, type Row, samples, short, timed } from '../harness.ts';
import { execOk, mustRun, Place, runAnyway } from '../place.ts';
import { fileRows, workRows } from './native.ts';
import { ready } from './warm.ts';
import { WORK } from './work.ts';

const START_FACTOR = 1.3;
const EXEC_FACTOR = 0.1;
const RESUME_FACTOR = 1.2;
const WORK_FACTOR = 1.02;
const AT_ONCE_FACTOR = 1.3;
const FILES = {
  push:
    'The file is on the disk at the end, synced, and replaces the old one whole; the bytes of the baseline go through one socket, and stay nowhere. The daemon writes ' +
    'it where it lies on this host, past the host’s cache, 4 MiB at a time, and syncs every 32 MiB while more comes; the agent and the kernel in user space have no part in its bytes. ' +
    'Through the cache the daemon took 1.8 to 4.4 s of the processor for 512 MiB, and the row was 0.3 to 0.4 of its baseline: the cache’s pages are new memory, and on a virtual machine ' +
    'that gives back what it does not use each costs its host a fault (a program that only writes them took 0.2 to 2.2 s of the processor, past the cache 0.03 to 0.08); and each ' +
    '20 MB of chunks cost the collector a round over the whole heap. Their memory is now let go of by hand: 2 rounds for 2 GiB where there were 75 for 1.5. What remains, 0.5 to 0.65 s of the ' +
    'processor in the daemon and 0.3 to 0.4 in the client, is the socket (a copy in, a copy out, HTTP’s own copy) and the copy into the 4 MiB; the disk works beside it. Beside other work, in pairs: ' +
    '1.3 to 2.7 times the baseline with a load of 5, 0.7 to 1.05 with one of 12 (0.55 through the cache in the same minutes); with 1 or 2 MiB at a time, or one sync at the end, 0.6 to 1.5. A program that does nothing but write so to such a disk gets 390 to 1260 MiB/s (the middle of five: 780); ' +
    'with 8 MiB, with two writes under way, or into a file that was made as large first, no more.',
  pull:
    'The daemon reads it where it lies on this host, four pieces of 256 KiB at once, and it goes through one socket, as the baseline does. The client takes more of the processor (0.75 s for ' +
    '512 MiB) than the daemon does (0.6): HTTP’s parser copies each chunk into memory of its own, which is the collector’s afterwards. It took 1.0 s with memory of its own for each read too ' +
    '(now one place for all), and Node’s iterator, which copies chunks once more that came together: 26 rounds of the collector for each file, now 11; in turn with that, 1.2 times its rate and 0.7 of its processor time. It is not lent the file itself, as with Docker: a ' +
    'client that stops reading would hold the disk, and the sandbox could be neither suspended nor started. Not read past the cache: what a program inside has just written is in it.',
};
const PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Prints how long a new process takes in there, in milliseconds: the middle of twenty. */
const SPAWN = `import os, time
taken = []
for _ in range(20):
    began = time.perf_counter()
    os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)
    taken.append((time.perf_counter() - began) * 1e3)
print(sorted(taken)[10])
`;

/** The runtime over a root of its own, made as ours are: the packed image under a layer of the host's overlayfs. */
class BareRuntime implements AsyncDisposable {
  readonly #dir: string;
  readonly #platform: string;
  readonly #going = new Set<string>();
  #count = 0;

  private constructor(dir: string, platform: string) {
    this.#dir = dir;
    this.#platform = platform;
  }

  static async make(dir: string, imagePath: string, platform: string): Promise<BareRuntime> {
    for (const name of ['image', 'upper', 'work', 'root']) mkdirSync(join(dir, name), { recursive: true });
    await using undo = new AsyncDisposableStack();
    const runtime = undo.use(new BareRuntime(dir, platform));
    await mustRun(['mount', '-t', 'squashfs', '-o', 'loop,ro', imagePath, join(dir, 'image')]);
    const layers = `lowerdir=${join(dir, 'image')},upperdir=${join(dir, 'upper')},workdir=${join(dir, 'work')}`;
    await mustRun(['mount', '-t', 'overlay', 'bench', '-o', layers, runtime.root]);
    undo.move();
    return runtime;
  }

  get root(): string {
    return join(this.#dir, 'root');
  }

  /** A sandbox from start to end. */
  async run(argv: readonly string[]): Promise<void> {
    const { name, bundle } = this.#bundle(argv);
    await mustRun([...this.#runsc(), 'run', '-bundle', bundle, name]);
    this.#going.delete(name);
  }

  /** One that goes on; its name. */
  async begin(argv: readonly string[]): Promise<string> {
    const { name, bundle } = this.#bundle(argv);
    // It keeps its caller's output, and whoever reads that would wait for its end.
    await mustRun(['sh', '-c', 'exec "$@" </dev/null >/dev/null 2>&1', 'sh', ...this.#runsc(), 'run', '-detach', '-bundle', bundle, name]);
    return name;
  }

  /** Its state in a directory; it ends. */
  async checkpoint(name: string): Promise<string> {
    const image = join(this.#dir, `${name}-image`);
    mkdirSync(image);
    await mustRun([...this.#runsc(), 'checkpoint', '-image-path', image, name]);
    await this.#end(name);
    this.#going.delete(name);
    return image;
  }

  /** One that goes on where that one was, until the runtime says so. */
  async restore(image: string, argv: readonly string[]): Promise<string> {
    const { name, bundle } = this.#bundle(argv);
    const restore = [...this.#runsc(), 'restore', '-detach', '-image-path', image, '-bundle', bundle, name];
    await mustRun(['sh', '-c', 'exec "$@" </dev/null >/dev/null 2>&1', 'sh', ...restore]);
    return name;
  }

  exec(name: string, argv: readonly string[]): Promise<string> {
    return mustRun([...this.#runsc(), 'exec', '-env', PATH, name, ...argv]);
  }

  async endAll(): Promise<void> {
    await Promise.all([...this.#going].map((name) => this.#end(name)));
    this.#going.clear();
  }

  async #end(name: string): Promise<void> {
    // One that was interrupted may not have begun.
    if ((await runAnyway([...this.#runsc(), 'kill', name, 'KILL'])).code === 0) await runAnyway([...this.#runsc(), 'wait', name]);
    await runAnyway([...this.#runsc(), 'delete', '-force', name]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.endAll();
    for (const path of [this.root, join(this.#dir, 'image')]) {
      const { code, stderr } = await runAnyway(['umount', '-l', path]);
      if (code !== 0 && !/not mounted/.test(stderr)) throw new Error(`the bench's own layer stays mounted: ${stderr.trim()}`);
    }
  }

  #runsc(): readonly string[] {
    return ['runsc', '--root', join(this.#dir, 'state'), `--platform=${this.#platform}`, '--network=none', '--ignore-cgroups'];
  }

  #bundle(argv: readonly string[]): { readonly name: string; readonly bundle: string } {
    this.#count += 1;
    const name = `bench-${process.pid}-${this.#count}`;
    const bundle = join(this.#dir, name);
    mkdirSync(bundle);
    this.#going.add(name);
    const config = {
      ociVersion: '1.0.2',
      process: { user: { uid: 0, gid: 0 }, args: argv, env: [PATH], cwd: '/' },
      root: { path: this.root, readonly: false },
      mounts: [{ destination: '/proc', type: 'proc', source: 'proc' }],
      linux: { namespaces: ['pid', 'ipc', 'uts', 'mount', 'network'].map((type) => ({ type })) },
    };
    writeFileSync(join(bundle, 'config.json'), JSON.stringify(config));
    return { name, bundle };
  }
}

export async function gvisor(bench: Bench): Promise<readonly Row[]> {
  await using own = bench.scope();
  const place = own.use(await Place.make());
  Object.assign(place.env, { HUTCH_SANDBOX_BACKEND: 'gvisor', HUTCH_SANDBOX_NETWORK: 'none' });
  await place.startDaemon();
  const { api } = place.hutch;
  const { backends } = await api.call('backends.list', {});
  const found = backends.find(({ name }) => name === 'gvisor');
  const platform = /platform (\w+)/.exec(found?.can?.notes.join(' ') ?? '')?.[1];
  if (platform === undefined) throw new Error(`gVisor does not work here: ${found?.why ?? 'it does not say why'}`);
  const sandbox = await place.hutch.create();
  const [image = ''] = readdirSync(join(place.dataDir, 'images'));
  const bare = own.use(await BareRuntime.make(join(place.home, 'bare'), join(place.dataDir, 'images', image, ROOTFS), platform));

  const bareRun = () => timed(() => bare.run(['true']));
  const start = await samples({ baseline: bareRun, candidate: () => firstExec(place), runs: bench.runs(10) });

  const name = await bare.begin(['sleep', '100000']);
  const exec = await samples({
    baseline: () => timed(() => bare.exec(name, ['true'])),
    candidate: () => timed(() => execOk(sandbox, ['true'])),
    runs: bench.runs(40, 3),
    warmUps: 2,
  });

  const kept = await keptReady(bench, bare);
  const resume = await resumed(bench, place, bare);
  const spawnMs = Number(await execOk(sandbox, ['python3', '-c', SPAWN]));
  await sandbox.files.write('/root/work.py', WORK);
  writeFileSync(join(bare.root, 'root/work.py'), WORK);
  const inside = [
    ...(await workRows(bench, 'gVisor', sandbox, {
      name: 'bare runsc',
      run: (kind, size) => bare.exec(name, ['python3', '/root/work.py', kind, String(size), '/root']),
      factor: WORK_FACTOR,
      note: 'Hutch is not part of it: the same runtime. Files lie on the file system of a private layer in a file; those of the baseline on the host’s.',
    })),
    ...(await fileRows(bench, 'gVisor', sandbox, FILES)),
  ];
  const many = await atOnce(bench, place, bare, sandbox.id);
  return [
    judge(
      {
        what: 'gVisor: create, start, first exec',
        unit: 'ms',
        baselineName: '`runsc run` of `true`',
        target: `≤ ${START_FACTOR}×`,
        meets: (ratio) => ratio <= START_FACTOR,
        note:
          'The runtime starts in both; ours has the record on the disk, cgroups and an agent besides, the other the end of the sandbox. From the start of ' +
          'the shim until the agent is there, a quarter passes before the runtime’s first line (namespaces, the mounts of disk and root, the start of a Go ' +
          'program), and a tenth in its two moves between cgroups, each of which waits for a grace period of the kernel; the rest is the runtime’s own: it ' +
          'starts itself four times. Mounting the disk without barriers is no quicker, as giving them back syncs. Of processor time the runtime and all ' +
          'beside it take 120 to 170 ms, of which the bare one is 115 to 135, each mount of ours one or two, and the daemon some 40 more. Tried too: a write to a ' +
          'cgroup.procs every 4 ms, which changes nothing and has the kernel past that grace period (5 to 19 ms for the first move, 0.2 for each after it): 0.96 of the ' +
          'time, within the noise, so it is left out; and moving it as one thread before it is executed, which costs 0.2 ms: the runtime moves itself again, and without ' +
          'its own cgroup it tells the sandbox the memory and processors of the machine. Not waiting for the disk with the runtime’s own description: within the noise, too; nor is the runtime quicker with its collector off or on one processor. None is kept ready here. ' +
          'With nothing of Hutch around it, the runtime takes 1.07 times the baseline with a limit of memory (its cgroups), and 1.39 times with that and a private disk (`unshare`, an ext4 by a loop device, ' +
          'an overlay): more than the target before there is an agent. ' +
          'By the kernel’s events of one start, beside other work, in ms from the shim: 5 until the cell begins, 21 in it (ext4 6), 53 until the runtime is in its cgroups, 68 for ' +
          'the two starts of its gofer and of its kernel, 84 until that is let go out of them; before the shim some 15, after the agent’s word some 10.',
      },
      start.base,
      start.ours,
    ),
    kept,
    judge(
      {
        what: 'gVisor: exec round trip, p50',
        unit: 'ms',
        baselineName: '`runsc exec C true`',
        target: `≤ ${EXEC_FACTOR}×`,
        meets: (ratio) => ratio <= EXEC_FACTOR,
        note:
          'The agent starts the program, and no program of the host is run. What remains is a new process in the kernel in user space: ' +
          `${short(spawnMs)} ms of it, or ${short(spawnMs / figures(exec.base).median)}× of the baseline, timed inside by a program that does nothing else: ` +
          'no exec that starts a program there can take less. Under ptrace each system call and page fault of a program is a stop of it (the baseline has ' +
          'those of the program alone): of some 186 stops for `true`, 88 are its own, 54 come from the library without which `ls -l` fails on this release ' +
          '(as one segment in place of two: 184, so it stays in two), and 44 are the agent’s (24 of them the way to it and back, as for a look at a file).',
      },
      exec.base,
      exec.ours,
    ),
    resume,
    many,
    ...inside,
  ];
}

/** From nothing to the end of a first command; its sandbox is gone afterwards, which takes no part in it. */
async function firstExec(place: Place): Promise<number> {
  const began = performance.now();
  const fresh = await place.hutch.create();
  await execOk(fresh, ['true']);
  const took = performance.now() - began;
  await fresh.delete();
  return took;
}

/** As a daemon is configured: after the first sandbox of the usual kind one is kept ready. */
async function keptReady(bench: Bench, bare: BareRuntime): Promise<Row> {
  await using scope = bench.scope();
  const env = { HUTCH_SANDBOX_BACKEND: 'gvisor', HUTCH_SANDBOX_NETWORK: 'none', HUTCH_SANDBOX_WARM: '1' };
  const place = scope.use(await Place.make('prepared', env));
  await place.startDaemon();
  await (await place.hutch.create()).delete();
  return await pair({
    what: 'gVisor: create, start, first exec, one kept ready',
    unit: 'ms',
    baselineName: '`runsc run` of `true`',
    target: `≤ ${START_FACTOR}×`,
    meets: (ratio) => ratio <= START_FACTOR,
    note: 'As a daemon does by itself (`sandbox.warm`, 1): it was started and told all that needs no owner before anybody asked, and is told the rest.',
    baseline: async () => {
      await ready(place);
      return await timed(() => bare.run(['true']));
    },
    candidate: () => firstExec(place),
    runs: bench.runs(10),
  });
}

async function resumed(bench: Bench, place: Place, bare: BareRuntime): Promise<Row> {
  const main = ['sleep', '100000'];
  const image = await bare.checkpoint(await bare.begin(main));
  const sandbox = await place.hutch.create({ main: { argv: main } });
  const row = await pair({
    what: 'gVisor: resume → first exec done',
    unit: 'ms',
    baselineName: '`runsc restore` of a sandbox with one program',
    target: `≤ ${RESUME_FACTOR}×`,
    meets: (ratio) => ratio <= RESUME_FACTOR,
    note:
      'Ours has an agent beside the program, and runs one more; the state is unpacked and read once more to be checked, and the record is on the disk. Bound by what passes from ' +
      'the start of the shim until the agent is there, 300 of 400 ms beside 190 of the baseline. By the kernel’s own events (one resume of 425 ms, beside other work): 36 for ' +
      'namespaces and mounts, of which the disk’s ext4 took 20; 70 in the moves of the runtime into its cgroups and out of them, which wait for grace periods of the kernel, and ' +
      'which the baseline does not make; 130 for taking up the memory; 5 until the agent connects. With nothing of Hutch around it, `runsc restore` takes 1.19 times the baseline with a limit of memory (its cgroups), and 1.38 times with ' +
      'that and a private disk (`unshare`, an ext4 by a loop device, an overlay): more than the target before there is an agent, and a new process in it is 0.08 more. What is saved has 300 KB: to check it takes ' +
      'next to nothing. What the daemon does before and after takes some 60: the check goes beside ' +
      'the making of the sandbox’s place, and its guest is told while the disk writes the record.',
    baseline: () => timed(() => bare.restore(image, main)),
    candidate: async () => {
      await sandbox.suspend();
      return await timed(async () => {
        await sandbox.resume();
        await execOk(sandbox, ['true']);
      });
    },
    runs: bench.runs(10),
  });
  await sandbox.delete();
  return row;
}

/** `spared` is what runs already and goes on. */
async function atOnce(bench: Bench, place: Place, bare: BareRuntime, spared: string): Promise<Row> {
  const count = bench.pick({ quick: 3, usual: 20, long: 20 });
  const several = Array.from({ length: count });
  const { api } = place.hutch;
  await bare.endAll();
  return await pair({
    what: `gVisor: ${count} sandboxes at once`,
    unit: 'ms',
    baselineName: `${count} × \`runsc run -detach\` at once`,
    target: `≤ ${AT_ONCE_FACTOR}×`,
    meets: (ratio) => ratio <= AT_ONCE_FACTOR,
    note:
      'Until each answers. Bound by the processors: each starts a kernel in user space. Ours has to run the agent in each and speak with it, some 40 ms of the daemon’s ' +
      'time, its record, cgroups and mounts besides; what waits (syncs, grace periods of the kernel) is waited for side by side here. With nothing of Hutch around them, 20 take 1.11 times ' +
      'the baseline with limits (their cgroups), and 1.46 times with those and a private disk each, where `unshare`, `losetup` and `mount` make it. The daemon’s time is spread: a tenth each for the collector, ' +
      'the store, and waking threads, a twelfth for making and removing directories, a fortieth for its fork; with a larger young heap it is the same.',
    baseline: async () => {
      const took = await timed(() => Promise.all(several.map(() => bare.begin(['sleep', '100000']))));
      await bare.endAll();
      return took;
    },
    candidate: async () => {
      const took = await timed(() => Promise.all(several.map(() => api.call('sandbox.create', {}))));
      const { sandboxes } = await api.call('sandbox.list', {});
      const made = sandboxes.filter(({ id }) => id !== spared);
      await Promise.all(made.map(({ id }) => api.call('sandbox.delete', { ref: id, force: true })));
      return took;
    },
    runs: bench.runs(3, 1),
    warmUps: 0,
  });
}
