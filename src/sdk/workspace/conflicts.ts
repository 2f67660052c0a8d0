// What has changed here since a repository was copied, and whether the sandbox has changed the same: its own work is never
// overwritten. What it answers is only ever compared with names and hashes of ours.
import { isUtf8 } from 'node:buffer';
import { HutchError } from '../../domain/errors.ts';
import type { Sandbox } from '../sandbox.ts';
import { git } from './git.ts';
import { inSandbox, lastLine, type Recorded } from './inside.ts';
import { type Repository, split } from './source.ts';

/** By names as latin1, so that each byte is a character. */
export type Changes = {
  /** What was copied of it; null: it was not there. */
  readonly changed: ReadonlyMap<string, Copied | null>;
  readonly deleted: ReadonlyMap<string, Copied>;
};
type Copied = { readonly blob: string; readonly isFile: boolean };

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
  const changed = new Map<string, Copied | null>(torn.map((path) => [path.toString('latin1'), null]));
  const deleted = new Map<string, Copied>();
  for (let nth = 0; nth + 1 < fields.length; nth += 2) {
    const path = fields[nth + 1]?.toString('latin1') ?? '';
    const [mode = '', , blob = '', , status] = (fields[nth]?.toString('latin1') ?? '').split(' ');
    const was = { blob, isFile: mode.startsWith(':100') };
    if (status === 'D') deleted.set(path, was);
    // A submodule is not the sandbox's to change: its files are no part of this repository.
    else if (!mode.startsWith(':160')) changed.set(path, status === 'A' ? null : was);
    else changed.set(path, null);
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
  printf '//\\0' && git ls-files -z --others -- "$@"
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
export async function refuseConflicts(sandbox: Sandbox, before: Recorded, changes: Changes, as: As): Promise<void> {
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
  if (commits.some((commit) => commit !== (before.headCommit ?? 'none')))
    throw new HutchError({
      code: 'conflict',
      message: `${before.guestPath} in ${sandbox.name} has commits of its own`,
      hint: `bring them back first: hutch bring ${sandbox.name}; or overwrite the files with --force`,
    });
  const names = split({ stdout: result.stdoutBuffer.subarray(end + 3) }).map((path) => path.toString('latin1'));
  const at = names.indexOf('//');
  const both = await reallyChanged(sandbox, before, { differs: names.slice(0, at), unknown: names.slice(at + 1) }, changes, as);
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
 * commit here is both, as git sees it, and then it is as it was copied where its bytes are the same.
 */
async function reallyChanged(sandbox: Sandbox, before: Recorded, answer: Answer, changes: Changes, as: As): Promise<readonly string[]> {
  const { changed, deleted } = changes;
  const was = (path: string): Copied | null => deleted.get(path) ?? changed.get(path) ?? null;
  const suspects = answer.unknown.filter((path) => was(path)?.isFile === true && !path.includes('\n'));
  const now = suspects.length === 0 ? [] : await blobsOf(sandbox, before, suspects, as);
  const same = new Set(suspects.filter((path, nth) => now[nth] === was(path)?.blob));
  const all = new Set([...answer.differs, ...answer.unknown]);
  return [...all].filter((path) => (changed.has(path) || deleted.has(path)) && !same.has(path));
}

async function blobsOf(sandbox: Sandbox, { guestPath }: Recorded, paths: readonly string[], as: As): Promise<readonly string[]> {
  const script = 'cd -- "$1" && GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 git hash-object --stdin-paths';
  // Quoted, so that a name that begins with a quote is not taken for one that is.
  const input = Buffer.from(paths.map((path) => `"${path.replace(/["\\]/g, '\\$&')}"\n`).join(''), 'latin1');
  const result = await sandbox.exec(['sh', '-c', script, 'sh', guestPath], { ...inSandbox(as), input });
  if (result.exitCode !== 0) throw failed(result.stderr);
  return result.stdout.split('\n');
}

function failed(stderr: string): HutchError {
  return new HutchError({
    code: 'failed_precondition',
    message: `git in the sandbox failed: ${lastLine(stderr)}`,
    hint: 'copy it anew with --force',
  });
}
