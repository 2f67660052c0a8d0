// What lies under our roots and belongs to nothing on record: found by looking, so it also finds what a crash left. What may
// lie there is listed in belongings.ts; backends add what only they know of.
import { isDeepStrictEqual } from 'node:util';
import { HutchError } from '../domain/errors.ts';
import { isId, type SandboxId } from '../domain/ids.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { listImages } from '../images/image.ts';
import { imagePaths } from '../images/layout.ts';
import { type Line, lineOf, lookedInto, pathOf } from './belongings.ts';
import type { Core } from './core.ts';
import { volumesDir } from './deps.ts';
import { mountPoints } from './left-work.ts';
import { snapshotsDir } from './snapshots.ts';
import { type Verb, type VerbName, verbs } from './verbs.ts';

export type Leak = { readonly kind: string; readonly what: string };
type Owned = {
  readonly sandboxes: ReadonlySet<SandboxId>;
  readonly of: Readonly<Record<'snapshot' | 'volume' | 'image' | 'project', ReadonlySet<string>>>;
  readonly isBusy: boolean;
  readonly socketPath: unknown;
};
type Kept = { readonly dir: string; readonly known: ReadonlySet<string> };

/** They last as long as their clients like, and leave nothing of their own. */
const LASTING: ReadonlySet<string> = new Set<Verb['kind']>(['lines', 'socket']);
const IDLE: ReadonlySet<string> = new Set<VerbName>([
  ...(['sandbox.wait', 'sandbox.logs', 'doctor.leaks'] as const),
  ...(['file.read', 'file.write', 'archive.get', 'archive.put'] as const),
]);
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
  const owned = await whatIsOwned(core, op);
  const { sandboxes } = owned;
  const kept = keptDirs(core, owned);
  const leaks = (await Promise.all(backends.map((backend) => backend.leaks(op, sandboxes)))).flat().map((leak) => ({ ...leak }));
  const told = new Set(leaks.flatMap(({ kind, what }) => (kind === 'process' ? [Number.parseInt(what, 10)] : [])));
  leaks.push(...(await strayEntries(core, op, owned)), ...(await strayMounts(core.deps.host, op, kept)));
  leaks.push(...(await strayProcesses(core.deps.host, op, kept, told)));
  for (const { sandboxId, uid } of await store.query('uids', {}))
    if (!sandboxes.has(sandboxId)) leaks.push({ kind: 'uid', what: `${uid} (${sandboxId})` });
  leaks.push(...(await leftovers(op)).map((leak) => ({ ...leak })));
  return leaks.filter((leak, at) => leaks.findIndex((other) => isDeepStrictEqual(other, leak)) === at);
}

/** What is on record, and whether anybody is at work, whose things are on none yet, or no more. */
async function whatIsOwned({ deps, operations }: Core, op: Operation): Promise<Owned> {
  const { store, settings } = deps;
  const sandboxes = new Set(await store.query('liveSandboxIds', {}));
  // What is being made now has no row yet.
  for (const { sandboxId } of await store.query('intents', {})) if (sandboxId !== null) sandboxes.add(sandboxId);
  const [snapshots, volumes, projects] = [
    await store.query('snapshots', {}),
    await store.query('volumes', {}),
    await store.query('projects', {}),
  ];
  const isAtWork = (verb: string): boolean => !(verb in verbs && (IDLE.has(verb) || LASTING.has(verbs[verb as VerbName].kind)));
  return {
    sandboxes,
    of: {
      snapshot: new Set(snapshots.map(({ id }) => id)),
      volume: new Set(volumes.map(({ id }) => id)),
      project: new Set(projects.map(({ id }) => id)),
      image: await imagesOwned(deps, op),
    },
    isBusy: [...operations.verbsUnderWay(op.id)].some(isAtWork),
    socketPath: settings.values.find(({ key }) => key === 'daemon.socket')?.value ?? null,
  };
}

/** What Hutch has made takes minutes, and is put on record when it is wanted. */
async function imagesOwned({ host, store, places, images }: Core['deps'], op: Operation): Promise<ReadonlySet<string>> {
  const onRecord = (await store.query('images', {})).map(({ digest }) => digest);
  const here = images === null ? [] : await listImages(op, host, imagePaths(places.dataDir));
  const made = here.filter(({ source }) => source.kind === 'mmdebstrap').map(({ record }) => record.digest);
  return new Set([...onRecord, ...made].map((digest) => digest.replace(/^sha256:/, '')));
}

/** Directories whose entries are each named by a row: what is mounted, or runs, below another name is told. */
function keptDirs({ deps }: Core, { sandboxes, of, isBusy }: Owned): readonly Kept[] {
  const { places } = deps;
  const dirs: Kept[] = [places.dataDir, places.runDir, places.logDir].map((root) => ({ dir: `${root}/sandboxes`, known: sandboxes }));
  if (isBusy) return dirs;
  const rows = [
    { dir: snapshotsDir({ deps }), known: of.snapshot },
    { dir: volumesDir(places), known: of.volume },
  ];
  return [...dirs, ...rows, { dir: `${places.runDir}/work`, known: new Set() }];
}

/** Everything below our roots that is no belonging of ours (belongings.ts), or one that nobody owns any more. */
async function strayEntries(core: Core, op: Operation, owned: Owned): Promise<Leak[]> {
  const { host, places } = core.deps;
  const known = new Set<unknown>([places.dataDir, places.runDir, places.logDir, owned.socketPath]);
  const leaks: Leak[] = [];
  for (const { root, place } of lookedInto()) {
    const dir = pathOf(places, root, place);
    if ((await host.stat(op, dir))?.type !== 'directory') continue;
    for (const name of await host.list(op, dir)) {
      const path = `${dir}/${name}`;
      if (known.has(path) || (await isOwned(core, op, owned, lineOf(root, place, name), { name, path }))) continue;
      const info = await host.stat(op, path);
      if (info !== null) leaks.push({ kind: info.type === 'other' ? 'file' : info.type, what: path });
    }
  }
  return leaks;
}

type Entry = { readonly name: string; readonly path: string };

async function isOwned(
  core: Core,
  op: Operation,
  { sandboxes, of, isBusy }: Owned,
  line: Line | null,
  { name, path }: Entry,
): Promise<boolean> {
  if (line === null) return false;
  const { owner, whole } = line;
  const [, whose = ''] = line.name.exec(name) ?? [];
  if (owner === 'sandbox') return isId('sbx', whose) && sandboxes.has(whose);
  // What is being made is on no record yet, or not whole; what is being removed, no more.
  if (isBusy) return true;
  if (owner === 'work') return false;
  if (whole !== undefined && (await core.deps.host.stat(op, `${path}/${whole}`)) === null) return false;
  return owner === 'hutch' || owner === 'cache' || of[owner].has(whose);
}

async function strayMounts(host: Host, op: Operation, kept: readonly Kept[]): Promise<Leak[]> {
  return (await mountPoints(op, host)).filter((path) => isStray(path, kept)).map((what) => ({ kind: 'mount', what }));
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
