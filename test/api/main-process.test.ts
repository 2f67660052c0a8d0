// The main process: what a sandbox was made for. Its output is kept on the host, its end ends the
// sandbox, and whoever attaches misses nothing, also when the daemon is killed or the sandbox is gone.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { LogRecords } from '../../src/guest/log-records.ts';
import { type ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

async function logOf(ref: string, query = ''): Promise<{ stdout: string; stderr: string; offset: number }> {
  const answer = await daemon.send('GET', `/v1/sandboxes/${ref}/logs${query}`);
  expect(answer.status).toBe(200);
  const texts = { stdout: '', stderr: '' };
  for (const piece of new LogRecords(0).push(answer.body)) texts[piece.channel] += Buffer.from(piece.bytes).toString('utf8');
  return { ...texts, offset: Number(answer.headers['hutch-log-offset']) };
}

const main = (script: string, more: object = {}) => ({ argv: ['sh', '-c', script], ...more });

test('its end stops the sandbox, with its exit code, and its log stays', async () => {
  const made = await daemon.call('sandbox.create', { main: main('echo hello; echo oops >&2; exit 3') });
  expect(made.main?.argv).toEqual(['sh', '-c', 'echo hello; echo oops >&2; exit 3']);
  const { sandbox, exitCode } = await daemon.call('sandbox.wait', { ref: made.id });
  expect([exitCode, sandbox.state, sandbox.ended?.cause, sandbox.ended?.actor]).toEqual([3, 'stopped', 'exited', 'guest']);
  expect(await logOf(made.id)).toMatchObject({ stdout: 'hello\n', stderr: 'oops\n' });
  expect((await daemon.call('why.get', { ref: made.id })).sentence).toContain('its main process ended');
  expect((await daemon.call('why.get', { ref: made.id })).sentence).toContain('exit code 3');
});

test('whoever attaches right after the creation gets every byte and the exit', async () => {
  const made = await daemon.call('sandbox.create', { main: main('echo first; seq 1 20000; exit 4', { attach: true }), autoRemove: true });
  const client = await daemon.attach(made.id, 'main');
  expect((await client.exit()).exitCode).toBe(4);
  expect(client.stdout.toString()).toBe(`first\n${Array.from({ length: 20_000 }, (_, index) => `${index + 1}\n`).join('')}`);
  await daemon.until(made.id, 'deleted');
});

test('with autoRemove the sandbox deletes itself; its exit code and its output can be asked for by id for a while', async () => {
  const made = await daemon.call('sandbox.create', { main: main('echo gone soon; exit 9'), autoRemove: true });
  const { sandbox, exitCode } = await daemon.call('sandbox.wait', { ref: made.id });
  expect(exitCode).toBe(9);
  expect(['stopped', 'deleted']).toContain(sandbox.state);
  await daemon.until(made.id, 'deleted');
  expect((await daemon.call('sandbox.wait', { ref: made.id })).exitCode).toBe(9);
  const late = await daemon.attach(made.id, 'main');
  expect((await late.exit()).exitCode).toBe(9);
  expect(late.stdout.toString()).toBe('gone soon\n');
  expect((await daemon.call('sandbox.list', {})).sandboxes.map(({ id }) => id)).not.toContain(made.id);
});

test('attaching to one that has ended replays its output from an offset', async () => {
  const made = await daemon.call('sandbox.create', { main: main('echo 0123456789; exit 2') });
  await daemon.call('sandbox.wait', { ref: made.id });
  const client = await daemon.attach(made.id, 'main', { stdoutOffset: '4' });
  expect((await client.exit()).exitCode).toBe(2);
  expect(client.stdout.toString()).toBe('456789\n');
});

test('a program that is not there ends the sandbox with 127 and says so in the log', async () => {
  const made = await daemon.call('sandbox.create', { main: { argv: ['no-such-program'] } });
  expect([made.state, made.ended?.exitCode]).toEqual(['stopped', 127]);
  expect((await logOf(made.id)).stderr).toContain('no-such-program');
  const client = await daemon.attach(made.id, 'main');
  expect((await client.exit()).exitCode).toBe(127);
});

test('start and restart run it again, and the log has all runs', async () => {
  const made = await daemon.call('sandbox.create', { main: main('echo run; exit 1') });
  await daemon.call('sandbox.wait', { ref: made.id });
  await daemon.call('sandbox.start', { ref: made.id });
  await daemon.call('sandbox.wait', { ref: made.id });
  await daemon.call('sandbox.restart', { ref: made.id });
  const { sandbox } = await daemon.call('sandbox.wait', { ref: made.id });
  expect([sandbox.startCount, sandbox.ended?.exitCode]).toEqual([3, 1]);
  expect((await logOf(made.id)).stdout).toBe('run\nrun\nrun\n');
});

test('its input comes from whoever is attached', async () => {
  const made = await daemon.call('sandbox.create', { main: main('read line; echo got $line', { stdin: 'open', attach: true }) });
  const client = await daemon.attach(made.id, 'main', { input: 'true' });
  client.input('words\n');
  expect((await client.exit()).exitCode).toBe(0);
  expect(client.stdout.toString()).toBe('got words\n');
});

test('a terminal for it has the size that was asked for', async () => {
  const made = await daemon.call('sandbox.create', {
    main: main('stty size', { tty: true, terminal: { cols: 77, rows: 22 }, attach: true }),
  });
  const client = await daemon.attach(made.id, 'main');
  await client.exit();
  expect(client.stdout.toString()).toBe('22 77\r\n');
});

test('its time limit stops the sandbox', async () => {
  const made = await daemon.call('sandbox.create', { main: main('sleep 1000'), timeoutMs: 1_000 });
  expect(made.deadlineAtMs).not.toBeNull();
  const { sandbox } = await daemon.call('sandbox.wait', { ref: made.id });
  expect([sandbox.state, sandbox.ended?.cause, sandbox.ended?.actor]).toEqual(['stopped', 'timeout', 'daemon']);
});

test('a time limit that passes while no daemon runs is kept by the next one', async () => {
  const made = await daemon.call('sandbox.create', { main: main('sleep 1000'), timeoutMs: 1_500 });
  await daemon.kill9();
  await eventually('the time is up', () => Date.now() > (made.deadlineAtMs ?? 0));
  await daemon.startAgain();
  expect((await daemon.call('sandbox.wait', { ref: made.id })).sandbox.ended?.cause).toBe('timeout');
});

test('following its log gives what comes, ends with it, and goes on from an offset', async () => {
  const made = await daemon.call('sandbox.create', { main: main('for i in 1 2 3 4 5; do echo $i; usleep 50000; done') });
  const answer = await daemon.send('GET', `/v1/sandboxes/${made.id}/logs?follow=true`);
  const whole = [...new LogRecords(0).push(answer.body)].map((piece) => Buffer.from(piece.bytes).toString()).join('');
  expect(whole).toBe('1\n2\n3\n4\n5\n');
  const rest = await daemon.send('GET', `/v1/sandboxes/${made.id}/logs?offset=15`);
  expect(rest.body.equals(answer.body.subarray(15))).toBe(true);
  expect((await logOf(made.id, '?tailBytes=15')).stdout).toBe('5\n');
  expect((await logOf(made.id, '?tailBytes=20')).stdout).toBe('4\n5\n'); // at least as much, in whole records
});

test('what it wrote while the daemon was dead is in the log', async () => {
  const made = await daemon.call('sandbox.create', {
    main: main('i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); usleep 5000; done; exit 6'),
  });
  await eventually('it has begun', async () => (await logOf(made.id)).stdout.includes('20\n'));
  await daemon.kill9();
  await daemon.startAgain();
  const { exitCode } = await daemon.call('sandbox.wait', { ref: made.id });
  expect(exitCode).toBe(6);
  expect((await logOf(made.id)).stdout).toBe(Array.from({ length: 400 }, (_, index) => `${index}\n`).join(''));
});

test('one that ends while no daemon runs is known by the next one', async () => {
  const made = await daemon.call('sandbox.create', { main: main('sleep 0.3; echo done; exit 8') });
  await daemon.kill9();
  await eventually('it has ended', async () => (await daemon.processes()).every((line) => !line.includes('sleep')));
  await daemon.startAgain();
  expect((await daemon.call('sandbox.wait', { ref: made.id })).exitCode).toBe(8);
  expect((await logOf(made.id)).stdout).toBe('done\n');
});

test('a main process that leaves a flood of output leaves a bounded log whose end is whole', async () => {
  const made = await daemon.call('sandbox.create', { main: main('seq 1 8000000; echo the end') });
  await daemon.call('sandbox.wait', { ref: made.id });
  const answer = await daemon.send('GET', `/v1/sandboxes/${made.id}/logs`);
  expect(answer.body.byteLength).toBeLessThan(42 * 1024 * 1024);
  const tail = (await logOf(made.id, '?tailBytes=1000')).stdout;
  expect(tail.endsWith('the end\n')).toBe(true);
});

test('stop gives it time to end by itself', async () => {
  const made = await daemon.call('sandbox.create', { main: main('trap "echo bye; exit 5" TERM; echo up; while :; do sleep 0.02; done') });
  await eventually('it is up', async () => (await logOf(made.id)).stdout === 'up\n');
  const stopped = await daemon.call('sandbox.stop', { ref: made.id, graceMs: 5_000 });
  expect(stopped.ended).toMatchObject({ cause: 'stopped', exitCode: 5 });
  expect((await logOf(made.id)).stdout).toBe('up\nbye\n');
});

test('one that does not heed is killed after the grace', async () => {
  const made = await daemon.call('sandbox.create', { main: main('trap "" TERM; echo up; while :; do sleep 0.02; done') });
  await eventually('it is up', async () => (await logOf(made.id)).stdout === 'up\n');
  expect((await daemon.call('sandbox.stop', { ref: made.id, graceMs: 100 })).ended).toMatchObject({ cause: 'stopped', exitCode: 137 });
});

test('a sandbox without one runs until it is stopped, and cannot be attached to then', async () => {
  const made = await daemon.call('sandbox.create', {});
  expect(made.state).toBe('running');
  expect(await daemon.call('sandbox.stop', { ref: made.id })).toMatchObject({
    state: 'stopped',
    ended: { cause: 'stopped', exitCode: null },
  });
  const refused = await daemon.attach(made.id, 'main').then(
    (client) => client.exit().catch((error: unknown) => error),
    (error: unknown) => error,
  );
  expect((refused as ApiError).code).toBe('failed_precondition');
});
