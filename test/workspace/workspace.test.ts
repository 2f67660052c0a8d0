// A git repository goes into a real sandbox and comes back: by the CLI, with the sandbox’s own git, against repositories that
// people have and a machine that means harm.
import { spawnSync } from 'node:child_process';
import { appendFile, mkdir, readdir, readFile, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { MACHINES, World } from '../cli/world.ts';
import { backendOfRun } from './backend.ts';
import { gitAt, TestRepository } from './repository.ts';

// A busy machine takes long for a machine that is emulated.
vi.setConfig({ testTimeout: 240_000 });

let world: World;
let repository: TestRepository;
let here: string;
let repo: string;

beforeAll(async () => {
  world = await World.make(MACHINES, backendOfRun(0));
  await world.ok('create', '--name', 'box');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});
beforeEach(async () => {
  repository = await TestRepository.make();
  ({ here, dir: repo } = repository);
});
afterEach(async () => {
  await repository[Symbol.asyncDispose]();
});

const git = (...args: string[]): string => repository.git(...args);

/** In the sandbox `box`, in the copy of the repository at `path`. */
async function inside(path: string, script: string): Promise<string> {
  const whoami = 'git config user.name Guest; git config user.email guest@example.org; ';
  return await world.ok('exec', 'box', '--', 'sh', '-ec', `cd ${path}; ${whoami}${script}`);
}

const at = (dir = repo) => ({ cwd: dir });

async function prepared(path: string, ...flags: string[]): Promise<void> {
  const result = await world.run(['workspace', 'prepare', '--path', path, ...flags, 'box', repo]);
  expect(result, result.stderr).toMatchObject({ code: 0, stdout: `box:${path}\n` });
}

test('run DIR -- CMD runs the command in a copy of the repository, as it lies here', async () => {
  await appendFile(join(repo, 'README'), 'not committed\n');
  await writeFile(join(repo, 'untracked'), '');
  await mkdir(join(repo, 'node_modules'));
  await writeFile(join(repo, 'node_modules/ignored'), '');
  const odd = Buffer.from([0x66, 0xff, 0x20, 0x0a, 0x67]); // a name that is no UTF-8 and has a newline
  await writeFile(Buffer.concat([Buffer.from(`${repo}/`), odd]), 'odd');
  spawnSync('git', ['-C', repo, 'add', '-A', '--', ':!untracked']);
  await writeFile(join(repo, '.git/hooks/post-checkout'), '#!/bin/sh\n');
  const script =
    'pwd; src/run.sh; readlink src/out; cat README; ls -A | od -c | tail -3; git status --short; git log --oneline; ls .git/hooks';
  const run = await world.run(['run', '--name', 'ran', '.', '--', 'sh', '-c', script], at());
  expect(run).toMatchObject({ code: 0, stderr: expect.stringContaining('warning: untracked, so left here: untracked; --include') });
  expect(run.stdout).toMatch(/^\/work\/web\nran\n\.\.\/\.\.\/outside\nhello\nnot committed\n/);
  expect(run.stdout).toMatch(/ M README\n/);
  expect(run.stdout).toContain('377'); // the odd name, as it is
  expect(run.stdout).not.toContain('untracked');
  expect(run.stdout).not.toContain('node_modules');
  expect(run.stdout).not.toContain('post-checkout');
  const head = git('rev-parse', 'HEAD');
  const { workspace, main, state } = await world.json<Record<string, unknown>>('inspect', 'ran');
  expect(workspace).toMatchObject({
    ...{ sourcePath: repo, repoRoot: repo, repoName: 'web', guestPath: '/work/web', mode: 'shallow_overlay' },
    ...{ headCommit: head, branch: 'main', includesUntracked: false },
  });
  // It is the sandbox's main process: it has a log, and start runs it again.
  expect({ main, state }).toMatchObject({ main: { argv: ['sh', '-c', script] }, state: 'stopped' });
  expect(await world.ok('logs', 'ran')).toContain('/work/web');
  await world.ok('start', 'ran');
  await world.ok('wait', 'ran');
  expect((await world.ok('logs', 'ran')).match(/^\/work\/web$/gm)).toHaveLength(2);
  await world.ok('rm', 'ran');
  expect(git('status', '--short')).toContain('M  README'); // here nothing has changed, not even the index
});

test('run DIR begins where DIR is in the repository, and whoever the sandbox’s user is owns it', async () => {
  const pwd = async (dir: string, ...flags: string[]): Promise<string> => {
    const run = await world.run(['run', '--rm', ...flags, dir, '--', 'sh', '-c', 'pwd; id -un; git status --short && touch made-here']);
    expect(run, run.stderr).toMatchObject({ code: 0 });
    return run.stdout;
  };
  expect(await pwd(join(repo, 'src'))).toBe('/work/web/src\nroot\n');
  await mkdir(join(repo, 'untracked'));
  await writeFile(join(repo, 'untracked/x'), '');
  expect(await pwd(join(repo, 'untracked'), '--user', 'nobody')).toBe('/work/web\nnobody\n');
  expect(await pwd(repo, '--user', 'nobody', '--workdir', '/work/web/src')).toBe('/work/web/src\nnobody\n');
});

test('the exit code of run DIR is the command’s own, and where the copy fails no sandbox is left', async () => {
  expect((await world.run(['run', '--rm', repo, '--', 'sh', '-c', 'exit 7'])).code).toBe(7);
  const before = await world.ok('ls', '-q');
  const nowhere = await world.run(['run', here, '--', 'true']);
  expect(nowhere).toMatchObject({ code: 125 });
  expect(nowhere.stderr).toMatch(/^error: .* is in no git repository/m);
  const occupied = await world.run(['run', '--path', '/etc', repo, '--', 'true']);
  expect(occupied).toMatchObject({ code: 125 });
  expect(occupied.stderr).toContain('/etc in');
  expect(await world.ok('ls', '-q')).toBe(before);
  expect((await world.run(['run', '--mode', 'full_copy', '--', 'true'])).stderr).toContain('--mode is about a git repository');
});

test('--dry-run shows what would travel, and makes nothing', async () => {
  await writeFile(join(repo, 'new'), '12345');
  await mkdir(join(repo, 'node_modules'));
  await writeFile(join(repo, 'node_modules/big'), 'x'.repeat(1_000));
  const before = await world.ok('ls', '-q');
  const plan = await world.run(['run', '--dry-run', '.', '--', 'true'], at());
  expect(plan.stdout.split('\n').sort().join(' ').trim()).toBe('.gitignore README src/out src/run.sh');
  expect(plan.stderr).toMatch(/^warning: untracked, so left here: new; --include-untracked takes them along\n4 files, .* at [0-9a-f]{12}/);
  const listed = async (...flags: string[]) => {
    const { stdout } = await world.run(['run', '--dry-run', '--json', ...flags, '.', '--', 'true'], at());
    return (JSON.parse(stdout) as { files: { path: string; sizeBytes: number }[] }).files.map(({ path }) => path);
  };
  expect(await listed('--include-untracked')).toContain('new');
  expect(await listed('--mode', 'full_copy')).toEqual(expect.arrayContaining(['new', 'node_modules/big']));
  expect(await listed('--mode', 'metadata_only')).toEqual([]);
  expect(await world.ok('ls', '-q')).toBe(before);
});

test('bring makes a branch of the commits inside and of what is not committed there, and touches nothing else', async () => {
  await appendFile(join(repo, 'README'), 'ours\n');
  await prepared('/work/a');
  await inside(
    '/work/a',
    `echo in > in; git add in; git commit -qm inside; git checkout -qb side; echo s > s; git add s; git commit -qm aside
     git checkout -q main; echo kept > kept; git stash -qu; echo ours >> README; echo loose > loose`,
  );
  const status = git('status', '--short');
  const brought = await world.json<Record<string, unknown>>('bring', 'box');
  expect(brought).toMatchObject({
    branch: 'hutch/box',
    commits: 1,
    hasUncommitted: true,
    otherBranches: ['hutch/box-side', 'hutch/box-stash'],
  });
  expect(git('log', '--format=%s', 'main..hutch/box').split('\n')).toEqual(['What was not committed in the sandbox', 'inside']);
  expect(git('show', 'hutch/box:loose')).toBe('loose');
  expect(git('show', 'hutch/box-side:s')).toBe('s');
  expect(git('ls-tree', '-r', '--name-only', 'hutch/box-stash^3')).toContain('kept');
  expect(git('status', '--short')).toBe(status);
  expect(git('branch', '--show-current')).toBe('main');
  // The same again is the same branch; more is one with a number, and a name that was asked for is refused.
  expect(await world.json('bring', 'box')).toMatchObject({ branch: 'hutch/box' });
  await inside('/work/a', 'echo more > more');
  expect(await world.json('bring', 'box')).toMatchObject({ branch: 'hutch/box-2' });
  expect(await world.run(['bring', '--branch', 'main', 'box'])).toMatchObject({
    code: 4,
    stderr: expect.stringContaining('branch main is checked out here') as string,
  });
  expect(await world.run(['bring', '--branch', 'hutch/box', 'box'])).toMatchObject({
    code: 4,
    stderr: expect.stringContaining('would be lost') as string,
  });
  expect(await world.run(['bring', '--branch', '../x', 'box'])).toMatchObject({ code: 2 });
  expect(git('show', 'hutch/box:loose')).toBe('loose');
});

test('diff and bring --patch show what was changed inside, without what was changed here before', async () => {
  await appendFile(join(repo, 'README'), 'ours\n');
  await prepared('/work/b');
  expect(await world.ok('diff', 'box')).toBe('');
  expect((await world.run(['bring', 'box'])).stderr).toContain('nothing was changed in box');
  await inside('/work/b', "printf '\\000\\001' > bin; mv src/run.sh 'src/läuf \"1\".sh'; echo theirs >> README");
  expect(await world.json('diff', 'box')).toEqual({
    files: [
      { status: 'M', path: 'README' },
      { status: 'A', path: 'bin' },
      { status: 'R100', path: 'src/läuf "1".sh', from: 'src/run.sh' },
    ],
    warnings: [],
  });
  expect(await world.json('diff', '--stat', 'box')).toEqual(await world.json('diff', 'box'));
  expect(await world.ok('diff', '--name-status', 'box')).toContain('läuf');
  expect(await world.ok('diff', '--stat', 'box')).toContain('3 files changed');
  const patch = await world.run(['bring', '--patch', 'box']);
  const applied = spawnSync('git', ['-C', repo, 'apply'], { input: patch.bytes, encoding: 'utf8' });
  expect(applied.stderr).toBe('');
  expect(await readFile(join(repo, 'README'), 'utf8')).toBe('hello\nours\ntheirs\n');
  expect([...(await readFile(join(repo, 'bin')))]).toEqual([0, 1]);
});

test('of a history that was copied without files nothing is taken for removed, and another mode is refused by name', async () => {
  await prepared('/work/m', '--mode', 'metadata_only');
  expect(await world.ok('diff', 'box')).toBe('');
  expect(await world.json('bring', 'box')).toMatchObject({ branch: null, filesChanged: 0 });
  // What moved here moves there, where nobody has checked it out.
  await writeFile(join(repo, 'README'), 'second\n');
  git('commit', '-qam', 'two');
  await prepared('/work/m');
  expect(await inside('/work/m', 'git log -1 --format=%s; ls')).toBe('two');
  await inside('/work/m', 'git checkout -q README; echo new > new; git rm -q --cached src/out');
  expect(await world.ok('diff', '--name-status', 'box')).toBe('A\tnew\nD\tsrc/out');
  expect(await world.json('bring', '--branch', 'without-files', 'box')).toMatchObject({ filesChanged: 2 });
  expect(git('ls-tree', '-r', '--name-only', 'without-files')).toBe('.gitignore\nREADME\nnew\nsrc/run.sh');
  await writeFile(join(repo, 'README'), 'third\n');
  git('commit', '-qam', 'three');
  expect((await world.run(['workspace', 'prepare', 'box', repo])).stderr).toContain('changed here and in box: README');

  const other = await world.run(['workspace', 'prepare', '--mode', 'full_copy', 'box', repo]);
  expect(other).toMatchObject({ code: 4 });
  expect(other.stderr).toMatch(/\/work\/m in box was copied as metadata_only, and stays so\nhint: .*full_copy with --force/);
  await prepared('/work/m', '--mode', 'full_copy', '--force');
  expect(await inside('/work/m', 'cat README; git log --format=%s')).toBe('third\nthree\ntwo\none');
});

test('another repository goes beside the first one, and it is said which one is looked at', async () => {
  await prepared('/work/first');
  const other = join(here, 'other');
  await mkdir(other);
  gitAt(other, ['init', '-q']);
  await writeFile(join(other, 'a'), 'a');
  const second = await world.run(['workspace', 'prepare', '--include-untracked', 'box', other]);
  expect(second, second.stderr).toMatchObject({ code: 0, stdout: 'box:/work/other\n' });
  expect(second.stderr).toContain('diff and bring no longer look at /work/first, where web was copied before');
  expect(await inside('/work/first', 'cat README')).toBe('hello');
});

test('what changed here is copied again, and what both sides changed is refused by name', async () => {
  await prepared('/work/c');
  const temporary = await inside('/work/c', 'ls -A /tmp');
  await inside('/work/c', 'echo theirs > theirs; ls > before');
  await writeFile(join(repo, 'README'), 'second\n');
  await unlink(join(repo, 'src/run.sh'));
  await mkdir(join(repo, 'lib'));
  await writeFile(join(repo, 'lib/x'), 'x');
  git('add', '-A');
  git('commit', '-qm', 'two');
  expect(
    await world.ok(
      'exec',
      '--auto-prepare',
      'box',
      '--',
      'sh',
      '-c',
      'cd /work/c; cat README lib/x theirs; ls src; git log -1 --format=%s',
    ),
  ).toBe('second\nxtheirs\nout\ntwo');
  const again = await world.json<{ incremental: boolean; files: number }>('workspace', 'prepare', 'box', repo);
  expect(again).toMatchObject({ incremental: true, files: 0 });
  expect(await inside('/work/c', 'ls -A /tmp')).toBe(temporary);
  // Both sides.
  await inside('/work/c', 'echo theirs > README');
  await writeFile(join(repo, 'README'), 'third\n');
  git('commit', '-qam', 'three');
  const refused = await world.run(['exec', '--auto-prepare', 'box', '--', 'true']);
  expect(refused.stderr).toContain('changed here and in box: README');
  expect(await inside('/work/c', 'cat README')).toBe('theirs');
  // Commits of its own.
  await inside('/work/c', 'git checkout -q README; git commit -q --allow-empty -m own');
  expect((await world.run(['workspace', 'prepare', 'box', repo])).stderr).toContain('has commits of its own');
  // History that was rewritten here: what is there follows.
  await prepared('/work/c', '--force');
  git('commit', '-q', '--amend', '-m', 'rewritten');
  await prepared('/work/c');
  expect(await inside('/work/c', 'git log -1 --format=%s; git fsck --connectivity-only 2>&1 | grep -c missing || true')).toBe(
    'rewritten\n0',
  );
});

test('repositories as people have them: no commits, a detached HEAD, a worktree, submodules, full_copy', async () => {
  const empty = join(here, 'empty');
  await mkdir(empty);
  gitAt(empty, ['init', '-q']);
  await writeFile(join(empty, 'first'), '1');
  const none = await world.run(['workspace', 'prepare', '--include-untracked', '--path', '/work/empty', 'box', empty]);
  expect(none, none.stderr).toMatchObject({ code: 0 });
  await inside('/work/empty', 'echo two > two; git add -A; git commit -qm born');
  expect(await world.json('bring', 'box')).toMatchObject({ branch: 'hutch/box', commits: 1 });
  expect(gitAt(empty, ['ls-tree', '-r', '--name-only', 'hutch/box'])).toBe('first\ntwo');

  git('commit', '-q', '--allow-empty', '-m', 'two');
  git('checkout', '-q', '--detach', 'HEAD~1');
  await prepared('/work/detached');
  expect(await inside('/work/detached', 'git log --format=%s; git branch --show-current')).toBe('one');

  const tree = join(here, 'tree');
  git('worktree', 'add', '-q', tree, 'main');
  const full = await world.run(['workspace', 'prepare', '--mode', 'full_copy', '--path', '/work/tree', 'box', tree]);
  expect(full, full.stderr).toMatchObject({ code: 0 });
  expect(await inside('/work/tree', 'git log --format=%s; git status --short')).toBe('two\none');
  await inside('/work/tree', 'echo w > w');
  await world.ok('bring', '-b', 'from-tree', 'box');
  expect(git('show', 'from-tree:w')).toBe('w');

  // As continuous integration has them: its history ends where that of the clone does.
  const shallow = join(here, 'shallow');
  gitAt(here, ['clone', '-q', '--depth', '1', `file://${tree}`, shallow]);
  for (const flags of [[], ['--force']]) {
    const cloned = await world.run(['workspace', 'prepare', '--mode', 'full_copy', '--path', '/work/shallow', ...flags, 'box', shallow]);
    expect(cloned, cloned.stderr).toMatchObject({ code: 0 });
    expect(await inside('/work/shallow', 'git log --format=%s; git fsck; git status --short')).toBe('two');
  }
  await inside('/work/shallow', 'echo s > s; git add s; git commit -qm inside');
  await world.ok('bring', 'box');
  expect(gitAt(shallow, ['log', '-1', '--format=%s', 'hutch/box'])).toBe('inside');

  // What cannot be added stays; a submodule that was not fetched is not taken for removed.
  gitAt(shallow, ['-c', 'protocol.file.allow=always', 'submodule', 'add', '-q', '-b', 'hutch/box', empty, 'sub']);
  gitAt(shallow, ['commit', '-qm', 'three']);
  gitAt(shallow, ['submodule', 'deinit', '-q', '--all']);
  gitAt(shallow, ['init', '-q', 'unborn']);
  const odd = await world.run(['workspace', 'prepare', '--include-untracked', '--path', '/work/odd', 'box', shallow]);
  expect(odd, odd.stderr).toMatchObject({ code: 0 });
  expect(odd.stderr).toMatch(/left out: unborn\/ is a repository of its own[\s\S]*not fetched here are empty there, too: sub;/);
  expect(await world.json('diff', 'box')).toMatchObject({ files: [] });

  gitAt(tree, ['-c', 'protocol.file.allow=always', 'submodule', 'add', '-q', '-b', 'hutch/box', empty, 'sub']);
  const withSub = await world.run(['workspace', 'prepare', '--path', '/work/sub', '--mode', 'shallow_overlay', 'box', tree]);
  expect(withSub.stderr).toContain('submodules travel as files');
  expect(await inside('/work/sub', 'cat sub/two')).toBe('two');
});

test('nothing from a sandbox that means harm is run here, and what git refuses makes no branch', { timeout: 180_000 }, async () => {
  const marker = join(here, 'harmed');
  await prepared('/work/evil');
  await inside(
    '/work/evil',
    `git config filter.evil.clean "touch ${marker}; cat"; git config filter.evil.smudge "touch ${marker}; cat"
     git config core.fsmonitor "touch ${marker}"; git config core.hooksPath .git/hooks; git config diff.evil.command "touch ${marker}"
     git config uploadpack.packObjectsHook "touch ${marker}"; git config diff.evil.textconv "touch ${marker}"
     echo '* filter=evil diff=evil merge=evil' > .gitattributes; for hook in post-checkout pre-commit reference-transaction post-update update
     do printf '#!/bin/sh\\ntouch ${marker}\\n' > .git/hooks/$hook; chmod +x .git/hooks/$hook; done; echo x > x; git config core.fsmonitor 'touch watched'`,
  );
  expect(await world.json('bring', 'box')).toMatchObject({ branch: 'hutch/box' });
  expect(await world.ok('diff', 'box')).toContain('+x');
  expect(git('show', 'hutch/box:.gitattributes')).toContain('filter=evil');
  // What its own settings have run beside git is not run there either: it would change what is looked at.
  expect(await inside('/work/evil', 'ls')).not.toContain('watched');
  expect(git('ls-tree', '--name-only', 'hutch/box').split('\n')).not.toContain('watched');
  expect(await readdir(here)).toEqual(['web']);
  // A tree with a file that git would take for its own configuration.
  await inside(
    '/work/evil',
    `git config core.hooksPath /dev/null; blob=$(echo evil | git hash-object -w --stdin); inner=$(printf '100644 blob %s\\tconfig\\n' $blob | git mktree)
     tree=$(printf '040000 tree %s\\t.GIT\\n' $inner | git mktree); git update-ref HEAD $(git commit-tree $tree -p HEAD -m evil)`,
  );
  const refused = await world.run(['bring', '-b', 'evil', 'box']);
  expect(refused).toMatchObject({ code: 4 });
  expect(refused.stderr).toContain('is refused');
  expect(git('branch', '--list', 'evil')).toBe('');
  // A program in git's place, which never ends its answer or sends anything.
  await inside('/work/evil', "printf '#!/bin/sh\\nhead -c 100000 /dev/urandom\\n' > /usr/local/bin/git; chmod +x /usr/local/bin/git");
  const lied = await world.run(['bring', '-b', 'evil', 'box']);
  expect(lied.code).not.toBe(0);
  expect(lied.stderr).toMatch(/^error: /);
  expect(git('branch', '--list', 'evil')).toBe('');
  await world.ok('exec', 'box', '--', 'rm', '/usr/local/bin/git');
});
