// The daemon and its settings from the command line: what it has read, where it is, how it begins and ends.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { EXIT_CODES } from '../../src/cli/exit-codes.ts';
import { verbs } from '../../src/services/verbs.ts';
import { errorBody, sandbox as sandboxView } from '../../src/services/views.ts';
import { outcomeOf, World } from './world.ts';

const isRoot = process.getuid?.() === 0;

let world: World;

beforeAll(async () => {
  world = await World.make();
  await world.ok('run', '-d', '--name', 'web', '--', 'sh', '-c', 'echo up; sleep 1000');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

test('the settings can be looked at where no daemon runs, and none is started', async () => {
  const home = join(world.dir, 'nowhere');
  const env = { HUTCH_HOME: home, HUTCH_SANDBOX_CPUS: '3' };
  const { code, stdout } = await world.run(['config', 'show', '--json'], { env });
  expect(code).toBe(0);
  const { values } = verbs['config.get'].output.parse(JSON.parse(stdout));
  expect(values.find(({ key }) => key === 'sandbox.cpus')).toEqual({ key: 'sandbox.cpus', value: 3, source: 'HUTCH_SANDBOX_CPUS' });
  const running = verbs['config.get'].output.parse(JSON.parse((await world.run(['config', 'show', '--json'])).stdout));
  expect(values.map(({ key }) => key)).toEqual(running.values.map(({ key }) => key));
  expect(existsSync(home)).toBe(false);
});

test('a misspelt variable, or a file that is wrong by now, is told also while a daemon runs', async () => {
  const env = { HUTCH_SANDBOX_MEMROY: '2G' };
  for (const [args, code] of [
    [['ls'], 2],
    [['run', '--rm', '--', 'true'], 125],
    [['config', 'show'], 2],
  ] as const) {
    expect(await world.run(args, { env })).toMatchObject({
      code,
      stderr: 'error: HUTCH_SANDBOX_MEMROY: there is no such setting\nhint: did you mean HUTCH_SANDBOX_MEMORY?\n',
    });
  }
  const file = join(world.home, 'config.toml');
  try {
    await writeFile(file, '[sandbox]\ncpus = 2\n');
    expect((await world.run(['config', 'show'])).stderr).toContain('changed since the daemon was started: sandbox.cpus (');
    await writeFile(file, '[sandbox]\nmemory = 512\n');
    const { code, stderr } = await world.run(['config', 'show']);
    expect([code, stderr]).toEqual([2, expect.stringContaining(`${file}:2: sandbox.memory: 512 has no unit`)]);
  } finally {
    await rm(file, { force: true });
  }
});

test('our own HUTCH_SANDBOX_ variables hold for what we make, whatever the daemon has read; a flag wins', async () => {
  const made = async (env: Readonly<Record<string, string>>, ...flags: string[]) => {
    const { code, stdout } = await world.run(['create', '--json', '--no-start', ...flags], { env });
    if (code !== 0) return errorBody.parse(JSON.parse(stdout)).message;
    const sandbox = sandboxView.parse(JSON.parse(stdout));
    await world.ok('rm', sandbox.name);
    return [sandbox.shape.memoryMiB, sandbox.shape.cpus, sandbox.timeoutMs, sandbox.network];
  };
  const env = { HUTCH_SANDBOX_MEMORY: '1G', HUTCH_SANDBOX_CPUS: '2', HUTCH_SANDBOX_TIMEOUT: '1m', HUTCH_SANDBOX_NETWORK: 'none' };
  expect(await made(env)).toEqual([1024, 2, 60_000, 'none']);
  expect(await made(env, '--memory', '256M', '--cpus', '1', '--timeout', '2m')).toEqual([256, 1, 120_000, 'none']);
  expect(await made({ HUTCH_SANDBOX_MEMORY: '512' })).toBe('HUTCH_SANDBOX_MEMORY: 512 has no unit');
  expect(await made({ HUTCH_SANDBOX_NETWORK: 'lan' })).toBe("HUTCH_SANDBOX_NETWORK is one of none, allow, allow-lan, not 'lan'");
});

test('a file in the place of HUTCH_HOME is named as what it is', async () => {
  const { code, stderr } = await world.run(['ls'], { env: { HUTCH_HOME: world.bundle } });
  expect([code, stderr]).toEqual([EXIT_CODES.failed.code, expect.stringContaining(`${world.bundle}/data: ENOTDIR`)]);
});

test('the daemon can be stopped, told about, and started again; sandboxes go on', async () => {
  expect(await world.ok('daemon', 'stop')).toContain('sandboxes go on');
  const status = await world.run(['daemon', 'status']);
  expect(status.code).toBe(EXIT_CODES.unavailable.code);
  expect((await world.run(['ls'], { env: { HUTCH_NO_START: '1' } })).code).toBe(EXIT_CODES.unavailable.code);
  expect((await world.run(['version'])).stdout).toContain('none runs');
  await world.ok('daemon', 'start');
  expect(await world.ok('ls')).toMatch(/web +running/);
  expect(await world.ok('daemon', 'logs', '-n', '1')).toContain('{');
});

test.skipIf(!isRoot)('daemon stop ends where nobody asks how a process has ended, as in a container', async () => {
  await using own = await World.make();
  // The first process of a container: it waits for its own children alone.
  const script = `const { execFileSync } = require('node:child_process');
    for (const verb of ['start', 'stop']) execFileSync(process.execPath, [${JSON.stringify(own.bundle)}, 'daemon', verb]);`;
  const first = spawn('unshare', ['--pid', '--fork', '--mount-proc', process.execPath, '-e', script], { env: own.env, cwd: own.dir });
  expect((await outcomeOf(first, ['daemon', 'stop'])).code).toBe(0);
});

test('a port that is taken is told at once, not after a wait for another daemon', async () => {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  // So short a time that a command which waits is killed; the wait was 30 s.
  const child = world.spawn(['ls'], { env: { HUTCH_HOME: join(world.dir, 'busy'), HUTCH_DAEMON_LISTEN: `127.0.0.1:${port}` } });
  const { code, stderr } = await outcomeOf(child, ['ls'], 20_000).finally(() => server.close());
  expect([code, stderr]).toEqual([EXIT_CODES.conflict.code, expect.stringContaining(`error: port ${port} is taken by `)]);
});

test('commands that start the daemon at the same time share one', async () => {
  await world.ok('daemon', 'stop');
  const codes = await Promise.all(Array.from({ length: 4 }, async () => (await world.run(['ls'])).code));
  expect(codes).toEqual([0, 0, 0, 0]);
});
