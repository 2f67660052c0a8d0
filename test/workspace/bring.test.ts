// What repositories do that people did not think of: a copy that is disturbed, work that lies on no branch, a repository within the
// repository. By the CLI, with a real sandbox's own git.
import { spawnSync } from 'node:child_process';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { MACHINES, World } from '../cli/world.ts';
import { backendOfRun } from './backend.ts';
import { gitAt, TestRepository } from './repository.ts';

/** A busy machine takes long for a machine that is emulated. */
const TEST_MS = 240_000;

let world: World;
let repository: TestRepository;

beforeAll(async () => {
  world = await World.make(MACHINES, backendOfRun(1));
  await world.ok('create', '--name', 'box');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});
beforeEach(async () => {
  repository = await TestRepository.make();
});
afterEach(async () => {
  await repository[Symbol.asyncDispose]();
});

type Brought = { branch: string | null; commits: number; otherBranches: string[]; warnings: string[]; hasUncommitted: boolean };

async function inside(path: string, script: string): Promise<string> {
  const whoami = 'git config user.name Guest; git config user.email guest@example.org; ';
  return await world.ok('exec', 'box', '--', 'sh', '-ec', `cd ${path}; ${whoami}${script}`);
}

async function prepare(path: string, ...flags: string[]): Promise<{ files: number; warnings: string[] }> {
  return await world.json('workspace', 'prepare', '--path', path, ...flags, 'box', repository.dir);
}

test('bring loses no commit that lies on no branch: a detached HEAD, tags, each stash; and says what stays inside', {
  timeout: TEST_MS,
}, async () => {
  await prepare('/work/lost');
  await inside(
    '/work/lost',
    `git checkout -q --detach; echo t > t; git add t; git commit -qm tagged; git tag light; echo a > a; git add a; git commit -qm annotated
     git tag -am note heavy; git checkout -q --detach refs/hutch/base; for n in 1 2 3; do echo $n > README; git stash -qm $n; done
     echo d > d; git add d; git commit -qm detached
     git init -q nested; git -C nested -c user.name=G -c user.email=g@x commit -q --allow-empty -m in; git init -q unborn; touch unborn/x`,
  );
  const brought = await world.json<Brought>('bring', 'box');
  expect(brought).toMatchObject({ branch: 'hutch/box', commits: 1, hasUncommitted: true });
  expect(repository.git('log', '--format=%s', '-2', 'hutch/box').split('\n')).toEqual([
    'What was not committed in the sandbox',
    'detached',
  ]);
  expect(brought.otherBranches.toSorted()).toEqual(['heavy', 'light', 'stash', 'stash-1', 'stash-2'].map((name) => `hutch/box-${name}`));
  expect(repository.git('log', '--format=%s', '-2', 'hutch/box-heavy').split('\n')).toEqual(['annotated', 'tagged']);
  for (const [name, text] of [
    ['stash', '3'],
    ['stash-1', '2'],
    ['stash-2', '1'],
  ])
    expect(repository.git('show', `hutch/box-${name}:README`), name).toBe(text);
  expect(repository.git('tag')).toBe('');
  expect(brought.warnings.join('\n')).toMatch(/stays in the sandbox: nested$/m);
  expect(brought.warnings.join('\n')).toMatch(/left something out: .*unborn/m);
});

test('with a thousand branches there, bring brings those that were made or moved inside, and only them', { timeout: TEST_MS }, async () => {
  const head = repository.git('rev-parse', 'HEAD');
  const tree = repository.git('rev-parse', 'HEAD^{tree}');
  const other = repository.git('commit-tree', tree, '-p', head, '-m', 'of another branch');
  gitAt(
    repository.dir,
    ['update-ref', '--stdin'],
    Array.from({ length: 1_100 }, (_, nth) => `create refs/heads/b${nth} ${other}\n`).join(''),
  );
  await prepare('/work/many', '--mode', 'full_copy');
  expect(await world.json('bring', 'box')).toMatchObject({ branch: null, otherBranches: [] });
  await inside(
    '/work/many',
    'git checkout -q b7; git commit -q --allow-empty -m moved; git checkout -q main; git commit -q --allow-empty -m ours',
  );
  expect(await world.json('bring', 'box')).toMatchObject({ branch: 'hutch/box', commits: 1, otherBranches: ['hutch/box-b7'] });
  expect(repository.git('log', '--format=%s', '-2', 'hutch/box-b7').split('\n')).toEqual(['moved', 'of another branch']);
  // Back to before what it began with: nothing new, and nothing to fall over.
  repository.git('commit', '-q', '--allow-empty', '-m', 'two');
  await prepare('/work/back', '--mode', 'full_copy');
  await inside('/work/back', 'git reset -q --hard HEAD~1');
  expect(await world.json('bring', 'box')).toMatchObject({ otherBranches: [] });
});

test('a file that is changed while it is copied is copied once more, until it stands still', { timeout: TEST_MS }, async () => {
  const bin = join(repository.here, 'bin');
  await mkdir(bin);
  const times = join(repository.here, 'times');
  // In tar's place: changes a file before tar reads it, for as long as there are lines in the file of times.
  const tar = `#!/bin/sh
if [ -s ${times} ]; then echo changed >> ${repository.dir}/README; rm -f ${repository.dir}/src/run.sh; sed -i 1d ${times}; fi
exec /bin/tar "$@"\n`;
  await writeFile(join(bin, 'tar'), tar);
  await chmod(join(bin, 'tar'), 0o755);
  const env = { PATH: `${bin}:${process.env['PATH'] ?? ''}` };
  const go = async (path: string) =>
    JSON.parse((await world.run(['workspace', 'prepare', '--json', '--path', path, 'box', repository.dir], { env })).stdout) as {
      warnings: string[];
    };
  await writeFile(times, '1\n2\n');
  expect((await go('/work/torn')).warnings.join()).not.toContain('changed here');
  expect(await inside('/work/torn', 'cat README; ls src')).toBe('hello\nchanged\nchanged\nout');
  // What was copied and is in no commit here is as it was copied there, too.

  expect(await world.ok('diff', 'box')).toBe('');
  await writeFile(join(repository.dir, 'README'), 'later\n');
  await go('/work/torn');
  expect(await inside('/work/torn', 'cat README')).toBe('later');
  // One that never stands still is told.
  await writeFile(times, '1\n2\n3\n4\n5\n');
  expect((await go('/work/restless')).warnings.join()).toMatch(/changed here while they were copied.*README/);
});

test('what is copied again overwrites no file that the sandbox has, ignored or not, and a submodule that moved on is told', {
  timeout: TEST_MS,
}, async () => {
  await prepare('/work/again');
  await inside('/work/again', 'echo dist > .git/info/exclude; mkdir dist; echo theirs > dist/x');
  await mkdir(join(repository.dir, 'dist'));
  await writeFile(join(repository.dir, 'dist/x'), 'ours');
  repository.git('add', 'dist/x');
  const refused = await world.run(['workspace', 'prepare', 'box', repository.dir]);
  expect(refused.stderr).toContain('changed here and in box: dist/x');
  expect(await inside('/work/again', 'cat dist/x; rm dist/x')).toBe('theirs');
  // What is in no commit here is copied, and copied again, and is a conflict only where it was changed inside.
  for (const text of ['ours', 'newer']) {
    await writeFile(join(repository.dir, 'dist/x'), text);
    await prepare('/work/again');
    expect(await inside('/work/again', 'cat dist/x')).toBe(text);
  }
  await inside('/work/again', 'echo theirs > dist/x');
  await writeFile(join(repository.dir, 'dist/x'), 'newest');
  expect((await world.run(['workspace', 'prepare', 'box', repository.dir])).stderr).toContain('changed here and in box: dist/x');
  await using inner = await TestRepository.make();
  gitAt(repository.dir, ['-c', 'protocol.file.allow=always', 'submodule', 'add', '-q', inner.dir, 'sub']);
  await prepare('/work/sub');
  await writeFile(join(repository.dir, 'sub/README'), 'moved on\n');
  gitAt(join(repository.dir, 'sub'), ['-c', 'user.name=S', '-c', 'user.email=s@x', 'commit', '-qam', 'on']);
  expect((await prepare('/work/sub')).warnings.join('\n')).toMatch(/stay as they were copied: sub; --force/);
  await prepare('/work/sub', '--force');
  expect(await inside('/work/sub', 'cat sub/README')).toBe('moved on');
  expect(await readFile(join(repository.dir, 'README'), 'utf8')).toBe('hello\n');
});

test('what was brought back and merged is no conflict: the sandbox goes on from what is here', { timeout: TEST_MS }, async () => {
  const path = '/work/round';
  const again = () => world.run(['workspace', 'prepare', 'box', repository.dir]);
  await prepare(path);
  await inside(path, 'echo mine >> README; echo n > new; echo gone > old; git add .; git commit -qm own; echo unfinished >> README');
  const refused = await again();
  // Nothing has changed here, and it would not be refused for that.
  expect(refused.stderr).toContain('bring them back, and merge them: hutch bring box');
  await world.ok('bring', '--branch', 'work', 'box');
  expect((await again()).stderr).toContain('they are here, on branch work: merge it');

  repository.git('merge', '-q', 'work');
  await writeFile(join(repository.dir, 'README'), 'further\n');
  repository.git('rm', '-q', 'old');
  repository.git('commit', '-qam', 'on from there');
  expect(await again()).toMatchObject({ code: 0 });
  expect(await inside(path, 'cat README new; ls; git log -1 --format=%s; git status --short')).toBe(
    'further\nn\nREADME\nnew\nsrc\non from there',
  );
  // What it did since is its own.
  await inside(path, 'echo again > README');
  await writeFile(join(repository.dir, 'README'), 'further on\n');
  expect((await again()).stderr).toContain('changed here and in box: README');
  // A hash that is none of ours says nothing, whatever it looks like.
  await inside(path, 'git checkout -q README; git update-ref refs/heads/main "$(git commit-tree -m forged HEAD^{tree})"');
  expect((await again()).stderr).toContain('has commits of its own');
});

test('what a patch says commands no terminal, and in a pipe it is byte for byte', { timeout: TEST_MS }, async () => {
  await prepare('/work/screen');
  await inside('/work/screen', "printf 'title \\033]0;evil\\007 \\033[8mhidden\\n' > README");
  const shown = spawnSync('script', ['-qec', `${process.execPath} ${world.bundle} diff box`, '/dev/null'], {
    env: { ...world.env },
    encoding: 'utf8',
    timeout: 60_000,
  });
  expect(shown.stdout).toContain('title ^[]0;evil^G ^[[8mhidden');
  expect(shown.stdout).toContain('\u001b[32m'); // git's own
  expect((await world.run(['diff', 'box'])).stdout).toContain('+title \u001b]0;evil\u0007 \u001b[8mhidden\n');
});

test('submodules that would have git run something or look elsewhere are refused by name, and make no branch', {
  timeout: TEST_MS,
}, async () => {
  await prepare('/work/modules');
  const wicked = [['[submodule "x"]\n\tpath = x\n\turl = --upload-pack=touch /tmp/x\n', 'gitmodulesUrl']] as const;
  for (const [text, why] of wicked) {
    await inside('/work/modules', `printf '%s' '${text}' > .gitmodules`);
    const refused = await world.run(['bring', '-b', 'wicked', 'box']);
    expect(refused, refused.stderr).toMatchObject({ code: 4, stderr: expect.stringContaining('is refused') as string });
    expect(refused.stderr).toContain(why);
  }
  // Its own git would not add this one.
  await inside(
    '/work/modules',
    `blob=$(printf /etc/passwd | git hash-object -w --stdin); first=$(git rev-parse HEAD)
     tree=$( { git ls-tree HEAD; printf '120000 blob %s\\t.gitmodules\\n' $blob; } | git mktree)
     git branch wicked $(git commit-tree -m link -p $first $tree); rm .gitmodules`,
  );
  expect((await world.run(['bring', '-b', 'wicked', 'box'])).stderr).toContain('gitmodulesSymlink');
  expect(repository.git('branch', '--list', 'wicked')).toBe('');
  // What leads out of the tree is a link in a tree, as any other.
  await inside('/work/modules', 'git branch -qD wicked; ln -s /etc/passwd out');
  expect(await world.json('bring', 'box')).toMatchObject({ branch: 'hutch/box' });
  expect(repository.git('show', 'hutch/box:out')).toBe('/etc/passwd');
});

test('what git does not see of a sandbox’s changes, in files with a filter and of submodules, is told and never overwritten', {
  timeout: TEST_MS,
}, async () => {
  const { dir: repo, here } = repository;
  const git = (...args: string[]): string => repository.git(...args);
  // As git-lfs does it: a pointer in the history, what it points to on the disk; and one that was never fetched.
  const pointer = (oid: string) => `version https://git-lfs.github.com/spec/v1\noid sha256:${oid.repeat(64)}\nsize 12345\n`;
  await writeFile(join(repo, '.gitattributes'), '*.bin filter=lfs diff=lfs merge=lfs -text\n');
  const cleanTo = async (oid: string): Promise<void> => {
    const lines = `read -r first\ncase "$first" in version*) echo "$first"; cat ;; *) cat >/dev/null; cat <<'END'\n${pointer(oid)}END\n;; esac\n`;
    await writeFile(join(here, 'clean'), lines);
    git('config', 'filter.lfs.clean', `sh ${join(here, 'clean')}`);
  };
  await cleanTo('a');
  await writeFile(join(repo, 'big.bin'), 'what the pointer leads to\n');
  await writeFile(join(repo, 'not fetched.bin'), pointer('b'));
  const lib = join(here, 'lib');
  await mkdir(lib);
  gitAt(lib, ['init', '-q', '-b', 'main']);
  await writeFile(join(lib, 'f'), 'lib\n');
  gitAt(lib, ['add', '.']);
  gitAt(lib, ['-c', 'user.name=S', '-c', 'user.email=s@example.org', 'commit', '-qm', 'lib']);
  git('-c', 'protocol.file.allow=always', 'submodule', '--quiet', 'add', lib, 'lib');
  git('add', '-A');
  git('commit', '-qm', 'pointers');
  expect(git('show', 'HEAD:big.bin')).toContain('oid sha256:aaaa');

  const first = await world.run(['workspace', 'prepare', '--path', '/work/unseen', 'box', repo]);
  expect(first.stderr).toMatch(/2 files with a filter \(as of LFS\) travel as they lie here/);
  expect(await inside('/work/unseen', 'cat *.bin lib/f; git status --short')).toBe(`what the pointer leads to\n${pointer('b')}lib`);
  const untouched = await world.run(['bring', 'box']);
  expect(untouched).toMatchObject({ code: 0, stdout: '', stderr: expect.not.stringContaining('not brought back') });

  await inside(
    '/work/unseen',
    'echo more >> big.bin; rm "not fetched.bin"; echo there > lib/f; echo seen > seen; git add -A; git commit -qm inside',
  );
  const told =
    /warning: changed in box, and not brought back, .*: big\.bin, lib\/f, not fetched\.bin; get them with: hutch cp box:\/work\/unseen\//;
  expect((await world.run(['diff', '--stat', 'box'])).stderr).toMatch(told);
  const brought = await world.run(['bring', '--branch', 'seen', 'box']);
  expect(brought.stderr).toMatch(told);
  expect(git('diff', '--name-only', 'HEAD', 'seen')).toBe('seen');

  await writeFile(join(repo, 'big.bin'), 'another thing of ours\n');
  await cleanTo('c');
  git('commit', '-qam', 'another pointer');
  await inside('/work/unseen', 'git reset -q --hard HEAD~1');
  const both = await world.run(['workspace', 'prepare', '--path', '/work/unseen', 'box', repo]);
  expect(both).toMatchObject({ code: 4, stderr: expect.stringContaining('changed here and in box: big.bin') });
  await prepare('/work/unseen', '--force');
  expect(await inside('/work/unseen', 'cat big.bin')).toBe('another thing of ours');
  expect((await world.run(['bring', 'box'])).stderr).not.toContain('not brought back');
});
