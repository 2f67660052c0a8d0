// What is left on this host of sandboxes that nobody knows any more: found by looking, not by
// remembering, so it also finds what a crash left. Directories are looked through by whoever made their
// parents; mounts and network namespaces end with their processes.
import { basename, dirname, join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import { isId, type SandboxId } from '../../domain/ids.ts';
import type { Host, ProcessRef } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Bases } from './base.ts';
import type { Cgroups } from './cgroup.ts';
import type { Kept } from './kept.ts';

export type Leak = { readonly kind: string; readonly what: string };

const COMMAND_BYTES_MAX = 1024 * 1024;
const MOUNTS_BYTES_MAX = 4 * 1024 * 1024;

export async function findLeaks(
  op: Operation,
  { host, runRoot }: { readonly host: Host; readonly runRoot: string },
  cgroups: Cgroups,
  { bases, kept }: { readonly bases: Bases; readonly kept: Kept },
  known: ReadonlySet<SandboxId>,
): Promise<readonly Leak[]> {
  const leaks: Leak[] = [];
  const isKnown = (name: string): boolean => isId('sbx', name) && known.has(name);
  for (const parent of await cgroups.parents(op)) {
    for (const name of await host.list(op, parent))
      if (isId('sbx', name) && !isKnown(name)) leaks.push({ kind: 'cgroup', what: join(parent, name) });
  }
  for (const { pid, dir } of await runtimes(op, host)) {
    if (dirname(dir) === runRoot && !isKnown(basename(dir))) leaks.push({ kind: 'process', what: `${pid}: runsc of ${dir}` });
  }
  const mounts = new TextDecoder().decode(await host.readFile(op, '/proc/self/mountinfo', MOUNTS_BYTES_MAX));
  for (const [, path = ''] of mounts.matchAll(/^\d+ \d+ \S+ \S+ (\S+)/gm)) {
    if (!path.startsWith(`${runRoot}/`)) continue;
    const [name = ''] = path.slice(runRoot.length + 1).split('/');
    if (!isKnown(name)) leaks.push({ kind: 'mount', what: path });
  }
  for (const what of [...(await bases.abandoned(op)), ...(await kept.strays(op))]) leaks.push({ kind: 'directory', what });
  return leaks;
}

/** The runtime's processes of one sandbox: itself, its kernel, and what gives that its files. */
export async function runtimeOf(op: Operation, host: Host, runDir: string): Promise<readonly ProcessRef[]> {
  const own = (await runtimes(op, host)).filter(({ dir }) => dir === runDir);
  const refs = await Promise.all(own.map(({ pid }) => host.processRef(op, pid)));
  return refs.filter((ref) => ref !== null);
}

/** Of every runtime process, the directory of its sandbox: it is named on its command line. */
async function runtimes(op: Operation, host: Host): Promise<readonly { readonly pid: number; readonly dir: string }[]> {
  const found: { pid: number; dir: string }[] = [];
  for (const name of await host.list(op, '/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const state = rootOption(await commandLine(op, host, Number(name)));
    if (state !== null && basename(state) === 'runsc') found.push({ pid: Number(name), dir: dirname(state) });
  }
  return found;
}

/** The runtime names itself `runsc…`, and writes `--root DIR` for its children as `--root=DIR`. */
function rootOption(argv: readonly string[]): string | null {
  if (!argv.some((arg) => basename(arg).startsWith('runsc'))) return null;
  const at = argv.indexOf('--root');
  return at >= 0 ? (argv[at + 1] ?? null) : (argv.find((arg) => arg.startsWith('--root='))?.slice('--root='.length) ?? null);
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
