// What was done in a sandbox comes back as a branch or a patch. Everything from the sandbox is hostile: it arrives as a bundle,
// whose objects git checks one by one (fsck) in a repository of ours that has no hooks, filters or configuration; only then does
// a branch of the user's get them, and only one that loses nothing by it.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import type { Workspace } from '../../domain/sandbox.ts';
import type { Sandbox } from '../sandbox.ts';
import { unbundle } from './bundle.ts';
import { type GitOptions, git, gitLine, INERT } from './git.ts';
import { bothOrFail, lastLine } from './inside.ts';
import { downloadBundle } from './sent.ts';
import { IDENTITY, isHere, lookAtRepository, type Repository, split } from './source.ts';

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
  /** Other branches, tags and stashes of the sandbox with commits that nothing else has. */
  readonly otherBranches: readonly string[];
  /** What stays in the sandbox, such as what lies in a repository of its own. */
  readonly warnings: readonly string[];
};

/** Of branches with the same beginning. */
const NUMBERS_MAX = 100;

/** Makes a branch here of what the sandbox has. @throws HutchError `conflict` when that branch would lose commits. */
export async function bringWorkspace(sandbox: Sandbox, options: BringOptions = {}): Promise<Brought> {
  const { signal } = options;
  const workspace = await workspaceOf(sandbox, signal);
  const repository = await lookAtRepository(options.into ?? workspace.sourcePath, signal);
  const named = options.branch;
  if (named !== undefined && (await git(['check-ref-format', '--branch', named], { cwd: repository.root, accepts: [1, 128] })).code !== 0)
    throw new HutchError({ code: 'invalid_argument', message: `branch: '${named}' is no name of a branch` });
  await using taken = await take(sandbox, workspace, repository, options);
  const { work, head, filesChanged, warnings } = taken;
  const inner = { cwd: taken.dir, signal, env: INERT };
  const hasCommits = head !== null && head !== workspace.headCommit;
  const count = [
    'rev-list',
    '--count',
    ...(head === null ? [] : [head]),
    ...(workspace.headCommit === null ? [] : [`^${workspace.headCommit}`]),
  ];
  const [commits, others, trees] = await Promise.all([
    hasCommits ? Number(await gitLine(count, inner)) : 0,
    othersOf(taken, workspace, signal),
    head === null || head === work ? [] : (await gitLine(['rev-parse', `${head}^{tree}`, `${work}^{tree}`], inner)).split('\n'),
  ]);
  const nothing = { branch: null, commit: null, commits: 0, hasUncommitted: false, filesChanged: 0, otherBranches: [], warnings };
  if (filesChanged === 0 && !hasCommits && others.length === 0) return nothing;
  const isAllCommitted = head === work || (head !== null && trees[0] === trees[1]);
  const hasUncommitted = !isAllCommitted && (hasCommits || filesChanged > 0);
  const tip = hasUncommitted || head === null ? work : head;
  const landed = filesChanged > 0 || hasCommits;
  const own = named ?? `hutch/${sandbox.name}`;
  const branch = landed ? await land(repository, taken.dir, tip, own, named === undefined, signal) : null;
  const otherBranches: string[] = [];
  for (const { name, commit } of others)
    otherBranches.push(await land(repository, taken.dir, commit, `${branch ?? own}-${name}`, named === undefined, signal));
  return { branch, commit: landed ? tip : null, commits, hasUncommitted, filesChanged, otherBranches, warnings };
}

/** What was changed in the sandbox since the files were copied in, as git shows it: a patch, or a summary. */
export async function diffWorkspace(
  sandbox: Sandbox,
  options: BringOptions & {
    /** `entries`: as `names`, with a NUL byte behind each field, and names as they are. */
    readonly format?: 'patch' | 'stat' | 'names' | 'entries';
    readonly color?: boolean;
    /** Is told of what was changed there and is not shown. */
    readonly onWarning?: (text: string) => void;
  } = {},
): Promise<Buffer> {
  const { signal, format = 'patch', color = false, onWarning = () => {} } = options;
  const workspace = await workspaceOf(sandbox, signal);
  const repository = await lookAtRepository(options.into ?? workspace.sourcePath, signal);
  await using taken = await take(sandbox, workspace, repository, options);
  taken.warnings.forEach(onWarning);
  const how = { patch: ['--binary', '--full-index'], stat: ['--stat=100'], names: ['--name-status'], entries: ['--name-status', '-z'] }[
    format
  ];
  const plain = ['--no-ext-diff', '--no-textconv', color ? '--color=always' : '--color=never', '--src-prefix=a/', '--dst-prefix=b/'];
  // Letters of other languages are to be read, where no program reads it.
  const names = format === 'patch' ? [] : ['-c', 'core.quotePath=false'];
  return (await git([...names, 'diff', ...plain, ...how, taken.base, taken.work], { cwd: taken.dir, signal, env: INERT })).stdout;
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
  readonly warnings: readonly string[];
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
    const env = { ...INERT, ...IDENTITY };
    const [said, isBaseHere] = await bothOrFail(
      downloadBundle(sandbox, workspace, { known, file: bundle, user: options.user, signal, onProgress }),
      emptyRepository(repository, dir, env, signal).then(() => isHere(repository, workspace.baseCommit)),
    );
    onProgress({ step: 'checking' });
    const refs = await unbundle(bundle, { dir, signal, env }).catch((error: unknown) => {
      if (!(error instanceof HutchError)) throw error;
      throw new HutchError({
        code: 'failed_precondition',
        message: `what ${sandbox.name} sent is refused: ${error.message}`,
        cause: error,
      });
    });
    // Where everything is committed, HEAD alone says it.
    const all = refs.flatMap(({ ref, commit }) =>
      ref === 'HEAD' ? ['work', 'head'].map((name) => ({ ref: `refs/hutch/${name}`, commit })) : [{ ref, commit }],
    );
    const inner = { cwd: dir, signal, env };
    const made = all.map(({ ref, commit }) => `create ${ref.replace('refs/', 'refs/in/')}\0${commit}\0`).join('');
    await git(['update-ref', '-z', '--stdin'], { ...inner, input: made });
    const commits = await commitsOf(['refs/in/hutch/work', 'refs/in/hutch/head', 'refs/in/hutch/base'], inner);
    const [work = null, head = null, theirs = null] = commits;
    // Its own word for what it began with is not believed: ours is.
    const base = isBaseHere ? workspace.baseCommit : theirs;
    if (work === null || base === null)
      throw new HutchError({ code: 'failed_precondition', message: `what ${sandbox.name} sent has no commits of its own` });
    const raw = split(await git(['diff', '--no-ext-diff', '--no-renames', '--raw', '--no-abbrev', '-z', base, work], inner));
    const filesChanged = raw.length / 2;
    return { dir, work, base, head, filesChanged, warnings: [...said, ...repositoriesIn(raw)], [Symbol.asyncDispose]: remove };
  } catch (error) {
    await remove();
    throw error;
  }
}

/** Bare, ours, and with the user's objects behind its own. */
async function emptyRepository(
  repository: Repository,
  dir: string,
  env: Readonly<Record<string, string>>,
  signal: AbortSignal | undefined,
): Promise<void> {
  const format = await gitLine(['rev-parse', '--show-object-format'], { cwd: repository.root });
  await git(['init', '--quiet', '--bare', '--template=', `--object-format=${format}`, '.'], { cwd: dir, signal, env });
  await writeFile(join(dir, 'objects/info/alternates'), `${join(repository.commonDir, 'objects')}\n`);
}

/** Null: there is no such commit. */
async function commitsOf(names: readonly string[], at: GitOptions): Promise<readonly (string | null)[]> {
  const input = names.map((name) => `${name}^{commit}\n`).join('');
  const lines = (await gitLine(['cat-file', '--batch-check=%(objectname) %(objecttype)'], { ...at, input })).split('\n');
  return lines.map((line) => /^([0-9a-f]+) commit$/.exec(line)?.[1] ?? null);
}

/** What git keeps of a repository within the repository is which commit it is at: nothing of what lies in it comes along. */
function repositoriesIn(raw: readonly Buffer[]): string[] {
  const names: string[] = [];
  for (let nth = 0; nth + 1 < raw.length; nth += 2)
    if (/^:\d{6} 160000 /.test(raw[nth]?.toString('latin1') ?? '')) names.push(raw[nth + 1]?.toString('utf8') ?? '');
  if (names.length === 0) return [];
  const shown = `${names.slice(0, 5).join(', ')}${names.length > 5 ? ` and ${names.length - 5} more` : ''}`;
  return [`a repository of its own, so what was done in it stays in the sandbox: ${shown}`];
}

/** Branches, tags and stashes with commits that neither the user's repository nor the brought branch has. */
async function othersOf(
  taken: Taken,
  workspace: Workspace,
  signal: AbortSignal | undefined,
): Promise<readonly { readonly name: string; readonly commit: string }[]> {
  const inner = { cwd: taken.dir, signal, env: INERT };
  const known = [taken.head, workspace.headCommit, taken.base, taken.work]
    .filter((commit) => commit !== null)
    .map((commit) => `^${commit}`);
  const places = ['refs/in/heads', 'refs/in/tags', 'refs/in/stash', 'refs/in/hutch'];
  const format = '--format=%(objecttype) %(objectname) %(*objecttype) %(*objectname) %(refname)';
  const lines = (await gitLine(['for-each-ref', format, ...places], inner)).split('\n').filter((text) => text !== '');
  const found = new Map<string, string>();
  for (const line of lines) {
    const [, commit, ref] = /^(?:tag [0-9a-f]+ )?commit ([0-9a-f]+) +(refs\/.+)$/.exec(line) ?? [];
    // A tag or a stash with what a branch has is the branch.
    if (commit === undefined || ref === undefined || found.has(commit) || /^refs\/in\/hutch\/(?!stash-)/.test(ref)) continue;
    if ((await gitLine(['rev-list', '--count', commit, ...known], inner)) === '0') continue;
    found.set(commit, ref.replace(/^refs\/in\/(?:heads\/|tags\/|hutch\/)?/, ''));
  }
  return [...found].map(([commit, name]) => ({ name, commit }));
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
