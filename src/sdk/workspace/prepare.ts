// A git repository of the client's becomes a directory of the sandbox, and is brought up to date there later. The sandbox's
// own changes are never overwritten: where both sides changed a file, nothing is done and the files are named.
import { HutchError } from '../../domain/errors.ts';
import type { Workspace } from '../../domain/sandbox.ts';
import type { Output } from '../../services/verbs.ts';
import type { Sandbox } from '../sandbox.ts';
import { changesSince, refuseConflicts } from './conflicts.ts';
import { makeGuestGit, UNFINISHED_FILE } from './guest-git.ts';
import { bothOrFail, inSandbox, lastLine, type Recorded } from './inside.ts';
import { baseOf, type Contents, isHere, listContents, listUntracked, lookAtRepository, type Mode, type Repository } from './source.ts';
import { tarOf } from './tar.ts';
import { noteUnseen, unseenOf } from './unseen.ts';

export type PrepareOptions = {
  /** Default: `/work/NAME`, by the name of the repository's directory. */
  readonly guestPath?: string;
  /** Default: `shallow_overlay`, or what it was the last time. */
  readonly mode?: Mode;
  readonly includeUntracked?: boolean;
  /** Whose files they are in the sandbox. Default: the sandbox's user. */
  readonly user?: string;
  /** Overwrites what the sandbox has changed. */
  readonly force?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { readonly step: string; readonly bytes?: number }) => void;
};

export type Prepared = {
  readonly workspace: NonNullable<Output<'workspace.put'>['workspace']>;
  readonly files: number;
  readonly bytes: number;
  /** Only what has changed since the last time was copied. */
  readonly incremental: boolean;
  readonly warnings: readonly string[];
};

export type Plan = {
  readonly repository: Repository;
  readonly mode: Mode;
  readonly includeUntracked: boolean;
  readonly contents: Contents;
  readonly bytes: number;
  readonly warnings: readonly string[];
};

/** What would travel. Changes nothing. */
export async function planWorkspace(
  path: string,
  options: Pick<PrepareOptions, 'mode' | 'includeUntracked' | 'signal'> = {},
): Promise<Plan> {
  const { mode = 'shallow_overlay', includeUntracked = false, signal } = options;
  const repository = await lookAtRepository(path, signal);
  const contents = await listContents(repository, { mode, includeUntracked }, signal);
  const untracked = mode === 'shallow_overlay' && !includeUntracked ? await listUntracked(repository, signal) : [];
  return {
    repository,
    mode,
    includeUntracked,
    contents,
    bytes: contents.files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    warnings: mode === 'metadata_only' ? [] : [...warningsOf(contents), ...untrackedWarnings(untracked)],
  };
}

/** Where a repository goes when nobody says. */
export function defaultGuestPath({ name }: Pick<Repository, 'name'>): string {
  return `/work/${name}`;
}

/**
 * Copies the repository at `path` into the sandbox, which must run. The second time only what changed here since goes.
 * @throws HutchError `conflict` when the sandbox changed what changed here too.
 */
export async function prepareWorkspace(sandbox: Sandbox, path: string, options: PrepareOptions = {}): Promise<Prepared> {
  const { signal, onProgress = () => {} } = options;
  const last = (await sandbox.refresh({ signal })).workspace;
  onProgress({ step: 'looking at the repository' });
  const repository = await lookAtRepository(path, signal);
  const guestPath = options.guestPath ?? (await placeOf(last, repository, signal)) ?? defaultGuestPath(repository);
  if (!guestPath.startsWith('/'))
    throw new HutchError({ code: 'invalid_argument', message: `guestPath: '${guestPath}' does not begin with /` });
  const there = last?.guestPath === guestPath ? last : null;
  const mode = options.mode ?? there?.mode ?? 'shallow_overlay';
  const includesUntracked = options.includeUntracked ?? there?.includesUntracked ?? false;
  const again = options.force === true ? null : there;
  if (again !== null && again.mode !== mode) throw otherMode(sandbox, again, mode);
  const wanted = { repository, mode, includesUntracked, guestPath };
  const leavesUntracked = again === null && mode === 'shallow_overlay' && !includesUntracked;
  const [first, untracked] = await bothOrFail(
    copy(sandbox, wanted, again, null, options),
    leavesUntracked ? listUntracked(repository, signal) : Promise.resolve([]),
  );
  let copied = first;
  for (let nth = 1; copied.torn.length > 0 && nth < COPIES_MAX; nth += 1) {
    const { files, bytes } = copied;
    copied = await copy(sandbox, wanted, copied.workspace, copied.torn, options);
    copied = { ...copied, files: files + copied.files, bytes: bytes + copied.bytes };
  }
  const { torn, workspace, warnings, files, bytes } = copied;
  const recorded = await sandbox.recordWorkspace(workspace, { signal });
  return {
    ...{ workspace: recorded, files, bytes, incremental: again !== null },
    warnings: [...warnings, ...untrackedWarnings(untracked), ...tornWarnings(torn), ...(there === null ? leftWarnings(last) : [])],
  };
}

/** Where it lies in the sandbox, if what was copied there the last time is this repository. */
async function placeOf(last: Workspace | null, repository: Repository, signal: AbortSignal | undefined): Promise<string | null> {
  if (last === null) return null;
  return last.repoRoot === repository.root || (await isHere(repository, last.baseCommit, signal)) ? last.guestPath : null;
}

/** One place in a sandbox is on record. */
function leftWarnings(last: Workspace | null): readonly string[] {
  return last === null
    ? []
    : [`diff and bring no longer look at ${last.guestPath}, where ${last.repoName} was copied before: it stays there as it is`];
}

type Wanted = Pick<Workspace, 'mode' | 'includesUntracked' | 'guestPath'> & { readonly repository: Repository };
type Copied = {
  readonly workspace: Recorded;
  readonly files: number;
  readonly bytes: number;
  /** Changed here while they were copied: in the sandbox they may be neither what they were nor what they are. */
  readonly torn: readonly Buffer[];
  readonly warnings: readonly string[];
};

/** What changes here all the time is told, and is as it was read the last time. */
const COPIES_MAX = 3;

/** `torn`: what the copy before this one has left so; null: there was none. `merged`: `Since.merged`. */
async function copy(
  sandbox: Sandbox,
  { repository, mode, includesUntracked, guestPath }: Wanted,
  before: Recorded | null,
  torn: readonly Buffer[] | null,
  options: PrepareOptions,
  merged: readonly string[] = [],
): Promise<Copied> {
  const { signal, onProgress = () => {} } = options;
  await using base = await baseOf(repository, { includeUntracked: includesUntracked, mode }, signal);
  const { root: repoRoot, name: repoName, sourcePath, headCommit, branch } = repository;
  const workspace = { sourcePath, repoRoot, repoName, guestPath, mode, includesUntracked, headCommit, branch, baseCommit: base.commit };
  const since = { baseCommit: base.commit, torn: torn ?? [], merged };
  const changes = before === null ? null : await changesSince(sandbox, repository, before, since, signal);
  const only = changes === null ? null : new Set(changes.changed.keys());
  // What changed is put together here while the sandbox looks at its side: nothing is written there before both are done.
  const look = async (): Promise<readonly string[]> => {
    if (torn !== null) return [];
    if (before !== null && changes !== null) return await refuseConflicts(sandbox, before, repository, { changes, merged }, options);
    await refuseOccupied(sandbox, guestPath, options);
    return [];
  };
  const gather = async (own: AsyncDisposableStack) => {
    const contents = await listContents(repository, { mode, includeUntracked: includesUntracked, only }, signal);
    if (before !== null && isSame(before, workspace) && torn === null && merged.length === 0) return { contents, staged: null };
    return { contents, staged: own.use(await makeGuestGit(repository, { mode, base, contents, before }, signal)) };
  };
  await using own = new AsyncDisposableStack();
  if (before === null) await look(); // at once, and all that there is takes long to gather
  const [{ contents, staged }, brought] = await bothOrFail(gather(own), before === null ? Promise.resolve([]) : look());
  if (brought.length > 0) return await copy(sandbox, { repository, mode, includesUntracked, guestPath }, before, torn, options, brought);
  const warnings = mode === 'metadata_only' ? [] : warningsOf(contents, only);
  if (staged === null) return { workspace, files: 0, bytes: 0, torn: [], warnings };
  onProgress({ step: 'copying' });
  if (before === null) await makeGuestPath(sandbox, guestPath, options);
  const as = options.user === undefined ? {} : { user: options.user };
  // Its index and refs are replaced; objects that are there already stay.
  const tar = counted(tarOf({ whole: { dir: staged.dir, name: '.git' }, dir: repoRoot, files: contents.files }, signal), (bytes) =>
    onProgress({ step: 'copying', bytes }),
  );
  const { bytes } = await sandbox.files.unpack(guestPath, tar, { ...as, mkdirs: true, signal });
  const unseen = { guestPath, paths: unseenOf(contents), anew: before === null };
  if (unseen.paths.length > 0 || (before === null && options.force === true)) await noteUnseen(sandbox, unseen, options);
  if (before === null) await finish(sandbox, { guestPath, isWhole: staged.isWhole }, options);
  if (changes !== null) await removeInside(sandbox, guestPath, [...changes.deleted.keys()], options);
  if (staged.alsoShallow !== null) await growShallow(sandbox, guestPath, staged.alsoShallow, options);
  return { workspace, files: contents.files.length, bytes, torn: await base.changedSince(), warnings };
}

/** What the one leaves out is no change here, so nothing would bring it. */
function otherMode({ name }: Sandbox, { guestPath, mode }: Recorded, wanted: Mode): HutchError {
  return new HutchError({
    code: 'conflict',
    message: `${guestPath} in ${name} was copied as ${mode}, and stays so`,
    hint: `copy all of it as ${wanted} with --force, which overwrites what was changed there; or to another place with --path`,
  });
}

function isSame(before: Recorded, now: Recorded): boolean {
  return (['mode', 'headCommit', 'branch', 'baseCommit'] as const).every((key) => before[key] === now[key]);
}

/** Whether the repository's HEAD is another one than when it was copied: what `exec --auto-prepare` goes by. */
export async function hasMoved(workspace: Pick<Workspace, 'sourcePath' | 'headCommit'>, signal?: AbortSignal): Promise<boolean> {
  const { headCommit } = await lookAtRepository(workspace.sourcePath, signal);
  return headCommit !== workspace.headCommit;
}

/** Of $1, in which there may be directories: those are made for the working directory of a sandbox. */
const IS_EMPTY = `{ [ -z "$(ls -A -- "$1")" ] || { found=$(find "$1" ! -type d -print -quit) && [ -z "$found" ]; }; }`;

async function refuseOccupied(sandbox: Sandbox, guestPath: string, options: PrepareOptions): Promise<void> {
  if (options.force === true) return;
  // What is there of a copy that was cut short is copied over.
  const script = `[ ! -e "$1" ] || [ -e "$1/.git/${UNFINISHED_FILE}" ] || ${IS_EMPTY}`;
  const found = await sandbox.exec(['sh', '-c', script, 'sh', guestPath], inSandbox(options));
  if (found.exitCode === 0) return;
  throw new HutchError({
    code: 'conflict',
    message: `${guestPath} in ${sandbox.name} is not empty`,
    hint: 'choose another place with --path, or overwrite with --force',
  });
}

async function finish(
  sandbox: Sandbox,
  { guestPath, isWhole }: { readonly guestPath: string; readonly isWhole: boolean },
  { user, force, signal }: PrepareOptions,
): Promise<void> {
  const as = { ...(user === undefined ? {} : { user }), signal };
  // Where a copy before this one had the last commit alone.
  if (isWhole && force === true) await sandbox.exec(['rm', '-f', '--', `${guestPath}/.git/shallow`], inSandbox(as));
  await sandbox.files.remove(`${guestPath}/.git/${UNFINISHED_FILE}`, as);
}

/** The history of the repository was rewritten: the new commit's parents are not there, either. */
async function growShallow(sandbox: Sandbox, guestPath: string, commit: string, options: PrepareOptions): Promise<void> {
  const result = await sandbox.exec(['sh', '-c', 'printf "%s\\n" "$2" >> "$1/.git/shallow"', 'sh', guestPath, commit], inSandbox(options));
  if (result.exitCode !== 0)
    throw new HutchError({ code: 'failed_precondition', message: `.git/shallow cannot be written: ${lastLine(result.stderr)}` });
}

async function removeInside(sandbox: Sandbox, guestPath: string, paths: readonly string[], options: PrepareOptions): Promise<void> {
  if (paths.length === 0) return;
  const input = Buffer.from(paths.map((path) => `./${path}\0`).join(''), 'latin1');
  const result = await sandbox.exec(['sh', '-c', 'cd -- "$1" && xargs -0 rm -f --', 'sh', guestPath], { ...inSandbox(options), input });
  if (result.exitCode !== 0)
    throw new HutchError({
      code: 'failed_precondition',
      message: `files that are gone here could not be removed: ${lastLine(result.stderr)}`,
    });
}

/** Made by root, whoever is to have it: the home of the user need not be there, and `/work` is nobody's. */
async function makeGuestPath(sandbox: Sandbox, guestPath: string, options: PrepareOptions): Promise<void> {
  const own = await sandbox.exec(['sh', '-c', 'id -u && id -g'], inSandbox(options));
  const [uid = '0', gid = '0'] = own.stdout.trim().split('\n');
  if (uid === '0') return; // unpacking makes it
  // It may be there by now, and root's: as the working directory of the sandbox.
  const script = `mkdir -p -- "$1" && { ! ${IS_EMPTY} || chown -R -- "$2" "$1"; }`;
  const made = await sandbox.exec(['sh', '-c', script, 'sh', guestPath, `${uid}:${gid}`], { ...inSandbox(options), user: '0' });
  if (made.exitCode !== 0)
    throw new HutchError({
      code: 'failed_precondition',
      message: `${guestPath} cannot be made in ${sandbox.name}: ${lastLine(made.stderr)}`,
    });
}

/** `only`: what is copied where not everything is. */
function warningsOf({ skipped, submodules, unfetched, filtered }: Contents, only: ReadonlySet<string> | null = null): string[] {
  const moved = submodules.filter((path) => only?.has(Buffer.from(path).toString('latin1')) === true);
  return [
    ...skipped.slice(0, 10).map((path) => leftOut(path.toString('utf8'))),
    ...(unfetched.length === 0
      ? []
      : [`submodules that were not fetched here are empty there, too: ${unfetched.slice(0, 5).join(', ')}; git submodule update --init`]),
    ...(submodules.length === 0 ? [] : [`submodules travel as files, ${CHANGES_THERE}: ${submodules.slice(0, 5).join(', ')}`]),
    ...(moved.length === 0
      ? []
      : [
          `submodules that are at another commit here now stay as they were copied: ${moved.slice(0, 5).join(', ')}; --force copies all anew`,
        ]),
    ...(filtered.length === 0 ? [] : [`${filteredWords(filtered.length)} here, ${CHANGES_THERE}`]),
  ];
}

function leftOut(path: string): string {
  return path.endsWith('/')
    ? `left out: ${path} is a repository of its own; hutch cp copies it`
    : `left out: ${path} is no file, directory or link`;
}

const CHANGES_THERE = 'and what the sandbox changes there is told by diff and bring, and not brought back';

function filteredWords(count: number): string {
  return count === 1
    ? '1 file with a filter (as of LFS) travels as it lies'
    : `${count} files with a filter (as of LFS) travel as they lie`;
}

/** A file that was just written is easily missed in the sandbox. */
function untrackedWarnings(paths: readonly Buffer[]): string[] {
  if (paths.length === 0) return [];
  const names = paths.slice(0, 3).map((path) => path.toString('utf8'));
  return [
    `untracked, so left here: ${names.join(', ')}${paths.length > 3 ? ` and ${paths.length - 3} more` : ''}; --include-untracked takes them along`,
  ];
}

function tornWarnings(torn: readonly Buffer[]): string[] {
  if (torn.length === 0) return [];
  const names = torn.slice(0, 5).map((path) => path.toString('utf8'));
  return [`changed here while they were copied, so copy them again later: ${names.join(', ')}${torn.length > 5 ? ' and more' : ''}`];
}

async function* counted(chunks: AsyncIterable<Uint8Array>, onBytes: (bytes: number) => void): AsyncGenerator<Uint8Array, void, undefined> {
  let bytes = 0;
  for await (const chunk of chunks) {
    bytes += chunk.byteLength;
    onBytes(bytes);
    yield chunk;
  }
}
