// What the API takes and refuses before any service is asked: keys, hosts, origins, methods, bodies,
// bounds; and its description.
import { connect } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { verbs } from '../../src/services/verbs.ts';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

const refusal = (promise: Promise<unknown>): Promise<ApiError> =>
  promise.then(
    () => Promise.reject(new Error('it was not refused')),
    (error: unknown) => (error instanceof ApiError ? error : Promise.reject(error as Error)),
  );

test('health needs no key, everything else does, over both sockets', async () => {
  for (const via of ['unix', 'tcp'] as const) {
    expect((await daemon.send('GET', '/health', { headers: { Authorization: '' }, via })).status).toBe(200);
    const none = await daemon.send('GET', '/v1/sandboxes', { headers: { Authorization: '' }, via });
    expect([none.status, none.headers['www-authenticate']]).toEqual([401, 'Bearer realm="hutch"']);
    expect((await daemon.send('GET', '/v1/sandboxes', { headers: { Authorization: `Bearer e2b_${'0'.repeat(40)}` }, via })).status).toBe(
      401,
    );
    expect((await daemon.send('GET', '/v1/sandboxes', { via })).status).toBe(200);
  }
});

test('every answer has an op id, and every error says it', async () => {
  for (const path of ['/v1/sandboxes', '/v1/sandboxes/nobody', '/nowhere', '/health']) {
    const answer = await daemon.send('GET', path);
    expect(answer.headers['hutch-op-id']).toMatch(/^op-[0-9a-f]{12}$/);
    if (answer.status !== 200)
      expect(JSON.parse(answer.body.toString())).toMatchObject({ opId: answer.headers['hutch-op-id'], code: 'not_found' });
  }
});

test('web pages and rebound names are refused', async () => {
  const origin = await daemon.send('GET', '/v1/sandboxes', { headers: { Origin: 'https://evil.example' } });
  expect([origin.status, JSON.parse(origin.body.toString()).code]).toEqual([403, 'permission_denied']);
  expect((await daemon.send('GET', '/v1/sandboxes', { headers: { Host: 'evil.example:4880' }, via: 'tcp' })).status).toBe(403);
  expect((await daemon.send('GET', '/health', { headers: { Host: 'evil.example' }, via: 'tcp' })).status).toBe(403);
  for (const host of ['localhost:4880', '127.0.0.1', '[::1]:1', '8080-sbx123.localhost']) {
    expect((await daemon.send('GET', '/v1/sandboxes', { headers: { Host: host }, via: 'tcp' })).status, host).toBe(200);
  }
  const socket = await refusal(daemon.socket('/v1/sandboxes/x/exec', { Origin: 'https://evil.example' }));
  expect(socket.code).toBe('permission_denied');
});

test('names and web pages that the configuration allows are served, and no others', async () => {
  await using open = await DaemonUnderTest.start({
    env: { HUTCH_DAEMON_ALLOWED_HOSTS: 'box.example, [fd00::1]', HUTCH_DAEMON_ALLOWED_ORIGINS: 'https://dash.example:8443' },
  });
  const status = async (headers: Record<string, string>) => (await open.send('GET', '/v1/sandboxes', { headers, via: 'tcp' })).status;
  expect(await status({ Host: 'box.example:4880' })).toBe(200);
  expect(await status({ Host: '[FD00::1]' })).toBe(200);
  expect(await status({ Host: 'sub.box.example' })).toBe(403);
  expect(await status({ Origin: 'https://dash.example' })).toBe(403);
  const origin = 'https://dash.example:8443';
  const answer = await open.send('GET', '/v1/sandboxes', { headers: { Origin: origin }, via: 'tcp' });
  expect([answer.status, answer.headers['access-control-allow-origin'], answer.headers['vary']]).toEqual([200, origin, 'Origin']);
  const asked = { Origin: origin, 'Access-Control-Request-Method': 'POST', Authorization: '' };
  const may = await open.send('OPTIONS', '/v1/sandboxes', { headers: asked, via: 'tcp' });
  expect([may.status, may.headers['access-control-allow-headers']]).toEqual([204, expect.stringContaining('Authorization')]);
  expect((await open.send('OPTIONS', '/v1/sandboxes', { headers: { ...asked, Origin: 'https://evil.example' }, via: 'tcp' })).status).toBe(
    403,
  );
});

test('a wrong method names the right ones', async () => {
  const answer = await daemon.send('PATCH', '/v1/sandboxes');
  expect([answer.status, answer.headers['allow']]).toEqual([400, 'POST, GET']);
});

test('bad input names the field and the bound', async () => {
  const create = (body: object) => refusal(daemon.call('sandbox.create', body as never)).then(({ code, message }) => `${code} ${message}`);
  expect(await create({ memoryMiB: 1 })).toBe('invalid_argument invalid_argument: memoryMiB must be at least 128');
  expect(await create({ memoryMiB: 1e9 })).toContain('memoryMiB must be at most 262144');
  expect(await create({ cpus: 1.5 })).toContain('cpus must be a whole number');
  expect(await create({ cpus: '2' })).toContain('cpus must be a number');
  expect(await create({ nonsense: 1 })).toContain('nonsense is not known here');
  expect(await create({ main: { argv: [] } })).toContain('main.argv must have at least 1 entries');
  expect(await create({ main: {} })).toContain('main.argv is missing');
  expect(await create({ main: { argv: ['a\0b'] } })).toContain('main.argv[0]: must not contain a NUL byte');
  expect(await create({ main: { argv: ['echo', 'x'.repeat(131_072)] } })).toContain('main.argv[1]: has 131,072 bytes; at most 131,071');
  expect(await create({ secrets: { LONG: 'x'.repeat(131_072) } })).toContain('secrets.LONG: has 131,077 bytes; at most 131,071');
  expect(await create({ env: { '1X': 'a' } })).toContain('env');
  expect(await create({ name: 'No_Name' })).toContain('name must be lower-case letters');
  expect(await create({ network: 'all' })).toContain('network must be one of none, allow, allow-lan');
  expect(await create({ image: 'nowhere' })).toContain('not_found');
  expect(await create({ env: { A: '1' }, secrets: { A: '2' } })).toContain('secrets.A is given in env as well');
  const query = await daemon.send('GET', '/v1/sandboxes?limit=0x&state=running');
  expect(JSON.parse(query.body.toString()).message).toContain('limit');
  expect(JSON.parse((await daemon.send('GET', '/v1/sandboxes?state=runing')).body.toString()).message).toContain("'runing' is not");
  expect(
    JSON.parse(
      (
        await daemon.send('POST', '/v1/sandboxes/x/stop', { body: '{"ref":"y"}', headers: { 'Content-Type': 'application/json' } })
      ).body.toString(),
    ).message,
  ).toContain('ref comes from the path');
  expect((await daemon.call('sandbox.list', {})).sandboxes).toEqual([]);
});

test('a body must be JSON, an object, said to be so, and not too large', async () => {
  const post = async (body: string, type = 'application/json') => {
    const answer = await daemon.send('POST', '/v1/sandboxes', { body, headers: { 'Content-Type': type } });
    return [answer.status, JSON.parse(answer.body.toString()).message];
  };
  expect(await post('{')).toEqual([400, 'the body is no JSON']);
  expect(await post('[]')).toEqual([400, 'the body must be a JSON object']);
  expect(await post('{}', 'text/plain')).toEqual([400, 'the body must have Content-Type: application/json']);
  expect((await post(JSON.stringify({ name: 'x'.repeat(9_000_000) })))[0]).toBe(413);
});

test('limits of the configuration bind', async () => {
  await using small = await DaemonUnderTest.start({ env: { HUTCH_LIMITS_CPUS: '2', HUTCH_LIMITS_SANDBOXES: '1' } });
  expect((await refusal(small.call('sandbox.create', { cpus: 3 }))).body).toMatchObject({
    code: 'resource_exhausted',
    message: 'cpus must be at most 2 here',
  });
  const first = await small.call('sandbox.create', { cpus: 2 });
  expect((await refusal(small.call('sandbox.create', {}))).code).toBe('resource_exhausted');
  const idle = await small.call('sandbox.create', { start: false });
  expect((await refusal(small.call('sandbox.start', { ref: idle.id }))).code).toBe('resource_exhausted');
  await small.call('sandbox.stop', { ref: first.id, force: true });
  await small.call('sandbox.start', { ref: idle.id });
});

test('garbage on the wire ends that connection only', async () => {
  const { address } = daemon.ready;
  for (const garbage of [
    '\x16\x03\x01\x00\xa5\x01',
    'GET\r\n\r\n',
    `GET / HTTP/1.1\r\nHost: localhost\r\nX: ${'a'.repeat(100_000)}\r\n\r\n`,
    'POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n',
  ]) {
    const socket = connect(address?.port ?? 0, address?.host);
    socket.on('error', () => {});
    socket.end(garbage);
    socket.resume();
    await new Promise((resolve) => socket.on('close', resolve));
  }
  expect((await daemon.send('GET', '/health')).status).toBe(200);
});

test('the description has every verb, and every reference in it leads somewhere', async () => {
  const answer = await daemon.send('GET', '/openapi.json');
  const api = JSON.parse(answer.body.toString()) as {
    openapi: string;
    paths: Record<string, Record<string, { operationId: string }>>;
    components: { schemas: Record<string, unknown> };
  };
  expect(api.openapi).toBe('3.1.0');
  const ids = Object.values(api.paths).flatMap((path) => Object.values(path).map((operation) => operation.operationId));
  expect(ids.sort()).toEqual(Object.keys(verbs).sort());
  for (const [, name] of answer.body.toString().matchAll(/"#\/components\/schemas\/([^"]+)"/g))
    expect(Object.keys(api.components.schemas)).toContain(name);
  expect(answer.body.toString()).not.toContain('#/$defs/');
});

test('keys are made, listed without their secret, and revoked; the last one stays', async () => {
  const made = await daemon.call('key.create', { name: 'ci' });
  expect(made.secret).toMatch(/^e2b_[0-9a-f]{40}$/);
  expect((await daemon.send('GET', '/v1/sandboxes', { headers: { Authorization: `Bearer ${made.secret}` } })).status).toBe(200);
  const list = await daemon.send('GET', '/v1/keys');
  expect(list.body.toString()).not.toContain(made.secret);
  expect((await refusal(daemon.call('key.create', { name: 'ci' }))).code).toBe('conflict');
  await daemon.call('key.revoke', { ref: 'ci' });
  expect((await daemon.send('GET', '/v1/sandboxes', { headers: { Authorization: `Bearer ${made.secret}` } })).status).toBe(401);
  expect((await refusal(daemon.call('key.revoke', { ref: 'owner' }))).code).toBe('failed_precondition');
});

test('a key can be of another project, which has sandboxes of its own; who has one of default looks after all', async () => {
  const { secret, project, projectId } = await daemon.call('key.create', { name: 'runner', project: 'ci' });
  const second = await daemon.call('key.create', { name: 'runner-2', project: 'ci' });
  expect([project, second.projectId]).toEqual(['ci', projectId]);
  const theirs = { headers: { Authorization: `Bearer ${secret}` } };
  // One name, in each project.
  await daemon.call('sandbox.create', { name: 'same' });
  await daemon.call('sandbox.create', { name: 'same' }, theirs);
  expect((await daemon.call('sandbox.list', {}, theirs)).sandboxes).toHaveLength(1);
  await daemon.call('sandbox.delete', { ref: 'same', force: true }, theirs);
  // Nor does one see what another has used.
  const projectsIn = async (path: string, who?: typeof theirs): Promise<readonly string[]> =>
    (await daemon.send('GET', path, who)).body
      .toString()
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as { projectId: string }).projectId);
  expect(await projectsIn('/v1/ledger?limit=2', theirs)).toEqual([projectId, projectId]);
  expect(new Set(await projectsIn('/v1/ledger')).size).toBeGreaterThan(1);
  expect((await daemon.call('sandbox.list', {})).sandboxes.map(({ name }) => name)).toEqual(['same']);
  expect((await daemon.call('key.list', {}, theirs)).keys.map(({ name }) => name)).toEqual(['runner', 'runner-2']);
  expect((await daemon.call('key.list', {})).keys.map((key) => `${key.project}/${key.name}`)).toEqual(
    expect.arrayContaining(['default/owner', 'ci/runner', 'ci/runner-2']),
  );
  for (const other of ['default', 'third']) {
    expect((await refusal(daemon.call('key.create', { name: 'mine', project: other }, theirs))).code, other).toBe('permission_denied');
  }
  expect((await refusal(daemon.call('key.revoke', { ref: 'owner' }, theirs))).code).toBe('not_found');
  await daemon.call('key.create', { name: 'runner-3', project: 'ci' }, theirs);
  for (const ref of ['runner', 'runner-2', 'runner-3']) await daemon.call('key.revoke', { ref });
  expect((await refusal(daemon.call('sandbox.list', {}, theirs))).code).toBe('unauthenticated');
  expect((await refusal(daemon.call('key.create', { name: 'x', project: 'No Name' }))).code).toBe('invalid_argument');
  await daemon.call('sandbox.delete', { ref: 'same', force: true });
});

test('the configuration says where each value came from', async () => {
  const { values } = await daemon.call('config.get', {});
  expect(values.find(({ key }) => key === 'sandbox.memory')).toMatchObject({ value: '512M', source: 'default' });
  expect(values.find(({ key }) => key === 'daemon.listen')).toMatchObject({ source: 'HUTCH_DAEMON_LISTEN' });
});

test('doctor and version answer', async () => {
  const { checks } = await daemon.call('doctor.check', {});
  expect(checks.map(({ name }) => name)).toEqual(
    expect.arrayContaining(['KVM', 'QEMU', 'passt', 'disk space', 'reflink', 'cgroups', 'SMT']),
  );
  const { default: chosen } = await daemon.call('backends.list', {});
  expect(checks.find(({ name }) => name === 'default backend')?.detail).toMatch(new RegExp(`^${chosen ?? 'none'}\\b`));
  expect(await daemon.call('daemon.version', {})).toMatchObject({ version: '0.1.0', apiVersion: 'v1', pid: daemon.pid });
});
