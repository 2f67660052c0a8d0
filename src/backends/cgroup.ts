// What the cgroups of every backend have in common: where they are, how one is made, limited and removed.
import { dirname, join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { allOf, pause } from './wait.ts';

export const CGROUP_ROOT = '/sys/fs/cgroup';
/** Of which each sandbox gets limits. */
export const CONTROLLERS = ['memory', 'cpu', 'pids'] as const;

const REMOVE_AGAIN_MS = 10;
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
