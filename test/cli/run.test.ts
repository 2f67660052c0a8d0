// run, exec and attach as programs and people without a terminal use them.

import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { outcomeOf, World } from './world.ts';

let world: World;
const MIB = 1_048_576;
/** Whole: 2 GiB with `./dev test --long`. */
const STDIN_BYTES = process.env['HUTCH_TEST_LONG'] === '1' ? 2_048 * MIB : 192 * MIB;

/** Node itself takes some 60 MiB; what is piped through must not matter. */
const MEMORY_MIB_MAX = 160;

beforeAll(async () => {
  world = await World.make();
  await world.ok('create', '--name', 'box');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

test('run prints the output of a command, apart on both streams, and ends with its code', async () => {
  const { code, stdout, stderr } = await world.run(['run', '--rm', '--no-net', '--', 'sh', '-c', 'echo out; echo err >&2; exit 3']);
  expect({ code, stdout, stderr }).toEqual({ code: 3, stdout: 'out\n', stderr: 'err\n' });
});

test('which network a sandbox has is said once, and in words that there are', async () => {
  const said = async (...flags: string[]): Promise<string> => {
    const { code, stderr } = await world.run(['create', ...flags]);
    expect(code).toBe(2);
    return stderr;
  };
  expect(await said('--net', 'none', '--allow-lan')).toContain('--net and --allow-lan exclude each other');
  expect(await said('--no-net', '--allow-lan')).toContain('--no-net and --allow-lan exclude each other');
  expect(await said('--net', 'bridge')).toMatch(/--net.*allow, allow-lan/s);
});

test('after run --rm the name is free again', async () => {
  for (let time = 0; time < 3; time += 1) expect((await world.run(['run', '--rm', '--name', 'again', '--', 'true'])).code).toBe(0);
  expect((await world.ok('ls', '-q')).split('\n')).toHaveLength(1);
});

test('run without --rm leaves a stopped sandbox with its code and its log', async () => {
  expect((await world.run(['run', '--net', 'none', '--name', 'job', '--', 'sh', '-c', 'echo done; exit 5'])).code).toBe(5);
  const { state, ended, network } = await world.json<{ state: string; ended: { exitCode: number }; network: string }>('inspect', 'job');
  expect({ state, exitCode: ended.exitCode, network }).toEqual({ state: 'stopped', exitCode: 5, network: 'none' });
  expect(await world.ok('logs', 'job')).toBe('done');
  expect(await world.ok('wait', 'job')).toBe('5');
  await world.ok('rm', 'job');
});

test('run -d prints an id, and the output is in the log', async () => {
  const id = await world.ok('run', '-d', '--name', 'quiet', '--', 'sh', '-c', 'echo one; echo two >&2; sleep 600');
  expect(id).toMatch(/^sbx[0-9a-z]{17}$/);
  await eventually(
    'both lines',
    async () => (await world.run(['logs', 'quiet'])).stdout === 'one\n' && (await world.run(['logs', 'quiet'])).stderr === 'two\n',
  );
  await world.ok('rm', '-f', id);
});

test('a program that is not there is 127, one that cannot be executed 126', async () => {
  for (const verb of [
    ['run', '--rm', '--'],
    ['exec', 'box', '--'],
  ]) {
    const missing = await world.run([...verb, 'no-such-program']);
    expect(missing.code).toBe(127);
    expect(missing.stderr).toContain('no-such-program');
    const directory = await world.run([...verb, '/etc']);
    expect(directory.code).toBe(126);
    expect(directory.stderr).toMatch(/cannot run \/etc: permission denied.*\nhint: it is no program \(chmod \+x makes it one\)/);
  }
  const behind = await world.run(['run', '--rm', 'no-such-program', '--no-net']);
  expect(behind.code).toBe(127);
  expect(behind.stderr).toContain('hint: --no-net went to no-such-program');
});

test('a directory that was mistyped is told as that, and not run as a program alone', async () => {
  for (const [word, why] of [
    ['./no-such-dir', 'there is no directory ./no-such-dir'],
    ['./package.json', 'no directory is ./package.json'],
  ] as const) {
    const { code, stderr } = await world.run(['run', '--rm', word, '--', 'true'], { cwd: process.cwd() });
    expect([code, stderr]).toEqual([125, expect.stringContaining(`error: ${why}: what stands before -- is the git repository to copy in`)]);
  }
  const without = await world.run(['run', '--rm', '.', 'npm', 'test', '--', '-x y'], { cwd: process.cwd() });
  expect([without.code, without.stderr]).toEqual([125, expect.stringContaining("hint: like: hutch run . -- npm test -- '-x y'")]);
  for (const [args, hint] of [
    [['./no-such-dir'], './no-such-dir was taken for a program in the sandbox: there is no such directory here'],
    [
      ['src', '--', 'ls'],
      'src was taken for a program in the sandbox, and is a directory here: its git repository is copied in by: hutch run ./src -- ls',
    ],
    [['--', './no-such-dir'], null],
  ] as const) {
    const { code, stderr } = await world.run(['run', '--rm', ...args], { cwd: process.cwd() });
    expect(code).toBe(127);
    if (hint === null) expect(stderr).not.toContain('hint');
    else expect(stderr).toContain(`hint: ${hint}`);
  }
});

test('a failure of ours is 125, and names its operation', async () => {
  for (const args of [
    ['exec', 'nothing-here', 'true'],
    ['run', '--image', 'no-such-image', '--', 'true'],
  ]) {
    const { code, stdout, stderr } = await world.run(args);
    expect(code).toBe(125);
    expect(stdout).toBe('');
    expect(stderr).toMatch(/^error: .+ \(op-[0-9a-f]{12}\)$/m);
  }
  expect((await world.run(['run', '--momery', '1G', '--', 'true'])).stderr).toContain('did you mean --memory?');
});

test('--timeout ends run and exec with 124', async () => {
  const run = await world.run(['run', '--rm', '--timeout', '1s', '--', 'sleep', '600']);
  expect(run.code, run.stderr).toBe(124);
  expect((await world.run(['exec', '--timeout', '200ms', 'box', 'sleep', '600'])).code).toBe(124);
  const told = await world.run(['run', '--rm', '--json', '--timeout', '1s', '--', 'sleep', '600']);
  expect(told.code, told.stderr).toBe(124);
  expect(JSON.parse(told.stdout.trimEnd().split('\n').at(-1) ?? '')).toMatchObject({ type: 'exit', error: { code: 'deadline_exceeded' } });
});

test('piped input of any size arrives unchanged', async () => {
  const child = world.spawn(['exec', 'box', '--', 'sha256sum']);
  const hash = createHash('sha256');
  const done = outcomeOf(child);
  const chunk = randomBytes(MIB);
  for (let sent = 0; sent < STDIN_BYTES; sent += MIB) {
    hash.update(chunk);
    if (!child.stdin.write(chunk)) await once(child.stdin, 'drain');
  }
  const peakKiB = Number(/VmHWM:\s+(\d+) kB/.exec(await readFile(`/proc/${child.pid}/status`, 'utf8'))?.[1]);
  child.stdin.end();
  expect(peakKiB / 1_024).toBeLessThan(MEMORY_MIB_MAX);
  expect((await done).stdout).toBe(`${hash.digest('hex')}  -\n`);
});

test('binary output arrives unchanged, also when its reader is slow', async () => {
  const bytes = randomBytes(3 * MIB + 17);
  expect((await world.run(['exec', 'box', 'cat'], { input: bytes })).bytes.equals(bytes)).toBe(true);
  const child = world.spawn(['exec', '--no-stdin', 'box', '--', 'sh', '-c', 'yes 0123456789abcde | head -c 40000000']);
  const closed = once(child, 'close');
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const hash = createHash('sha256');
  let size = 0;
  for await (const chunk of child.stdout) {
    hash.update(chunk as Buffer);
    size += (chunk as Buffer).byteLength;
    if (size % 7 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  const [code] = (await closed) as [number];
  expect({ code, stderr, size }).toEqual({ code: 0, stderr: '', size: 40_000_000 });
  expect(hash.digest('hex')).toBe(createHash('sha256').update(Buffer.alloc(40_000_000, '0123456789abcde\n')).digest('hex'));
});

test('without a command the image’s own is meant, wherever the image is named', async () => {
  expect((await world.run(['run', '--rm'])).stderr).toContain('needs a command');
  const named = await world.run(['run', '--rm'], { env: { HUTCH_SANDBOX_IMAGE: 'localhost:1/none' } });
  expect(named.stderr).not.toContain('needs a command');
  expect(named.stderr).toContain('localhost:1');
});

test('a command that does not read its input ends all the same', async () => {
  expect((await world.run(['exec', 'box', 'true'], { input: Buffer.alloc(8 * MIB) })).code).toBe(0);
});

test('a reader that goes away ends the command', async () => {
  const child = world.spawn(['exec', '--no-stdin', 'box', '--', 'yes']);
  await once(child.stdout, 'data');
  child.stdout.destroy();
  const [code] = (await once(child, 'exit')) as [number];
  expect(code).toBe(141);
  await eventually('yes to be gone', async () => !(await world.ok('exec', '--no-stdin', 'box', 'ps')).includes(' yes'));
});

test('a command whose sandbox ends under it says what ended it; a code that nobody saw is not made up', async () => {
  const under = async (name: string, end: () => Promise<unknown>) => {
    await world.ok('create', '--name', name);
    const child = world.spawn(['exec', name, '--', 'sh', '-c', 'echo ready; exec sleep 600']);
    const done = outcomeOf(child);
    await once(child.stdout, 'data');
    await end();
    const { code, stdout, stderr } = await done;
    expect(stdout).toBe('ready\n');
    return { code, stderr };
  };
  const crash = async () => {
    const { events } = await world.json<{ events: { detail: { evidence?: string } }[] }>('why', 'struck');
    const pid = events.map(({ detail }) => /^pid (\d+)/.exec(detail.evidence ?? '')?.[1]).find((found) => found !== undefined);
    process.kill(Number(pid), 'SIGKILL');
  };

  const stopped = await under('ended', () => world.ok('stop', 'ended'));
  expect(stopped).toMatchObject({ code: 143, stderr: expect.stringMatching(/with sandbox ended: the key owner stopped it \(op-/) });
  const removed = await under('removed', () => world.ok('rm', '-f', 'removed'));
  expect(removed).toMatchObject({ code: 125, stderr: expect.stringMatching(/sandbox removed has ended: the key owner removed it; how/) });
  const crashed = await under('struck', crash);
  expect(crashed).toMatchObject({ code: 125, stderr: expect.stringMatching(/sandbox struck has ended: its .* ended by itself; how/) });
  await world.ok('rm', 'ended', 'struck');

  const main = world.spawn(['run', '--name', 'main', '--', 'sh', '-c', 'echo ready; exec sleep 600']);
  const done = outcomeOf(main);
  await once(main.stdout, 'data');
  await world.ok('stop', 'main');
  expect(await done).toMatchObject({ code: 143, stderr: expect.stringContaining('the key owner stopped it') });
  await world.ok('rm', 'main');
});

test('Ctrl-C without a terminal ends the command, and the CLI with 130', async () => {
  const child = world.spawn(['exec', 'box', '--', 'sh', '-c', 'echo ready; exec sleep 600']);
  const done = outcomeOf(child);
  await once(child.stdout, 'data');
  child.kill('SIGINT');
  expect((await done).code).toBe(130);
  await eventually('sleep to be gone', async () => !(await world.ok('exec', '--no-stdin', 'box', 'ps')).includes('sleep 600'));
});

test('Ctrl-C ends a run, and with --rm nothing is left', async () => {
  const child = world.spawn(['run', '--rm', '--no-net', '--name', 'cut', '--', 'sh', '-c', 'echo ready; exec sleep 600']);
  const done = outcomeOf(child);
  await once(child.stdout, 'data');
  child.kill('SIGINT');
  const { code, stderr } = await done;
  expect(code).toBe(130);
  expect(stderr).toBe('');
  expect((await world.run(['inspect', 'cut'])).code).toBe(3);
});

test('Ctrl-C while a run is on its way to the daemon leaves no sandbox', async () => {
  const pid = await world.daemonPid();
  const waiting = async () => (await readFile('/proc/net/unix', 'utf8')).split('\n').filter((line) => line.includes(world.home)).length;
  process.kill(pid, 'SIGSTOP');
  try {
    const before = await waiting();
    const child = world.spawn(['run', '--rm', '--no-net', '--name', 'early', '--', 'sleep', '600']);
    const done = outcomeOf(child);
    await eventually('its request to wait for the daemon', async () => (await waiting()) > before);
    await sleep(300); // nothing tells when the request has followed its connection; without it this would prove less, not fail
    child.kill('SIGINT');
    process.kill(pid, 'SIGCONT');
    expect((await done).code).toBe(130);
  } finally {
    process.kill(pid, 'SIGCONT');
  }
  // Nor does it come afterwards.
  for (let looks = 0; looks < 4; looks += 1) {
    expect((await world.run(['inspect', 'early'])).code).toBe(3);
    await sleep(200);
  }
});

test('Ctrl-C ends a run without --rm and says what is left', async () => {
  const child = world.spawn(['run', '--name', 'kept', '--', 'sh', '-c', 'echo ready; exec sleep 600']);
  const done = outcomeOf(child);
  await once(child.stdout, 'data');
  child.kill('SIGINT');
  const { code, stderr } = await done;
  expect(code).toBe(130);
  expect(stderr).toContain('left: sandbox kept is');
  await world.ok('rm', '-f', 'kept');
});

test('environment, files of it, working directory and user reach the command', async () => {
  await writeFile(`${world.dir}/env`, '# a comment\nB=two words\nC=x=y\n');
  const { stdout } = await world.run(
    [
      'exec',
      '--env',
      'A=1',
      '-e',
      'FROM_US',
      '--env-file',
      'env',
      '--workdir',
      '/tmp',
      'box',
      '--',
      'sh',
      '-c',
      'echo $A $FROM_US $B $C; pwd',
    ],
    { env: { FROM_US: 'ours' } },
  );
  expect(stdout).toBe('1 ours two words x=y\n/tmp\n');
});

test('what is no text, and what is too long, is refused by its place in what was typed', async () => {
  const shell = async (line: string, env: Record<string, string> = {}) => {
    const child = spawn('bash', ['-c', line], {
      env: { ...world.env, ...env, H: `${process.execPath} -- ${world.bundle}` },
      cwd: world.dir,
    });
    child.stdin.end();
    return await outcomeOf(child, [line]);
  };
  const refused = async (line: string, said: RegExp) => {
    const { code, stdout, stderr } = await shell(line);
    expect({ code, stdout }, line).toEqual({ code: 125, stdout: '' });
    expect(stderr).toMatch(said);
  };
  await refused("$H exec box -- echo one $'caf\\xe9'", /^error: CMD argument 2 is not UTF-8: 'caf\\xe9'\nhint: /);
  await refused("$H exec -w $'\\xff' box -- pwd", /^error: argument 3 is not UTF-8: '\\xff'/);
  await refused("X=$'a\\xff' $H exec -e X box -- env", /^error: --env: the value of X is not UTF-8/);
  await refused("printf 'A=\\xff' >bad; $H run --rm --env-file bad -- env", /^error: --env-file: bad is not UTF-8/);
  await refused('$H run --rm -- echo $(seq 66000)', /^error: CMD has 66,000 arguments; at most 65,535/);
  await refused(
    "{ printf A=; yes | tr -d '\\n' | head -c 140000; echo; } >big; $H run --rm --env-file big -- true",
    /^error: the variable A has 140,002 bytes; at most 131,071 are possible/,
  );
  // What a person typed as U+FFFD is text; and what just fits, fits.
  expect((await shell("$H exec box -- echo $'\\uFFFD' ü", { LANG: 'C.UTF-8', LC_ALL: 'C.UTF-8' })).stdout).toBe('\ufffd ü\n');
  expect((await shell('$H exec box -- printf %s "$(yes | head -c 131072)" | wc -c')).stdout.trim()).toBe('131071');
  // biome-ignore lint/suspicious/noTemplateCurlyInString: the shell's, not ours
  expect((await shell('$H run --rm -e "A=$(yes | head -c 131068)" -- sh -c \'echo "${#A}"\'')).stdout).toBe('131067\n');
});

test('a secret reaches the command and is not shown', async () => {
  await writeFile(`${world.dir}/token`, 's3cr3t\n');
  await world.ok(
    'run',
    '-d',
    '--name',
    'hush',
    '--secret-file',
    `TOKEN=${world.dir}/token`,
    '--',
    'sh',
    '-c',
    'echo "[$TOKEN]"; sleep 600',
  );
  await eventually('the log', async () => (await world.ok('logs', 'hush')) === '[s3cr3t]');
  const shown = await world.ok('inspect', 'hush');
  expect(shown).not.toContain('s3cr3t');
  expect(shown).toContain('TOKEN');
  await world.ok('rm', '-f', 'hush');
});

test('attach goes on with a main process, and ends with its code', async () => {
  await world.ok('run', '-d', '-i', '--name', 'talk', '--', 'sh', '-c', 'read line; echo "got $line"; exit 9');
  const { code, stdout } = await world.run(['attach', 'talk'], { input: 'word\n' });
  expect(stdout).toBe('got word\n');
  expect(code).toBe(9);
  await world.ok('rm', '-f', 'talk');
});

test('attach shows what comes from then on, and says where the rest is when there is nothing to come', async () => {
  await world.ok('run', '-d', '-i', '--name', 'late', '--', 'sh', '-c', 'echo early; read line; echo "got $line"; exit 3');
  await eventually('the first line', async () => (await world.ok('logs', 'late')) === 'early');
  const { code, stdout } = await world.run(['attach', 'late'], { input: 'word\n' });
  expect({ code, stdout }).toEqual({ code: 3, stdout: 'got word\n' });
  expect(await world.ok('wait', 'late')).toBe('3'); // who was attached hears of the end before all of it is over
  const over = await world.run(['attach', 'late']);
  expect(over).toMatchObject({ code: 125, stdout: '' });
  expect(over.stderr).toMatch(/^error: sandbox late is stopped; its main process ended with 3\nhint: see what it wrote: hutch logs late/);
  await world.ok('rm', 'late');
});

test('who attaches without typing takes no input away; a pipe that loses its input to another is told', async () => {
  const first = world.spawn(['run', '-i', '--name', 'shared', '--', 'cat']);
  const done = outcomeOf(first);
  first.stdin.write('a');
  await once(first.stdout, 'data');
  const watcher = world.spawn(['attach', '--json', 'shared']);
  const watched = outcomeOf(watcher);
  await once(watcher.stdout, 'data'); // it has started
  first.stdin.write('b');
  await once(watcher.stdout, 'data');
  watcher.stdin.write('c');
  await once(watcher.stdout, 'data');
  first.stdin.end('lost');
  await once(first.stderr, 'data');
  watcher.stdin.end('d');
  const lines = (await watched).stdout.split('\n').filter((line) => line.includes('base64'));
  expect(lines.map((line) => Buffer.from((JSON.parse(line) as { base64: string }).base64, 'base64').toString()).join('')).toBe('bcd');
  expect(await done).toMatchObject({ code: 0, stdout: 'abcd', stderr: expect.stringContaining('another client writes to it now') });
  await world.ok('rm', 'shared');
});

test('the daemon is killed in the middle of a stream: nothing is missed, nothing comes twice', async () => {
  const script = 'i=0; while [ $i -lt 400 ]; do echo "line $i of the whole stream"; i=$((i+1)); usleep 5000; done; exit 4';
  const child = world.spawn(['exec', '--no-stdin', 'box', '--', 'sh', '-c', script]);
  const done = outcomeOf(child);
  await once(child.stdout, 'data');
  await world.killDaemon();
  const { code, stdout, stderr } = await done;
  expect(stdout).toBe(Array.from({ length: 400 }, (_, line) => `line ${line} of the whole stream\n`).join(''));
  expect(code, stderr).toBe(4);
});

test('the daemon is killed while input is sent: all of it arrives once', async () => {
  const child = world.spawn(['exec', 'box', '--', 'sha256sum']);
  const done = outcomeOf(child);
  const hash = createHash('sha256');
  for (let at = 0; at < 48; at += 1) {
    const chunk = randomBytes(MIB);
    hash.update(chunk);
    if (!child.stdin.write(chunk)) await once(child.stdin, 'drain');
    if (at === 16) await world.killDaemon();
  }
  child.stdin.end();
  const { stdout, stderr } = await done;
  expect(stdout, stderr).toBe(`${hash.digest('hex')}  -\n`);
});

test('a daemon that is killed while it starts is started again; one that always ends so is an error', async () => {
  const [entry, starts] = [join(world.dir, 'dying.ts'), join(world.dir, 'starts')];
  await writeFile(
    entry,
    `import { appendFileSync, statSync } from 'node:fs';
    appendFileSync(${JSON.stringify(starts)}, '.');
    if (statSync(${JSON.stringify(starts)}).size <= Number(process.env['HUTCH_TEST_DEATHS'])) process.kill(process.pid, 'SIGKILL');
    await import(${JSON.stringify(world.env['HUTCH_DEV_DAEMON'])});`,
  );
  const dying = (deaths: number) => ({ env: { HUTCH_DEV_DAEMON: entry, HUTCH_TEST_DEATHS: String(deaths) } });
  await world.ok('daemon', 'stop');
  expect(await world.run(['ls', '-q'], dying(99))).toMatchObject({ code: 7, stderr: expect.stringContaining('without a word') });
  expect((await readFile(starts)).byteLength).toBe(3);
  await writeFile(starts, '');
  expect(await world.run(['ls', '-q'], dying(2))).toMatchObject({ code: 0 });
});
