// What is left on this host of sandboxes that nobody knows any more: found by looking, not by
// remembering, so it also finds what a crash left. Directories are looked through by whoever made
// their parents.
import { basename, dirname, join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import { isId, type SandboxId } from '../../domain/ids.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { QemuConfig } from './config.ts';
import { killVmm } from './vmm.ts';

export type Leak = { readonly kind: string; readonly what: string };

const COMMAND_BYTES_MAX = 1024 * 1024;

export async function findLeaks(op: Operation, config: QemuConfig, known: ReadonlySet<SandboxId>): Promise<readonly Leak[]> {
  const { host, runRoot, cgroups = [], templatesDir } = config;
  const leaks: Leak[] = [];
  for (const parent of cgroups) {
    for (const name of await namesIn(op, host, parent)) {
      if (isId('sbx', name) && !known.has(name)) leaks.push({ kind: 'cgroup', what: join(parent, name) });
    }
  }
  if (runRoot !== undefined) leaks.push(...(await strayShims(op, host, runRoot, known)));
  leaks.push(...(await abandonedBuilds(op, host, templatesDir)));
  return leaks;
}

/** Of a daemon that was killed: a machine that tried something out, or of which a template was being made. */
export async function endWork(op: Operation, { host, workDir }: Pick<QemuConfig, 'host' | 'workDir'>): Promise<void> {
  for (const name of await namesIn(op, host, workDir)) {
    const dir = join(workDir, name);
    if ((await host.stat(op, dir))?.type !== 'directory') continue;
    try {
      await killVmm(op, host, dir, 'now');
    } catch (cause) {
      if (op.signal.aborted) throw cause;
      op.log.warn({ dir, cause }, 'a machine of a daemon that was killed cannot be ended');
    }
  }
}

/** Shims by their command line, which names the run directory; what they started ends with them. */
async function strayShims(op: Operation, host: Host, runRoot: string, known: ReadonlySet<SandboxId>): Promise<readonly Leak[]> {
  const leaks: Leak[] = [];
  for (const name of await host.list(op, '/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const argv = await commandLine(op, host, Number(name));
    const dir = argv[argv.indexOf('--dir') + 1];
    if (dir === undefined || !argv[0]?.endsWith('/hutch-shim') || dirname(dir) !== runRoot) continue;
    const id = basename(dir);
    if (!isId('sbx', id) || !known.has(id)) leaks.push({ kind: 'process', what: `${name}: shim of ${dir}` });
  }
  return leaks;
}

async function commandLine(op: Operation, host: Host, pid: number): Promise<readonly string[]> {
  try {
    return new TextDecoder().decode(await host.readFile(op, `/proc/${pid}/cmdline`, COMMAND_BYTES_MAX)).split('\0');
  } catch (error) {
    // It has ended since, or is another user's.
    if (error instanceof HutchError && error.code !== 'cancelled' && error.code !== 'deadline_exceeded') return [];
    throw error;
  }
}

/** A build that nobody holds the lock of died in its middle. */
async function abandonedBuilds(op: Operation, host: Host, templatesDir: string): Promise<readonly Leak[]> {
  const leaks: Leak[] = [];
  for (const name of await namesIn(op, host, templatesDir)) {
    if (!name.startsWith('.building-')) continue;
    await using lock = await host.lockFile(op, join(templatesDir, name.replace('.building-', '.lock-')));
    if (lock !== null) leaks.push({ kind: 'directory', what: join(templatesDir, name) });
  }
  return leaks;
}

async function namesIn(op: Operation, host: Host, dir: string): Promise<readonly string[]> {
  return (await host.stat(op, dir)) === null ? [] : await host.list(op, dir);
}
