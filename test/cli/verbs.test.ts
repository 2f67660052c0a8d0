// The other verbs against a real daemon: what they print, their JSON, and their exit codes.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, statSync, symlinkSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer as createHttpServer } from 'node:http';
import { type AddressInfo, connect, createServer } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ZodType } from 'zod';
import { EXIT_CODES } from '../../src/cli/exit-codes.ts';
import { verbs } from '../../src/services/verbs.ts';
import { errorBody, event, ledgerEntry, sandbox as sandboxView } from '../../src/services/views.ts';
import { eventually } from '../support/eventually.ts';
import { outcomeOf, World } from './world.ts';

const isRoot = process.getuid?.() === 0;

let world: World;

beforeAll(async () => {
  world = await World.make();
  await world.ok('create', '--name', 'box', '--label', 'kind=test');
  await world.ok('run', '-d', '--name', 'web', '--', 'sh', '-c', 'echo up; sleep 1000');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

/** Verbs whose --json is one document, each with the schema of the API. */
const DOCUMENTS: readonly (readonly [readonly string[], ZodType])[] = [
  [['ls'], verbs['sandbox.list'].output],
  [['inspect', 'box'], sandboxView],
  [['pause', 'box'], sandboxView],
  [['resume', 'box'], sandboxView],
  [['rename', 'box', 'box'], sandboxView],
  [['set', '--timeout', 'none', '--restart', 'no', '--idle', 'default', '--unlabel', 'none', 'box'], verbs['sandbox.set'].output],
  [['stop', 'box'], sandboxView],
  [['start', 'box'], sandboxView],
  [['restart', '--timeout', '1s', 'box'], sandboxView],
  [['stats', '--no-stream', 'box'], verbs['sandbox.stats'].output],
  [['ports', 'box'], verbs['port.list'].output],
  [['why', 'box'], verbs['why.get'].output],
  [['volume', 'create', '--size', '16M', 'disk'], verbs['volume.create'].output],
  [['volume'], verbs['volume.list'].output],
  [['volume', 'df'], verbs['volume.list'].output],
  [['volume', 'inspect', 'disk'], verbs['volume.get'].output],
  [['volume', 'grow', '--size', '32M', 'disk'], verbs['volume.grow'].output],
  [['volume', 'rm', 'disk'], verbs['volume.remove'].output],
  [['template'], verbs['template.list'].output],
  [['ops'], verbs['operation.list'].output],
  [['ops', 'ls', '--all', '-n', '3'], verbs['operation.list'].output],
  [['ledger', 'verify'], verbs['ledger.verify'].output],
  [['keys', 'create', 'one'], verbs['key.create'].output],
  [['keys', 'ls'], verbs['key.list'].output],
  [['keys', 'revoke', 'one'], verbs['key.revoke'].output],
  [['config', 'show'], verbs['config.get'].output],
  [['doctor', '--leaks'], verbs['doctor.leaks'].output],
  [['backends'], verbs['backends.list'].output],
  [['df'], verbs['system.df'].output],
  [['prune', '--dry-run', '--older-than', '1h'], verbs['system.prune'].output],
  [['daemon', 'status'], verbs['daemon.version'].output],
];

for (const [args, schema] of DOCUMENTS) {
  test(`hutch ${args.join(' ')} --json prints one document in the API’s schema`, async () => {
    const { code, stdout, stderr } = await world.run([...args, '--json']);
    expect({ code, stderr }, stdout).toEqual({ code: 0, stderr: '' });
    expect(stdout.trimEnd().split('\n')).toHaveLength(1);
    expect(schema.safeParse(JSON.parse(stdout)).error).toBeUndefined();
  });
}

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

test('what has no document of the API’s says what it did, or that it has no --json', async () => {
  expect(await world.run(['rm', '--json', '-f', 'missing'])).toMatchObject({ code: 0, stdout: '', stderr: '' });
  const completion = JSON.parse((await world.run(['completion', 'bash', '--json'])).stdout) as { shell: string; script: string };
  expect(completion).toEqual({ shell: 'bash', script: (await world.run(['completion', 'bash'])).stdout });
  const packed = await world.run(['cp', 'box:/etc/hostname', '-']);
  const into = await world.run(['cp', '--json', '-', 'box:/tmp'], { input: packed.bytes });
  expect(verbs['archive.put'].output.parse(JSON.parse(into.stdout))).toEqual({ entries: 1, bytes: packed.bytes.byteLength });
  const out = await world.run(['cp', '--json', 'box:/etc/hostname', `${world.dir}/hostname`]);
  expect(JSON.parse(out.stdout)).toEqual({ entries: 1, bytes: expect.any(Number) });
  for (const args of [
    ['cp', '--json', 'box:/etc/hostname', '-'],
    ['shell', '--json', 'box'],
  ]) {
    const { code, stdout } = await world.run(args);
    expect(code).toBe(args[0] === 'cp' ? 2 : 125);
    expect(errorBody.parse(JSON.parse(stdout))).toMatchObject({ code: 'invalid_argument', hint: expect.any(String) });
  }
});

test('doctor --json prints the API’s report, and its code tells whether sandboxes can run', async () => {
  const { code, stdout } = await world.run(['doctor', '--json']);
  const report = verbs['doctor.check'].output.parse(JSON.parse(stdout));
  expect(code).toBe(report.ok ? 0 : 1);
});

test('streams are lines of JSON in the API’s schema', async () => {
  const lines = async (...args: string[]) => (await world.ok(...args, '--json')).split('\n').map((line) => JSON.parse(line) as unknown);
  for (const one of await lines('events')) expect(event.safeParse(one).error).toBeUndefined();
  for (const one of await lines('ledger', 'tail', '-n', '2')) expect(ledgerEntry.safeParse(one).error).toBeUndefined();
  expect((await lines('ledger', 'tail', '-n', '2')).length).toBe(2);
  expect((await lines('ledger', 'export')).length).toBeGreaterThan(3);
  for (const one of await lines('ledger', 'export', '--format', 'cocoon')) expect(one).toHaveProperty('kind');
});

test('events -n gives the last ones, and with --cursor the first ones from there', async () => {
  const lines = async (...args: string[]) =>
    (await world.ok('events', '--json', ...args)).split('\n').map((line) => JSON.parse(line) as { cursor: number });
  const all = await lines();
  expect(all.length).toBeGreaterThan(5);
  expect(await lines('-n', '3')).toEqual(all.slice(-3));
  expect(await lines('-n', '2', '--cursor', String(all[1]?.cursor))).toEqual(all.slice(2, 4));
  const child = world.spawn(['events', '-f', '-n', '2', '--json']);
  const seen: unknown[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => seen.push(JSON.parse(line)));
  await eventually('the last two', () => seen.length === 2);
  await world.ok('pause', 'box');
  await world.ok('resume', 'box');
  await eventually('what comes', () => seen.length === 4);
  const done = outcomeOf(child);
  child.kill('SIGINT');
  expect((await done).code).toBe(130);
  expect(seen.slice(0, 4)).toEqual((await lines()).slice(all.length - 2));
});

test('Ctrl-C ends what goes on until then with 130, and without a complaint', async () => {
  for (const args of [
    ['ls', '--watch'],
    ['ledger', 'tail', '-f'],
    ['forward', 'box', '0:80'],
  ]) {
    const child = world.spawn(args);
    const done = outcomeOf(child, args);
    await once(child.stdout, 'data');
    child.kill('SIGINT');
    expect(await done, args.join(' ')).toMatchObject({ code: 130, stderr: '' });
  }
});

test('exec --json tells start, output and exit as lines', async () => {
  const { stdout, code } = await world.run(['exec', '--json', 'box', '--', 'sh', '-c', 'printf out; printf err >&2; exit 3']);
  const lines = stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as { type: string; base64?: string; exitCode?: number });
  expect(lines[0]).toMatchObject({ type: 'started' });
  const text = (type: string) =>
    lines
      .filter((line) => line.type === type)
      .map(({ base64 = '' }) => Buffer.from(base64, 'base64').toString())
      .join('');
  expect([text('stdout'), text('stderr')]).toEqual(['out', 'err']);
  expect(lines.at(-1)).toMatchObject({ type: 'exit', exitCode: 3 });
  expect(code).toBe(3);
});

test('with --json an error is one document on stdout, and nothing on stderr', async () => {
  for (const args of [
    ['inspect', 'nobody'],
    ['stop', 'nobody'],
    ['ls', '--no-such-flag'],
    ['create', '--memory', '512'],
    ['no-such-verb'],
    ['exec', '--json', 'nobody', 'true'],
  ]) {
    const { stdout, stderr, code } = await world.run(args.includes('--json') ? args : [...args, '--json']);
    expect(stderr).toBe('');
    expect(errorBody.safeParse(JSON.parse(stdout)).error).toBeUndefined();
    expect(code).not.toBe(0);
  }
});

test('of several references a bad one fails alone, in its place, and the worst code counts', async () => {
  const { code, stdout, stderr } = await world.run(['inspect', '--json', 'web', 'nobody', 'box', 'web']);
  const lines = stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as { name?: string; code?: string });
  expect(lines.map(({ name, code: error }) => name ?? error)).toEqual(['web', 'not_found', 'box']);
  expect({ code, stderr }).toEqual({ code: 3, stderr: '' });
});

test('each exit code is given for its reason', async () => {
  const code = async (...args: string[]) => (await world.run(args)).code;
  expect(await code('ls')).toBe(EXIT_CODES.ok.code);
  expect(await code('lss')).toBe(EXIT_CODES.usage.code);
  expect(await code('create', '--memory', '512')).toBe(EXIT_CODES.usage.code);
  expect(await code('inspect', 'nobody')).toBe(EXIT_CODES.notFound.code);
  expect(await code('create', '--name', 'box')).toBe(EXIT_CODES.conflict.code);
  expect(await code('resume', 'box')).toBe(0);
  await world.ok('stop', 'box');
  expect(await code('stats', '--no-stream', 'box')).toBe(EXIT_CODES.conflict.code);
  await world.ok('start', 'box');
  const nobody = await world.run(['ls'], { env: { HUTCH_API_URL: 'http://127.0.0.1:1', HUTCH_API_KEY: 'e2b_x' } });
  expect(nobody.code).toBe(EXIT_CODES.unavailable.code);
  expect(nobody.stderr).toContain('http://127.0.0.1:1');
}, 120_000);

test('what a daemon answers is an exit code of each verb, with --json too; commands that pass a code on have 125', async () => {
  let code = '';
  const server = createHttpServer((_, response) => {
    response.writeHead(500, { 'Content-Type': 'application/json' });
    response.end(JSON.stringify({ code, message: 'so it is', hint: null, retryable: false, opId: 'op-0123456789ab' }));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const env = { HUTCH_API_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, HUTCH_API_KEY: 'e2b_x' };
  try {
    for (const [answer, name] of [
      ['deadline_exceeded', 'deadline'],
      ['resource_exhausted', 'quota'],
      ['permission_denied', 'failed'],
    ] as const) {
      code = answer;
      for (const argv of [
        ['stop', 'box'],
        ['inspect', 'box', '--json'],
      ]) {
        const told = await world.run(argv, { env });
        expect(told.code, argv.join(' ')).toBe(EXIT_CODES[name].code);
        if (argv.includes('--json')) expect(JSON.parse(told.stdout)).toMatchObject({ code: answer });
        else expect(told.stderr).toContain('so it is (op-0123456789ab)');
      }
      expect((await world.run(['exec', 'box', '--', 'true'], { env })).code).toBe(EXIT_CODES.hutchFailed.code);
    }
  } finally {
    server.closeAllConnections();
    server.close();
  }
}, 120_000);

test('a mistyped verb or flag is answered with the one that was meant', async () => {
  expect((await world.run(['inspct', 'x'])).stderr).toContain('did you mean hutch inspect?');
  expect((await world.run(['ls', '--wach'])).stderr).toContain('did you mean --watch?');
  expect((await world.run(['ops', 'cancle', 'x'])).stderr).toContain('did you mean hutch ops cancel?');
  expect((await world.run(['create', '--backend', 'qemuu'])).stderr).toContain('did you mean qemu?');
});

test('help with --json is one document', async () => {
  for (const argv of [['--help'], ['ls', '--help'], ['snapshot', '--help'], ['help', 'run']]) {
    const told = JSON.parse(await world.ok(...argv, '--json')) as Record<string, unknown>;
    expect(told['verbs'] ?? told['flags'], argv.join(' ')).toBeInstanceOf(Array);
  }
});

test('who types Docker’s words is told ours, each of which is there', async () => {
  for (const word of ['ps', 'kill', 'top', 'images', 'rmi', 'unpause', 'save']) {
    const { code, stderr } = await world.run([word]);
    expect(code).toBe(2);
    const meant = /did you mean hutch ([^?]+)\?/.exec(stderr)?.[1] ?? '';
    expect((await world.run([...meant.split(' '), '--help'])).stdout, stderr).toContain(`hutch ${meant.split(' --')[0]}`);
  }
  expect((await world.run(['ls', '-aq'])).stdout).toBe((await world.run(['ls', '-q'])).stdout);
});

test('a size without a unit is refused with a hint', async () => {
  const { stderr } = await world.run(['create', '--memory', '512']);
  expect(stderr).toMatch(/^error: --memory: 512 has no unit$/m);
  expect(stderr).toMatch(/^hint: .*512M/m);
});

test('ls shows a row per sandbox; -q only ids; --label and --state choose', async () => {
  const text = await world.ok('ls');
  expect(text.split('\n')[0]).toMatch(/^ID +NAME +STATE +IMAGE +CPUS +MEMORY +CREATED +COMMAND$/);
  expect(text).toMatch(/^sbx\w+ +web +running/m);
  expect(await world.ok('ls', '-q', '--label', 'kind=test')).toMatch(/^sbx\w{17}$/);
  expect(await world.ok('ls', '-q', '--state', 'stopped')).toBe('');
});

test('ls --watch shows what happens', async () => {
  const child = world.spawn(['ls', '--watch', '--json']);
  const done = outcomeOf(child);
  const lines = createInterface({ input: child.stdout });
  const seen: string[] = [];
  lines.on('line', (line) => seen.push(line));
  await eventually('the first list', () => seen.length > 0);
  await world.ok('create', '--no-start', '--name', 'new');
  await eventually('the new one', () => seen.at(-1)?.includes('"new"') === true);
  child.kill('SIGINT');
  expect((await done).code).toBe(130);
  await world.ok('rm', 'new');
});

test('events -f goes on after the daemon was killed', async () => {
  const child = world.spawn(['events', '-f', '--json']);
  const done = outcomeOf(child);
  const types: string[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => {
    const { type, sandboxName } = JSON.parse(line) as { type: string; sandboxName: string };
    if (sandboxName === 'seen') types.push(type);
  });
  await world.killDaemon();
  await world.ok('create', '--no-start', '--name', 'seen');
  await eventually('its creation', () => types.includes('sandbox.created'));
  await world.ok('rm', 'seen');
  await eventually('its end', () => types.includes('sandbox.deleted'));
  expect(types.filter((type) => type === 'sandbox.created')).toHaveLength(1);
  child.kill('SIGINT');
  expect((await done).code).toBe(130);
});

test('logs --tail shows the last lines, --timestamps their time, --boot the console', async () => {
  await world.ok('run', '-d', '--name', 'say', '--', 'sh', '-c', 'for i in 1 2 3 4 5 6; do echo line $i; done; sleep 1000');
  await eventually('six lines', async () => (await world.ok('logs', 'say')).endsWith('line 6'));
  expect(await world.ok('logs', '--tail', '2', 'say')).toBe('line 5\nline 6');
  expect(await world.ok('logs', '-n', '1', '--timestamps', 'say')).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+Z line 6$/);
  expect(await world.ok('logs', '--boot', 'say')).toContain('booting');
  const child = world.spawn(['logs', '-f', 'say']);
  const done = outcomeOf(child);
  await once(child.stdout, 'data');
  await world.ok('stop', '--force', 'say');
  expect((await done).stdout).toBe('line 1\nline 2\nline 3\nline 4\nline 5\nline 6\n');
  await world.ok('rm', '-f', 'say');
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
  await world.ok('ports', 'rm', 'box', String(guestPort));
  expect(await world.ok('ports', 'ls', 'box')).not.toContain('127.0.0.');
  const { code, stderr } = await world.run(['ports', 'rm', 'box', String(guestPort)]);
  expect({ code, stderr }).toEqual({
    code: EXIT_CODES.notFound.code,
    stderr: expect.stringContaining(`no published port with guestPort ${guestPort}`),
  });
  expect((await world.run(['ports', 'add', 'box', 'none'])).code).toBe(2);
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

test('an operation’s id leads to what it did', async () => {
  const { stderr, stdout } = await world.run(['stats', '--no-stream', 'nobody']);
  expect(stdout).toBe('');
  const opId = /\((op-[0-9a-f]{12})\)/.exec(stderr)?.[1] ?? '';
  expect(opId).not.toBe('');
  const made = await world.json<{ lastOpId: string }>('inspect', 'box');
  const why = await world.ok('why', made.lastOpId);
  expect(why).toContain(made.lastOpId);
  expect(why).toContain('the key owner asked for');
});

test('who asked is told by the name of its key, and in JSON by its id as well', async () => {
  const [own] = (await world.json<{ keys: { id: string; name: string }[] }>('keys', 'ls')).keys;
  const { operations } = await world.json<{ operations: { actor: string; actorName: string | null }[] }>('ops', 'ls', '--all');
  expect(operations.find(({ actor }) => actor === own?.id)?.actorName).toBe('owner');
  expect(operations.every(({ actor, actorName }) => actor === own?.id || actorName === null)).toBe(true);
  for (const shown of [await world.ok('ops', 'ls', '--all'), await world.ok('why', 'box'), await world.ok('events')]) {
    expect(shown).toMatch(/ owner +/);
    expect(shown).not.toContain(own?.id);
  }
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

test('Ctrl-C while a sandbox is made cancels the operation, and nothing is left', async () => {
  await world.ok('daemon', 'stop');
  const env = { HUTCH_TEST_STEP: 'hang:start' };
  expect((await world.run(['daemon', 'start'], { env })).code).toBe(0);
  const child = world.spawn(['create', '--name', 'half']);
  const done = outcomeOf(child);
  await eventually('the operation', async () => (await world.ok('ops')).includes('sandbox.create'));
  child.kill('SIGINT');
  const { code, stderr } = await done;
  expect(code, stderr).toBe(130);
  expect(stderr).toMatch(/^error: .+ \(op-/m);
  expect((await world.run(['inspect', 'half'])).code).toBe(3);
});
