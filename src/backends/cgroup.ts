// What the cgroups of every backend have in common: where they are, how one is made, limited, read and removed.
import { dirname, join } from 'node:path';
import { HutchError } from '../domain/errors.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { allOf, pause } from './wait.ts';

export const CGROUP_ROOT = '/sys/fs/cgroup';
/** Of which each sandbox gets limits. */
export const CONTROLLERS = ['memory', 'cpu', 'pids'] as const;

const REMOVE_AGAIN_MS = 10;
const FILE_BYTES_MAX = 64 * 1024;
const text = new TextEncoder();

/** Makes one and what is above it: in the unified hierarchy a parent must hand its controllers on, and its own parent to it. */
export async function makeCgroup(op: Operation, host: Host, dir: string): Promise<void> {
  const parent = dirname(dir);
  await host.makeDir(op, dir, 0o755);
  if (dirname(parent) !== CGROUP_ROOT || (await host.stat(op, join(dir, 'memory.max'))) !== null) return;
  const enable = text.encode(CONTROLLERS.map((controller) => `+${controller}`).join(' '));
  for (const each of [CGROUP_ROOT, parent]) {
    const control = join(each, 'cgroup.subtree_control');
    if ((await host.stat(op, control)) !== null) await host.appendFile(op, control, enable);
  }
}

/** Of these files those that are there, in each directory in this order: versions 1 and 2 name them differently. */
export async function limitCgroups(
  op: Operation,
  host: Host,
  dirs: readonly string[],
  limits: readonly (readonly [file: string, value: string])[],
): Promise<void> {
  await allOf(
    dirs.map(async (dir) => {
      const there = new Set(await host.list(op, dir));
      for (const [file, value] of limits) if (there.has(file)) await host.appendFile(op, join(dir, file), text.encode(value));
    }),
  );
}

/** The processes in it are dead, though the kernel may need a moment to let go of them: until the operation's deadline. */
export async function removeCgroup(op: Operation, host: Host, dir: string): Promise<void> {
  while (!(await host.removeEmptyDir(op, dir))) await pause(op, REMOVE_AGAIN_MS);
}

/** A file of the first of these directories that has it; null where none does. */
export async function readCgroup(op: Operation, host: Host, dirs: readonly string[], file: string): Promise<string | null> {
  for (const dir of dirs) {
    try {
      return new TextDecoder().decode(await host.readFile(op, join(dir, file), FILE_BYTES_MAX));
    } catch (error) {
      if (!(error instanceof HutchError && error.code === 'not_found')) throw error;
    }
  }
  return null;
}

/** Of a line `key value`; of a file that is one number when there is no key. */
export function cgroupFigure(content: string | null, key: string | null): number | null {
  if (content === null) return null;
  const match = key === null ? /^(\d+)\s*$/.exec(content) : new RegExp(`^${key} (\\d+)$`, 'm').exec(content);
  return match === null ? null : Number(match[1]);
}

/** Processor time, whichever version counts it; it only grows. Null where none does. */
export async function cgroupCpuUs(op: Operation, host: Host, dirs: readonly string[]): Promise<number | null> {
  const unified = cgroupFigure(await readCgroup(op, host, dirs, 'cpu.stat'), 'usage_usec');
  if (unified !== null) return unified;
  const nanoseconds = cgroupFigure(await readCgroup(op, host, dirs, 'cpuacct.usage'), null);
  return nanoseconds === null ? null : Math.floor(nanoseconds / 1_000);
}

/** Bytes to and from disks, of one file or the other; null where it counts none: version 1 has no line of a device then. They only grow. */
export function cgroupTraffic(
  one: string | null,
  two: string | null,
): { readonly readBytes: number; readonly writtenBytes: number } | null {
  if (one !== null && / Write \d+$/m.test(one))
    return { readBytes: sumOf(one, / Read (\d+)$/gm), writtenBytes: sumOf(one, / Write (\d+)$/gm) };
  return two === null || two === '' ? null : { readBytes: sumOf(two, / rbytes=(\d+)/g), writtenBytes: sumOf(two, / wbytes=(\d+)/g) };
}

/** One entry for each device. */
function sumOf(content: string, figure: RegExp): number {
  return [...content.matchAll(figure)].reduce((total, [, digits]) => total + Number(digits), 0);
}
