// The other verbs against a real daemon: what they print, their JSON, and their exit codes.
import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ZodType } from 'zod';
import { EXIT_CODES } from '../../src/cli/exit-codes.ts';
import { verbs } from '../../src/services/verbs.ts';
import { errorBody, event, ledgerEntry, sandbox as sandboxView } from '../../src/services/views.ts';
import { eventually } from '../support/eventually.ts';
import { outcomeOf, World } from './world.ts';

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
  for (const [typed, ours] of [
    ['list', 'ls'],
    ['image list', 'image ls'],
    ['image load', 'image import'],
    ['volume remove', 'volume rm'],
    ['snapshot show', 'snapshot inspect'],
    ['volume resize', 'volume grow'],
    ['workspace pull', 'workspace bring'],
  ] as const)
    expect((await world.run(typed.split(' '))).stderr).toContain(`did you mean hutch ${ours}?`);
  expect((await world.run(['image', 'prune', '-f'])).stderr).toMatch(/image prune has no flag -f\n.*nobody is asked/);
  expect((await world.run(['image', 'pull', '--platform=linux/arm64', 'x'])).stderr).toMatch(/no flag --platform\n.*for linux\/amd64/);
  for (const [typed, ours] of [
    ['ports add -p 8080:80 box', 'hutch ports add SANDBOX 8080:80'],
    ['ports rm box -p 8080:80', 'hutch ports rm SANDBOX 8080:80'],
    ['set -p 8080:80 box', 'hutch ports add'],
    ['run -P -- true', '-p GUEST'],
    ['run --mount type=bind -- true', '-v HOST:GUEST'],
    ['volume rm -f data', 'nobody is asked'],
    ['diff --name-only box', '--name-status'],
    ['bring -f box', '--branch NAME'],
  ] as const)
    expect((await world.run(typed.split(' '))).stderr).toContain(ours);
  expect((await world.run(['login', '-u', 'me', '-p', 'secret'])).stderr).toMatch(/no flag -p\n.*--password-stdin/);
  expect((await world.run(['ls', '-aq'])).stdout).toBe((await world.run(['ls', '-q'])).stdout);
});

test('a size without a unit is refused with a hint', async () => {
  const { stderr } = await world.run(['create', '--memory', '512']);
  expect(stderr).toMatch(/^error: --memory: 512 has no unit$/m);
  expect(stderr).toMatch(/^hint: .*512M/m);
});

test('ledger sum tells what a sandbox has used, as a table and as JSON', async () => {
  const { id } = JSON.parse(await world.ok('inspect', '--json', 'box')) as { id: string };
  type Sum = { rows: { key: string; what: string; ms: number; open: number }[]; totals: { computeSeconds: number } };
  const { rows, totals } = await world.json<Sum>('ledger', 'sum', '--by', 'sandbox');
  const [compute] = rows.filter(({ key, what }) => key === id && what === 'vm.compute');
  expect(compute).toMatchObject({ open: 1 });
  expect(compute?.ms).toBeGreaterThan(0);
  expect(totals.computeSeconds * 1_000).toBeGreaterThanOrEqual(compute?.ms ?? 0);
  const text = await world.ok('ledger', 'sum');
  expect(text).toMatch(/^WHOSE +WHAT +SHAPE +SECONDS +TIMES +OPEN\nprj\w+ +vm\.compute +\d+ cpu, .*\n/);
  expect(text).toMatch(/^in all: [\d.]+ s of compute/m);
  expect((await world.json<Sum>('ledger', 'sum', '--until', '2020-01-01')).rows).toEqual([]);
  expect((await world.run(['ledger', 'sum', '--since', '2020-13-01'])).code).toBe(2);
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
  let isFollowing = false;
  createInterface({ input: child.stdout }).on('line', (line) => {
    const { type, sandboxName } = JSON.parse(line) as { type: string; sandboxName: string };
    if (sandboxName === 'early') isFollowing = true;
    if (sandboxName === 'seen') types.push(type);
  });
  // It says nothing of what was before it listened.
  await eventually('it to follow', async () => {
    await world.ok('create', '--no-start', '--name', 'early');
    await world.ok('rm', 'early');
    return isFollowing;
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
