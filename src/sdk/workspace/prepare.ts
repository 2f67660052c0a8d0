// A git repository of the client's becomes a directory of the sandbox, and is brought up to date there later. The sandbox's
// own changes are never overwritten: where both sides changed a file, nothing is done and the files are named.
import { HutchError } from '../../domain/errors.ts';
import type { Workspace } from '../../domain/sandbox.ts';
import type { Output } from '../../services/verbs.ts';
import type { Sandbox } from '../sandbox.ts';
import { git } from './git.ts';
import { makeGuestGit } from './guest-git.ts';
import { baseOf, type Contents, listContents, lookAtRepository, type Mode, type Repository, type SourceFile, split } from './source.ts';
import { tarOf } from './tar.ts';

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
  return {
    repository,
    mode,
    includeUntracked,
    contents,
    bytes: contents.files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    warnings: warningsOf(contents),
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
  const before = (await sandbox.refresh({ signal })).workspace;
  onProgress({ step: 'looking at the repository' });
  const plan = await planWorkspace(path, {
    ...options,
    mode: options.mode ?? before?.mode ?? 'shallow_overlay',
    includeUntracked: options.includeUntracked ?? before?.includesUntracked ?? false,
  });
  const { repository, mode, includeUntracked } = plan;
  const guestPath = options.guestPath ?? before?.guestPath ?? defaultGuestPath(repository);
  if (!guestPath.startsWith('/'))
    throw new HutchError({ code: 'invalid_argument', message: `guestPath: '${guestPath}' does not begin with /` });
  await using base = await baseOf(repository, { includeUntracked, mode }, signal);
  const baseCommit = base.commit;
  const again = before !== null && before.guestPath === guestPath && options.force !== true ? before : null;
  const changes = again === null ? null : await changesSince(sandbox, repository, again, baseCommit, signal);
  if (again === null || changes === null) await refuseOccupied(sandbox, guestPath, options);
  else await refuseConflicts(sandbox, again, changes, options);
  await using staged = await makeGuestGit(repository, { mode, base, contents: plan.contents, before: again }, signal);
  const files = changes === null ? plan.contents.files : onlyChanged(plan.contents.files, changes);
  onProgress({ step: 'copying' });
  await makeGuestPath(sandbox, guestPath, options);
  const as = options.user === undefined ? {} : { user: options.user };
  // Its index and refs are replaced; objects that are there already stay.
  const tar = counted(tarOf({ whole: { dir: staged.dir, name: '.git' }, dir: repository.root, files }, signal), (bytes) =>
    onProgress({ step: 'copying', bytes }),
  );
  const { bytes } = await sandbox.files.unpack(guestPath, tar, { ...as, mkdirs: true, signal });
  if (changes !== null) await removeInside(sandbox, guestPath, changes.deleted, options);
  if (staged.alsoShallow !== null) await growShallow(sandbox, guestPath, staged.alsoShallow, options);
  const workspace: Omit<Workspace, 'preparedAtMs'> = {
    ...{ sourcePath: repository.sourcePath, repoRoot: repository.root, repoName: repository.name, guestPath, mode },
    ...{ includesUntracked: includeUntracked, headCommit: repository.headCommit, branch: repository.branch, baseCommit },
  };
  const recorded = await sandbox.recordWorkspace(workspace, { signal });
  return { workspace: recorded, files: files.length, bytes, incremental: changes !== null, warnings: plan.warnings };
}

/** Whether the repository's HEAD is another one than when it was copied: what `exec --auto-prepare` goes by. */
export async function hasMoved(workspace: Pick<Workspace, 'sourcePath' | 'headCommit'>, signal?: AbortSignal): Promise<boolean> {
  const { headCommit } = await lookAtRepository(workspace.sourcePath, signal);
  return headCommit !== workspace.headCommit;
}

type Changes = { readonly changed: ReadonlySet<string>; readonly deleted: readonly Buffer[] };

/** By the two commits that stand for what was and is to be there. */
async function changesSince(
  sandbox: Sandbox,
  repository: Repository,
  before: Workspace,
  baseCommit: string,
  signal?: AbortSignal,
): Promise<Changes> {
  const at = { cwd: repository.root, signal };
  // No ref holds it, so that none is left behind in the repository: git keeps it for two weeks at least.
  if ((await git(['cat-file', '-e', `${before.baseCommit}^{commit}`], { ...at, accepts: [1, 128] })).code !== 0)
    throw new HutchError({
      code: 'conflict',
      message: `what was copied into ${sandbox.name} is not known here any more, so what has changed since cannot be told`,
      hint: `bring back what was done there: hutch bring ${sandbox.name}; then copy anew with --force`,
    });
  const fields = split(await git(['diff-tree', '-r', '-z', '--no-renames', '--name-status', before.baseCommit, baseCommit], at));
  const changed = new Set<string>();
  const deleted: Buffer[] = [];
  for (let nth = 0; nth + 1 < fields.length; nth += 2) {
    const path = fields[nth + 1];
    if (path === undefined) continue;
    if (fields[nth]?.toString() === 'D') deleted.push(path);
    else changed.add(path.toString('latin1'));
  }
  return { changed, deleted };
}

function onlyChanged(files: readonly SourceFile[], { changed }: Changes): readonly SourceFile[] {
  return files.filter(({ path }) => changed.has(path.toString('latin1')));
}

/** What the sandbox has changed since, by its own git. Its answer is only ever compared with names of ours. */
const CHANGED_INSIDE = `
cd -- "$1" || exit 3
command -v git >/dev/null 2>&1 || exit 4
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
git rev-parse -q --verify HEAD || echo none
[ -z "$2" ] || git rev-parse -q --verify "refs/heads/$2" || :
echo .
git diff --no-ext-diff --no-renames --name-only -z refs/hutch/base -- . && git ls-files -z --others --exclude-standard
`;

async function refuseConflicts(sandbox: Sandbox, before: Workspace, { changed, deleted }: Changes, options: PrepareOptions): Promise<void> {
  const result = await sandbox.exec(['sh', '-c', CHANGED_INSIDE, 'sh', before.guestPath, before.branch ?? ''], inSandbox(options));
  if (result.exitCode === 4) return; // without git nobody can have committed there; what is ours is laid over what was ours
  if (result.exitCode === 3) throw gone(sandbox, before);
  if (result.exitCode !== 0)
    throw new HutchError({
      code: 'failed_precondition',
      message: `git in the sandbox failed: ${lastLine(result.stderr)}`,
      hint: 'copy it anew with --force',
    });
  const end = result.stdoutBuffer.indexOf('\n.\n');
  const commits = result.stdoutBuffer.subarray(0, end).toString().split('\n');
  if (commits.some((commit) => commit !== (before.headCommit ?? 'none')))
    throw new HutchError({
      code: 'conflict',
      message: `${before.guestPath} in ${sandbox.name} has commits of its own`,
      hint: `bring them back first: hutch bring ${sandbox.name}; or overwrite the files with --force`,
    });
  const ours = new Set([...changed, ...deleted.map((path) => path.toString('latin1'))]);
  const both = split({ stdout: result.stdoutBuffer.subarray(end + 3) }).filter((path) => ours.has(path.toString('latin1')));
  if (both.length === 0) return;
  const names = both.slice(0, 5).map((path) => path.toString('utf8'));
  throw new HutchError({
    code: 'conflict',
    message: `changed here and in ${sandbox.name}: ${names.join(', ')}${both.length > names.length ? ` and ${both.length - names.length} more` : ''}`,
    hint: `bring the sandbox's back first: hutch bring ${sandbox.name}; or overwrite them with --force`,
  });
}

async function refuseOccupied(sandbox: Sandbox, guestPath: string, options: PrepareOptions): Promise<void> {
  if (options.force === true) return;
  const found = await sandbox.exec(['sh', '-c', '[ ! -e "$1" ] || [ -z "$(ls -A -- "$1")" ]', 'sh', guestPath], inSandbox(options));
  if (found.exitCode === 0) return;
  throw new HutchError({
    code: 'conflict',
    message: `${guestPath} in ${sandbox.name} is not empty`,
    hint: 'choose another place with --path, or overwrite with --force',
  });
}

/** The history of the repository was rewritten: the new commit's parents are not there, either. */
async function growShallow(sandbox: Sandbox, guestPath: string, commit: string, options: PrepareOptions): Promise<void> {
  const result = await sandbox.exec(['sh', '-c', 'printf "%s\\n" "$2" >> "$1/.git/shallow"', 'sh', guestPath, commit], inSandbox(options));
  if (result.exitCode !== 0)
    throw new HutchError({ code: 'failed_precondition', message: `.git/shallow cannot be written: ${lastLine(result.stderr)}` });
}

async function removeInside(sandbox: Sandbox, guestPath: string, paths: readonly Buffer[], options: PrepareOptions): Promise<void> {
  if (paths.length === 0) return;
  const input = Buffer.concat(paths.flatMap((path) => [Buffer.from('./'), path, Buffer.of(0)]));
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
  const script = '[ -d "$1" ] || { mkdir -p -- "$1" && chown -- "$2" "$1"; }';
  const made = await sandbox.exec(['sh', '-c', script, 'sh', guestPath, `${uid}:${gid}`], { ...inSandbox(options), user: '0' });
  if (made.exitCode !== 0)
    throw new HutchError({
      code: 'failed_precondition',
      message: `${guestPath} cannot be made in ${sandbox.name}: ${lastLine(made.stderr)}`,
    });
}

/** Where nothing is said, as the sandbox's user and from the root: the workspace may be its working directory, and not there yet. */
export function inSandbox({ user, signal }: { readonly user?: string; readonly signal?: AbortSignal }) {
  return { cwd: '/', ...(user === undefined ? {} : { user }), ...(signal === undefined ? {} : { signal }) };
}

function gone(sandbox: Sandbox, { guestPath }: Workspace): HutchError {
  return new HutchError({
    code: 'not_found',
    message: `${guestPath} is not in ${sandbox.name} any more`,
    hint: 'copy it anew with --force',
  });
}

export function lastLine(text: string): string {
  return text.trim().split('\n').at(-1)?.slice(0, 500) ?? '';
}

function warningsOf({ missing: _, skipped, submodules, filtered }: Contents): string[] {
  return [
    ...skipped.slice(0, 10).map((path) => `left out: ${path.toString('utf8')} is no file, directory or link of this repository`),
    ...(submodules.length === 0
      ? []
      : [`submodules travel as files; changes in them are not brought back: ${submodules.slice(0, 5).join(', ')}`]),
    ...(filtered.length === 0
      ? []
      : [
          `${filtered.length} ${filtered.length === 1 ? 'file' : 'files'} with a filter (as of LFS) travel as they lie here; changes in them are not brought back`,
        ]),
  ];
}

async function* counted(chunks: AsyncIterable<Uint8Array>, onBytes: (bytes: number) => void): AsyncGenerator<Uint8Array, void, undefined> {
  let bytes = 0;
  for await (const chunk of chunks) {
    bytes += chunk.byteLength;
    onBytes(bytes);
    yield chunk;
  }
}
