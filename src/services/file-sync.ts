// Files of the owner's that a sandbox gets when it is made: before its main process begins, and after whatever it was
// started from, so that no template has them. They are read as the daemon's user. Always true:
//   1. Nothing is read that does not lie in the home of the daemon's user, wherever links lead.
//   2. Nothing is written that does not lie in the home of the sandbox's user: its agent sees to that.
//   3. Only the owner's own project gets any.
import { type ErrorCode, HutchError } from '../domain/errors.ts';
import { belowHome, type FileSync } from '../domain/file-sync.ts';
import { isWithin } from '../domain/mount.ts';
import { padding } from '../domain/tar/entry.ts';
import { type EntryToWrite, TAR_END, tarHeader } from '../domain/tar/header.ts';
import type { Agent } from '../guest/agent.ts';
import type { FileInfo } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import type { Deps } from './deps.ts';
import type { Run } from './run.ts';

/** For keys and settings. What is larger is mounted or copied. */
const ENTRIES_MAX = 10_000;
const BYTES_MAX = 256 * 1024 * 1024;
const DEPTH_MAX = 64;
const FILE_MODE = 0o600;
const DIRECTORY_MODE = 0o755;

type Needs = Pick<Deps, 'host' | 'settings' | 'places' | 'store'>;
type Found = { readonly names: readonly string[]; readonly path: string; readonly info: FileInfo; readonly mode: number };

/** What a sandbox of that caller's gets: as configured, and as asked for. @throws HutchError that names what may not be taken. */
export async function filesFor(deps: Needs, call: Call, asked: readonly FileSync[]): Promise<readonly FileSync[]> {
  const { op, caller } = call;
  const isOwners = caller.projectId === deps.store.defaultProjectId;
  if (!isOwners && asked.length > 0)
    throw op.error('permission_denied', "fileSync takes files of the home of the daemon's user, and only its own project may have them", {
      hint: 'copy what the sandbox needs: hutch cp',
    });
  const files = isOwners ? [...deps.settings.fileSync, ...asked] : asked;
  for (const { host } of files) await sourceOf(deps, op, host);
  return files;
}

/** Into a sandbox that runs, before anything of its own does. What is not there is told, and left out. */
export async function putFiles({ deps }: Pick<Core, 'deps'>, op: Operation, run: Run, files: readonly FileSync[]): Promise<void> {
  if (files.length === 0) return;
  const agent = await run.link.agent(op);
  const warn = (what: string): void => {
    op.log.warn({ sandbox: run.id, what }, 'a file was not put into a sandbox');
    op.progress({ step: 'file sync', detail: `warning: ${what}` });
  };
  const home = await homeOf(op, agent);
  if (home === null) return warn("the sandbox's user has no home and may make none, so it gets no files");
  const found: Found[] = [];
  const budget = { entries: 0, bytes: 0 };
  for (const { host, guest, mode } of files) {
    const names = belowHome(guest, home);
    if (names === null)
      throw op.error('invalid_argument', `fileSync: ${guest} does not lie in the home of the sandbox's user, which is ${home}`);
    const path = await sourceOf(deps, op, host);
    if (path === null) warn(`${host} is not there, so the sandbox has no ${guest}`);
    else await gather(deps, op, { path, names, mode, above: [] }, found, budget, warn);
  }
  if (found.length > 0) await agent.tar.unpack(op, { path: home, mkdirs: true }, archive(deps, op, found, warn));
}

/** Null: there is none. An image may name a home that it has not got. */
async function homeOf(op: Operation, agent: Agent): Promise<string | null> {
  const home = { path: '~' } as const;
  try {
    const { path } = await agent.file.stat(op, { ...home, follow: true }).catch(async (error: unknown) => {
      if (!codeIs(error, 'not_found')) throw error;
      return await agent.file.mkdir(op, { ...home, parents: true });
    });
    return typeof path === 'string' ? path : new TextDecoder().decode(path);
  } catch (error) {
    if (codeIs(error, 'permission_denied', 'not_found', 'failed_precondition', 'conflict')) return null;
    throw error;
  }
}

function codeIs(error: unknown, ...codes: readonly ErrorCode[]): boolean {
  return error instanceof HutchError && codes.includes(error.code);
}

type Place = {
  readonly path: string;
  readonly names: readonly string[];
  readonly mode: number | null;
  /** The directories in which it lies, so that a link to one of them is no endless tree. */
  readonly above: readonly string[];
};

async function gather(
  deps: Needs,
  op: Operation,
  { path, names, mode, above }: Place,
  found: Found[],
  budget: { entries: number; bytes: number },
  warn: (what: string) => void,
): Promise<void> {
  const info = await deps.host.stat(op, path);
  if (info === null) return warn(`${path} went while it was looked at`);
  if (info.type !== 'file' && info.type !== 'directory') return warn(`${path} is neither a file nor a directory`);
  budget.entries += 1;
  budget.bytes += info.type === 'file' ? info.sizeBytes : 0;
  if (budget.entries > ENTRIES_MAX || budget.bytes > BYTES_MAX || above.length > DEPTH_MAX)
    throw op.error(
      'invalid_argument',
      `fileSync: ${above[0] ?? path} is too much: at most ${ENTRIES_MAX} files and directories, ${BYTES_MAX >> 20} MiB, ${DEPTH_MAX} deep`,
      { hint: 'mount it (--volume), or copy it: hutch cp, hutch sync' },
    );
  if (info.type === 'file') return void found.push({ names, path, info, mode: mode ?? FILE_MODE });
  // The home itself is there, and stays as it is.
  if (names.length > 0) found.push({ names, path, info, mode: directoryMode(mode) });
  for (const name of await deps.host.list(op, path)) {
    const below = await sourceOf(deps, op, `${path}/${name}`);
    if (below === null) warn(`${path}/${name} leads nowhere`);
    else if ([...above, path].includes(below)) warn(`${path}/${name} leads back to ${below}`);
    else await gather(deps, op, { path: below, names: [...names, name], mode, above: [...above, path] }, found, budget, warn);
  }
}

/** Where that really is; null: nowhere. @throws HutchError `permission_denied` that says where it leads. */
async function sourceOf({ host, settings, places }: Needs, op: Operation, path: string): Promise<string | null> {
  const { home } = settings.volumes;
  if (home === null) throw op.error('failed_precondition', "fileSync takes files of the home of the daemon's user, and HOME is not set");
  const [top, real] = [await host.realPath(op, home), await realOrNull(host, op, path.replace(/^~(?=$|\/)/, home))];
  if (real === null) return null;
  // A home that is / would be everything.
  if (top === '/' || !isWithin(real, top))
    throw op.error('permission_denied', `fileSync: ${path} ${real === path ? 'lies' : `leads to ${real},`} outside of the home, ${top}`, {
      hint: 'only what lies in it is put into sandboxes; copy this: hutch cp',
    });
  for (const dir of [places.dataDir, places.runDir, places.logDir]) {
    const own = await host.realPath(op, dir);
    if (isWithin(real, own)) throw op.error('permission_denied', `fileSync: ${path} is never taken: ${own} is Hutch's own`);
  }
  return real;
}

async function realOrNull(host: Needs['host'], op: Operation, path: string): Promise<string | null> {
  try {
    return await host.realPath(op, path);
  } catch (error) {
    if (codeIs(error, 'not_found')) return null;
    throw error;
  }
}

async function* archive({ host }: Needs, op: Operation, found: readonly Found[], warn: (what: string) => void): AsyncGenerator<Uint8Array> {
  for (const { names, path, info, mode } of found) {
    const isDirectory = info.type === 'directory';
    const content = isDirectory ? new Uint8Array() : await contentOf(host, op, path);
    if (content === null) {
      warn(`${path} cannot be read`);
      continue;
    }
    // Names are bytes there.
    const name = Buffer.from(names.join('/'), 'utf8').toString('latin1');
    const entry: EntryToWrite = {
      type: isDirectory ? 'directory' : 'file',
      path: isDirectory ? `${name}/` : name,
      link: '',
      mode,
      uid: 0,
      gid: 0,
      mtimeSeconds: Number(info.modifiedNs / 1_000_000_000n),
      sizeBytes: content.byteLength,
      devMajor: 0,
      devMinor: 0,
      xattrs: null,
    };
    yield tarHeader(entry);
    if (content.byteLength > 0) yield content;
    yield new Uint8Array(padding(content.byteLength));
  }
  yield TAR_END;
}

async function contentOf(host: Needs['host'], op: Operation, path: string): Promise<Uint8Array | null> {
  try {
    return await host.readFile(op, path, BYTES_MAX);
  } catch (error) {
    if (codeIs(error, 'not_found', 'permission_denied')) return null;
    throw error;
  }
}

function directoryMode(mode: number | null): number {
  return mode === null ? DIRECTORY_MODE : mode | ((mode & 0o444) >> 2);
}
