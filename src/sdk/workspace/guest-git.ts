// The `.git` that a sandbox gets: made here, so that the image needs no git, and so that nothing of the user's own goes along
// but history: no hooks, no filters, no credentials, no other branches (unless all is asked for).
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { Workspace } from '../../domain/sandbox.ts';
import { git, gitLine } from './git.ts';
import { type Base, type Contents, copyIfThere, type Mode, type Repository } from './source.ts';

/** What decides how files become blobs, and who makes commits. Everything else stays here. */
const CARRIED = [
  'core.autocrlf',
  'core.eol',
  'core.filemode',
  'core.precomposeunicode',
  'user.name',
  'user.email',
  'init.defaultbranch',
] as const;
/** Where the sandbox's git finds what was copied in: `bring` compares with it. */
export const BASE_REF = 'refs/hutch/base';
/** In the sandbox's `.git`: branches and tags as they were copied, where all are. */
export const REFS_FILE = 'hutch-refs';

/** There while a repository is copied for the first time: what is there then is nobody's work. */
export const UNFINISHED_FILE = 'hutch-unfinished';

export type GuestGit = {
  readonly dir: string;
  /** A commit without its parents that `.git/shallow` there does not name yet. */
  readonly alsoShallow: string | null;
  /** All history is there: none of it ends before its time. */
  readonly isWhole: boolean;
} & AsyncDisposable;

type Wanted = {
  readonly mode: Mode;
  readonly base: Base;
  readonly contents: Contents;
  /** What is there already. */
  readonly before: Pick<Workspace, 'headCommit' | 'baseCommit'> | null;
};

/** A directory that holds `.git`; it goes with the disposal. */
export async function makeGuestGit(
  repository: Repository,
  { mode, base, contents, before }: Wanted,
  signal?: AbortSignal,
): Promise<GuestGit> {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-git-'));
  const remove = async () => await rm(dir, { recursive: true, force: true });
  try {
    const own = join(dir, '.git');
    for (const folder of ['objects/pack', 'objects/info', 'refs/heads', 'refs/tags', 'refs/hutch', 'info', 'hooks'])
      await mkdir(join(own, folder), { recursive: true });
    if (before === null) await writeFile(join(own, UNFINISHED_FILE), '');
    const { headCommit, branch } = repository;
    const at = { cwd: repository.root, signal };
    const alsoShallow = await pack(repository, own, { mode, base, before }, signal);
    await writeFile(join(own, 'config'), await configOf(repository, signal));
    await writeFile(
      join(own, 'HEAD'),
      branch === null && headCommit !== null ? `${headCommit}\n` : `ref: refs/heads/${branch ?? 'main'}\n`,
    );
    // One by one where the sandbox may have packed refs of its own by now; all at once where there may be thousands.
    if (mode === 'full_copy' && before === null) {
      const refs = await gitLine(['for-each-ref', '--sort=refname', '--format=%(objectname) %(refname)', 'refs/heads', 'refs/tags'], at);
      await writeFile(join(own, 'packed-refs'), `# pack-refs with: sorted \n${refs}\n`);
      await writeFile(join(own, REFS_FILE), refs === '' ? '' : `${refs}\n`);
    }
    // Also where all are packed: one by one counts for more, and a copy before this one may have left it so.
    if (headCommit !== null && branch !== null) await writeRef(own, `refs/heads/${branch}`, headCommit);
    await writeRef(own, BASE_REF, base.commit);
    // Where the history ends here, as in a clone with --depth, it ends there.
    const isWhole = mode === 'full_copy' && !(await copyIfThere(join(repository.commonDir, 'shallow'), join(own, 'shallow')));
    if (mode !== 'full_copy' && headCommit !== null && before === null) await writeFile(join(own, 'shallow'), `${headCommit}\n`);
    // The index says what HEAD has; of files with a filter that the sandbox lacks it says that they are as they should be.
    const index = { ...at, env: { GIT_INDEX_FILE: join(own, 'index') } };
    await copyFile(base.indexFile, join(own, 'index'));
    const inHead = contents.filtered.length === 0 ? [] : contents.filtered;
    if (inHead.length > 0) {
      const input = Buffer.concat(inHead.flatMap((path) => [path, Buffer.of(0)]));
      await git(['update-index', '--skip-worktree', '-z', '--stdin'], { ...index, input, accepts: [128] });
    }
    return { dir, alsoShallow, isWhole, [Symbol.asyncDispose]: remove };
  } catch (error) {
    await remove();
    throw error;
  }
}

async function writeRef(own: string, ref: string, commit: string): Promise<void> {
  await mkdir(dirname(join(own, ref)), { recursive: true });
  await writeFile(join(own, ref), `${commit}\n`);
}

/**
 * The objects, in one pack: those that are not there. Nothing is compressed anew that is compressed already, and no deltas are
 * looked for: it is quick.
 */
async function pack(
  repository: Repository,
  own: string,
  { mode, base, before }: Omit<Wanted, 'contents'>,
  signal?: AbortSignal,
): Promise<string | null> {
  const { headCommit } = repository;
  const at = { cwd: repository.root, signal };
  const follows =
    before !== null &&
    (before.headCommit === null ||
      headCommit === null ||
      (await git(['merge-base', '--is-ancestor', before.headCommit, headCommit], { ...at, accepts: [1, 128] })).code === 0);
  const shallow = mode !== 'full_copy' && headCommit !== null && !(follows && before.headCommit !== null);
  const wanted = [
    ...(shallow ? [`--shallow ${headCommit}`] : []),
    ...(headCommit === null ? [] : [headCommit]),
    base.commit,
    ...(mode === 'full_copy' ? (await gitLine(['for-each-ref', '--format=%(objectname)', 'refs/heads', 'refs/tags'], at)).split('\n') : []),
    ...(before === null ? [] : [`^${before.baseCommit}`]),
    ...(before === null || before.headCommit === null ? [] : [`^${before.headCommit}`]),
  ];
  const how = ['--window=0', '--compression=1', '--delta-base-offset'];
  const args = ['pack-objects', '--quiet', '--revs', ...(shallow ? ['--shallow'] : []), ...how, join(own, 'objects/pack/pack')];
  await git(args, { ...at, input: `${wanted.filter((line) => line !== '').join('\n')}\n` });
  return before !== null && shallow ? headCommit : null;
}

async function configOf(repository: Repository, signal?: AbortSignal): Promise<string> {
  const at = { cwd: repository.root, signal, accepts: [1] };
  // Sizes and times of files are as they are here, and decide; inodes and the like are the sandbox's own.
  const lines = [
    '[core]',
    '\trepositoryformatversion = 0',
    '\tbare = false',
    '\tlogallrefupdates = true',
    '\tcheckstat = minimal',
    '\ttrustctime = false',
  ];
  if ((await gitLine(['rev-parse', '--show-object-format'], { ...at, accepts: [128, 129] })) === 'sha256') {
    lines[1] = '\trepositoryformatversion = 1';
    lines.push('[extensions]', '\tobjectformat = sha256');
  }
  for (const key of CARRIED) {
    const value = await git(['config', '--get', key], at);
    if (value.code === 0)
      lines.push(`[${key.split('.')[0]}]`, `\t${key.split('.')[1]} = ${quoted(value.stdout.toString('utf8').replace(/\n$/, ''))}`);
  }
  const origin = await git(['config', '--get', 'remote.origin.url'], at);
  if (origin.code === 0) {
    lines.push(
      '[remote "origin"]',
      `\turl = ${quoted(withoutLogin(origin.stdout.toString('utf8').trim()))}`,
      '\tfetch = +refs/heads/*:refs/remotes/origin/*',
    );
  }
  return `${lines.join('\n')}\n`;
}

/** A URL may carry a password or a token. */
function withoutLogin(url: string): string {
  return url.replace(/^([a-z][a-z0-9+.-]*:\/\/)[^/@]*@/i, '$1');
}

function quoted(value: string): string {
  return `"${value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')}"`;
}
