// hutch system, from outside: real files, a real daemon, everything that needs no systemd. The rest is proven in the lab.
import { spawnSync } from 'node:child_process';
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Machine } from './world.ts';

let machine: Machine;
const START_MS = 120_000;

beforeAll(async () => {
  machine = await Machine.make();
}, START_MS);
afterAll(async () => {
  await machine[Symbol.asyncDispose]();
}, START_MS);

type Files = {
  readonly files: readonly { readonly kind: string; readonly path: string; readonly state: string }[];
  readonly release: string;
};

const OURS = ['--user', '--no-service'] as const;

test('a dry run names every file that install makes, makes none, and install makes just those', async () => {
  const root = join(machine.dir, 'root');
  mkdirSync(root);
  const before = machine.listing(root);
  const dry = await machine.run(['system', 'install', '--root', root, '--dry-run', '--json']);
  expect(dry, dry.stdout).toMatchObject({ code: 0, stderr: '' });
  expect(machine.listing(root)).toBe(before);
  const made = await machine.run(['system', 'install', '--root', root, '--json']);
  expect(made.code, made.stdout).toBe(0);
  const told = (JSON.parse(dry.stdout) as Files).files;
  expect((JSON.parse(made.stdout) as Files).files).toEqual(told.map((file) => ({ ...file, state: 'made' })));
  // All that is there is one of them, lies in one of them, or is a directory on the way to it.
  const paths = told.map(({ path }) => path);
  const lines = machine
    .listing(root)
    .split('\n')
    .filter((line) => /^[dfl] /.test(line));
  for (const path of lines.map((line) => line.split(' ')[2]?.slice(1) ?? '').filter((one) => one !== '' && one !== '/'))
    expect(
      paths.some((known) => known === path || path.startsWith(`${known}/`) || known.startsWith(`${path}/`)),
      path,
    ).toBe(true);
  for (const path of paths) expect(existsSync(join(root, path)) || statSync(join(root, dirname(path))).isDirectory(), path).toBe(true);
  const unit = readFileSync(join(root, 'etc/systemd/system/hutchd.service'), 'utf8');
  expect(unit).toContain('ExecStart=/usr/local/lib/hutch/current/bin/hutchd\n');
  expect(unit).not.toContain('@');
  expect(readlinkSync(join(root, 'usr/local/bin/hutch'))).toBe('/usr/local/lib/hutch/current/bin/hutch');

  const again = await machine.run(['system', 'install', '--root', root, '--json']);
  expect(new Set((JSON.parse(again.stdout) as Files).files.map(({ state }) => state))).toEqual(new Set(['there']));
  expect((await machine.run(['system', 'uninstall', '--root', root])).code).toBe(0);
  expect(machine.listing(root)).toBe(before);
});

test('a checkout whose sources are newer than what was built of them is refused, and one that was built since is not', async () => {
  const from = machine.newer('sources', (dir) => {
    mkdirSync(join(dir, 'src'));
    for (const [path, atSeconds] of [
      ['src/changed.ts', 2_000],
      ['src', 2_000],
      ['dist/built', 1_000],
    ] as const) {
      if (path !== 'src') writeFileSync(join(dir, path), '');
      utimesSync(join(dir, path), atSeconds, atSeconds);
    }
  });
  const dry = async () => await machine.run(['system', 'install', ...OURS, '--dry-run'], { from });
  expect(await dry()).toMatchObject({ code: 4, stderr: expect.stringContaining('newer than what was built') });
  utimesSync(join(from, 'dist/built'), 3_000, 3_000);
  expect((await dry()).code).toBe(0);
});

test('install says which package lets all programs find the names of published ports, where they do not', async () => {
  const dry = await machine.run(['system', 'install', ...OURS, '--dry-run', '--json']);
  expect(dry.code, dry.stdout).toBe(0);
  const findsNames = spawnSync('getent', ['ahosts', 'name.hutch.localhost']).status === 0;
  const { notes } = JSON.parse(dry.stdout) as { readonly notes: readonly string[] };
  expect(notes.some((note) => note.endsWith('apt-get install libnss-myhostname'))).toBe(!findsNames);
});

test('without systemd, install says so and what to do, and makes nothing', async () => {
  if (existsSync('/run/systemd/system')) return; // there it is the lab's scenarios that prove it
  const before = machine.listing();
  const refused = await machine.run(['system', 'install', '--user'], { env: { HUTCH_HOME: '' } });
  expect(refused).toMatchObject({ code: 4, stdout: '' });
  expect(refused.stderr).toMatch(/^error: systemd does not run on this machine/);
  expect(refused.stderr).toContain('hutch system install --no-service');
  expect(machine.listing()).toBe(before);
});

test('what somebody else has put in our place is not written over, unless that is asked for', async () => {
  const command = join(machine.home, '.local/bin/hutch');
  mkdirSync(dirname(command), { recursive: true });
  writeFileSync(command, 'mine');
  const refused = await machine.run(['system', 'install', ...OURS]);
  expect(refused.code).toBe(4);
  expect(refused.stderr).toContain(`${command} is there already`);
  expect(existsSync(join(machine.home, '.local/lib'))).toBe(false);
  rmSync(command);
});

test('install, use, damage, install again: what is missing is made anew, settings are kept, and uninstall leaves the machine as it was', async () => {
  const before = machine.listing();
  const installed = await machine.run(['system', 'install', ...OURS]);
  expect(installed.code, installed.stderr).toBe(0);
  expect(await machine.ok('run', '--rm', '--', 'echo', 'here')).toBe('here');
  const status = await machine.hutch('system', 'status', '--user');
  expect(status.code, status.stdout).toBe(0);
  expect(status.stdout).toMatch(/^daemon +\S+, process \d+, of 0\.1\.0-[0-9a-f]{12}, since/m);

  const settings = join(machine.data, 'config.toml');
  appendFileSync(settings, '[limits]\nsandboxes = 50\n');
  const completion = join(machine.home, '.local/share/bash-completion/completions/hutch');
  rmSync(completion);
  appendFileSync(realpathSync(join(machine.home, '.local/lib/hutch/current/dist/hutchd.mjs')), '// damaged\n');
  const hurt = await machine.hutch('system', 'status', '--user');
  expect(hurt.code).toBe(7);
  expect(hurt.stdout).toContain(`${completion} is missing`);
  expect(hurt.stdout).toMatch(/the release \S+ is damaged/);
  const mended = await machine.run(['system', 'install', ...OURS, '--json']);
  expect(mended.code, mended.stdout).toBe(0);
  const states = Object.fromEntries((JSON.parse(mended.stdout) as Files).files.map(({ path, state }) => [path, state]));
  expect([states[completion], states[settings]]).toEqual(['made', 'kept']);
  expect((await machine.hutch('system', 'status', '--user')).code).toBe(0);

  await machine.ok('run', '-d', '--name', 'live', '--', 'sleep', '1000');
  const refused = await machine.hutch('system', 'uninstall', '--user');
  expect(refused.code).toBe(4);
  expect(refused.stderr).toMatch(/sandboxes run: live\b[\s\S]*--force/);
  const kept = await machine.ok('system', 'uninstall', '--user', '--force');
  expect(kept).toMatch(/^stopped: live$/m);
  expect(kept).toContain(`${machine.data}/data`);
  expect(kept).toContain('you have changed it');
  expect(readFileSync(settings, 'utf8')).toContain('sandboxes = 50');
  expect(machine.listing()).toBe(before);
  expect((await machine.run(['system', 'uninstall', '--user'])).stdout).toMatch(/^nothing is installed/);
  expect((await machine.run(['system', 'status', '--user'])).code).toBe(3);

  // What sandboxes have is there again, until it is purged.
  expect((await machine.run(['system', 'install', ...OURS])).code).toBe(0);
  await machine.ok('daemon', 'start');
  expect(await machine.ok('ls')).toContain('live');
  expect((await machine.hutch('system', 'uninstall', '--user', '--purge')).code).toBe(0);
  expect(machine.listing()).toBe(before);
  expect(['data', 'run', 'log'].filter((name) => existsSync(join(machine.data, name)))).toEqual([]);
});
