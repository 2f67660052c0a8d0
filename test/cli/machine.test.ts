// The CLI over real virtual machines: what the reference backend cannot tell.
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { Screen } from './screen.ts';
import { MACHINES, outcomeOf, World } from './world.ts';

let world: World;
const FIRST_MS = 180_000;
const MIB = 1_048_576;

beforeAll(async () => {
  world = await World.make(MACHINES);
  const child = world.spawn(['create', '--name', 'box'], { env: { HUTCH_TEST_NO_TEMPLATE: '1' } }); // boots, as there is none to start from
  child.stdin.end();
  const { code, stderr } = await outcomeOf(child, ['create'], FIRST_MS);
  expect(code, stderr).toBe(0);
  // Not on a terminal: one line before what is done once, and none afterwards.
  expect(stderr).toBe('hutch: booting a machine of this shape (only the first time; some seconds)…\n');
  const templates = () => readdir(join(world.home, 'data/templates'));
  await eventually(
    'what the next ones start from is made',
    async () => (await templates()).some((name) => /^[0-9a-f]{40}$/.test(name)),
    FIRST_MS,
  );
}, 2 * FIRST_MS);
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

test('run answers from a machine with its own kernel', async () => {
  const { code, stdout, stderr } = await world.run(['run', '--rm', '--', 'uname', '-r']);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout.trim()).toMatch(/^\d+\.\d+\./);
  expect(stdout.trim()).not.toBe(release());
});

test('doctor says that sandboxes run, whatever the ways lack that are not used', async () => {
  const { code, stdout } = await world.run(['doctor']);
  expect(code, stdout).toBe(0);
  expect(stdout).not.toContain('Sandboxes cannot run');
});

test('exit codes, and those of programs that are not there, are the guest’s', async () => {
  expect((await world.run(['exec', 'box', '--', 'python3', '-c', 'import sys; sys.exit(42)'])).code).toBe(42);
  expect((await world.run(['exec', 'box', 'no-such-program'])).code).toBe(127);
  expect((await world.run(['exec', 'box', '/etc/passwd'])).code).toBe(126);
  expect((await world.run(['exec', 'box', '--', 'sh', '-c', 'kill -9 $$'])).code).toBe(137);
});

test('input and output pass unchanged, and files too', async () => {
  const bytes = randomBytes(8 * MIB + 3);
  expect((await world.run(['exec', 'box', 'cat'], { input: bytes })).bytes.equals(bytes)).toBe(true);
  const { bytes: archive } = await world.run(['exec', 'box', '--', 'sh', '-c', 'head -c 3000000 /dev/urandom | tee /root/data']);
  const { bytes: tar } = await world.run(['cp', 'box:/root/data', '-']);
  expect([archive.byteLength, tar.includes(archive)]).toEqual([3_000_000, true]);
});

test('the daemon is killed while input is sent: all of it arrives once', async () => {
  const child = world.spawn(['exec', 'box', '--', 'sha256sum']);
  const done = outcomeOf(child);
  const hash = createHash('sha256');
  for (let at = 0; at < 12; at += 1) {
    const chunk = randomBytes(MIB);
    hash.update(chunk);
    if (!child.stdin.write(chunk)) await once(child.stdin, 'drain');
    if (at === 4) await world.killDaemon();
  }
  child.stdin.end();
  const { stdout, stderr } = await done;
  expect(stdout, stderr).toBe(`${hash.digest('hex')}  -\n`);
});

test('bash in a terminal: size, job control, and its code', async () => {
  await using screen = await Screen.open(world, { cols: 90, rows: 30 });
  await screen.enter('$H shell --env "PS1=box> " box');
  await screen.shows(/[$#>] *$/m);
  await screen.enter('PS1="box> "; stty size');
  await screen.shows('30 90');
  await screen.resize(100, 35);
  await screen.enter('stty size');
  await screen.shows('35 100');
  await screen.enter('exit 6');
  await screen.shows(/^ours>$/m);
  await screen.enter('echo "ended with $?"');
  await screen.shows('ended with 6');
});

test('a sandbox that ends has lost no network: its record has its end alone', async () => {
  for (let count = 0; count < 4; count += 1) await world.ok('run', '--rm', '--', 'true');
  const events = (await world.ok('events', '--json')).split('\n').map((line) => JSON.parse(line) as { type: string });
  const types = events.map(({ type }) => type);
  expect(types.filter((type) => type === 'sandbox.ended').length).toBeGreaterThan(3);
  expect(types).not.toContain('sandbox.network-lost');
});
