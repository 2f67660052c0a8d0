// Limits on the host's side, where cgroups can be made: a ceiling over what the VMM may take beyond
// its guest. The guest's own processors and memory are limited by its machine anyway. A parent exists
// as long as a sandbox of this daemon has a cgroup.
import { dirname, join } from 'node:path';
import { errnoOf } from '../../host/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { CGROUP_ROOT, CONTROLLERS, limitCgroups, makeCgroup, removeCgroup } from '../cgroup.ts';
import { allOf } from '../wait.ts';
import type { QemuConfig } from './config.ts';

const text = new TextEncoder();
/** What QEMU itself may take: its heap, its code cache under emulation, thread stacks; its passt, and what serves directories. */
const OVERHEAD_MIB = 768;
/** Threads of QEMU and of its I/O pool, passt, and what serves directories. */
const TASKS_MAX = 512;
const CPU_PERIOD_US = 100_000;
/** Beside the guest's processors: QEMU's own threads. */
const CPU_EXTRA = 1;
const REMOVE_MS = 5_000;

/**
 * The parents under which sandboxes get cgroups: one in the unified hierarchy, else one for each
 * controller. None where we may not make any: then nothing but the machine itself limits a sandbox,
 * which is enough for the guest, not for a VMM gone wrong.
 */
export async function findCgroups(op: Operation, host: Host, name: string): Promise<readonly string[]> {
  if (host.uid !== 0) return [];
  if ((await host.stat(op, join(CGROUP_ROOT, 'cgroup.controllers'))) !== null) return [join(CGROUP_ROOT, name)];
  const parents: string[] = [];
  for (const controller of CONTROLLERS) {
    if ((await host.stat(op, join(CGROUP_ROOT, controller, 'cgroup.procs'))) !== null) parents.push(join(CGROUP_ROOT, controller, name));
  }
  return parents;
}

function dirsOf(config: QemuConfig, plan: Pick<SandboxPlan, 'id'>): readonly string[] {
  return (config.cgroups ?? []).map((parent) => join(parent, plan.id));
}

export async function makeCgroups(op: Operation, config: QemuConfig, plan: SandboxPlan): Promise<void> {
  const { host } = config;
  const memoryBytes = (plan.shape.memoryMiB + OVERHEAD_MIB) * 1024 * 1024;
  const quotaUs = (plan.shape.cpus + CPU_EXTRA) * CPU_PERIOD_US;
  const limits = [
    ['memory.limit_in_bytes', `${memoryBytes}`],
    ['memory.max', `${memoryBytes}`],
    ['cpu.cfs_period_us', `${CPU_PERIOD_US}`],
    ['cpu.cfs_quota_us', `${quotaUs}`],
    ['cpu.max', `${quotaUs} ${CPU_PERIOD_US}`],
    ['pids.max', `${TASKS_MAX}`],
  ] as const;
  const dirs = dirsOf(config, plan);
  await allOf(dirs.map((dir) => makeCgroup(op, host, dir)));
  await limitCgroups(op, host, dirs, limits);
}

/**
 * Puts the VMM and what works for it into them. To join a cgroup takes the kernel 10 to 20 ms, which it mostly sleeps: so
 * this is done while the VMM gets ready, not before it is executed.
 */
export async function joinCgroups(
  op: Operation,
  config: QemuConfig,
  plan: Pick<SandboxPlan, 'id'>,
  pids: readonly number[],
): Promise<void> {
  const joinOne = (dir: string, pid: number): Promise<void> => config.host.appendFile(op, join(dir, 'cgroup.procs'), text.encode(`${pid}`));
  const joining = dirsOf(config, plan).flatMap((dir) => pids.map((pid) => joinOne(dir, pid)));
  await allOf(joining).catch((cause: unknown) => {
    if (errnoOf(cause) !== 'ESRCH') throw cause;
    throw op.error('unavailable', 'QEMU ended while starting', { cause });
  });
}

/** Of one that will not end: so that they can be removed. */
export async function leaveCgroups(op: Operation, config: QemuConfig, pid: number): Promise<void> {
  const tops = (config.cgroups ?? []).map((parent) => join(dirname(parent), 'cgroup.procs'));
  await allOf(tops.map((top) => config.host.appendFile(op, top, text.encode(`${pid}`)))).catch((cause: unknown) => {
    if (errnoOf(cause) !== 'ESRCH') throw cause;
  });
}

export async function removeCgroups(op: Operation, config: QemuConfig, plan: Pick<SandboxPlan, 'id'>): Promise<void> {
  const { host } = config;
  using limited = op.within(REMOVE_MS, 'removing cgroups');
  await allOf(
    dirsOf(config, plan).map(async (dir) => {
      await removeCgroup(limited, host, dir);
      await host.removeEmptyDir(limited, dirname(dir)); // stays while another sandbox has one in it
    }),
  );
}
