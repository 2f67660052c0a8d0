// Life of the daemon's process: one per data directory, honest about what is in its way, ended without
// touching sandboxes, and quick to start over what it finds.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, statSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { VERSION } from '../../src/daemon/version.ts';
import { ApiError, DaemonUnderTest, launch } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

const refusal = (promise: Promise<unknown>): Promise<ApiError> =>
  promise.then(
    () => Promise.reject(new Error('it was not refused')),
    (error: unknown) => (error instanceof ApiError ? error : Promise.reject(error as Error)),
  );

test('the owner’s key and the socket are its user’s alone, and the key stays over a restart', async () => {
  await using daemon = await DaemonUnderTest.start();
  expect(statSync(daemon.ready.ownerKeyPath).mode & 0o777).toBe(0o600);
  expect(statSync(daemon.ready.socketPath).mode & 0o777).toBe(0o600);
  expect(statSync(join(daemon.home, 'data/hutch.db')).mode & 0o777).toBe(0o600);
  expect(daemon.key).toMatch(/^e2b_[0-9a-f]{40}$/);
  await daemon.terminate();
  await daemon.startAgain();
  expect((await daemon.send('GET', '/v1/sandboxes')).status).toBe(200);
});

test('a second daemon over the same directory is refused and names the first', async () => {
  await using daemon = await DaemonUnderTest.start();
  const error = await refusal(launch(daemon.home, {}));
  expect(error.body).toMatchObject({ code: 'conflict', message: expect.stringContaining(`(pid ${daemon.pid})`) });
  expect((await daemon.send('GET', '/health')).status).toBe(200);
});

test('whose data directory is removed ends with its sandboxes, also when another daemon has begun there', async () => {
  await using daemon = await DaemonUnderTest.start();
  const { id } = await daemon.call('sandbox.create', {});
  const first = daemon.child;
  const shims = async () => (await daemon.processes()).filter((line) => line.includes('hutch-shim'));
  expect(await shims()).toHaveLength(1);
  await rm(join(daemon.home, 'data'), { recursive: true });
  await daemon.startAgain();
  daemon.key = (await readFile(daemon.ready.ownerKeyPath, 'utf8')).trim();
  const { id: next } = await daemon.call('sandbox.create', {});
  await eventually('the first daemon has ended', () => first.exitCode !== null);
  expect(await readFile(join(daemon.home, 'log/hutchd.log'), 'utf8')).toContain('the data directory was removed');
  expect(await shims()).toEqual([expect.stringContaining(next)]);
  expect((await daemon.call('sandbox.list', {})).sandboxes).toMatchObject([{ id: next, state: 'running' }]);
  expect(id).not.toBe(next);
});

test('a port that is taken is refused with the name of its owner', async () => {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  try {
    const error = await refusal(DaemonUnderTest.start({ env: { HUTCH_DAEMON_LISTEN: `127.0.0.1:${port}` } }));
    expect(error.body).toMatchObject({
      code: 'conflict',
      message: expect.stringMatching(new RegExp(`^port ${port} is taken by .+ \\(pid ${process.pid}\\)$`)),
    });
    expect(error.body.hint).toContain('daemon.listen');
  } finally {
    server.close();
  }
});

test('a setting that does not exist is refused by name', async () => {
  const error = await refusal(DaemonUnderTest.start({ env: { HUTCH_SANDBOX_MEMRY: '512M' } }));
  expect(error.body).toMatchObject({ code: 'invalid_argument', message: expect.stringContaining('HUTCH_SANDBOX_MEMRY') });
});

test('SIGTERM ends the daemon and not the sandboxes; streams end so that they can be resumed', async () => {
  await using daemon = await DaemonUnderTest.start();
  const { id } = await daemon.call('sandbox.create', {});
  const client = await daemon.exec(
    id,
    { argv: ['sh', '-c', 'i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); usleep 5000; done'] },
    { execId: 'walker' },
  );
  await client.sawOutput('20\n');
  const follower = await daemon.open('GET', '/v1/events?follow=true');
  follower.resume();
  const cut = once(follower, 'close');
  expect(await daemon.terminate()).toBe(0);
  expect((await client.closed).code).toBe(1012);
  expect([client.message('exit'), client.message('error')]).toEqual([undefined, undefined]);
  await cut;
  expect(existsSync(daemon.ready.socketPath)).toBe(false);
  await daemon.startAgain();
  const again = await daemon.attach(id, 'walker', { stdoutOffset: String(client.stdout.byteLength) });
  expect((await again.exit()).exitCode).toBe(0);
  expect(Buffer.concat([client.stdout, again.stdout]).toString()).toBe(Array.from({ length: 400 }, (_, index) => `${index}\n`).join(''));
});

test('a client may ask the daemon to end', async () => {
  await using daemon = await DaemonUnderTest.start();
  const { id } = await daemon.call('sandbox.create', {});
  await daemon.call('daemon.stop', {});
  if (daemon.child.exitCode === null) await once(daemon.child, 'exit');
  expect(daemon.child.exitCode).toBe(0);
  await daemon.startAgain();
  expect((await daemon.run(id, ['echo', 'alive'])).stdout).toBe('alive\n');
});

test('what is under way when the daemon ends is undone or finished', async () => {
  await using daemon = await DaemonUnderTest.start({ env: { HUTCH_TEST_STEP: 'hang:started' } });
  const creating = daemon.call('sandbox.create', { name: 'half' }).catch((error: unknown) => error);
  await eventually('it is under way', async () => (await daemon.processes()).some((line) => line.includes('hutch-shim')));
  await daemon.terminate();
  await creating;
  await daemon.startAgain({});
  expect((await daemon.call('sandbox.list', {})).sandboxes).toEqual([]);
  expect((await daemon.call('sandbox.create', { name: 'half' })).state).toBe('running');
});

test('an operation that a killed daemon was at is shown as interrupted', async () => {
  await using daemon = await DaemonUnderTest.start({ env: { HUTCH_TEST_STEP: 'hang:started' } });
  void daemon.call('sandbox.create', { name: 'half' }).catch(() => {});
  await eventually('it is under way', async () => (await daemon.processes()).some((line) => line.includes('hutch-shim')));
  const [operation] = (await daemon.call('operation.list', {})).operations;
  await daemon.kill9();
  await daemon.startAgain({});
  expect(await daemon.call('operation.get', { opId: operation?.id ?? '' })).toMatchObject({ state: 'interrupted' });
  expect((await daemon.call('why.get', { ref: operation?.id ?? '' })).sentence).toContain('the daemon ended');
  expect((await daemon.processes()).filter((line) => line.includes('shim'))).toEqual([]);
});

test('an operation that a killed daemon was at before it had changed anything is known by its id', async () => {
  await using daemon = await DaemonUnderTest.start({ env: { HUTCH_TEST_STEP: 'hang:prepare' } });
  void daemon.call('sandbox.create', { name: 'first' }).catch(() => {});
  await eventually('it is under way', async () => (await daemon.call('operation.list', {})).operations.length === 1);
  const id = (await daemon.call('operation.list', {})).operations[0]?.id ?? '';
  await eventually('the store has it', async () => (await readFile(join(daemon.home, 'data/hutch.db-wal'))).includes(id));
  await daemon.kill9();
  await daemon.startAgain({});
  expect(await daemon.call('operation.get', { opId: id })).toMatchObject({ state: 'interrupted', verb: 'sandbox.create' });
  expect((await daemon.call('why.get', { ref: id })).sentence).toContain('the daemon ended');
  expect((await daemon.call('sandbox.create', { name: 'first' })).state).toBe('running');
});

test('an operation that takes long has one record, which ends', async () => {
  await using daemon = await DaemonUnderTest.start();
  const { id } = await daemon.call('sandbox.create', {});
  const slow = await daemon.exec(id, { argv: ['sh', '-c', 'sleep 1.2'] }, { execId: 'slow' });
  expect((await slow.exit()).exitCode).toBe(0);
  await daemon.terminate();
  await daemon.startAgain({});
  const ended = (await daemon.call('operation.list', { all: true })).operations.filter(({ verb }) => verb === 'exec.start');
  expect(ended.map(({ state, targetId }) => [state, targetId])).toEqual([['done', id]]);
});

test('in the foreground it logs to stderr; wrong flags say what there is', async () => {
  const entry = join(import.meta.dirname, '../support/faulty-daemon.ts');
  const child = spawn(process.execPath, [entry, '--nonsense'], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  await once(child, 'close');
  expect([child.exitCode, said.includes('--foreground')]).toEqual([2, true]);
});

test('a thousand stopped sandboxes do not keep it from starting at once', async () => {
  await using daemon = await DaemonUnderTest.start();
  const batch = 50;
  for (let made = 0; made < 1_000; made += batch) {
    await Promise.all(Array.from({ length: batch }, () => daemon.call('sandbox.create', { start: false })));
  }
  await daemon.kill9();
  await daemon.startAgain();
  const line = (await daemon.log()).split('\n').findLast((text) => text.includes('daemon is ready'));
  expect(line).toBeDefined();
  const { tookMs } = JSON.parse(line ?? '{}') as { tookMs: number };
  process.stdout.write(`start over 1,000 sandboxes: ${tookMs} ms\n`);
  let found = 0;
  for (let cursor: string | null = ''; cursor !== null; ) {
    const page: { sandboxes: unknown[]; nextCursor: string | null } = await daemon.call('sandbox.list', cursor === '' ? {} : { cursor });
    found += page.sandboxes.length;
    cursor = page.nextCursor;
  }
  expect(found).toBe(1_000);
}, 180_000);

test('after a reboot of the host, sandboxes that ran are stopped with the evidence', async () => {
  await using daemon = await DaemonUnderTest.start();
  const made = await daemon.call('sandbox.create', { name: 'before' });
  await daemon.kill9();
  for (const line of await daemon.processes()) {
    const pid = Number(/^process (\d+):/.exec(line)?.[1]);
    if (line.includes('hutch-shim')) process.kill(pid, 'SIGKILL');
  }
  await eventually('all is dead', async () => (await daemon.processes()).length === 0);
  // The next boot: another boot id, and nothing in the directory for sockets.
  const { rm } = await import('node:fs/promises');
  await rm(join(daemon.home, 'run'), { recursive: true });
  await daemon.startAgain({ env: { HUTCH_TEST_BOOT_ID: '11111111-2222-3333-4444-555555555555' } });
  const now = await daemon.call('sandbox.get', { ref: made.id });
  expect([now.state, now.ended?.cause, now.openComputeSinceMs]).toEqual(['stopped', 'host-reboot', null]);
  expect((await daemon.call('why.get', { ref: made.id })).sentence).toContain('boot-id');
  await daemon.terminate();
  await daemon.startAgain({});
  await daemon.call('sandbox.start', { ref: made.id });
  expect((await daemon.run(made.id, ['echo', 'again'])).stdout).toBe('again\n');
});

test('the version is the package’s', async () => {
  const { version } = JSON.parse(await readFile(join(import.meta.dirname, '../../package.json'), 'utf8')) as { version: string };
  expect(VERSION).toBe(version);
});
