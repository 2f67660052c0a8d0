// What has changed here since a repository was copied, and whether the sandbox has changed the same: its own work is never
// overwritten, but where it has been brought back and is in the history of HEAD here. What it answers is only ever compared with
// names and hashes of ours, or looked up here as the hash that it has the form of.
import { isUtf8 } from 'node:buffer';
import { HutchError } from '../../domain/errors.ts';
import type { Sandbox } from '../sandbox.ts';
import { git } from './git.ts';
import { BARE_GIT, inSandbox, lastLine, type Recorded } from './inside.ts';
import { isHere, type Repository, split } from './source.ts';
import { HAS_UNSEEN, UNSEEN, unseenName } from './unseen.ts';

/** By names as latin1, so that each byte is a character. */
export type Changes = {
  readonly changed: ReadonlyMap<string, Blobs>;
  readonly deleted: ReadonlyMap<string, Blobs>;
};
/** What the sandbox may have of a file without having changed it: what was copied, and what is to be, where a copy was cut short. */
type Blobs = readonly string[];

export type Since = {
  /** What stands for what is to be there. */
  readonly baseCommit: string;
  /** To be copied in any case. */
  readonly torn: readonly Buffer[];
  /** Commits of the sandbox's that are in the history of HEAD here: it may be at them. */
  readonly merged: readonly string[];
};

/** By the commits that stand for what was and is to be there. */
export async function changesSince(
  sandbox: Sandbox,
  repository: Repository,
  before: Recorded,
  { baseCommit, torn, merged }: Since,
  signal?: AbortSignal,
): Promise<Changes> {
  const at = { cwd: repository.root, signal };
  // No ref holds it, so that none is left behind in the repository: git keeps it for two weeks at least.
  if (!(await isHere(repository, before.baseCommit, signal)))
    throw new HutchError({
      code: 'conflict',
      message: `what was copied into ${sandbox.name} is not known here any more, so what has changed since cannot be told`,
      hint: `bring back what was done there: hutch bring ${sandbox.name}; then copy anew with --force`,
    });
  const changed = new Map<string, Blobs>(torn.map((path) => [path.toString('latin1'), []]));
  const deleted = new Map<string, Blobs>();
  for (const since of [before.baseCommit, ...merged]) {
    const raw = await git(['diff-tree', '-r', '-z', '--no-renames', '--raw', '--no-abbrev', since, baseCommit], at);
    for (const { path, blobs, isGone } of changesIn(split(raw))) {
      const into = isGone ? deleted : changed;
      into.set(path, [...(into.get(path) ?? []), ...blobs]);
    }
  }
  return { changed, deleted };
}

/** Of what git says with `--raw -z`. */
function* changesIn(
  fields: readonly Buffer[],
): Generator<{ readonly path: string; readonly blobs: Blobs; readonly isGone: boolean }, void, undefined> {
  for (let nth = 0; nth + 1 < fields.length; nth += 2) {
    const path = fields[nth + 1]?.toString('latin1') ?? '';
    const [from = '', to = '', was = '', is = '', status] = (fields[nth]?.toString('latin1') ?? '').split(' ');
    // Of links git has what they lead to, and of submodules a commit.
    const blobs = [from.startsWith(':100') ? [was] : [], to.startsWith('100') ? [is] : []].flat();
    yield { path, blobs, isGone: status === 'D' };
  }
}

/** Its answers are told apart by a name that no file has. */
const CHANGED_INSIDE = `
cd -- "$1" || exit 3
command -v git >/dev/null 2>&1 || exit 4
${BARE_GIT}
export GIT_LITERAL_PATHSPECS=1
branch=$2 where=$3
shift 3
read -r head < .git/HEAD
git rev-parse -q --verify HEAD || echo none
[ -z "$branch" ] || [ "$head" = "ref: refs/heads/$branch" ] || git rev-parse -q --verify "refs/heads/$branch" || :
echo .
[ "$where" != nowhere ] || exit 0
git diff --no-ext-diff --no-renames --ignore-submodules=all --name-only -z refs/hutch/base -- "$@" &&
  printf '//\\0' && git ls-files -z --others -- "$@" || exit 1
${UNSEEN}
printf '//\\0'
! ${HAS_UNSEEN} || unseen | tr '\\n' '\\0'
`;

/** More are not named to the sandbox: it looks everywhere. To look at a few takes it no time, however many there are. */
const NAMED_MAX = 500;
const NAMED_BYTES_MAX = 65_536;

/** Where the sandbox need look: an argument list of where, and the paths. */
function whereToLook({ changed, deleted }: Changes): readonly string[] {
  const paths = [...changed.keys(), ...deleted.keys()].map((path) => Buffer.from(path, 'latin1'));
  if (paths.length === 0) return ['nowhere'];
  const bytes = paths.reduce((sum, path) => sum + path.byteLength, 0);
  // Arguments are text, and names need not be.
  return paths.length > NAMED_MAX || bytes > NAMED_BYTES_MAX || !paths.every(isUtf8)
    ? ['everywhere', '.']
    : ['at', ...paths.map((path) => path.toString('utf8'))];
}

type As = { readonly user?: string; readonly signal?: AbortSignal };

/**
 * Gives commits that the sandbox is at, that came from it and are in the history of HEAD here: where there are any, what has changed
 * is to be looked at once more (`Since.merged`). @throws HutchError `conflict` that names what both have changed.
 */
export async function refuseConflicts(
  sandbox: Sandbox,
  before: Recorded,
  now: Repository,
  { changes, merged }: { readonly changes: Changes; readonly merged: readonly string[] },
  as: As,
): Promise<readonly string[]> {
  const args = [before.guestPath, before.branch ?? '', ...whereToLook(changes)];
  const result = await sandbox.exec(['sh', '-c', CHANGED_INSIDE, 'sh', ...args], inSandbox(as));
  if (result.exitCode === 4) return []; // without git nobody can have committed there; what is ours is laid over what was ours
  if (result.exitCode === 3)
    throw new HutchError({
      code: 'not_found',
      message: `${before.guestPath} is not in ${sandbox.name} any more`,
      hint: 'copy it anew with --force',
    });
  if (result.exitCode !== 0) throw failed(result.stderr);
  const end = result.stdoutBuffer.indexOf('\n.\n');
  const commits = result.stdoutBuffer.subarray(0, end).toString().split('\n');
  // Where a copy was cut short, what this one brings may be there already.
  const ours = [before.headCommit ?? 'none', now.headCommit, ...merged];
  const own = commits.filter((commit) => !ours.includes(commit));
  if (own.length > 0) {
    if (merged.length === 0 && (await areMerged(own, now, as.signal))) return own;
    throw await ownCommits(sandbox, before, now, own, as.signal);
  }
  const names = split({ stdout: result.stdoutBuffer.subarray(end + 3) }).map((path) => path.toString('latin1'));
  const [at, last] = [names.indexOf('//'), names.lastIndexOf('//')];
  const answer = { differs: names.slice(0, at), unknown: names.slice(at + 1, last) };
  // What its git does not see is taken at its own word: it would be overwritten.
  const unseen = names
    .slice(last + 1)
    .map(unseenName)
    .filter((path) => changes.changed.has(path));
  const both = [...new Set([...(await reallyChanged(sandbox, before, now, { answer, changes }, as)), ...unseen])];
  if (both.length === 0) return [];
  const shown = both.slice(0, 5).map((path) => Buffer.from(path, 'latin1').toString('utf8'));
  throw new HutchError({
    code: 'conflict',
    message: `changed here and in ${sandbox.name}: ${shown.join(', ')}${both.length > shown.length ? ` and ${both.length - shown.length} more` : ''}`,
    hint:
      before.mode === 'metadata_only'
        ? `no files are copied (metadata_only): bring the sandbox's back with hutch bring ${sandbox.name}, or remove them there`
        : `bring the sandbox's back, and merge that: hutch bring ${sandbox.name}; or overwrite them with --force`,
  });
}

const COMMIT = /^(?:[0-9a-f]{40}|[0-9a-f]{64})$/;

/** Brought back, and part of what HEAD is by now: nothing of them is lost where it goes on from HEAD. */
async function areMerged(commits: readonly string[], { root, headCommit }: Repository, signal: AbortSignal | undefined): Promise<boolean> {
  if (headCommit === null) return false;
  for (const commit of commits) {
    if (!COMMIT.test(commit)) return false;
    const how = { cwd: root, signal, accepts: [1, 128] }; // 128: it is not here
    if ((await git(['merge-base', '--is-ancestor', commit, headCommit], how)).code !== 0) return false;
  }
  return true;
}

async function ownCommits(
  sandbox: Sandbox,
  { guestPath }: Recorded,
  { root }: Repository,
  commits: readonly string[],
  signal: AbortSignal | undefined,
): Promise<HutchError> {
  const [commit = '', ...others] = new Set(commits);
  const asked = ['for-each-ref', '--count=1', '--format=%(refname:short)', `--contains=${commit}`, 'refs/heads'];
  // 129: it is not here.
  const isAsked = COMMIT.test(commit) && others.length === 0;
  const found = isAsked ? await git(asked, { cwd: root, signal, accepts: [128, 129] }) : null;
  const branch = found?.code === 0 ? found.stdout.toString('utf8').trim() : '';
  return new HutchError({
    code: 'conflict',
    message: `${guestPath} in ${sandbox.name} has commits of its own`,
    hint:
      branch === ''
        ? `bring them back, and merge them: hutch bring ${sandbox.name}; or overwrite the files with --force`
        : `they are here, on branch ${branch}: merge it; or overwrite the files with --force`,
  });
}

type Answer = { readonly differs: readonly string[]; readonly unknown: readonly string[] };

/**
 * `differs`: from the commit that was copied. `unknown`: there, and not in the sandbox's index; a file that was copied and is in no
 * commit here is both, as git sees it. Of these the bytes are asked for, and say whether anybody has changed anything.
 */
async function reallyChanged(
  sandbox: Sandbox,
  before: Recorded,
  now: Repository,
  { answer, changes: { changed, deleted } }: { readonly answer: Answer; readonly changes: Changes },
  as: As,
): Promise<readonly string[]> {
  // What was checked out there nobody brings up to date: it would look as if the sandbox had taken our change back.
  const isWithoutFiles = before.mode === 'metadata_only';
  const suspects = isWithoutFiles
    ? [...changed.keys(), ...deleted.keys()]
    : [...new Set([...answer.differs, ...answer.unknown])].filter((path) => changed.has(path) || deleted.has(path));
  const readable = suspects.filter((path) => !path.includes('\n') && !path.startsWith('"'));
  const there = await blobsOf(sandbox, before, readable, as);
  const isOurs = (path: string): boolean => {
    const blob = there.get(path);
    if (isWithoutFiles) return blob === null;
    if (blob === undefined) return false;
    return blob === null ? deleted.has(path) : (changed.get(path) ?? deleted.get(path) ?? []).includes(blob);
  };
  const others = suspects.filter((path) => !isOurs(path));
  if (others.length === 0 || isWithoutFiles) return others;
  const past = await versionsHere(before, now, others, as.signal);
  return others.filter((path) => !(past.get(path) ?? []).includes(there.get(path) ?? ''));
}

/** Each version that a file had here since it was copied: who has one of them has what was brought back, and gone on from here. */
async function versionsHere(
  { headCommit: since }: Recorded,
  { root, headCommit }: Repository,
  paths: readonly string[],
  signal: AbortSignal | undefined,
): Promise<ReadonlyMap<string, Blobs>> {
  if (since === null || headCommit === null || paths.length > NAMED_MAX || !paths.every((path) => isUtf8(Buffer.from(path, 'latin1'))))
    return new Map();
  const known = (await git(['cat-file', '-e', `${since}^{commit}`], { cwd: root, signal, accepts: [1, 128] })).code === 0;
  if (!known) return new Map();
  // Neither gpg's words among them, nor another file's past.
  const plain = ['-c', 'log.showSignature=false', '-c', 'log.follow=false'];
  const asked = [...plain, 'log', '-m', '-z', '--format=', '--raw', '--no-abbrev', '--no-renames', `${since}..${headCommit}`, '--'];
  const at = { cwd: root, signal, env: { GIT_LITERAL_PATHSPECS: '1' } };
  const said = await git([...asked, ...paths.map((path) => Buffer.from(path, 'latin1').toString('utf8'))], at);
  const past = new Map<string, Blobs>();
  for (const { path, blobs } of changesIn(split(said))) past.set(path, [...(past.get(path) ?? []), ...blobs]);
  return past;
}

/** Builtins alone, but for one git: of each line whether there is such a file, then the hashes of those that are. */
const BLOBS_INSIDE = `
cd -- "$1" || exit 3
${BARE_GIT}
found=
nl='
'
while IFS= read -r path; do
  if [ -f "$path" ] && [ ! -L "$path" ]; then echo file; found="$found$path$nl"
  elif [ -e "$path" ] || [ -L "$path" ]; then echo other
  else echo gone; fi
done
[ -z "$found" ] || printf '%s' "$found" | git hash-object --stdin-paths
`;

/** Null: it is gone; missing: it is no file. */
async function blobsOf(
  sandbox: Sandbox,
  { guestPath }: Recorded,
  paths: readonly string[],
  as: As,
): Promise<ReadonlyMap<string, string | null>> {
  if (paths.length === 0) return new Map();
  const input = Buffer.from(paths.map((path) => `${path}\n`).join(''), 'latin1');
  const result = await sandbox.exec(['sh', '-c', BLOBS_INSIDE, 'sh', guestPath], { ...inSandbox(as), input });
  if (result.exitCode !== 0) throw failed(result.stderr);
  const lines = result.stdout.split('\n');
  let nth = paths.length;
  const found = new Map<string, string | null>();
  for (const [at, path] of paths.entries()) {
    if (lines[at] === 'gone') found.set(path, null);
    if (lines[at] === 'file') found.set(path, lines[nth++] ?? '');
  }
  return found;
}

function failed(stderr: string): HutchError {
  return new HutchError({
    code: 'failed_precondition',
    message: `git in the sandbox failed: ${lastLine(stderr)}`,
    hint: 'copy it anew with --force',
  });
}
