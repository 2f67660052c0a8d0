// hutch sync by the CLI: a directory here and one in a sandbox, once and while it is watched, and a sandbox that means harm.
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { once } from 'node:events';
import { chmod, lstat, mkdir, mkdtemp, readdir, readFile, readlink, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { World } from '../cli/world.ts';
import { eventually } from '../support/eventually.ts';

/** On a busy machine each look takes seconds. */
const DEADLINE_MS = 60_000;

let world: World;
let above: string;
let dir: string;
let guest: string;
let count = 0;

beforeAll(async () => {
  world = await World.make();
  await world.ok('create', '--name', 'box', '--no-net');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});
beforeEach(async () => {
  above = await mkdtemp(join(tmpdir(), 'hutch-sync-'));
  dir = join(above, 'dir');
  count += 1;
  guest = `/srv/sync${count}`;
  await mkdir(join(dir, 'src/deep'), { recursive: true });
  await writeFile(join(dir, 'README'), 'hello\n');
  await writeFile(join(dir, 'src/deep/run.sh'), '#!/bin/sh\n');
  await chmod(join(dir, 'src/deep/run.sh'), 0o755);
  await symlink('../README', join(dir, 'src/link'));
});
afterEach(async () => {
  await rm(above, { recursive: true, force: true });
});

async function inside(script: string): Promise<string> {
  return await world.ok('exec', 'box', '--', 'sh', '-ec', `mkdir -p ${guest}; cd ${guest}; ${script}`);
}

type Event = { readonly type: string; readonly path?: string; readonly why?: string; readonly kept?: string };

async function sync(...flags: string[]): Promise<readonly Event[]> {
  const { code, stdout, stderr } = await world.run(['sync', '--json', ...flags, 'box', `${dir}:${guest}`]);
  expect(code, `${stdout}${stderr}`).toBe(0);
  return eventsOf(stdout);
}

function eventsOf(text: string): readonly Event[] {
  const lines = text.split('\n').slice(0, -1);
  return lines.map((line) => JSON.parse(line) as Event);
}

const short = (events: readonly Event[]): readonly string[] => events.map(({ type, path }) => `${type} ${path}`).sort();

test('sync carries what is new or was changed here, and only that; .git and what is excluded stay', async () => {
  await mkdir(join(dir, '.git'));
  await writeFile(join(dir, '.git/config'), '');
  await mkdir(join(dir, 'src/node_modules'));
  await writeFile(join(dir, 'src/node_modules/x'), '');
  const all = ['up README', 'up src', 'up src/deep', 'up src/deep/run.sh', 'up src/link'];
  expect(short(await sync('--dry-run', '--exclude', 'node_modules'))).toEqual(all);
  expect(await inside('ls')).toBe('');
  expect(short(await sync('--exclude', 'node_modules'))).toEqual(all);
  expect(await inside('find . | sort; cat README; stat -c %a src/deep/run.sh; readlink src/link')).toBe(
    '.\n./README\n./src\n./src/deep\n./src/deep/run.sh\n./src/link\nhello\n755\n../README',
  );
  expect(await sync('--exclude', 'node_modules')).toEqual([]);
  await writeFile(join(dir, 'README'), 'changed\n');
  await inside('echo own > own');
  expect(short(await sync('--exclude', 'node_modules'))).toEqual(['up README']);
  expect(await inside('cat README own')).toBe('changed\nown');
  expect(await readdir(dir)).toEqual(['.git', 'README', 'src']);
});

test('what both sides have changed is kept on both: ours has the name', async () => {
  await sync('--two-way');
  await writeFile(join(dir, 'README'), 'ours\n');
  await inside('echo theirs > README; echo new > new');
  const events = await sync('--two-way');
  const kept = events.find(({ type }) => type === 'conflict')?.kept ?? '';
  expect(kept).toMatch(/^README\.conflict-\d{8}T\d{6}Z$/);
  expect(await readFile(join(dir, 'README'), 'utf8')).toBe('ours\n');
  expect(await readFile(join(dir, kept), 'utf8')).toBe('theirs\n');
  expect(await readFile(join(dir, 'new'), 'utf8')).toBe('new\n');
  expect(await inside(`cat README ${kept}`)).toBe('ours\ntheirs');
  expect(await sync('--two-way')).toEqual([]);
  // One way alike, but that it stays in the sandbox.
  await writeFile(join(dir, 'README'), 'once more\n');
  await inside('echo theirs again > README');
  await sync();
  expect(await inside('cat README; cat README.conflict-* | sort')).toBe('once more\ntheirs\ntheirs again');
  expect((await readdir(dir)).filter((name) => name.startsWith('README.'))).toHaveLength(1);
});

test('the same bytes with other times are no conflict, also where nothing is remembered', async () => {
  await sync();
  await rm(join(world.home, 'sync'), { recursive: true });
  await utimes(join(dir, 'README'), 1, 1);
  expect(await sync('--two-way')).toEqual([]);
  expect(await inside('cat README; ls')).toBe('hello\nREADME\nsrc');
});

test('removals follow with --delete alone, and take nothing that the other side has changed or made', async () => {
  await sync();
  await rm(join(dir, 'src'), { recursive: true });
  expect(await sync()).toEqual([]);
  await inside('echo own > src/own; echo more >> src/deep/run.sh');
  expect(short(await sync('--delete'))).toEqual(['removed src/link']);
  expect(await inside('find src | sort')).toBe('src\nsrc/deep\nsrc/deep/run.sh\nsrc/own');
  await sync('--two-way');
  await inside('rm README');
  expect(short(await sync('--two-way', '--delete'))).toEqual(['removed README']);
  expect(await readdir(dir)).toEqual(['src']);
  // A directory that is gone as a whole is no removal of all that was in it.
  await world.ok('exec', 'box', '--', 'rm', '-r', guest);
  await sync('--two-way', '--delete');
  expect(await readFile(join(dir, 'src/own'), 'utf8')).toBe('own\n');
});

test('a sandbox that means harm gets nothing out of the directory, and nothing that runs by itself into it', async () => {
  await writeFile(join(above, 'outside'), 'safe\n');
  await mkdir(join(above, 'elsewhere'));
  await symlink('../elsewhere', join(dir, 'out')); // of ours, and leads out
  await sync('--two-way');
  await inside(`rm out; mkdir out; echo evil > out/x; mkdir -p .git/hooks; echo evil > .git/hooks/post-checkout; mkdir -p a/b/c
    ln -s ../../.. a/b/c/up; ln -s up/.. a/b/c/over; ln -s /etc/passwd abs; ln -s ../outside rel; ln -s a/b ok
    truncate -s 2199023255552 huge; mkfifo pipe; echo x > 'back\\slash'; echo s > suid; chmod 4755 suid; echo y > "$(printf 'n\\nl')"`);
  const ran = await world.run(['sync', '--json', '--two-way', 'box', `${dir}:${guest}`]);
  expect(ran.code).toBe(1); // what could not be done is told
  const left = new Map(eventsOf(ran.stdout).map(({ path = '', why = '' }) => [path, why]));
  for (const [path, why] of [
    ['abs', 'absolute path'],
    ['rel', 'out of the directory'],
    ['a/b/c/over', '.. behind a name'],
    ['huge', 'more than 1073741824 bytes'],
    ['pipe', 'neither a file'],
    ['out', 'is a link'],
    ['out/x', 'is a link'],
  ] as const)
    expect(left.get(path), path).toContain(why);
  expect([...left].find(([path]) => path.startsWith('back'))?.[1]).toContain('backslash');
  expect(await readFile(join(above, 'outside'), 'utf8')).toBe('safe\n');
  expect(await readdir(join(above, 'elsewhere'))).toEqual([]);
  expect(await readdir(above)).toEqual(['dir', 'elsewhere', 'outside']);
  expect((await readdir(dir)).sort()).toEqual(expect.arrayContaining(['README', 'a', 'n\nl', 'ok', 'src', 'suid']));
  expect(await readdir(dir)).not.toContain('.git');
  expect((await lstat(join(dir, 'suid'))).mode & 0o7777).toBe(0o755);
  expect(await readlink(join(dir, 'ok'))).toBe('a/b');
  // The directory in the sandbox became one in which ours is a link: nothing is written behind it.
  await rm(join(dir, 'a'), { recursive: true });
  await symlink('../elsewhere', join(dir, 'a'));
  await inside('echo evil > a/b/c/new');
  const { stdout } = await world.run(['sync', '--json', '--two-way', 'box', `${dir}:${guest}`]);
  expect(eventsOf(stdout)).toContainEqual(expect.objectContaining({ type: 'failed', path: 'a' })); // a directory there, a link here
  expect(await readdir(join(above, 'elsewhere'))).toEqual([]);
});

type Watched = { readonly child: ChildProcessWithoutNullStreams; readonly events: () => readonly Event[]; alike(): Promise<void> };

async function watched(...flags: string[]): Promise<Watched> {
  const child = world.spawn(['sync', '--json', '--watch', ...flags, 'box', `${dir}:${guest}`]);
  let text = '';
  child.stdout.on('data', (chunk: Buffer) => {
    text += chunk.toString('utf8');
  });
  const events = () => eventsOf(text);
  const alike = async (): Promise<void> => {
    await eventually('both are alike', async () => events().at(-1)?.type === 'alike', DEADLINE_MS);
  };
  await alike();
  return { child, events, alike };
}

test('--watch --two-way carries what is done on either side while it runs, also over a killed daemon, and ends with 130', {
  timeout: 300_000,
}, async () => {
  const { child } = await watched('--two-way', '--delete');
  await writeFile(join(dir, 'src/new'), 'from here\n');
  await eventually('it is in the sandbox', async () => (await inside('cat src/new 2>/dev/null || true')) === 'from here', DEADLINE_MS);
  await inside('mkdir -p made/below; echo from there > made/below/file');
  await eventually(
    'it is here',
    async () => (await readFile(join(dir, 'made/below/file'), 'utf8').catch(() => '')) === 'from there\n',
    DEADLINE_MS,
  );
  // A directory that comes into being with much in it.
  await mkdir(join(dir, 'tree/of/files'), { recursive: true });
  for (let at = 0; at < 50; at += 1) await writeFile(join(dir, `tree/of/files/${at}`), `${at}`);
  await eventually(
    'all are in the sandbox',
    async () => (await inside('ls tree/of/files 2>/dev/null | wc -l')).trim() === '50',
    DEADLINE_MS,
  );
  await rm(join(dir, 'tree'), { recursive: true });
  await eventually('they are gone', async () => (await inside('test -e tree && echo there || true')) === '', DEADLINE_MS);

  await world.ok('daemon', 'stop'); // which tells who asks that it ends
  await inside('echo started again > again');
  await eventually(
    'it goes on',
    async () => (await readFile(join(dir, 'again'), 'utf8').catch(() => '')) === 'started again\n',
    DEADLINE_MS,
  );
  await world.killDaemon();
  await writeFile(join(dir, 'README'), 'while it was away\n');
  await eventually('it has come back', async () => (await inside('cat README')) === 'while it was away', DEADLINE_MS);
  await inside('echo and there > README');
  await eventually('both ways', async () => (await readFile(join(dir, 'README'), 'utf8')) === 'and there\n', DEADLINE_MS);

  const ended = once(child, 'exit');
  child.kill('SIGINT');
  expect((await ended)[0]).toBe(130);
});

test('a flood of changes inside is one look after the other, and at its end both are alike', { timeout: 300_000 }, async () => {
  const { child } = await watched('--two-way', '--delete');
  await inside(
    'for i in $(seq 200); do echo $i > f; mkdir d$i; done; rm -r d*; for i in $(seq 200); do echo $i > last$i; done; echo end > f',
  );
  await eventually(
    'both are alike',
    async () => {
      const names = (await readdir(dir)).filter((name) => name.startsWith('last'));
      const end = await readFile(join(dir, 'f'), 'utf8').catch(() => '');
      return names.length === 200 && end === 'end\n' && !(await readdir(dir)).some((name) => /^d\d/.test(name));
    },
    DEADLINE_MS,
  );
  const ended = once(child, 'exit');
  child.kill('SIGTERM');
  expect((await ended)[0]).toBe(143);
});

test('what is no pair of directories, or is not there, is told', async () => {
  const tried = async (...args: string[]): Promise<unknown> => await world.run(['sync', ...args]);
  expect(await tried('box', dir)).toMatchObject({ code: 2, stderr: expect.stringContaining('DIR:GUEST') as string });
  expect(await tried('box', `${dir}/none:${guest}`)).toMatchObject({
    code: 3,
    stderr: expect.stringContaining('there is no directory') as string,
  });
  expect(await tried('box', `${dir}/README:${guest}`)).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('no directory') as string,
  });
  expect(await tried('nobody', `${dir}:${guest}`)).toMatchObject({ code: 3 });
  expect(await tried('--watch', '--dry-run', 'box', `${dir}:${guest}`)).toMatchObject({ code: 2 });
  expect(await tried('--max-size', 'much', 'box', `${dir}:${guest}`)).toMatchObject({ code: 2 });
});
