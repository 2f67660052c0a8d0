// What has changed here since a repository was copied, and whether the sandbox has changed the same: its own work is never
// overwritten. What it answers is only ever compared with names and hashes of ours.
import { isUtf8 } from 'node:buffer';
import { HutchError } from '../../domain/errors.ts';
import type { Sandbox } from '../sandbox.ts';
import { git } from './git.ts';
import { inSandbox, lastLine, type Recorded } from './inside.ts';
import { type Repository, split } from './source.ts';
import { HAS_UNSEEN, UNSEEN, unseenName } from './unseen.ts';

/** By names as latin1, so that each byte is a character. */
export type Changes = {
  readonly changed: ReadonlyMap<string, Blobs>;
  readonly deleted: ReadonlyMap<string, Blobs>;
};
/** What the sandbox may have of a file without having changed it: what was copied, and what is to be, where a copy was cut short. */
type Blobs = readonly string[];

/** By the two commits that stand for what was and is to be there. `torn`: what is to be copied in any case. */
export async function changesSince(
  sandbox: Sandbox,
  repository: Repository,
  before: Recorded,
  baseCommit: string,
  torn: readonly Buffer[],
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
  const fields = split(await git(['diff-tree', '-r', '-z', '--no-renames', '--raw', '--no-abbrev', before.baseCommit, baseCommit], at));
  const changed = new Map<string, Blobs>(torn.map((path) => [path.toString('latin1'), []]));
  const deleted = new Map<string, Blobs>();
  for (let nth = 0; nth + 1 < fields.length; nth += 2) {
    const path = fields[nth + 1]?.toString('latin1') ?? '';
    const [from = '', to = '', was = '', is = '', status] = (fields[nth]?.toString('latin1') ?? '').split(' ');
    // Of links git has what they lead to, and of submodules a commit.
    const blobs = [from.startsWith(':100') ? [was] : [], to.startsWith('100') ? [is] : []].flat();
    (status === 'D' ? deleted : changed).set(path, blobs);
  }
  return { changed, deleted };
}

/** Its answers are told apart by a name that no file has. */
const CHANGED_INSIDE = `
cd -- "$1" || exit 3
command -v git >/dev/null 2>&1 || exit 4
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_LITERAL_PATHSPECS=1
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

/** @throws HutchError `conflict` that names what both have changed. */
export async function refuseConflicts(sandbox: Sandbox, before: Recorded, now: Repository, changes: Changes, as: As): Promise<void> {
  const args = [before.guestPath, before.branch ?? '', ...whereToLook(changes)];
  const result = await sandbox.exec(['sh', '-c', CHANGED_INSIDE, 'sh', ...args], inSandbox(as));
  if (result.exitCode === 4) return; // without git nobody can have committed there; what is ours is laid over what was ours
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
  const ours = [before.headCommit ?? 'none', now.headCommit];
  if (commits.some((commit) => !ours.includes(commit)))
    throw new HutchError({
      code: 'conflict',
      message: `${before.guestPath} in ${sandbox.name} has commits of its own`,
      hint: `bring them back first: hutch bring ${sandbox.name}; or overwrite the files with --force`,
    });
  const names = split({ stdout: result.stdoutBuffer.subarray(end + 3) }).map((path) => path.toString('latin1'));
  const [at, last] = [names.indexOf('//'), names.lastIndexOf('//')];
  const answer = { differs: names.slice(0, at), unknown: names.slice(at + 1, last) };
  // What its git does not see is taken at its own word: it would be overwritten.
  const unseen = names
    .slice(last + 1)
    .map(unseenName)
    .filter((path) => changes.changed.has(path));
  const both = [...new Set([...(await reallyChanged(sandbox, before, answer, changes, as)), ...unseen])];
  if (both.length === 0) return;
  const shown = both.slice(0, 5).map((path) => Buffer.from(path, 'latin1').toString('utf8'));
  throw new HutchError({
    code: 'conflict',
    message: `changed here and in ${sandbox.name}: ${shown.join(', ')}${both.length > shown.length ? ` and ${both.length - shown.length} more` : ''}`,
    hint: `bring the sandbox's back first: hutch bring ${sandbox.name}; or overwrite them with --force`,
  });
}

type Answer = { readonly differs: readonly string[]; readonly unknown: readonly string[] };

/**
 * `differs`: from the commit that was copied. `unknown`: there, and not in the sandbox's index; a file that was copied and is in no
 * commit here is both, as git sees it. Of these the bytes are asked for, and say whether anybody has changed anything.
 */
async function reallyChanged(sandbox: Sandbox, before: Recorded, answer: Answer, changes: Changes, as: As): Promise<readonly string[]> {
  const { changed, deleted } = changes;
  const suspects = [...new Set([...answer.differs, ...answer.unknown])].filter((path) => changed.has(path) || deleted.has(path));
  const readable = suspects.filter((path) => !path.includes('\n') && !path.startsWith('"'));
  const now = await blobsOf(sandbox, before, readable, as);
  const isOurs = (path: string): boolean => {
    const blob = now.get(path);
    if (blob === undefined) return false;
    return blob === null ? deleted.has(path) : (changed.get(path) ?? deleted.get(path) ?? []).includes(blob);
  };
  return suspects.filter((path) => !isOurs(path));
}

/** Builtins alone, but for one git: of each line whether there is such a file, then the hashes of those that are. */
const BLOBS_INSIDE = `
cd -- "$1" || exit 3
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
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
