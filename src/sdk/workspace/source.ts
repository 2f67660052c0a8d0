// What of a git repository travels into a sandbox: its files by git's own list, and the commit that stands for exactly these.
import type { Stats } from 'node:fs';
import { copyFile, lstat, mkdtemp, realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join, relative, resolve } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import type { Workspace } from '../../domain/sandbox.ts';
import { type GitOptions, git, gitLine } from './git.ts';

export type Mode = Workspace['mode'];

export type Repository = {
  /** As it was given, made absolute. */
  readonly sourcePath: string;
  readonly root: string;
  readonly name: string;
  /** What all worktrees of it share: objects and refs. */
  readonly commonDir: string;
  readonly headCommit: string | null;
  readonly branch: string | null;
};

/** A path as bytes: names need not be UTF-8. */
export type SourceFile = { readonly path: Buffer; readonly sizeBytes: number };

export type Contents = {
  readonly files: readonly SourceFile[];
  /** Of files that are in the index and not on the disk. */
  readonly missing: number;
  /** What is no file, directory or link, such as a socket. */
  readonly skipped: readonly Buffer[];
  readonly submodules: readonly string[];
  /** Of those, empty here: they travel as empty directories, or the sandbox's git would take them for removed. */
  readonly unfetched: readonly string[];
  /** Paths with a filter of git's, as LFS has: they travel as they lie on the disk. */
  readonly filtered: readonly Buffer[];
};

/** @throws HutchError when `path` is in no git repository with a working tree. */
export async function lookAtRepository(path: string, signal?: AbortSignal): Promise<Repository> {
  const sourcePath = await realpath(resolve(path)).catch((cause: unknown) => {
    throw new HutchError({ code: 'not_found', message: `there is no directory ${path}`, cause });
  });
  const at = { cwd: sourcePath, signal };
  const inside = await git(['rev-parse', '--is-inside-work-tree'], { ...at, accepts: [128] });
  if (inside.stdout.toString().trim() !== 'true') {
    const dubious = /dubious ownership/.test(inside.stderr);
    throw new HutchError({
      code: 'failed_precondition',
      message: dubious
        ? `${sourcePath} belongs to another user, and git does not read it`
        : `${sourcePath} is in no git repository with a working tree`,
      hint: dubious ? `git config --global --add safe.directory ${sourcePath}` : 'begin one with: git init; or copy files with: hutch cp',
    });
  }
  const [places, head, branch] = await Promise.all([
    gitLine(['rev-parse', '--path-format=absolute', '--show-toplevel', '--git-common-dir'], at),
    git(['rev-parse', '--verify', '--quiet', 'HEAD^{commit}'], { ...at, accepts: [1, 128] }),
    git(['symbolic-ref', '--quiet', '--short', 'HEAD'], { ...at, accepts: [1] }),
  ]);
  const [root = '', common = ''] = places.split('\n');
  return {
    sourcePath,
    root,
    name: basename(root),
    commonDir: common,
    headCommit: head.code === 0 ? head.stdout.toString().trim() : null,
    branch: branch.code === 0 ? branch.stdout.toString().trim() : null,
  };
}

/** Whether the repository has such a commit. */
export async function isHere({ root }: Repository, commit: string, signal?: AbortSignal): Promise<boolean> {
  return (await git(['cat-file', '-e', `${commit}^{commit}`], { cwd: root, signal, accepts: [1, 128] })).code === 0;
}

/** Names as latin1, so that each byte is a character; null: all. */
type Only = ReadonlySet<string> | null;

/**
 * What travels, of what is named if something is. `shallow_overlay`: the files that git knows, as they lie on the disk, and untracked ones if asked;
 * `full_copy`: everything below the root, ignored files too; `metadata_only`: nothing but the history.
 */
export async function listContents(
  repository: Repository,
  { mode, includeUntracked, only = null }: { readonly mode: Mode; readonly includeUntracked: boolean; readonly only?: Only },
  signal?: AbortSignal,
): Promise<Contents> {
  const at = { cwd: repository.root, signal };
  const filters = filteredPaths(at);
  filters.catch(() => {}); // told where it is waited for
  const staged = split(await git(['ls-files', '-z', '--stage'], at));
  const submodules = staged
    .filter((line) => line.subarray(0, 7).toString() === '160000 ')
    .map((line) => line.subarray(line.indexOf(9) + 1).toString('utf8'));
  if (mode === 'metadata_only') return { files: [], missing: 0, skipped: [], submodules, unfetched: [], filtered: await filters };
  const listings = [split(await git(['ls-files', '-z', '--cached', '--recurse-submodules'], at))];
  if (includeUntracked || mode === 'full_copy') listings.push(split(await git(['ls-files', '-z', '--others', '--exclude-standard'], at)));
  if (mode === 'full_copy') listings.push(split(await git(['ls-files', '-z', '--others', '--ignored', '--exclude-standard'], at)));
  const byName = new Map(listings.flat().map((path) => [path.toString('latin1'), path]));
  const paths = [...byName].filter(([name]) => only === null || only.has(name)).map(([, path]) => path);
  const files: SourceFile[] = [];
  const skipped: Buffer[] = [];
  const unfetched: string[] = [];
  let missing = 0;
  for (let from = 0; from < paths.length; from += LOOKS_AT_ONCE) {
    signal?.throwIfAborted();
    const some = paths.slice(from, from + LOOKS_AT_ONCE);
    const found = await Promise.all(some.map((path) => lookAt(Buffer.concat([Buffer.from(`${repository.root}/`), path]))));
    for (const [nth, info] of found.entries()) {
      const path = some[nth];
      if (path === undefined) continue;
      if (info === null) missing += 1;
      else if (info.isFile() || info.isSymbolicLink()) files.push({ path, sizeBytes: info.isFile() ? info.size : 0 });
      else if (info.isDirectory() && submodules.includes(path.toString('utf8'))) {
        files.push({ path, sizeBytes: 0 });
        unfetched.push(path.toString('utf8'));
      }
      // A repository within the repository is listed as one directory: it is no part of this one.
      else skipped.push(path);
    }
  }
  return { files, missing, skipped, submodules, unfetched, filtered: await filters };
}

/** Where what lies at `sourcePath` is below the root, where anything of it travels; else empty. */
export async function travellingPart(
  { root, sourcePath }: Repository,
  { mode, includeUntracked }: { readonly mode: Mode; readonly includeUntracked: boolean },
  signal?: AbortSignal,
): Promise<string> {
  const part = relative(root, sourcePath);
  if (part === '' || mode === 'metadata_only') return '';
  const others = { ignored: ['--others'], untracked: ['--others', '--exclude-standard'], no: [] };
  const how = others[mode === 'full_copy' ? 'ignored' : includeUntracked ? 'untracked' : 'no'];
  return split(await git(['ls-files', '-z', '--cached', ...how], { cwd: sourcePath, signal })).length > 0 ? part : '';
}

/** What git neither knows nor ignores: files, and directories with nothing else in them. */
export async function listUntracked({ root }: Repository, signal?: AbortSignal): Promise<readonly Buffer[]> {
  const how = ['--others', '--exclude-standard', '--directory', '--no-empty-directory'];
  return split(await git(['ls-files', '-z', ...how], { cwd: root, signal }));
}

export type Base = {
  readonly commit: string;
  /** An index of ours: what HEAD has, and of each file that is as it was committed also its size and time. */
  readonly indexFile: string;
  /** Files that have been written since the commit was made. */
  readonly changedSince: () => Promise<readonly Buffer[]>;
} & AsyncDisposable;

/**
 * The commit that stands for what travels: HEAD itself where nothing is changed, else a new one on top of it, which no branch
 * has. Made with an index of its own: the user's is not touched, and no hook runs.
 */
export async function baseOf(
  repository: Repository,
  { includeUntracked, mode }: { readonly includeUntracked: boolean; readonly mode: Mode },
  signal?: AbortSignal,
): Promise<Base> {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-index-'));
  const remove = async () => await rm(dir, { recursive: true, force: true });
  try {
    const indexFile = join(dir, 'index');
    const { headCommit } = repository;
    // The same files make the same commit, whenever they are copied.
    const date = { GIT_AUTHOR_DATE: BASE_DATE, GIT_COMMITTER_DATE: BASE_DATE };
    const at: GitOptions = { cwd: repository.root, signal, env: { GIT_INDEX_FILE: indexFile, ...IDENTITY, ...date } };
    const own = await gitLine(['rev-parse', '--path-format=absolute', '--git-path', 'index'], { cwd: repository.root, signal });
    // With the user's own index only what has changed is read again.
    await copyIfThere(own, indexFile);
    const all = includeUntracked || mode === 'full_copy';
    // What cannot be added, as a repository within it without a commit, does not travel, and is named as that.
    const adding = ['add', all ? '--all' : '--update', '--ignore-errors', '--', ':/'];
    if (mode !== 'metadata_only') await git([...PLAIN_INDEX, ...adding], { ...at, accepts: [1] });
    else if (headCommit !== null) await git([...PLAIN_INDEX, 'read-tree', headCommit], at);
    const tree = await gitLine(['write-tree'], at);
    const isHead = headCommit !== null && (await gitLine(['rev-parse', `${headCommit}^{tree}`], at)) === tree;
    const parent = headCommit === null ? [] : ['-p', headCommit];
    const commit = isHead
      ? headCommit
      : await gitLine(['commit-tree', tree, ...parent, '-m', 'What was not committed when it was copied into a sandbox'], at);
    const copied = join(dir, 'copied');
    const watches = mode !== 'metadata_only' && (await copyIfThere(indexFile, copied));
    const changedSince = async (): Promise<readonly Buffer[]> =>
      !watches
        ? []
        : split(
            await git([...PLAIN_INDEX, 'diff-files', '-z', '--name-only', '--ignore-submodules=all'], {
              ...at,
              env: { GIT_INDEX_FILE: copied },
            }),
          );
    // What is as HEAD has it keeps its time: git in the sandbox need not read it to know.
    await git([...PLAIN_INDEX, 'read-tree', ...(headCommit === null ? ['--empty'] : ['-m', headCommit])], at);
    return { commit, indexFile, changedSince, [Symbol.asyncDispose]: remove };
  } catch (error) {
    await remove();
    throw error;
  }
}

/** Whether there was such a file. */
export async function copyIfThere(from: string, to: string): Promise<boolean> {
  try {
    await copyFile(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/** An index in one file, without what only the user's own git knows how to read. */
const PLAIN_INDEX = [
  '-c',
  'core.splitIndex=false',
  '-c',
  'core.untrackedCache=false',
  '-c',
  'core.fsmonitor=false',
  '-c',
  'feature.manyFiles=false',
];

/** Who made the commits that we make: they must not ask the user who they are. */
export const IDENTITY: Readonly<Record<string, string>> = {
  GIT_AUTHOR_NAME: 'Hutch',
  GIT_AUTHOR_EMAIL: 'hutch@localhost',
  GIT_COMMITTER_NAME: 'Hutch',
  GIT_COMMITTER_EMAIL: 'hutch@localhost',
};

const BASE_DATE = '@0 +0000';

const LOOKS_AT_ONCE = 256;

async function filteredPaths(at: GitOptions): Promise<readonly Buffer[]> {
  const tracked = (await git(['ls-files', '-z'], at)).stdout;
  if (tracked.byteLength === 0) return [];
  const fields = split(await git(['check-attr', '-z', '--stdin', 'filter'], { ...at, input: tracked }));
  const found: Buffer[] = [];
  for (let nth = 0; nth + 2 < fields.length; nth += 3) {
    const [path, , value] = fields.slice(nth, nth + 3);
    if (path !== undefined && value !== undefined && !['unspecified', 'unset'].includes(value.toString())) found.push(path);
  }
  return found;
}

/** The pieces between NUL bytes. */
export function split({ stdout }: { readonly stdout: Buffer }): Buffer[] {
  const pieces: Buffer[] = [];
  for (let from = 0; from < stdout.byteLength; ) {
    const end = stdout.indexOf(0, from);
    const to = end < 0 ? stdout.byteLength : end;
    if (to > from) pieces.push(stdout.subarray(from, to));
    from = to + 1;
  }
  return pieces;
}

async function lookAt(path: Buffer): Promise<Stats | null> {
  try {
    return await lstat(path);
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return null;
    throw error;
  }
}
