// What every verb of an installation has at hand: where it lies, what keeps its daemon, and how that daemon is asked. It is
// asked by the command of the release that it is of, so that each daemon is spoken to by a client that fits.
import * as z from 'zod';
import { type Environment, type Places, placesOf } from '../config/places.ts';
import { newOpId } from '../domain/ids.ts';
import type { Host, ProcessRef } from '../host/host.ts';
import { nodeHost } from '../host/node-host.ts';
import { newOperation, type Operation, type Progress } from '../host/operation.ts';
import { at, type Layout, layoutOf, releaseDir } from './layout.ts';
import type { InstallRecord } from './record.ts';
import { currentRelease } from './release.ts';
import { NO_MACHINE, noService, type Service, systemdService } from './service.ts';

export type Scene = {
  readonly host: Host;
  readonly layout: Layout;
  readonly env: Environment;
  /** Of programs that we start: all of the caller's, but for what names a daemon elsewhere. */
  readonly programEnv: Readonly<Record<string, string>>;
  /** The daemon's; null where the installation is for another root. */
  readonly places: Places | null;
};

export type SceneChoice = {
  readonly host: Host;
  readonly env: Environment;
  readonly whose: 'system' | 'user';
  /** `''`: this machine. */
  readonly root: string;
};

const ELSEWHERE = ['HUTCH_API_URL', 'HUTCH_API_KEY', 'HUTCH_NO_START'];

export function sceneOf({ host, env, whose, root }: SceneChoice): Scene {
  const programEnv = Object.fromEntries(
    Object.entries(env).flatMap(([name, value]) => (value === undefined || ELSEWHERE.includes(name) ? [] : [[name, value] as const])),
  );
  const places = root === '' ? placesOf({ uid: host.uid, env }) : null;
  return { host, layout: layoutOf({ whose, env, root }), env, programEnv, places };
}

export type Begun = { readonly op: Operation; readonly scene: Scene };

/** What somebody asks of an installation, on this machine. */
export function beginHere(asked: {
  readonly env: Environment;
  readonly verb: string;
  /** `null`: the machine's as root, else the user's own. */
  readonly whose: 'user' | null;
  readonly root: string | null;
  readonly signal: AbortSignal;
  readonly onProgress: (progress: Progress) => void;
}): Begun {
  const host = nodeHost();
  const { env, verb, signal, onProgress, root } = asked;
  const silent = { debug() {}, info() {}, warn() {}, error() {} };
  const op = newOperation({ id: newOpId(host.randomBytes), actor: 'cli', verb, log: silent, signal, onProgress });
  // A package is for the machine, whoever makes it.
  const whose = asked.whose ?? (root === null && host.uid !== 0 ? 'user' : 'system');
  return { op, scene: sceneOf({ host, env, whose, root: (root ?? '').replace(/\/+$/, '') }) };
}

/** What keeps the daemon of this installation. */
export async function serviceOf(op: Operation, scene: Scene, kind: 'systemd' | 'none'): Promise<Service> {
  if (scene.places === null) return NO_MACHINE;
  return kind === 'systemd' ? await systemdService(op, scene) : noService(scene, scene.programEnv);
}

/** Who installs, upgrades or removes is alone with it. Null: another does. */
export async function hold(op: Operation, { host, layout }: Scene): Promise<AsyncDisposable> {
  const lock = await host.lockFile(op, at(layout, layout.lock));
  if (lock !== null) return lock;
  throw op.error('conflict', 'another hutch system command is at work on this installation', {
    hint: 'wait until it has ended, and try again',
  });
}

const statusSchema = z.object({ version: z.string(), pid: z.int(), startedAtMs: z.number(), schemaVersion: z.int() });
export type Running = z.output<typeof statusSchema> & {
  /** Which release of this installation it is; null where it is none, as the daemon of a checkout. */
  readonly release: string | null;
};

/** The daemon that answers; null where none does. */
export async function runningDaemon(op: Operation, scene: Scene): Promise<Running | null> {
  const said = await hutch(op, scene, ['daemon', 'status', '--json']);
  if (said === null || said.exitCode !== 0) return null;
  const parsed = statusSchema.safeParse(said.json);
  return parsed.success ? { ...parsed.data, release: await releaseOfProcess(op, scene, parsed.data.pid) } : null;
}

const listSchema = z.object({ sandboxes: z.array(z.object({ id: z.string(), name: z.string(), state: z.string() })) });
export type Listed = z.output<typeof listSchema>['sandboxes'][number];

/** Null where no daemon answers. */
export async function listSandboxes(op: Operation, scene: Scene): Promise<readonly Listed[] | null> {
  const said = await hutch(op, scene, ['ls', '--json']);
  if (said === null || said.exitCode !== 0) return null;
  const parsed = listSchema.safeParse(said.json);
  return parsed.success ? parsed.data.sandboxes : null;
}

const OUTPUT_BYTES_MAX = 256 * 1_048_576;
const COMMAND_MS = 120_000;

export type Said = { readonly exitCode: number; readonly json: unknown; readonly stderr: string };

/** Runs the installed command; it starts no daemon. Null where none is installed. */
export async function hutch(
  op: Operation,
  { host, layout, programEnv }: Scene,
  words: readonly string[],
  withinMs = COMMAND_MS,
): Promise<Said | null> {
  const command = at(layout, `${layout.current}/bin/hutch`);
  if ((await currentRelease(op, host, layout)) === null) return null;
  using limited = op.within(withinMs, `hutch ${words.join(' ')}`);
  const env = { ...programEnv, HUTCH_NO_START: '1' };
  const { exitCode, stdout, stderr } = await host.run(limited, [command, ...words], { env, outputBytesMax: OUTPUT_BYTES_MAX });
  return { exitCode, json: jsonOf(new TextDecoder().decode(stdout)), stderr: new TextDecoder().decode(stderr).trim() };
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** By its command line, on which it names the place that it was started from. */
async function releaseOfProcess(op: Operation, scene: Scene, pid: number): Promise<string | null> {
  return releaseIn(scene, await commandLine(op, scene, pid), (word) => word.endsWith('/dist/hutchd.mjs'));
}

export type OwnDaemon = { readonly ref: ProcessRef; readonly release: string };

/** Daemons of our own user that are of this installation, whatever their data directory. */
export async function ownDaemons(op: Operation, scene: Scene): Promise<readonly OwnDaemon[]> {
  const found: OwnDaemon[] = [];
  for (const pid of await processes(op, scene)) {
    const release = await releaseOfProcess(op, scene, pid);
    if (release === null || (await scene.host.stat(op, `/proc/${pid}`))?.uid !== scene.host.uid) continue;
    const ref = await scene.host.processRef(op, pid);
    if (ref !== null) found.push({ ref, release });
  }
  return found;
}

/** Releases that a process was started from: other users' daemons, shims of sandboxes. They must not be removed under them. */
export async function releasesInUse(op: Operation, scene: Scene): Promise<readonly string[]> {
  const found = new Set<string>();
  for (const pid of await processes(op, scene)) {
    const release = releaseIn(scene, await commandLine(op, scene, pid), () => true);
    if (release !== null) found.add(release);
  }
  return [...found];
}

async function processes(op: Operation, { host }: Scene): Promise<readonly number[]> {
  return (await host.list(op, '/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
}

async function commandLine(op: Operation, { host }: Scene, pid: number): Promise<readonly string[]> {
  return await host.readFile(op, `/proc/${pid}/cmdline`, 4_194_304).then(
    (bytes) => new TextDecoder().decode(bytes).split('\0'),
    () => [], // it has ended
  );
}

function releaseIn({ layout }: Scene, words: readonly string[], wanted: (word: string) => boolean): string | null {
  const releases = `${at(layout, layout.releases)}/`;
  const entry = words.find((word) => word.startsWith(releases) && wanted(word));
  return entry === undefined ? null : (entry.slice(releases.length).split('/')[0] ?? null);
}

/** What is told of an installation. */
export type Installed = {
  readonly whose: 'system' | 'user';
  readonly root: string;
  readonly directory: string;
  readonly release: string;
  readonly previous: string | null;
  readonly service: 'systemd' | 'none';
};

export function installedOf({ layout }: Scene, record: InstallRecord): Installed {
  const { release, previous, service } = record;
  return { whose: layout.whose, root: layout.root, directory: releaseDir(layout, release), release, previous, service };
}
