// Two daemons: one has the role vm, and with it the sandboxes; the other has all the rest, and is the one
// that clients talk to. They must not be able to tell.
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import ssh2, { type Client } from 'ssh2';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { connectBare } from '../../src/sdk/bare.ts';
import { Hutch } from '../../src/sdk/hutch.ts';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

/** What ssh2 does itself for a command, without the command. */
type OpensSessions = {
  readonly _chanMgr: { add(opened: (error?: Error) => void): number };
  readonly _protocol: { session(channel: number, windowBytes: number, packetBytes: number): void };
};

let vm: DaemonUnderTest;
let front: DaemonUnderTest;
beforeAll(async () => {
  vm = await DaemonUnderTest.start({ flags: ['--role', 'vm'] });
  front = await DaemonUnderTest.start({
    env: { HUTCH_ROLES_VM: `unix:${vm.ready.socketPath}`, HUTCH_ROLES_VM_KEY: vm.ready.ownerKeyPath },
  });
});
afterAll(async () => {
  await front[Symbol.asyncDispose]();
  await vm[Symbol.asyncDispose]();
});

const code = (call: Promise<unknown>): Promise<string> =>
  call.then(
    () => 'done',
    (error: unknown) => (error instanceof ApiError ? error.code : Promise.reject(error as Error)),
  );

test('a sandbox made through one daemon runs in the other, with everything that verbs of each kind do', async () => {
  const made = await front.call('sandbox.create', { name: 'box', env: { GREETING: 'hi' } });
  expect((await vm.call('sandbox.get', { ref: 'box' })).id).toBe(made.id);
  expect(await front.run('box', ['sh', '-c', 'echo $GREETING; echo err >&2; exit 3'])).toEqual({
    exitCode: 3,
    stdout: 'hi\n',
    stderr: 'err\n',
  });
  const bytes = randomBytes(3_000_000);
  expect((await front.send('PUT', '/v1/sandboxes/box/files?path=/tmp/data', { body: bytes })).status).toBe(200);
  const read = await front.send('GET', '/v1/sandboxes/box/files?path=/tmp/data');
  expect(read.body.equals(bytes)).toBe(true);
  expect(JSON.parse(decodeURIComponent(String(read.headers['hutch-entry'])))).toMatchObject({ size: bytes.byteLength });
  // As the SDK sends what is large: it asks first whether the file itself may be had.
  using hutch = Hutch.connect({ url: `unix:${front.ready.socketPath}`, apiKey: front.key });
  const { files } = await hutch.sandbox('box');
  const turned = Buffer.from(bytes).reverse();
  await files.write(
    '/tmp/data',
    (async function* () {
      yield turned;
    })(),
  );
  expect((await files.read('/tmp/data')).equals(turned)).toBe(true);
  const cat = await front.exec('box', { argv: ['sha256sum'], stdin: 'open' });
  for (let at = 0; at < bytes.byteLength; at += 65_536) cat.input(bytes.subarray(at, at + 65_536));
  cat.send({ type: 'inputEnd' });
  expect((await cat.exit()).exitCode).toBe(0);
  expect(cat.stdout.toString().slice(0, 64)).toBe(createHash('sha256').update(bytes).digest('hex'));
  const names: string[] = [];
  for await (const entry of front.lines('file.list', { ref: 'box', path: '/tmp' })) names.push(entry.name);
  expect(names).toEqual(['data']);
});

test('a connection that is only bytes says nothing before its client has, for whoever it is passed on to; the other daemon’s is no different', async () => {
  for (const daemon of [vm, front]) {
    using hutch = Hutch.connect({ url: `unix:${daemon.ready.socketPath}`, apiKey: daemon.key });
    const socket = await connectBare(hutch.api, { ref: 'box' });
    let said = '';
    socket.on('data', (bytes) => {
      said += String(bytes);
    });
    socket.resume();
    await hutch.api.call('sandbox.get', { ref: 'box' });
    expect(said).toBe('');
    socket.write('SSH-2.0-stranger\r\n');
    await eventually('it answers', () => said.startsWith('SSH-2.0-OpenSSH_Hutch\r\n'));
    socket.destroy();
    await expect(connectBare(hutch.api, { ref: 'none-such' })).rejects.toMatchObject({
      code: 'not_found',
      opId: expect.stringMatching(/^op-/),
    });
  }
});

test('an SSH client that leaves with a session in which nothing was begun ends nothing but its own connection', async () => {
  const { id: ref } = await front.call('sandbox.create', {});
  for (const daemon of [vm, front]) {
    using hutch = Hutch.connect({ url: `unix:${daemon.ready.socketPath}`, apiKey: daemon.key });
    const { privateKey } = await hutch.api.call('ssh.identity', {});
    for (let time = 0; time < 2; time += 1) {
      const sock = await connectBare(hutch.api, { ref });
      const client = new ssh2.Client() as Client & OpensSessions;
      client.on('error', () => {}); // it is cut off
      client.connect({ sock, username: 'root', privateKey });
      await once(client, 'ready');
      await new Promise((resolve) => client._protocol.session(client._chanMgr.add(resolve), 2 ** 20, 2 ** 15));
      sock.destroy();
      await once(client, 'close');
    }
    expect((await hutch.api.call('sandbox.get', { ref })).state).toBe('running');
  }
  await front.call('sandbox.delete', { ref, force: true });
});

test('refusals are the same, word for word, but for the operation', async () => {
  const asked = async (daemon: DaemonUnderTest, method: string, path: string, body?: object) => {
    const answer = await daemon.send(method, path, {
      headers: { 'Content-Type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const said = JSON.parse(answer.body.toString()) as { opId: string };
    expect(said.opId).toBe(answer.headers['hutch-op-id']);
    return [answer.status, { ...said, opId: '' }];
  };
  for (const [method, path, body] of [
    ['GET', '/v1/sandboxes/nobody'],
    ['POST', '/v1/sandboxes', { name: 'box' }],
    ['POST', '/v1/sandboxes', { cpus: 0 }],
    ['DELETE', '/v1/sandboxes/box'],
    ['POST', '/v1/sandboxes/box/resume', { unknown: 1 }],
    ['GET', '/v1/sandboxes/box/files?path=/nowhere'],
    ['GET', '/v1/sandboxes/box/exec'],
  ] as const)
    expect(await asked(front, method, path, body), `${method} ${path}`).toEqual(await asked(vm, method, path, body));
  const refused = await front.socket('/v1/sandboxes/nobody/connect?port=1').catch((error: unknown) => error);
  const client = refused instanceof ApiError ? refused : null;
  if (client === null) {
    const socket = refused as Awaited<ReturnType<DaemonUnderTest['socket']>>;
    await socket.closed;
    expect(socket.message('error')).toMatchObject({ error: { code: 'not_found' } });
  } else expect(client.code).toBe('not_found');
});

test('an upload that is refused is told so, whole or not', async () => {
  const refused = await front.send('PUT', '/v1/sandboxes/nobody/files?path=/tmp/x', { body: randomBytes(5_000_000) });
  expect([refused.status, JSON.parse(refused.body.toString()).code]).toEqual([404, 'not_found']);
  await vm.terminate();
  const away = await front.send('PUT', '/v1/sandboxes/box/files?path=/tmp/x', { body: randomBytes(5_000_000) });
  expect([away.status, JSON.parse(away.body.toString()).code]).toEqual([503, 'unavailable']);
  await vm.startAgain();
});

test('the operation id and the trace go along', async () => {
  const trace = '4bf92f3577b34da6a3ce929d0e0e4736';
  const { result, headers } = await front.callWithHeaders(
    'sandbox.create',
    { name: 'traced' },
    { headers: { traceparent: `00-${trace}-00f067aa0ba902b7-01` } },
  );
  const opId = String(headers['hutch-op-id']);
  expect(result.lastOpId).toBe(opId);
  const operation = await vm.call('operation.get', { opId });
  expect(operation).toMatchObject({ id: opId, verb: 'sandbox.create', state: 'done' });
  expect(operation.traceparent).toContain(trace);
  expect(await front.log()).toContain(opId);
  expect(await vm.log()).toContain(opId);
  // An id that is used already is nobody's to use again.
  const again = await vm.callWithHeaders('sandbox.rename', { ref: 'traced', name: 'traced-2' }, { headers: { 'Hutch-Op-Id': opId } });
  expect(again.headers['hutch-op-id']).not.toBe(opId);
  await front.call('sandbox.delete', { ref: 'traced-2', force: true });
});

test('each daemon keeps its own keys', async () => {
  const { secret } = await front.call('key.create', { name: 'for-a-client' });
  expect((await front.send('GET', '/v1/sandboxes', { headers: { Authorization: `Bearer ${secret}` } })).status).toBe(200);
  expect((await vm.send('GET', '/v1/sandboxes', { headers: { Authorization: `Bearer ${secret}` } })).status).toBe(401);
  expect((await front.send('GET', '/v1/sandboxes', { headers: { Authorization: `Bearer ${vm.key}` } })).status).toBe(401);
});

test('a client that goes away ends what only it can use, through both', async () => {
  const gone = new AbortController();
  const response = await front.open('GET', '/v1/events?follow=true', { signal: gone.signal });
  expect(response.statusCode).toBe(200);
  response.on('error', () => {});
  const under = async () => (await vm.log()).includes('"verb":"event.list"');
  expect(await under()).toBe(false);
  gone.abort();
  await eventually('the other daemon knows', under);
});

test('the daemon with the sandboxes is killed: reads wait for it, what may have been done is not done twice', async () => {
  await vm.kill9();
  const waiting = front.call('sandbox.get', { ref: 'box' });
  const once = code(front.call('sandbox.restart', { ref: 'box' }));
  await vm.startAgain();
  expect((await waiting).name).toBe('box'); // told, perhaps between the restart's stop and its start
  // It had not arrived anywhere: so it was made once, or refused; never twice.
  expect(['done', 'unavailable']).toContain(await once);
  const box = await vm.call('sandbox.get', { ref: 'box' });
  expect(box.state).toBe('running');
  expect(box.startCount).toBeLessThanOrEqual(2);
  const client = await front.exec('box', { argv: ['sh', '-c', 'echo up; exec sleep 100'] }, { execId: 'sleeper' });
  await client.sawOutput('up');
  await vm.kill9();
  await client.closed; // a stream that was cut is seen to be cut
  expect(client.message('exit')).toBeUndefined();
  await vm.startAgain();
  const again = await front.attach('box', 'sleeper', { stdoutOffset: '3' });
  await front.call('exec.signal', { ref: 'box', execId: 'sleeper', signal: 'KILL' });
  expect((await again.exit()).exitCode).toBe(137);
});

test('a creation whose answer was lost is repeated by its Idempotency-Key alone, and made once', async () => {
  const headers = { 'Idempotency-Key': 'through-two-daemons' };
  const making = [1, 2].map(() => front.call('sandbox.create', { name: 'once' }, { headers }));
  const [first, second] = await Promise.all(making);
  expect(first?.id).toBe(second?.id);
  const replayed = await front.callWithHeaders('sandbox.create', { name: 'once' }, { headers });
  expect(replayed.headers['idempotency-replayed']).toBe('true');
  expect(replayed.headers['hutch-op-id']).toBe(first?.lastOpId);
  await front.call('sandbox.delete', { ref: 'once', force: true });
});

test('while nobody answers there, calls fail in time and say what is missing; then all is well by itself', async () => {
  await vm.terminate();
  const refused = await front.call('sandbox.list', {}).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(ApiError);
  expect((refused as ApiError).body).toMatchObject({ code: 'unavailable', retryable: true, message: expect.stringContaining('role vm') });
  expect((await front.call('daemon.version', {})).pid).toBe(front.pid);
  await vm.startAgain();
  expect((await front.call('sandbox.list', {})).sandboxes.map(({ name }) => name)).toEqual(['box']);
});

test('one that stands still is given up, whoever waits is told', { timeout: 60_000 }, async () => {
  process.kill(vm.pid, 'SIGSTOP');
  try {
    // Without an end of its own the wait of this test would keep the other daemon standing still.
    const signal = AbortSignal.timeout(45_000);
    expect(await code(front.call('sandbox.get', { ref: 'box' }, { signal }))).toBe('deadline_exceeded');
  } finally {
    process.kill(vm.pid, 'SIGCONT');
  }
  expect((await front.call('sandbox.get', { ref: 'box' })).state).toBe('running');
});

test('a key that is not valid there, and a role that nobody has, are refused by name', async () => {
  const stranger = await DaemonUnderTest.start({
    env: { HUTCH_ROLES_VM: `http://127.0.0.1:${vm.ready.address?.port}`, HUTCH_ROLES_VM_KEY: front.ready.ownerKeyPath },
  });
  try {
    const refused = await stranger.call('sandbox.list', {}).catch((error: unknown) => error);
    expect((refused as ApiError).body).toMatchObject({ code: 'failed_precondition', hint: expect.stringContaining('roles.vm_key') });
  } finally {
    await stranger.terminate();
    await stranger[Symbol.asyncDispose]();
  }
  await expect(DaemonUnderTest.start({ flags: ['--role', 'cook'] })).rejects.toThrow(/--role takes one of/);
});
