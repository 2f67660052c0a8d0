// hutch cp: docker's rules, both ways, and archives that mean harm.
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  appendFile,
  chmod,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Header, pack } from 'tar-stream';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { parsePlace, targetOf } from '../../src/cli/copy/place.ts';
import { unpackTree } from '../../src/cli/copy/unpack.ts';
import { World } from './world.ts';

let world: World;
let here: string;

beforeAll(async () => {
  world = await World.make();
  await world.ok('create', '--name', 'box');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});
beforeEach(async () => {
  here = await mkdtemp(join(tmpdir(), 'hutch-cp-'));
  await world.ok('exec', 'box', '--', 'sh', '-c', 'rm -rf /w && mkdir /w');
});
afterEach(async () => {
  await rm(here, { recursive: true, force: true });
});

test('a file of ours that is not there, or may not be written, is named with the reason', async () => {
  const missing = await world.run(['cp', 'absent', 'box:/w'], { cwd: here });
  expect(missing).toMatchObject({ code: 3, stderr: 'error: absent: no such file or directory\n' });
  const refused = await world.run(['cp', 'box:/etc/hostname', '/proc/version'], { cwd: here });
  expect(refused.stderr).toMatch(/^error: \/proc\/[^:]*: [a-z ]+\n$/);
});

test('exec, run, shell and cp begin in the same directory: the sandbox’s own, else the home of the user', async () => {
  await writeFile(join(here, 'note'), 'here');
  await world.ok('create', '--name', 'placed', '--workdir', '/srv/made');
  for (const [sandbox, dir, more] of [
    ['box', '/root', []],
    ['box', '/home/user', ['--user', 'user']],
    ['placed', '/srv/made', []],
  ] as const) {
    expect(await world.ok('exec', ...more, sandbox, '--', 'pwd')).toBe(dir);
    expect((await world.run(['shell', ...more, sandbox], { input: 'pwd\n' })).stdout).toBe(`${dir}\n`);
    expect((await world.run(['cp', ...more, 'note', `${sandbox}:`], { cwd: here })).code).toBe(0);
    expect(await world.ok('exec', sandbox, '--', 'cat', `${dir}/note`)).toBe('here');
    expect((await world.run(['cp', ...more, `${sandbox}:note`, 'back'], { cwd: here })).code).toBe(0);
  }
  expect(await world.ok('run', '--rm', '--', 'pwd')).toBe('/root');
  expect(await world.ok('run', '--rm', '--workdir', '/srv/other', '--', 'pwd')).toBe('/srv/other');
  const refused = await world.run(['exec', '--workdir', 'absent', 'placed', '--', 'pwd']);
  expect(refused).toMatchObject({ code: 126, stderr: expect.stringMatching(/working directory \/srv\/made\/absent: /) });
  await world.ok('rm', '-f', 'placed');
});

const inside = async (script: string) => await world.ok('exec', 'box', '--', 'sh', '-c', script);

async function makeTree(): Promise<void> {
  await mkdir(join(here, 'tree/deep/er'), { recursive: true });
  await writeFile(join(here, 'tree/run.sh'), '#!/bin/sh\necho hi\n');
  await chmod(join(here, 'tree/run.sh'), 0o751);
  await writeFile(join(here, 'tree/deep/er/ünï code.txt'), 'text');
  await writeFile(join(here, 'tree/empty'), '');
  await symlink('run.sh', join(here, 'tree/link'));
  await utimes(join(here, 'tree/run.sh'), 1_600_000_000, 1_600_000_000.25);
}

test('a tree goes in and comes out as it was: modes, times, links, names', async () => {
  await makeTree();
  await world.ok('cp', join(here, 'tree'), 'box:/w');
  expect(await inside('cd /w/tree && stat -c "%a %Y" run.sh && readlink link && cat "deep/er/ünï code.txt" && stat -c %s empty')).toBe(
    '751 1600000000\nrun.sh\ntext0',
  );
  await world.ok('cp', 'box:/w/tree', join(here, 'back'));
  expect((await readdir(join(here, 'back'), { recursive: true })).sort()).toEqual(
    (await readdir(join(here, 'tree'), { recursive: true })).sort(),
  );
  const info = await stat(join(here, 'back/run.sh'));
  expect(info.mode & 0o7777).toBe(0o751);
  expect(Math.floor(info.mtimeMs / 1_000)).toBe(1_600_000_000);
  expect(await readlink(join(here, 'back/link'))).toBe('run.sh');
});

test('files that the kernel makes as they are read go both ways, and times to the last digit that the system keeps', async () => {
  expect((await world.run(['cp', 'box:/proc/self/limits', 'box:/proc/sys/kernel/ostype', here])).code).toBe(0);
  expect(await readFile(join(here, 'limits'), 'utf8')).toMatch(/^Limit .*\nMax cpu time /);
  expect(await readFile(join(here, 'ostype'), 'utf8')).toBe('Linux\n');
  expect((await world.run(['cp', '/proc/sys/kernel/ostype', '/proc/self/limits', 'box:/w'])).code).toBe(0);
  expect(await inside('cat /w/ostype; head -c 5 /w/limits')).toBe('Linux\nLimit');
  await writeFile(join(here, 'timed'), '');
  await utimes(join(here, 'timed'), 0, Date.parse('2001-02-03T04:05:06.250Z') / 1_000);
  await world.ok('cp', join(here, 'timed'), 'box:/w');
  await world.ok('cp', 'box:/w/timed', join(here, 'back'));
  expect((await stat(join(here, 'back'))).mtimeMs).toBe(Date.parse('2001-02-03T04:05:06.250Z'));
});

test('a tar stream with holes is unpacked', async () => {
  await writeFile(join(here, 'holes'), '');
  await truncate(join(here, 'holes'), 3_000_000);
  await appendFile(join(here, 'holes'), 'end');
  for (const format of ['gnu', 'pax']) {
    const { stdout: tar } = spawnSync('tar', ['-cSf', '-', `--format=${format}`, '-C', here, 'holes']);
    expect(tar.length).toBeLessThan(100_000);
    expect((await world.run(['cp', '-', 'box:/w'], { input: tar })).code).toBe(0);
    expect(await inside('stat -c %s /w/holes; tail -c 3 /w/holes; rm /w/holes')).toBe('3000003\nend');
  }
});

test('a directory goes into one that exists, and with /. only its content', async () => {
  await makeTree();
  await world.ok('cp', join(here, 'tree'), 'box:/w/new'); // is not there: becomes it
  expect(await inside('ls /w/new')).toBe('deep\nempty\nlink\nrun.sh');
  await world.ok('cp', join(here, 'tree'), 'box:/w/new');
  expect(await inside('ls -d /w/new/tree/run.sh')).toBe('/w/new/tree/run.sh');
  await world.ok('cp', `${join(here, 'tree')}/.`, 'box:/w');
  expect(await inside('ls -d /w/run.sh')).toBe('/w/run.sh');
  await world.ok('cp', 'box:/w/new/.', here);
  expect(await readFile(join(here, 'run.sh'), 'utf8')).toContain('echo hi');
});

test('a file is copied onto a name, into a directory, or over a file', async () => {
  await writeFile(join(here, 'a'), 'one');
  await world.ok('cp', 'a', 'box:/w/b').catch(async () => await world.run(['cp', 'a', 'box:/w/b'], { cwd: here }));
  expect((await world.run(['cp', 'a', 'box:/w/b'], { cwd: here })).code).toBe(0);
  expect((await world.run(['cp', 'a', 'box:/w/'], { cwd: here })).code).toBe(0);
  expect(await inside('cat /w/a /w/b')).toBe('oneone');
  await writeFile(join(here, 'a'), 'two');
  expect((await world.run(['cp', './a', 'box:/w/b'], { cwd: here })).code).toBe(0);
  expect(await inside('cat /w/b')).toBe('two');
  expect((await world.run(['cp', 'box:/w/b', 'c'], { cwd: here })).code).toBe(0);
  expect(await readFile(join(here, 'c'), 'utf8')).toBe('two');
});

test('what docker refuses is refused', async () => {
  await makeTree();
  await writeFile(join(here, 'file'), 'x');
  await inside('echo x > /w/file');
  expect((await world.run(['cp', join(here, 'tree'), 'box:/w/file'])).code).toBe(4); // a directory onto a file
  expect((await world.run(['cp', join(here, 'file'), 'box:/w/none/'])).code).toBe(3);
  expect((await world.run(['cp', join(here, 'none'), 'box:/w'])).code).toBe(3);
  expect((await world.run(['cp', 'box:/w/none', here])).code).toBe(3);
  expect((await world.run(['cp', 'box:/w/file', join(here, 'none/')])).code).toBe(3);
  expect((await world.run(['cp', join(here, 'file'), here])).code).toBe(2);
  expect((await world.run(['cp', 'box:/w', 'box:/v'])).code).toBe(2);
  expect((await world.run(['cp', 'nobody:/w', here])).code).toBe(3);
});

test('several things go into a directory, large ones unchanged', async () => {
  const bytes = randomBytes(5_000_001);
  await writeFile(join(here, 'big'), bytes);
  await writeFile(join(here, 'small'), 'x');
  await world.ok('cp', join(here, 'big'), join(here, 'small'), 'box:/w');
  await world.ok('cp', 'box:/w/big', 'box:/w/small', `${here}`);
  expect((await readFile(join(here, 'big'))).equals(bytes)).toBe(true);
});

test('- is a tar stream on stdin and stdout', async () => {
  const archive = await bytesOf(pack(), async (tar) => void tar.entry({ name: 'dir/file' }, 'content'));
  expect((await world.run(['cp', '-', 'box:/w'], { input: archive })).code).toBe(0);
  expect(await inside('cat /w/dir/file')).toBe('content');
  const { bytes, code } = await world.run(['cp', 'box:/w/dir', '-']);
  expect(code).toBe(0);
  expect(bytes.subarray(257, 262).toString()).toBe('ustar');
  expect(bytes.includes('content')).toBe(true);
});

test('places are read as docker reads them', () => {
  expect(parsePlace('box:/a')).toEqual({ type: 'sandbox', ref: 'box', path: '/a' });
  expect(parsePlace('box:')).toEqual({ type: 'sandbox', ref: 'box', path: '.' });
  expect(parsePlace('./a:b')).toEqual({ type: 'local', path: './a:b' });
  expect(parsePlace('/a:b')).toEqual({ type: 'local', path: '/a:b' });
  expect(parsePlace('-')).toEqual({ type: 'stream' });
  expect(targetOf({ source: '/a/.', sourceIsDir: true, target: '/b', targetKind: 'dir' })).toEqual({ dir: '/b', name: null });
  expect(targetOf({ source: '/a/', sourceIsDir: true, target: '/b', targetKind: 'dir' })).toEqual({ dir: '/b', name: 'a' });
});

// An archive comes from the guest: nothing in it may reach anything outside of the directory.

type Evil = {
  readonly what: string;
  readonly entries: readonly (Partial<Header> & { readonly name: string; readonly content?: string })[];
  readonly before?: (dir: string, outside: string) => Promise<void>;
};

const EVIL: readonly Evil[] = [
  { what: 'a name with ..', entries: [{ name: '../victim', content: 'evil' }] },
  { what: '.. in the middle', entries: [{ name: 'a/../../victim', content: 'evil' }] },
  { what: 'an absolute name', entries: [{ name: '/OUTSIDE/victim', content: 'evil' }] },
  {
    what: 'a link out, then a file through it',
    entries: [
      { name: 'way', type: 'symlink', linkname: 'OUTSIDE' },
      { name: 'way/victim', content: 'evil' },
    ],
  },
  {
    what: 'a link out, then a directory in its place',
    entries: [
      { name: 'way', type: 'symlink', linkname: 'OUTSIDE' },
      { name: 'way', type: 'directory', mode: 0o777 },
      { name: 'way/victim', content: 'evil' },
    ],
  },
  {
    what: 'a file through a link that was there before',
    entries: [{ name: 'old/victim', content: 'evil' }],
    before: (dir, outside) => symlink(outside, join(dir, 'old')),
  },
  {
    what: 'a hard link to something outside',
    entries: [
      { name: 'hard', type: 'link', linkname: '../outside/victim' },
      { name: 'hard', content: 'evil' },
    ],
  },
  { what: 'an absolute hard link', entries: [{ name: 'hard', type: 'link', linkname: 'OUTSIDE/victim' }] },
];

for (const { what, entries, before } of EVIL) {
  test(`an archive with ${what} is refused, and nothing outside is touched`, async () => {
    const dir = join(here, 'dir');
    const outside = join(here, 'outside');
    await mkdir(dir);
    await mkdir(outside);
    await writeFile(join(outside, 'victim'), 'good');
    await before?.(dir, outside);
    const archive = await bytesOf(pack(), async (tar) => {
      for (const { content, ...header } of entries) {
        const named = {
          ...header,
          name: header.name.replace('/OUTSIDE', outside),
          ...(header.linkname === undefined ? {} : { linkname: header.linkname.replace('OUTSIDE', outside) }),
        };
        if (content === undefined) tar.entry(named);
        else tar.entry(named, content);
      }
    });
    await expect(unpackTree(pieces(archive), { dir, rename: (name) => name, onSkipped: () => {} })).rejects.toMatchObject({
      code: 'permission_denied',
    });
    expect(await readFile(join(outside, 'victim'), 'utf8')).toBe('good');
    expect(await readdir(outside)).toEqual(['victim']);
    expect((await readdir(here)).sort()).toEqual(['dir', 'outside']);
  });
}

test('a file in the place of a link replaces the link, not what it leads to', async () => {
  await writeFile(join(here, 'victim'), 'good');
  await mkdir(join(here, 'dir'));
  await symlink('../victim', join(here, 'dir/link'));
  const archive = await bytesOf(pack(), async (tar) => void tar.entry({ name: 'link' }, 'new'));
  await unpackTree(pieces(archive), { dir: join(here, 'dir'), rename: (name) => name, onSkipped: () => {} });
  expect(await readFile(join(here, 'victim'), 'utf8')).toBe('good');
  expect((await lstat(join(here, 'dir/link'))).isFile()).toBe(true);
});

test('devices are left out and told, set-user-id bits are dropped, and a torn archive is an error', async () => {
  const archive = await bytesOf(pack(), async (tar) => {
    tar.entry({ name: 'null', type: 'character-device', devmajor: 1, devminor: 3 });
    tar.entry({ name: 'tool', mode: 0o4755 }, 'x');
    tar.entry({ name: 'last' }, 'y'.repeat(5_000));
  });
  const skipped: string[] = [];
  const options = { dir: here, rename: (name: string) => name, onSkipped: (name: string) => void skipped.push(name) };
  await unpackTree(pieces(archive), options);
  expect(skipped).toEqual(['null']);
  expect((await stat(join(here, 'tool'))).mode & 0o7777).toBe(0o755);
  await expect(unpackTree(pieces(archive.subarray(0, archive.length - 4_000)), options)).rejects.toMatchObject({ code: 'unavailable' });
});

async function bytesOf(tar: ReturnType<typeof pack>, fill: (tar: ReturnType<typeof pack>) => Promise<void>): Promise<Buffer> {
  await fill(tar);
  tar.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of tar as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function* pieces(bytes: Buffer): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += 300) yield bytes.subarray(at, at + 300);
}
