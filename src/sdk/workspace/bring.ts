// What was done in a sandbox comes back as a branch or a patch. Everything from the sandbox is hostile: it arrives as a bundle,
// whose objects git checks one by one (fsck) in a repository of ours that has no hooks, filters or configuration; only then does
// a branch of the user's get them, and only one that loses nothing by it.
import { createWriteStream } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { HutchError } from '../../domain/errors.ts';
import type { Workspace } from '../../domain/sandbox.ts';
import type { Sandbox } from '../sandbox.ts';
import { unbundle } from './bundle.ts';
import { git, gitLine, INERT } from './git.ts';
import { inSandbox, lastLine } from './prepare.ts';
import { IDENTITY, lookAtRepository, type Repository } from './source.ts';

export type BringOptions = {
  /** Default: `hutch/NAME`, with a number where that has other commits. */
  readonly branch?: string;
  /** The repository here. Default: where it was copied from. */
  readonly into?: string;
  /** As whom git runs in the sandbox. Default: the sandbox's user. */
  readonly user?: string;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { readonly step: string; readonly bytes?: number }) => void;
};

export type Brought = {
  /** Null: nothing was changed in the sandbox. */
  readonly branch: string | null;
  readonly commit: string | null;
  /** Commits that were made in the sandbox on the branch that is checked out there. */
  readonly commits: number;
  /** Whether a commit of its own holds what was not committed there. */
  readonly hasUncommitted: boolean;
  readonly filesChanged: number;
  /** Other branches of the sandbox with commits that nothing else has. */
  readonly otherBranches: readonly string[];
};

/** Of branches with the same beginning. */
const NUMBERS_MAX = 100;
const BUNDLE_BYTES_MAX = 16 * 1024 * 1024 * 1024;

/**
 * By the sandbox's own git: commits what is not committed (with an index of its own: the sandbox's is not touched), and bundles
 * it with all branches. $1: the directory; $2: the commit that is there already, or nothing.
 */
const BUNDLE = `
cd -- "$1" || exit 3
command -v git >/dev/null 2>&1 || exit 4
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
has() { [ -e ".git/$1" ] || grep -q " $1$" .git/packed-refs 2>/dev/null; }
has refs/hutch/base || exit 5
set -e
index=$(mktemp)
trap 'rm -f "$index"' EXIT
if [ -s .git/index ]; then cp .git/index "$index"; else rm -f "$index"; fi
head=$(git rev-parse -q --verify HEAD || true)
GIT_INDEX_FILE=$index git -c core.fsmonitor=false add --all -- . >&2
tree=$(GIT_INDEX_FILE=$index git write-tree)
work=$(git commit-tree "$tree" \${head:+-p "$head"} -m "What was not committed in the sandbox")
{ echo "update refs/hutch/work $work"; [ -z "$head" ] || echo "update refs/hutch/head $head"; } |
  git -c core.hooksPath=/dev/null update-ref --stdin
refs="refs/hutch/work refs/hutch/base"
[ -z "$head" ] || refs="$refs refs/hutch/head"
! has refs/stash || refs="$refs refs/stash"
git bundle create --quiet - $refs --branches \${2:+"^$2"}
`;

/** Makes a branch here of what the sandbox has. @throws HutchError `conflict` when that branch would lose commits. */
export async function bringWorkspace(sandbox: Sandbox, options: BringOptions = {}): Promise<Brought> {
  const { signal } = options;
  const workspace = await workspaceOf(sandbox, signal);
  const repository = await lookAtRepository(options.into ?? workspace.sourcePath, signal);
  const named = options.branch;
  if (named !== undefined && (await git(['check-ref-format', '--branch', named], { cwd: repository.root, accepts: [1, 128] })).code !== 0)
    throw new HutchError({ code: 'invalid_argument', message: `branch: '${named}' is no name of a branch` });
  await using taken = await take(sandbox, workspace, repository, options);
  const { work, head, filesChanged } = taken;
  const inner = { cwd: taken.dir, signal, env: INERT };
  const hasCommits = head !== null && head !== workspace.headCommit;
  const commits = hasCommits
    ? Number(await gitLine(['rev-list', '--count', head, ...(workspace.headCommit === null ? [] : [`^${workspace.headCommit}`])], inner))
    : 0;
  const others = await othersOf(taken, workspace, signal);
  if (filesChanged === 0 && !hasCommits && others.length === 0)
    return { branch: null, commit: null, commits: 0, hasUncommitted: false, filesChanged: 0, otherBranches: [] };
  const headTree = head === null ? null : await gitLine(['rev-parse', `${head}^{tree}`], inner);
  const hasUncommitted =
    headTree !== (await gitLine(['rev-parse', `${work}^{tree}`], inner)) && !(hasCommits === false && filesChanged === 0);
  const tip = hasUncommitted || head === null ? work : head;
  const landed = filesChanged > 0 || hasCommits;
  const own = named ?? `hutch/${sandbox.name}`;
  const branch = landed ? await land(repository, taken.dir, tip, own, named === undefined, signal) : null;
  const otherBranches: string[] = [];
  for (const { name, commit } of others)
    otherBranches.push(await land(repository, taken.dir, commit, `${branch ?? own}-${name}`, named === undefined, signal));
  return { branch, commit: landed ? tip : null, commits, hasUncommitted, filesChanged, otherBranches };
}

/** What was changed in the sandbox since the files were copied in, as git shows it: a patch, or a summary. */
export async function diffWorkspace(
  sandbox: Sandbox,
  options: BringOptions & { readonly format?: 'patch' | 'stat' | 'names'; readonly color?: boolean } = {},
): Promise<Buffer> {
  const { signal, format = 'patch', color = false } = options;
  const workspace = await workspaceOf(sandbox, signal);
  const repository = await lookAtRepository(options.into ?? workspace.sourcePath, signal);
  await using taken = await take(sandbox, workspace, repository, options);
  const how = { patch: ['--binary', '--full-index'], stat: ['--stat=100'], names: ['--name-status'] }[format];
  const plain = ['--no-ext-diff', '--no-textconv', color ? '--color=always' : '--color=never', '--src-prefix=a/', '--dst-prefix=b/'];
  return (await git(['diff', ...plain, ...how, taken.base, taken.work], { cwd: taken.dir, signal, env: INERT })).stdout;
}

async function workspaceOf(sandbox: Sandbox, signal: AbortSignal | undefined): Promise<Workspace> {
  const { workspace } = await sandbox.refresh({ signal });
  if (workspace !== null) return workspace;
  throw new HutchError({
    code: 'failed_precondition',
    message: `no repository was copied into sandbox ${sandbox.name}`,
    hint: `copy one with: hutch workspace prepare ${sandbox.name}`,
  });
}

type Taken = AsyncDisposable & {
  /** A bare repository of ours, with the user's objects behind its own. */
  readonly dir: string;
  readonly work: string;
  readonly base: string;
  readonly head: string | null;
  readonly filesChanged: number;
};

/** Takes the bundle in and has git check it. */
async function take(sandbox: Sandbox, workspace: Workspace, repository: Repository, options: BringOptions): Promise<Taken> {
  const { signal, onProgress = () => {} } = options;
  const dir = await mkdtemp(join(tmpdir(), 'hutch-bring-'));
  const remove = async () => await rm(dir, { recursive: true, force: true });
  try {
    const known = workspace.headCommit !== null && (await isHere(repository, workspace.headCommit)) ? workspace.headCommit : null;
    if (workspace.headCommit !== null && known === null)
      throw new HutchError({
        code: 'failed_precondition',
        message: `${repository.root} has no commit ${workspace.headCommit.slice(0, 12)}, from which ${sandbox.name} began`,
        hint: 'name the repository that has it: hutch bring --into DIR',
      });
    onProgress({ step: 'bundling in the sandbox' });
    const bundle = join(dir, 'bundle');
    await download(sandbox, workspace, known, bundle, options);
    onProgress({ step: 'checking' });
    const format = await gitLine(['rev-parse', '--show-object-format'], { cwd: repository.root });
    const env = { ...INERT, ...IDENTITY };
    await git(['init', '--quiet', '--bare', '--template=', `--object-format=${format}`, '.'], { cwd: dir, signal, env });
    await writeFile(join(dir, 'objects/info/alternates'), `${join(repository.commonDir, 'objects')}\n`);
    const inner = { cwd: dir, signal, env };
    const refs = await unbundle(bundle, { dir, signal, env }).catch((error: unknown) => {
      if (!(error instanceof HutchError)) throw error;
      throw new HutchError({
        code: 'failed_precondition',
        message: `what ${sandbox.name} sent is refused: ${error.message}`,
        cause: error,
      });
    });
    const made = refs.map(({ ref, commit }) => `create ${ref.replace('refs/', 'refs/in/')}\0${commit}\0`).join('');
    await git(['update-ref', '-z', '--stdin'], { ...inner, input: made });
    await rm(bundle);
    const commitOf = async (ref: string) => {
      const found = await git(['rev-parse', '--verify', '--quiet', `${ref}^{commit}`], { ...inner, accepts: [1, 128] });
      return found.code === 0 ? found.stdout.toString().trim() : null;
    };
    const work = await commitOf('refs/in/hutch/work');
    // Its own word for what it began with is not believed: ours is.
    const base = (await isHere(repository, workspace.baseCommit)) ? workspace.baseCommit : await commitOf('refs/in/hutch/base');
    if (work === null || base === null)
      throw new HutchError({ code: 'failed_precondition', message: `what ${sandbox.name} sent has no commits of its own` });
    const names = (await git(['diff', '--no-ext-diff', '--no-renames', '--name-only', '-z', base, work], inner)).stdout;
    const filesChanged = names.filter((byte) => byte === 0).byteLength;
    return { dir, work, base, head: await commitOf('refs/in/hutch/head'), filesChanged, [Symbol.asyncDispose]: remove };
  } catch (error) {
    await remove();
    throw error;
  }
}

async function download(sandbox: Sandbox, workspace: Workspace, known: string | null, file: string, options: BringOptions): Promise<void> {
  const { signal, onProgress = () => {} } = options;
  // The same changes make the same commit, so that bringing them twice changes nothing.
  const date = `@${Math.floor(workspace.preparedAtMs / 1_000)} +0000`;
  const env = { ...IDENTITY, GIT_AUTHOR_DATE: date, GIT_COMMITTER_DATE: date };
  await using process = await sandbox.spawn(['sh', '-c', BUNDLE, 'sh', workspace.guestPath, known ?? ''], {
    ...inSandbox(options),
    env,
    stdin: 'null',
  });
  let stderr = '';
  const said = (async () => {
    for await (const chunk of process.stderr as AsyncIterable<Buffer>) if (stderr.length < 65_536) stderr += chunk.toString('utf8');
  })();
  let bytes = 0;
  await pipeline(
    process.stdout,
    async function* (chunks: AsyncIterable<Buffer>) {
      for await (const chunk of chunks) {
        bytes += chunk.byteLength;
        if (bytes > BUNDLE_BYTES_MAX)
          throw new HutchError({ code: 'resource_exhausted', message: `${sandbox.name} sends more than ${BUNDLE_BYTES_MAX} bytes` });
        onProgress({ step: 'bringing', bytes });
        yield chunk;
      }
    },
    createWriteStream(file, { mode: 0o600 }),
    ...(signal === undefined ? [] : [{ signal }]),
  );
  const [{ exitCode }] = await Promise.all([process.exit, said]);
  const { guestPath } = workspace;
  if (exitCode === 3) throw new HutchError({ code: 'not_found', message: `${guestPath} is not in ${sandbox.name} any more` });
  if (exitCode === 4)
    throw new HutchError({
      code: 'failed_precondition',
      message: `there is no git in ${sandbox.name}`,
      hint: `install it there, or copy files with: hutch cp ${sandbox.name}:${guestPath} .`,
    });
  if (exitCode === 5)
    throw new HutchError({ code: 'failed_precondition', message: `${guestPath} in ${sandbox.name} is not what was copied in any more` });
  if (exitCode !== 0)
    throw new HutchError({
      code: 'failed_precondition',
      message: `git in ${sandbox.name} failed: ${lastLine(stderr).replace(/^(?:fatal|error): /, '') || `it ended with ${exitCode}`}`,
    });
}

async function isHere(repository: Repository, commit: string): Promise<boolean> {
  return (await git(['cat-file', '-e', `${commit}^{commit}`], { cwd: repository.root, accepts: [1, 128] })).code === 0;
}

/** Branches and the stash with commits that neither the user's repository nor the brought branch has. */
async function othersOf(
  taken: Taken,
  workspace: Workspace,
  signal: AbortSignal | undefined,
): Promise<readonly { readonly name: string; readonly commit: string }[]> {
  const inner = { cwd: taken.dir, signal, env: INERT };
  const known = [taken.head, workspace.headCommit, taken.base, taken.work]
    .filter((commit) => commit !== null)
    .map((commit) => `^${commit}`);
  const refs = await gitLine(['for-each-ref', '--format=%(objectname) %(objecttype) %(refname)', 'refs/in/heads', 'refs/in/stash'], inner);
  const found: { name: string; commit: string }[] = [];
  for (const line of refs.split('\n').filter((text) => text !== '')) {
    const [commit = '', type = '', ref = ''] = line.split(' ');
    if (type !== 'commit') continue;
    if ((await gitLine(['rev-list', '--count', commit, ...known], inner)) === '0') continue;
    found.push({ name: ref.replace(/^refs\/in\/(?:heads\/)?/, ''), commit });
  }
  return found;
}

/**
 * Without `+` git refuses what would lose commits, and a branch that is checked out; then a name that is ours gets a number.
 * Returns the branch that has the commit.
 */
async function land(
  repository: Repository,
  from: string,
  commit: string,
  wanted: string,
  mayNumber: boolean,
  signal: AbortSignal | undefined,
): Promise<string> {
  const quiet = ['-c', 'gc.auto=0', '-c', 'maintenance.auto=false', '-c', 'core.hooksPath=/dev/null', '-c', 'protocol.file.allow=always'];
  await git(['update-ref', 'refs/heads/out', commit], { cwd: from, signal, env: INERT });
  for (let nth = 1; ; nth += 1) {
    const branch = nth === 1 ? wanted : `${wanted}-${nth}`;
    const args = ['fetch', '--no-tags', '--no-write-fetch-head', '--no-recurse-submodules', from, `refs/heads/out:refs/heads/${branch}`];
    const result = await git([...quiet, ...args], { cwd: repository.root, signal, accepts: [1, 128, 255] });
    if (result.code === 0) return branch;
    const checkedOut = /refusing to fetch into/.test(result.stderr);
    const refused = checkedOut || /rejected/.test(result.stderr);
    if (refused && mayNumber && nth < NUMBERS_MAX) continue;
    const why = checkedOut
      ? 'is checked out here'
      : refused
        ? 'is here and has commits that would be lost'
        : `cannot be made: ${lastLine(result.stderr)}`;
    throw new HutchError({ code: 'conflict', message: `branch ${branch} ${why}`, hint: 'choose another name: hutch bring --branch NAME' });
  }
}
