// What a sandbox sends when it is asked for its work: a bundle, made by the git that is there, into a file of ours. Nothing of it
// is believed here; `bring.ts` has it checked.
import { createWriteStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { HutchError } from '../../domain/errors.ts';
import type { Workspace } from '../../domain/sandbox.ts';
import type { Sandbox } from '../sandbox.ts';
import { REFS_FILE } from './guest-git.ts';
import { BARE_GIT, inSandbox, lastLine } from './inside.ts';
import { IDENTITY } from './source.ts';
import { HAS_UNSEEN, UNSEEN, unseenName } from './unseen.ts';

const BUNDLE_BYTES_MAX = 16 * 1024 * 1024 * 1024;
const LEFT_OUT_MAX = 10;
const UNSEEN_MAX = 100;

/**
 * Bundles all commits of the sandbox's own: HEAD, branches, tags, each stash; and what is not committed, in a commit made with an
 * index of its own, so that the sandbox's is not touched. All files are looked at once. Where nothing is to be committed, HEAD says
 * it all, and no more is run than that look and the bundle. $1: the directory; $2: the commit that is there already, or nothing;
 * $3: the mode. Of what was copied without files, one that is not there was not removed, unless `git rm` says so.
 */
const BUNDLE = `
cd -- "$1" || exit 3
command -v git >/dev/null 2>&1 || exit 4
${BARE_GIT}
export GIT_LITERAL_PATHSPECS=1
known=$2
mode=$3
all=--all
nl='
'
has() { [ -e ".git/$1" ] || { [ -e .git/packed-refs ] && grep -q " $1$" .git/packed-refs; }; }
has refs/hutch/base || exit 5
${UNSEEN}
! ${HAS_UNSEEN} || unseen | head -n ${UNSEEN_MAX} | sed 's/^/unseen: /' >&2
set -ef

status=$(GIT_OPTIONAL_LOCKS=0 git status --porcelain=v2 --branch --untracked-files=all --ignore-submodules=none --no-renames)
if [ "$mode" = metadata_only ]; then
  all=--ignore-removal
  status=$(printf '%s\\n' "$status" | grep -v '^1 \\.D ')
fi
head=\${status%%"$nl"*}
head=\${head#"# branch.oid "}
[ "$head" != "(initial)" ] || head=
case "$nl$status" in *"$nl"[!#]*) dirty=yes ;; *) dirty= ;; esac

# Whether HEAD itself can stand for everything: where it leads to nothing new, no bundle has it.
whole=
if [ -z "$dirty" ] && [ -n "$head" ] && [ "$head" != "$known" ]; then
  [ ! -s .git/shallow ] && [ -n "$known" ] && git merge-base --is-ancestor HEAD "$known" || whole=yes
fi

refs=refs/hutch/base
if [ -n "$whole" ]; then refs="$refs HEAD"
else
  index=$(mktemp)
  trap 'rm -f "$index"' EXIT
  if [ -s .git/index ]; then cp .git/index "$index"; else rm -f "$index"; fi
  # What cannot be added, such as a repository within it without a commit, is said, and keeps nothing else from being added.
  add() { GIT_INDEX_FILE=$index git add $all --ignore-errors "$@" >&2 || [ $? = 1 ]; }
  if [ -n "$dirty" ]; then
    IFS=$nl
    set -- $status
    unset IFS
    # A few are named, so that the others are not looked at once more.
    if [ $# -gt 200 ]; then add -- .
    else
      printf '%s\\n' "$status" | sed -n -e 's/^? //p' -e 's/^1 \\([^ ]* \\)\\{7\\}//p' -e 's/^u \\([^ ]* \\)\\{9\\}//p' |
        add --pathspec-from-file=- || add -- .
    fi
  fi
  tree=$(GIT_INDEX_FILE=$index git write-tree)
  work=$(git commit-tree "$tree" \${head:+-p "$head"} -m "What was not committed in the sandbox")
  { echo "update refs/hutch/work $work"; [ -z "$head" ] || echo "update refs/hutch/head $head"; } |
    git update-ref --stdin
  refs="$refs refs/hutch/work"
  [ -z "$head" ] || refs="$refs refs/hutch/head"
fi

if has refs/stash; then
  refs="$refs refs/stash"
  nth=$(wc -l < .git/logs/refs/stash 2>/dev/null || echo 0)
  while [ "$nth" -gt 1 ] && read -r _ stash _; do
    nth=$((nth - 1))
    git update-ref "refs/hutch/stash-$nth" "$stash" && refs="$refs refs/hutch/stash-$nth"
  done < .git/logs/refs/stash
fi

# With all of the repository's branches there, those that are as they were need not come back.
if [ -s .git/${REFS_FILE} ]; then
  own=$(git for-each-ref --format='%(objectname) %(refname)' refs/heads refs/tags | grep -vxFf .git/${REFS_FILE} | sed 's/^[^ ]* //') || own=
  sed 's/^\\([^ ]*\\) .*/^\\1/' .git/${REFS_FILE} | git bundle create --quiet - --ignore-missing --stdin $refs $own \${known:+"^$known"}
else
  git bundle create --quiet - $refs --branches --tags \${known:+"^$known"}
fi
`;

export type Ask = {
  /** The commit that is here already; null: none. */
  readonly known: string | null;
  readonly file: string;
  readonly user?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress: (progress: { readonly step: string; readonly bytes?: number }) => void;
};

/** What its git says that it left out. @throws HutchError that says why the sandbox sent none. */
export async function downloadBundle(
  sandbox: Sandbox,
  workspace: Workspace,
  { known, file, user, signal, onProgress }: Ask,
): Promise<readonly string[]> {
  // The same changes make the same commit, so that bringing them twice changes nothing.
  const date = `@${Math.floor(workspace.preparedAtMs / 1_000)} +0000`;
  const env = { ...IDENTITY, GIT_AUTHOR_DATE: date, GIT_COMMITTER_DATE: date };
  await using process = await sandbox.spawn(['sh', '-c', BUNDLE, 'sh', workspace.guestPath, known ?? '', workspace.mode], {
    ...inSandbox({ user, signal }),
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
  const lines = stderr.split('\n');
  const leftOut = lines.filter((line) => line.startsWith('error: ') && !line.includes('unknown option'));
  return [
    ...leftOut.slice(0, LEFT_OUT_MAX).map((line) => `git in the sandbox left something out: ${line.slice('error: '.length, 500)}`),
    ...unseenWarning(lines, sandbox.name, guestPath),
  ];
}

function unseenWarning(lines: readonly string[], name: string, guestPath: string): readonly string[] {
  const paths = lines.filter((line) => line.startsWith('unseen: ')).map((line) => unseenName(line.slice('unseen: '.length, 500)));
  if (paths.length === 0) return [];
  const shown = `${paths.slice(0, 5).join(', ')}${paths.length > 5 ? ` and ${paths.length - 5} more` : ''}`;
  return [
    `changed in ${name}, and not brought back, as they have a filter or are of a submodule: ${shown}; ` +
      `get them with: hutch cp ${name}:${guestPath}/PATH .`,
  ];
}
