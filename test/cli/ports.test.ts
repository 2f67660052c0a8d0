// Ports and sockets of sandboxes on this machine: forwarded, published, and taken away again.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, statSync, symlinkSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { EXIT_CODES } from '../../src/cli/exit-codes.ts';
import { eventually } from '../support/eventually.ts';
import { outcomeOf, World } from './world.ts';

let world: World;

beforeAll(async () => {
  world = await World.make();
  await world.ok('create', '--name', 'box', '--label', 'kind=test');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

test('forward carries many connections to a port inside', async () => {
  const guestPort = 7777;
  await world.ok('exec', '-d', 'box', '--', 'busybox', 'nc', '-ll', '-p', String(guestPort), '-e', 'cat');
  const child = world.spawn(['forward', '--json', 'box', `0:${guestPort}`]);
  const done = outcomeOf(child);
  const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string];
  const { port } = JSON.parse(line) as { port: number };
  await eventually('the server inside', async () => (await talk(port, 'up?')) === 'up?');
  // Four at a time: that server's queue of callers is a short one.
  for (let round = 0; round < 5; round += 1) {
    const texts = Array.from({ length: 4 }, (_, at) => `hello ${round} ${at} `.repeat(5_000));
    const answers = await Promise.all(texts.map((text) => talk(port, text)));
    expect(answers.map((answer, at) => answer === texts[at])).toEqual([true, true, true, true]);
  }
  child.kill('SIGINT');
  expect((await done).code).toBe(130);
});

test('forward refuses a sandbox that does not run: nothing would ever answer', async () => {
  await world.ok('create', '--no-start', '--name', 'asleep');
  expect(await world.run(['forward', 'asleep', '0:80'])).toMatchObject({
    code: 4,
    stdout: '',
    stderr: 'error: sandbox asleep does not run: it is created\nhint: start it with: hutch start asleep\n',
  });
  await world.ok('rm', 'asleep');
});

test('a port of a sandbox that runs is published, opened in the browser where there is a screen, and taken away again', async () => {
  const guestPort = 7778;
  await world.ok('exec', '-d', 'box', '--', 'busybox', 'nc', '-ll', '-p', String(guestPort), '-e', 'cat');
  const shown = join(world.dir, 'shown');
  const opener = join(world.dir, 'screen');
  await mkdir(opener);
  await writeFile(join(opener, 'xdg-open'), `#!/bin/sh\necho "$1" > ${shown}\n`, { mode: 0o755 });
  const screen = { DISPLAY: ':0', PATH: `${opener}:${world.env['PATH']}` };

  const url = (await world.run(['open', 'box', String(guestPort)], { env: screen })).stdout.trim();
  const hostPort = Number(/^http:\/\/127\.0\.0\.1:(\d+)\/$/.exec(url)?.[1]);
  await eventually('the server inside', async () => (await talk(hostPort, 'up?')) === 'up?');
  expect(existsSync(shown), 'nobody looks: no terminal').toBe(false);
  const terminal = spawn('script', ['-qec', `${process.execPath} ${world.bundle} open box ${guestPort}`, '/dev/null'], {
    env: { ...world.env, ...screen },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [said] = (await once(terminal.stdout, 'data')) as [Buffer];
  expect(said.toString().trim(), 'the same port as before').toBe(url);
  await eventually('the browser', async () => existsSync(shown) && (await readFile(shown, 'utf8')).trim() === url);

  expect(await world.ok('ports', 'add', 'box', `127.0.0.2:0:${guestPort}`)).toMatch(new RegExp(`^127\\.0\\.0\\.2:\\d+ -> ${guestPort}$`));
  expect(await world.ok('ports', 'box')).toContain(`127.0.0.1:${hostPort}, 127.0.0.2:`);
  await world.ok('ports', 'rm', 'box', `${hostPort}:${guestPort}`);
  await expect(talk(hostPort, 'up?')).rejects.toThrow();
  expect(await world.ok('ports', 'ls', 'box')).toMatch(/ 127\.0\.0\.2:\d+$/m);
  const wrongWay = await world.run(['ports', 'rm', 'box', String(hostPortOf(await world.ok('ports', 'ls', 'box')))]);
  expect(wrongWay.stderr).toContain(`answers for its port ${guestPort}: hutch ports rm box ${guestPort}`);
  await world.ok('ports', 'rm', 'box', String(guestPort));
  expect(await world.ok('ports', 'ls', 'box')).not.toContain('127.0.0.');
  const { code, stderr } = await world.run(['ports', 'rm', 'box', String(guestPort)]);
  expect({ code, stderr }).toEqual({
    code: EXIT_CODES.notFound.code,
    stderr: expect.stringContaining(`does not publish its port ${guestPort}`),
  });
  expect((await world.run(['ports', 'add', 'box', 'none'])).code).toBe(2);
});

/** Of what is published at 127.0.0.2. */
function hostPortOf(list: string): string {
  return /127\.0\.0\.2:(\d+)/.exec(list)?.[1] ?? '';
}

test('open says where nothing listens yet', async () => {
  const guestPort = 7781;
  const { code, stdout, stderr } = await world.run(['open', '--print', 'box', String(guestPort)]);
  expect([code, stdout, stderr]).toEqual([0, expect.stringMatching(/^http:/), `nothing listens on port ${guestPort} of box yet\n`]);
  await world.ok('ports', 'rm', 'box', String(guestPort));
});

test('forward brings a unix socket of the sandbox to one of this machine, and puts it away', async () => {
  const { id } = JSON.parse(await world.ok('inspect', '--json', 'box')) as { id: string };
  // The root of a sandbox of the backend for tests is a directory of this machine: the server may be ours.
  symlinkSync(join(world.home, 'data/sandboxes', id, 'vm/root'), join(world.dir, 'root')); // the whole path is too long for a socket
  await using server = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket));
  server.listen(join(world.dir, 'root/tmp/echo.sock'));
  await once(server, 'listening');
  const path = join(world.dir, 'echo.sock');
  const forward = async (to: string) => {
    const child = world.spawn(['forward', '--json', 'box', `${path}:${to}`]);
    const done = outcomeOf(child);
    const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string];
    return { child, done, told: JSON.parse(line) as object };
  };
  const first = await forward('/tmp/echo.sock');
  expect(first.told).toEqual({ path, guestPath: '/tmp/echo.sock' });
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(await talk(path, 'hello '.repeat(20_000))).toBe('hello '.repeat(20_000));
  const taken = await world.run(['forward', 'box', `${path}:/tmp/echo.sock`]);
  expect([taken.code, taken.stderr.split('\n')[0]]).toEqual([EXIT_CODES.conflict.code, `error: ${path} exists`]);
  first.child.kill('SIGKILL');
  await expect(first.done).rejects.toThrow('killed');
  expect(existsSync(path)).toBe(true);
  const second = await forward('/tmp/echo.sock'); // what a killed one has left is in nobody's way
  expect(await talk(path, 'again')).toBe('again');
  second.child.kill('SIGINT');
  expect((await second.done).code).toBe(130);
  expect(existsSync(path)).toBe(false);
  for (const wrong of ['/run/x', 'web:80', '80:web', './x:0', ':80']) {
    const { code, stderr } = await world.run(['forward', 'box', wrong]);
    expect([code, stderr], wrong).toEqual([EXIT_CODES.usage.code, expect.stringContaining(`'${wrong}' is no pair`)]);
  }
});

async function talk(at: number | string, text: string): Promise<string> {
  const socket = typeof at === 'number' ? connect({ port: at, host: '127.0.0.1' }) : connect(at);
  let answer = '';
  socket.on('error', () => {}); // told by what is missing
  socket.on('data', (chunk) => {
    answer += chunk.toString();
  });
  socket.end(text);
  await once(socket, 'close');
  return answer;
}
