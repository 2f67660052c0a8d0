// What lies under our roots and belongs to nothing on record: found by looking, so it also finds what a crash left. Each
// directory here has entries that are named by a row; backends add what only they know of.
import { isDeepStrictEqual } from 'node:util';
import { HutchError } from '../domain/errors.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';
import { volumesDir } from './deps.ts';
import { snapshotsDir } from './snapshots.ts';

export type Leak = { readonly kind: string; readonly what: string };
type Kept = { readonly dir: string; readonly known: ReadonlySet<string> };

const MOUNTS_BYTES_MAX = 16 * 1024 * 1024;
const COMMAND_BYTES_MAX = 1024 * 1024;

/** What is found is looked for once more: what somebody began to make in between is on record by then. */
export async function findLeaks(core: Core, op: Operation): Promise<Leak[]> {
  const found = await look(core, op);
  if (found.length === 0) return found;
  const again = await look(core, op);
  return found.filter((leak) => again.some((other) => isDeepStrictEqual(other, leak)));
}

async function look(core: Core, op: Operation): Promise<Leak[]> {
  const { store, backends, leftovers } = core.deps;
  const sandboxes = new Set(await store.query('liveSandboxIds', {}));
  // What is being made now has no row yet.
  for (const { sandboxId } of await store.query('intents', {})) if (sandboxId !== null) sandboxes.add(sandboxId);
  const kept = await keptDirs(core, sandboxes);
  const leaks = (await Promise.all(backends.map((backend) => backend.leaks(op, sandboxes)))).flat().map((leak) => ({ ...leak }));
  const told = new Set(leaks.flatMap(({ kind, what }) => (kind === 'process' ? [Number.parseInt(what, 10)] : [])));
  leaks.push(...(await strayEntries(core.deps.host, op, kept)), ...(await strayMounts(core.deps.host, op, kept)));
  leaks.push(...(await strayProcesses(core.deps.host, op, kept, told)));
  for (const { sandboxId, uid } of await store.query('uids', {}))
    if (!sandboxes.has(sandboxId)) leaks.push({ kind: 'uid', what: `${uid} (${sandboxId})` });
  leaks.push(...(await leftovers(op)).map((leak) => ({ ...leak })));
  return leaks.filter((leak, at) => leaks.findIndex((other) => isDeepStrictEqual(other, leak)) === at);
}

/** Those of snapshots and volumes only while nothing is under way: what is being made or removed is on no record. */
async function keptDirs({ deps }: Core, sandboxes: ReadonlySet<string>): Promise<readonly Kept[]> {
  const { store, places } = deps;
  const dirs = [places.dataDir, places.runDir, places.logDir].map((root) => ({ dir: `${root}/sandboxes`, known: sandboxes }));
  if ((await store.query('operations', { state: 'running', limit: 1 })).length > 0) return dirs;
  const snapshots = new Set((await store.query('snapshots', {})).map(({ id }) => id));
  const volumes = new Set((await store.query('volumes', {})).map(({ id }) => id));
  return [...dirs, { dir: snapshotsDir({ deps }), known: snapshots }, { dir: volumesDir(places), known: volumes }];
}

async function strayEntries(host: Host, op: Operation, kept: readonly Kept[]): Promise<Leak[]> {
  const leaks: Leak[] = [];
  for (const { dir, known } of kept) {
    if ((await host.stat(op, dir)) === null) continue;
    for (const name of await host.list(op, dir)) {
      if (known.has(name)) continue;
      const info = await host.stat(op, `${dir}/${name}`);
      if (info !== null) leaks.push({ kind: info.type === 'other' ? 'file' : info.type, what: `${dir}/${name}` });
    }
  }
  return leaks;
}

async function strayMounts(host: Host, op: Operation, kept: readonly Kept[]): Promise<Leak[]> {
  const mounts = new TextDecoder().decode(await host.readFile(op, '/proc/self/mountinfo', MOUNTS_BYTES_MAX));
  const points = [...mounts.matchAll(/^\d+ \d+ \S+ \S+ (\S+)/gm)].map(([, path = '']) => path);
  return points.filter((path) => isStray(path, kept)).map((what) => ({ kind: 'mount', what }));
}

/** Of programs that were started with a path of a sandbox, snapshot or volume that is none. */
async function strayProcesses(host: Host, op: Operation, kept: readonly Kept[], told: ReadonlySet<number>): Promise<Leak[]> {
  const leaks: Leak[] = [];
  for (const name of await host.list(op, '/proc')) {
    if (!/^\d+$/.test(name) || told.has(Number(name))) continue;
    const argv = await commandLine(host, op, name);
    const path = argv.flatMap((arg) => arg.split(/[=,:]/)).find((part) => isStray(part, kept));
    if (path !== undefined) leaks.push({ kind: 'process', what: `${name}: ${argv[0]} of ${path}` });
  }
  return leaks;
}

function isStray(path: string, kept: readonly Kept[]): boolean {
  return kept.some(({ dir, known }) => {
    if (!path.startsWith(`${dir}/`)) return false;
    const [name = ''] = path.slice(dir.length + 1).split('/');
    return name !== '' && !known.has(name);
  });
}

async function commandLine(host: Host, op: Operation, pid: string): Promise<readonly string[]> {
  try {
    return new TextDecoder().decode(await host.readFile(op, `/proc/${pid}/cmdline`, COMMAND_BYTES_MAX)).split('\0');
  } catch (error) {
    // It has ended since, or is another user's.
    if (error instanceof HutchError && error.code !== 'cancelled' && error.code !== 'deadline_exceeded') return [];
    throw error;
  }
}
