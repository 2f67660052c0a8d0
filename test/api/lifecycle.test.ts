// The life of a sandbox over the API: what is recorded of it, who may do what at the same time, and
// that one that hangs holds up nobody else.
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { newId } from '../../src/domain/ids.ts';
import { ApiError, DaemonUnderTest, type SandboxView } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

const codeOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'ok',
    (error: unknown) => (error instanceof ApiError ? error.code : Promise.reject(error as Error)),
  );

async function ledgerOf(id: string): Promise<string[]> {
  const kinds: string[] = [];
  for await (const entry of daemon.lines('ledger.list', {})) if (entry.sandboxId === id) kinds.push(`${entry.kind} ${entry.reason}`);
  return kinds;
}

test('names are made up, taken once, and free again after deletion', async () => {
  const { name, id } = await daemon.call('sandbox.create', { start: false });
  expect(name).toMatch(/^[a-z]+-[a-z]+-[0-9a-z]{3}$/);
  expect(await codeOf(daemon.call('sandbox.create', { name, start: false }))).toBe('conflict');
  await daemon.call('sandbox.rename', { ref: id, name: 'renamed' });
  await daemon.call('sandbox.create', { name, start: false });
  await daemon.call('sandbox.delete', { ref: 'renamed' });
  await daemon.call('sandbox.create', { name: 'renamed', start: false });
});

test('references are ids, names and unique prefixes of both', async () => {
  const { id } = await daemon.call('sandbox.create', { name: 'prefix-one', start: false });
  await daemon.call('sandbox.create', { name: 'prefix-two', start: false });
  for (const ref of [id, 'prefix-one', 'prefix-o', id.slice(0, 12), id.slice(3, 12)])
    expect((await daemon.call('sandbox.get', { ref })).id).toBe(id);
  expect(await codeOf(daemon.call('sandbox.get', { ref: 'prefix-' }))).toBe('conflict');
  expect(await codeOf(daemon.call('sandbox.get', { ref: 'pr' }))).toBe('not_found');
});

test('lists are filtered and paged', async () => {
  for (const tier of ['a', 'b', 'b']) await daemon.call('sandbox.create', { labels: { tier, list: 'yes' }, start: false });
  const of = async (query: object) => (await daemon.call('sandbox.list', query)).sandboxes.length;
  expect([await of({ label: 'list=yes' }), await of({ label: ['tier=b', 'list'] }), await of({ label: 'tier=c' })]).toEqual([3, 2, 0]);
  const first = await daemon.call('sandbox.list', { limit: 2, label: 'list' });
  const second = await daemon.call('sandbox.list', { limit: 2, label: 'list', cursor: first.nextCursor ?? '' });
  expect([first.sandboxes.length, second.sandboxes.length, second.nextCursor]).toEqual([2, 1, null]);
});

test('each end has a cause, an actor and its place in the ledger', async () => {
  const { id } = await daemon.call('sandbox.create', {});
  await daemon.call('sandbox.pause', { ref: id });
  await daemon.call('sandbox.resume', { ref: id });
  const key = (await daemon.call('key.list', {})).keys[0]?.id;
  expect((await daemon.call('sandbox.stop', { ref: id })).ended).toMatchObject({ cause: 'stopped', actor: key });
  await daemon.call('sandbox.start', { ref: id });
  await daemon.call('sandbox.delete', { ref: id, force: true });
  expect(await ledgerOf(id)).toEqual([
    'vm.storage.start boot',
    'vm.compute.start boot',
    'vm.paused.start pause',
    'vm.paused.stop resume',
    'vm.compute.stop stop-user',
    'vm.compute.start restart',
    'vm.compute.stop stop-user',
    'vm.storage.stop vm-rm',
  ]);
  const { sentence } = await daemon.call('why.get', { ref: id });
  expect(sentence).toContain('was deleted');
  expect(sentence).toContain('by the key owner');
});

test('why and events know by its name the sandbox that had it last, when that is deleted', async () => {
  const names = [];
  for (let round = 0; round < 2; round += 1) {
    const { id } = await daemon.call('sandbox.create', { name: 'fleeting', start: false });
    await daemon.call('sandbox.delete', { ref: id });
    names.push(id);
  }
  for (const ref of ['fleeting', names[1]?.slice(0, 12) ?? '']) {
    const { sandbox, sentence } = await daemon.call('why.get', { ref });
    expect([sandbox?.id, sentence]).toEqual([names[1], expect.stringContaining('fleeting was deleted')]);
  }
  const types = [];
  for await (const { type } of daemon.lines('event.list', { sandbox: 'fleeting' })) types.push(type);
  expect(types).toEqual(['sandbox.created', 'sandbox.deleted']);
  expect(await codeOf(daemon.call('sandbox.get', { ref: 'fleeting' })), 'what acts takes no name of a deleted one').toBe('not_found');
  expect(await codeOf(daemon.call('why.get', { ref: 'fleetin' })), 'nor does a beginning of it do').toBe('not_found');
});

async function pidsOf(sandbox: SandboxView): Promise<{ shim: number; vmm: number }> {
  const record = JSON.parse(await readFile(`${daemon.home}/run/sandboxes/${sandbox.id}/shim.json`, 'utf8')) as {
    shimPid: number;
    pid: number;
  };
  return { shim: record.shimPid, vmm: record.pid };
}

test('a process that is killed is a crash, with its evidence', async () => {
  const made = await daemon.call('sandbox.create', {});
  process.kill((await pidsOf(made)).vmm, 'SIGKILL');
  const stopped = await daemon.until(made.id, 'stopped');
  expect(stopped.ended).toMatchObject({ cause: 'crashed', actor: 'host', exitCode: null });
  expect((await daemon.call('why.get', { ref: made.id })).sentence).toContain('exit.json: VMM ended by signal');
  expect(await ledgerOf(made.id)).toContain('vm.compute.stop stop-crash');
});

test('a shim that is killed takes its sandbox with it', async () => {
  const made = await daemon.call('sandbox.create', {});
  process.kill((await pidsOf(made)).shim, 'SIGKILL');
  expect((await daemon.until(made.id, 'stopped')).ended).toMatchObject({ cause: 'crashed' });
  await daemon.call('sandbox.start', { ref: made.id });
  expect((await daemon.run(made.id, ['echo', 'again'])).stdout).toBe('again\n');
});

test('a guest that powers itself off is no crash', async () => {
  const { id } = await daemon.call('sandbox.create', {});
  const asked = daemon.run(id, ['kill', '-TERM', '1']).catch(() => null); // its answer may be lost with the guest
  expect((await daemon.until(id, 'stopped')).ended).toMatchObject({ cause: 'guest-shutdown', actor: 'guest' });
  await asked;
});

test('an agent that somebody on the host asks to end was stopped from outside', async () => {
  const made = await daemon.call('sandbox.create', {});
  const { vmm } = await pidsOf(made);
  const [agent] = (await readFile(`/proc/${vmm}/task/${vmm}/children`, 'utf8')).trim().split(' ').map(Number);
  process.kill(agent ?? 0, 'SIGTERM');
  expect((await daemon.until(made.id, 'stopped')).ended).toMatchObject({ cause: 'host-stopped', actor: 'host' });
});

test('an agent that hangs is unavailable in time, stops nobody else, and can be forced to stop', async () => {
  const [hung, well] = await Promise.all([daemon.call('sandbox.create', {}), daemon.call('sandbox.create', {})]);
  const { vmm } = await pidsOf(hung);
  const [agent] = (await readFile(`/proc/${vmm}/task/${vmm}/children`, 'utf8')).trim().split(' ').map(Number);
  process.kill(agent ?? 0, 'SIGSTOP');
  const asked = codeOf(daemon.run(hung.id, ['true']));
  const stat = codeOf(daemon.call('file.stat', { ref: hung.id, path: '/' }));
  for (let count = 0; count < 20; count += 1) expect((await daemon.run(well.id, ['true'])).exitCode).toBe(0);
  expect(['unavailable', 'deadline_exceeded']).toContain(await stat);
  expect(await asked).toBe('unavailable');
  expect((await daemon.call('sandbox.stop', { ref: hung.id, force: true })).state).toBe('stopped');
});

test('a hundred requests at once are all answered', async () => {
  const { id } = await daemon.call('sandbox.create', {});
  const answers = await Promise.all(
    Array.from({ length: 100 }, async (_, index) => {
      if (index % 4 === 0) return (await daemon.run(id, ['echo', String(index)])).stdout;
      if (index % 4 === 1) return (await daemon.call('sandbox.get', { ref: id })).id;
      if (index % 4 === 2) return (await daemon.call('file.stat', { ref: id, path: '/etc/passwd' })).name;
      return (await daemon.call('sandbox.list', {})).sandboxes.length > 0;
    }),
  );
  expect(answers.filter((answer) => answer === id)).toHaveLength(25);
  expect(answers[96]).toBe('96\n');
});

test('fifty creations at once all succeed, or say why not', async () => {
  const made = await Promise.all(
    Array.from({ length: 50 }, (_, index) => daemon.call('sandbox.create', { labels: { many: 'yes' }, name: `many-${index}` })),
  );
  expect(new Set(made.map(({ id }) => id)).size).toBe(50);
  await Promise.all(made.map(async ({ id }) => expect((await daemon.run(id, ['hostname'])).stdout).toMatch(/^many-\d+\n$/)));
  await Promise.all(made.map(({ id }) => daemon.call('sandbox.delete', { ref: id, force: true })));
});

test('two clients that race stop, delete and exec leave a sandbox that is whole or gone', async () => {
  for (let round = 0; round < 8; round += 1) {
    const { id } = await daemon.call('sandbox.create', {});
    const outcomes = await Promise.all([
      codeOf(daemon.call('sandbox.stop', { ref: id, graceMs: 0 })),
      codeOf(daemon.call('sandbox.delete', { ref: id, force: true })),
      codeOf(daemon.run(id, ['true'])),
      codeOf(daemon.call('sandbox.delete', { ref: id, force: true })),
      codeOf(daemon.call('sandbox.start', { ref: id })),
      codeOf(daemon.call('sandbox.pause', { ref: id })),
    ]);
    for (const outcome of outcomes)
      expect(['ok', 'failed_precondition', 'unavailable', 'not_found', 'cancelled', 'conflict']).toContain(outcome);
    const now = await daemon.call('sandbox.get', { ref: id });
    if (now.state !== 'deleted') await daemon.call('sandbox.delete', { ref: id, force: true });
    expect(now.openComputeSinceMs === null).toBe(now.state !== 'running' && now.state !== 'paused');
  }
  expect((await daemon.call('doctor.leaks', {})).leaks).toEqual([]);
  expect((await daemon.call('ledger.verify', {})).ok).toBe(true);
});

test('a process, socket, mount, file or directory under our roots that is on no record is told by doctor, with what it is', async () => {
  const { id } = await daemon.call('sandbox.create', {});
  await daemon.call('volume.create', { name: 'kept', sizeMiB: 64 });
  expect(await daemon.leaks()).toEqual([]);
  const at = (place: string): string => join(daemon.home, place);
  const stray = { sandbox: newId('sbx', randomBytes), snapshot: newId('snp', randomBytes), volume: newId('vol', randomBytes) };
  const dirs = [
    `data/sandboxes/${stray.sandbox}/mounted`,
    `run/sandboxes/${stray.sandbox}`,
    `data/snapshots/${stray.snapshot}`,
    `data/volumes/${stray.volume}`,
  ].map(at);
  for (const dir of dirs) await mkdir(dir, { recursive: true });
  await writeFile(at('log/sandboxes/stray.txt'), 'stray');
  await using left = new AsyncDisposableStack();
  const socket = createServer().listen(at('data/sandboxes/stray.sock'));
  left.defer(() => void socket.close());
  const [mount = ''] = dirs;
  expect(spawnSync('mount', ['-t', 'tmpfs', 'none', mount]).status).toBe(0);
  left.defer(() => void spawnSync('umount', [mount]));
  const child = spawn('/bin/sh', ['-c', 'read _', 'stray', at(`run/sandboxes/${stray.sandbox}/console`)], {
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  left.defer(() => void child.kill('SIGKILL'));
  await once(child, 'spawn');
  const expected = [
    { kind: 'directory', what: at(`data/sandboxes/${stray.sandbox}`) },
    { kind: 'socket', what: at('data/sandboxes/stray.sock') },
    { kind: 'directory', what: at(`run/sandboxes/${stray.sandbox}`) },
    { kind: 'file', what: at('log/sandboxes/stray.txt') },
    { kind: 'directory', what: at(`data/snapshots/${stray.snapshot}`) },
    { kind: 'directory', what: at(`data/volumes/${stray.volume}`) },
    { kind: 'mount', what: mount },
    { kind: 'process', what: `${child.pid}: /bin/sh of ${at(`run/sandboxes/${stray.sandbox}/console`)}` },
  ];
  const leaks = await daemon.leaksOnceThereAre(expected.length);
  expect(leaks).toEqual(expect.arrayContaining(expected));
  expect(leaks.length, JSON.stringify(leaks)).toBe(expected.length);

  const ended = once(child, 'exit');
  await left.disposeAsync();
  await ended;
  for (const dir of [`data/sandboxes/${stray.sandbox}`, ...[1, 2, 3].map((index) => dirs[index]?.slice(daemon.home.length + 1) ?? '')])
    await rm(at(dir), { recursive: true });
  await rm(at('log/sandboxes/stray.txt'));
  await daemon.call('sandbox.delete', { ref: id, force: true });
  await daemon.call('volume.remove', { volume: 'kept' });
  expect(await daemon.leaks()).toEqual([]);
});

test('events are told as they happen and again from a cursor', async () => {
  const gone = new AbortController();
  const seen: { type: string; cursor: number }[] = [];
  const following = (async () => {
    for await (const event of daemon.lines('event.list', { follow: true, cursor: 0 }, { signal: gone.signal })) seen.push(event);
  })().catch(() => {});
  const { id } = await daemon.call('sandbox.create', { start: false });
  await daemon.call('sandbox.delete', { ref: id });
  await eventually(
    'both are seen',
    () =>
      seen
        .slice(-2)
        .map(({ type }) => type)
        .join() === 'sandbox.created,sandbox.deleted',
  );
  gone.abort();
  await following;
  const from = seen.at(-2)?.cursor ?? 0;
  const rest: string[] = [];
  for await (const event of daemon.lines('event.list', { cursor: from, sandbox: id })) rest.push(event.type);
  expect(rest).toEqual(['sandbox.deleted']);
  expect(seen.map(({ cursor }) => cursor)).toEqual([...seen.map(({ cursor }) => cursor)].sort((left, right) => left - right));
});

test('a hundred followers that vanish cost nothing afterwards', async () => {
  const gone = new AbortController();
  await Promise.all(
    Array.from({ length: 100 }, () =>
      daemon.open('GET', '/v1/events?follow=true', { signal: gone.signal }).then((response) => response.on('error', () => {})),
    ),
  );
  gone.abort();
  const { id } = await daemon.call('sandbox.create', { start: false });
  await daemon.call('sandbox.delete', { ref: id });
  const answer = await daemon.send('GET', '/health');
  expect(answer.status).toBe(200);
});

test('progress comes as lines, then the result', async () => {
  const answer = await daemon.send('POST', '/v1/sandboxes', {
    body: '{"name":"told"}',
    headers: { 'Content-Type': 'application/json', Accept: 'application/x-ndjson' },
  });
  const lines = answer.body
    .toString()
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { type: string; step?: string; result?: SandboxView });
  expect(lines.at(-1)).toMatchObject({ type: 'result', result: { name: 'told', state: 'running' } });
  expect(lines.slice(0, -1).map(({ step }) => step)).toEqual(expect.arrayContaining(['starting']));
  const failed = await daemon.send('POST', '/v1/sandboxes', {
    body: '{"name":"told"}',
    headers: { 'Content-Type': 'application/json', Accept: 'application/x-ndjson' },
  });
  expect(JSON.parse(failed.body.toString().trim().split('\n').at(-1) ?? '')).toMatchObject({
    type: 'error',
    error: { code: 'conflict', opId: failed.headers['hutch-op-id'] },
  });
});

test('operations are listed, shown and explained', async () => {
  const { headers, result } = await daemon.callWithHeaders(
    'sandbox.create',
    { start: false },
    { headers: { traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01` } },
  );
  const opId = String(headers['hutch-op-id']);
  expect(await daemon.call('operation.get', { opId })).toMatchObject({
    verb: 'sandbox.create',
    state: 'done',
    targetId: result.id,
    traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01`,
  });
  expect((await daemon.call('operation.list', { all: true })).operations.map(({ id }) => id)).toContain(opId);
  expect((await daemon.call('why.get', { ref: opId })).sentence).toContain('sandbox.create');
  expect(await codeOf(daemon.call('operation.cancel', { opId }))).toBe('failed_precondition');
  expect(await codeOf(daemon.call('operation.get', { opId: 'op-000000000000' }))).toBe('not_found');
});

test('the ledger is exported in both formats and its chain holds', async () => {
  const cocoon: Record<string, unknown>[] = [];
  for await (const entry of daemon.lines('ledger.list', { format: 'cocoon' })) cocoon.push(entry as Record<string, unknown>);
  expect(Object.keys(cocoon[0] ?? {}).sort()).toEqual(['emitted_at', 'hypervisor', 'kind', 'reason', 'shape', 'vm_id']);
  expect(cocoon.some(({ kind }) => kind === 'vm.paused.start')).toBe(false);
  expect(await daemon.call('ledger.verify', {})).toMatchObject({ ok: true, firstBreak: null });
});

test('secrets reach processes and nothing else', async () => {
  const secret = 'hunter2-very-secret';
  const { id } = await daemon.call('sandbox.create', { secrets: { PASSWORD: secret }, main: { argv: ['sleep', '1000'] } });
  expect((await daemon.run(id, ['sh', '-c', 'echo $PASSWORD'])).stdout).toBe(`${secret}\n`);
  await daemon.call('sandbox.restart', { ref: id, graceMs: 0 });
  expect((await daemon.run(id, ['sh', '-c', 'echo $PASSWORD'])).stdout).toBe(`${secret}\n`);
  const shown = [
    JSON.stringify(await daemon.call('sandbox.get', { ref: id })),
    JSON.stringify(await daemon.call('why.get', { ref: id })),
    (await daemon.send('GET', '/v1/events')).body.toString(),
    (await daemon.send('GET', '/v1/operations?all=true')).body.toString(),
    (await daemon.send('GET', `/v1/sandboxes/${id}/logs?source=boot`)).body.toString(),
    await daemon.log(),
    (await readFile(`${daemon.home}/data/hutch.db`)).toString('latin1'),
    (await readFile(`${daemon.home}/data/hutch.db-wal`)).toString('latin1'),
    (await daemon.processes()).join('\n'),
  ];
  for (const text of shown) expect(text).not.toContain(secret);
  expect((await daemon.call('sandbox.get', { ref: id })).secretNames).toEqual(['PASSWORD']);
  const { mode } = await import('node:fs').then((fs) => fs.statSync(`${daemon.home}/data/sandboxes/${id}/secrets.json`));
  expect(mode & 0o777).toBe(0o600);
});

test('deletions that are cancelled leave each sandbox whole or gone, also for the next daemon', { timeout: 120_000 }, async () => {
  await using own = await DaemonUnderTest.start();
  const names = Array.from({ length: 24 }, (_, nth) => `cut-${nth}`);
  for (const name of names) await own.call('sandbox.create', { name, start: false });
  const deleting = Promise.all(names.map((ref) => codeOf(own.call('sandbox.delete', { ref }))));
  await eventually('each has ended, or is cancelled', async () => {
    const { operations } = await own.call('operation.list', {});
    await Promise.all(operations.map(({ id }) => codeOf(own.call('operation.cancel', { opId: id })))); // or it has just ended
    return operations.length === 0;
  });
  expect(new Set(['ok', 'cancelled', ...(await deleting)]).size).toBe(2);
  const whole = async () => (await own.call('sandbox.list', {})).sandboxes.map(({ name }) => name).sort();
  const before = await whole();
  await own.kill9();
  await own.startAgain();
  expect(await whole()).toEqual(before);
  for (const ref of before) await own.call('sandbox.start', { ref });
});
