// What a container of an Engine on this machine uses, read where the kernel counts it: in its cgroup, of version 1 or 2, and its
// network namespace. An Engine takes its figures once a second, and whoever asks waits for the next. They are the same figures.
import { join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Usage } from '../backend.ts';
import { CGROUP_ROOT, cgroupCpuUs, cgroupFigure, cgroupTraffic, readCgroup } from '../cgroup.ts';
import type { Container } from './container.ts';

const FILE_BYTES_MAX = 64 * 1024;
/** Of version 1, those with a figure that we want. */
const COUNTING = ['cpuacct', 'memory', 'pids', 'blkio'] as const;

/**
 * Null where it is not to be had here: an Engine on another machine or beside the container that we run in, whose process ids are
 * others', or cgroups that we do not see. Then the Engine is asked.
 */
export async function readUsageHere(op: Operation, host: Host, { Id, State }: Pick<Container, 'Id' | 'State'>): Promise<Usage | null> {
  const read = async (path: string): Promise<string> => new TextDecoder().decode(await host.readFile(op, path, FILE_BYTES_MAX));
  try {
    // Before the cgroup, which says whose process that is: what it was then it was before.
    const devices = await read(`/proc/${State.Pid}/net/dev`);
    const dirs = cgroupDirs(await read(`/proc/${State.Pid}/cgroup`), Id);
    if (dirs === null) return null;
    const file = (name: string): Promise<string | null> => readCgroup(op, host, dirs, name);
    const [cpuUs, used, limit, stat, processes, one, two, machine] = await Promise.all([
      cgroupCpuUs(op, host, dirs),
      Promise.all([file('memory.usage_in_bytes'), file('memory.current')]),
      Promise.all([file('memory.limit_in_bytes'), file('memory.max')]),
      file('memory.stat'),
      file('pids.current'),
      file('blkio.throttle.io_service_bytes_recursive'),
      file('io.stat'),
      read('/proc/meminfo'),
    ]);
    if (cpuUs === null) return null;
    return {
      cpuUs,
      memory: memoryOf({ used: used[0] ?? used[1], limit: limit[0] ?? limit[1], stat, machine }),
      disk: cgroupTraffic(one, two),
      network: networkOf(devices),
      processes: cgroupFigure(processes, null),
    };
  } catch (error) {
    // It may have ended by now; and files of others' may be kept from us.
    if (op.signal.aborted || !(error instanceof HutchError)) throw error;
    return null;
  }
}

/**
 * Where its cgroups are, of what /proc/PID/cgroup says; null unless that is this very container's, which its id in full says. A
 * process of another's that has got the same number is in another one.
 */
export function cgroupDirs(text: string, id: string): readonly string[] | null {
  const found = new Map<string, string>();
  for (const line of text.split('\n')) {
    const [, controllers = '', path = ''] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    // `/docker/ID` or `/system.slice/docker-ID.scope`, and what was made below. Not what lies above where we see cgroups from.
    const parts = path.split('/');
    const at = parts.findIndex((part) => part.replace(/\.scope$/, '').endsWith(id));
    if (at < 0 || parts.includes('..')) continue;
    for (const controller of controllers.split(',')) found.set(controller, parts.slice(0, at + 1).join('/'));
  }
  const counting = COUNTING.filter((controller) => found.has(controller));
  if (counting.length > 0) return counting.map((controller) => join(CGROUP_ROOT, controller, found.get(controller) ?? ''));
  const unified = found.get('');
  return unified === undefined ? null : [join(CGROUP_ROOT, unified)];
}

/** As the Engine says it: without what the kernel may take back, and no more than the machine has. */
function memoryOf(files: Readonly<Record<'used' | 'limit' | 'stat' | 'machine', string | null>>): Usage['memory'] {
  const usage = cgroupFigure(files.used, null);
  const machineKiB = Number(/^MemTotal:\s+(\d+) kB$/m.exec(files.machine ?? '')?.[1] ?? 0);
  // `max`: none.
  const limit = files.limit?.trim() === 'max' ? Number.POSITIVE_INFINITY : cgroupFigure(files.limit, null);
  if (usage === null || limit === null || files.stat === null) return null;
  // Version 1 has its children's in total_*; version 2 has no total_*.
  const reclaimable = cgroupFigure(files.stat, 'total_inactive_file') ?? cgroupFigure(files.stat, 'inactive_file') ?? 0;
  const cacheBytes = cgroupFigure(files.stat, 'total_cache') ?? cgroupFigure(files.stat, 'file') ?? 0;
  return { totalBytes: Math.min(limit, machineKiB * 1024), usedBytes: Math.max(0, usage - reclaimable), cacheBytes };
}

/** Of /proc/PID/net/dev: `eth0: RX-BYTES` and seven more of what came, then TX-BYTES. */
function networkOf(devices: string): Usage['network'] {
  let [rxBytes, txBytes] = [0, 0];
  for (const line of devices.split('\n')) {
    const [, name, figures = ''] = /^\s*([^\s:]+):\s*(.+)$/.exec(line) ?? [];
    if (name === undefined || name === 'lo') continue;
    const columns = figures.split(/\s+/).map(Number);
    rxBytes += columns[0] ?? 0;
    txBytes += columns[8] ?? 0;
  }
  return { rxBytes, txBytes };
}
