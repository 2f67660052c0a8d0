// The limits of one sandbox, and what it used: its cgroups, one in the unified hierarchy or one for each
// controller. They are made before the runtime is started, which then joins them, tells the sandbox of
// its memory and processors from them, and leaves what it did not make.
import { dirname, join } from 'node:path';
import { errnoOf } from '../../host/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { Asked } from '../asked.ts';
import type { SandboxPlan } from '../backend.ts';
import {
  CGROUP_ROOT,
  CONTROLLERS,
  cgroupCpuUs,
  cgroupFigure,
  cgroupTraffic,
  limitCgroups,
  makeCgroup,
  readCgroup,
  removeCgroup,
} from '../cgroup.ts';
import { allOf, pause } from '../wait.ts';

const CPU_PERIOD_US = 100_000;
/**
 * While the runtime starts, on several processors at once: within the usual period it would use up its time and stand
 * still until the next. The longest that the kernel takes, so the mean is the same.
 */
const CPU_START_PERIOD_US = 1_000_000;
/** Threads and processes on the host: those of the runtime, and one or more for each of the sandbox's. */
export const TASKS_MAX = 8_192;
const REMOVE_MS = 10_000;
const FREEZE_AGAIN_MS = 5;

type Id = Pick<SandboxPlan, 'id'>;

/** Null where the cgroup went meanwhile: the file is not there any more, or what was opened is of none. */
async function unlessGone<T>(using: Promise<T>): Promise<T | null> {
  try {
    return await using;
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === 'ENOENT' || errno === 'ENODEV') return null;
    throw error;
  }
}

export class Cgroups {
  readonly #host: Host;
  readonly #name: string | null;

  constructor(host: Host, name: string | null) {
    this.#host = host;
    this.#name = name;
  }

  /** As the runtime is told; null where limits cannot be set here. */
  async pathFor(op: Operation, { id }: Id): Promise<string | null> {
    return (await this.#hierarchies(op)) === null ? null : `/${this.#name}/${id}`;
  }

  /** Whether all three limits can be set. */
  async work(op: Operation): Promise<boolean> {
    return (await this.#hierarchies(op)) !== null;
  }

  async make(op: Operation, plan: SandboxPlan): Promise<void> {
    const memoryBytes = plan.shape.memoryMiB * 1024 * 1024;
    const dirs = await this.#dirs(op, plan);
    for (const dir of dirs) await makeCgroup(op, this.#host, dir);
    await limitCgroups(op, this.#host, dirs, [
      ['memory.limit_in_bytes', `${memoryBytes}`],
      ['memory.memsw.limit_in_bytes', `${memoryBytes}`],
      ['memory.max', `${memoryBytes}`],
      ['memory.swap.max', '0'],
      ['cpu.cfs_period_us', `${CPU_START_PERIOD_US}`],
      ['cpu.cfs_quota_us', `${plan.shape.cpus * CPU_START_PERIOD_US}`],
      ['cpu.max', `${plan.shape.cpus * CPU_START_PERIOD_US} ${CPU_START_PERIOD_US}`],
      ['pids.max', `${TASKS_MAX}`],
    ]);
  }

  /** Once it has started, and before anything of a user's runs in it. */
  async settle(op: Operation, plan: SandboxPlan): Promise<void> {
    const quotaUs = plan.shape.cpus * CPU_PERIOD_US;
    await limitCgroups(op, this.#host, await this.#dirs(op, plan), [
      // In this order it never has more than its share.
      ['cpu.cfs_quota_us', `${quotaUs}`],
      ['cpu.cfs_period_us', `${CPU_PERIOD_US}`],
      ['cpu.max', `${quotaUs} ${CPU_PERIOD_US}`],
      // What it left of one period it may have in a later one, as far as the kernel knows that (since 5.14): else the runtime, which
      // works on several processors at once, stands still for the rest of each period in which much came together.
      ['cpu.cfs_burst_us', `${quotaUs}`],
      ['cpu.max.burst', `${quotaUs}`],
    ]);
  }

  /** Its processes stand still, whatever they are at. `cannot`: there is no cgroup of it that can. */
  async freeze(op: Operation, plan: Id): Promise<'frozen' | 'was frozen' | 'cannot'> {
    let done: 'frozen' | 'was frozen' | 'cannot' = 'cannot';
    for (const { file, frozen, seen, isFrozen } of this.#freezers(plan)) {
      const look = async () => await unlessGone(readCgroup(op, this.#host, [dirname(file)], seen));
      const before = await look();
      if (!(await this.#write(op, file, frozen))) continue;
      if (done === 'cannot') done = before !== null && isFrozen.test(before) ? 'was frozen' : 'frozen';
      for (;;) {
        // In version 1 it is not complete until that is read.
        const now = await look();
        if (now === null || isFrozen.test(now)) break;
        await pause(op, FREEZE_AGAIN_MS);
      }
    }
    return done;
  }

  /** They go on. In version 1 one that stands still cannot even be killed. False: none stood still. */
  async thaw(op: Operation, plan: Id): Promise<boolean> {
    let stood = false;
    for (const { file, thawed, seen, isFrozen } of this.#freezers(plan)) {
      const before = await unlessGone(readCgroup(op, this.#host, [dirname(file)], seen));
      if ((await this.#write(op, file, thawed)) && before !== null) stood ||= isFrozen.test(before);
    }
    return stood;
  }

  #freezers({ id }: Id) {
    const name = this.#name ?? '';
    return [
      // The runtime makes this one.
      {
        file: join(CGROUP_ROOT, 'freezer', name, id, 'freezer.state'),
        ...{ frozen: 'FROZEN', thawed: 'THAWED', seen: 'freezer.state', isFrozen: /^FROZEN$/m },
      },
      { file: join(CGROUP_ROOT, name, id, 'cgroup.freeze'), frozen: '1', thawed: '0', seen: 'cgroup.events', isFrozen: /^frozen 1$/m },
    ];
  }

  /** False: there is no such file. */
  async #write(op: Operation, path: string, value: string): Promise<boolean> {
    if (this.#name === null || (await this.#host.stat(op, path)) === null) return false;
    // What has just ended by itself takes its cgroup along.
    return (await unlessGone(this.#host.appendFile(op, path, new TextEncoder().encode(value)).then(() => true))) ?? false;
  }

  /** Of every controller, as the runtime makes more of them than we do. The processes are dead, though the kernel may need a moment. */
  async remove(op: Operation, plan: Id): Promise<void> {
    const parents = await this.clear(op, plan);
    // Each stays while another sandbox has one in it.
    await allOf(parents.map((parent) => this.#host.removeEmptyDir(op, parent)));
  }

  /** What a crash left of them: the runtime would take one that it had only begun to set up as it is. Gives their parents. */
  async clear(op: Operation, { id }: Id): Promise<readonly string[]> {
    using limited = op.within(REMOVE_MS, 'removing cgroups');
    await this.thaw(limited, { id });
    const parents = await this.parents(limited);
    await allOf(parents.map((parent) => removeCgroup(limited, this.#host, join(parent, id))));
    return parents;
  }

  /** Directories that hold the sandboxes' cgroups, of which there may be none. */
  async parents(op: Operation): Promise<readonly string[]> {
    const host = this.#host;
    const name = this.#name;
    if (name === null || (await host.stat(op, CGROUP_ROOT)) === null) return [];
    const controllers = await host.list(op, CGROUP_ROOT);
    const candidates = [join(CGROUP_ROOT, name), ...controllers.map((controller) => join(CGROUP_ROOT, controller, name))];
    const there = await Promise.all(candidates.map(async (dir) => ((await host.stat(op, dir))?.type === 'directory' ? dir : null)));
    return there.filter((dir) => dir !== null);
  }

  /** How often the kernel killed a process in it for want of memory. */
  async oomKills(op: Operation, plan: Id): Promise<number> {
    for (const dir of await this.#dirs(op, plan)) {
      for (const file of ['memory.events', 'memory.oom_control']) {
        const kills = cgroupFigure(await readCgroup(op, this.#host, [dir], file), 'oom_kill');
        if (kills !== null) return kills;
      }
    }
    return 0;
  }

  /** Null where there is no such cgroup, or no such controller. CPU time only grows. */
  async use(op: Operation, plan: Id): Promise<{ readonly memoryBytes: number; readonly cpuUs: number } | null> {
    const dirs = await this.#dirs(op, plan);
    const cpuUs = await cgroupCpuUs(op, this.#host, dirs);
    // Without what the kernel may take back at any time: files in its cache.
    const stat = await readCgroup(op, this.#host, dirs, 'memory.stat');
    const own = cgroupFigure(stat, 'anon') ?? cgroupFigure(stat, 'total_rss');
    const shared = cgroupFigure(stat, 'shmem') ?? cgroupFigure(stat, 'total_shmem') ?? 0;
    const memoryBytes = own === null ? null : own + shared;
    return cpuUs === null || memoryBytes === null ? null : { cpuUs, memoryBytes };
  }

  /** Bytes to and from disks; null where no controller counts them: version 1 has no line of a device then. They only grow. */
  async disk(op: Operation, { id }: Id): Promise<{ readonly readBytes: number; readonly writtenBytes: number } | null> {
    const name = this.#name ?? '';
    // The runtime makes this one; we set nothing in it.
    const one = await readCgroup(op, this.#host, [join(CGROUP_ROOT, 'blkio', name, id)], 'blkio.throttle.io_service_bytes');
    const two = await readCgroup(op, this.#host, [join(CGROUP_ROOT, name, id)], 'io.stat');
    return cgroupTraffic(one, two);
  }

  /** Directories of each controller that we limit or read. */
  async #dirs(op: Operation, { id }: Id): Promise<readonly string[]> {
    const hierarchies = await this.#hierarchies(op);
    return hierarchies === null ? [] : hierarchies.map((root) => join(root, this.#name ?? '', id));
  }

  readonly #found = new Asked<readonly string[] | null>();

  /** Where a directory makes a cgroup; null where we may make none, or one of the limits is missing. */
  async #hierarchies(op: Operation): Promise<readonly string[] | null> {
    return await this.#found.get(op, (asking) => this.#look(asking));
  }

  async #look(op: Operation): Promise<readonly string[] | null> {
    const host = this.#host;
    if (host.uid !== 0 || this.#name === null) return null;
    const unified = await readCgroup(op, host, [CGROUP_ROOT], 'cgroup.controllers');
    if (unified !== null) return CONTROLLERS.every((name) => unified.split(/\s+/).includes(name)) ? [CGROUP_ROOT] : null;
    const roots = [...CONTROLLERS, 'cpuacct'].map((controller) => join(CGROUP_ROOT, controller));
    for (const root of roots) if ((await host.stat(op, join(root, 'cgroup.procs'))) === null) return null;
    return roots;
  }
}
