// Files, archives, ports and figures of a sandbox, over the API.
import { createHash, randomBytes } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
  await daemon.call('sandbox.create', { name: 'box' });
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

const url = (what: string, query: Record<string, string>) => `/v1/sandboxes/box/${what}?${new URLSearchParams(query)}`;

test('a file is written atomically, described, and read back whole or in part', async () => {
  const bytes = randomBytes(1_500_000);
  const written = await daemon.send('PUT', url('files', { path: '/tmp/data', mode: '384', mtimeMs: '1700000000000' }), { body: bytes });
  expect([written.status, JSON.parse(written.body.toString())]).toEqual([
    200,
    expect.objectContaining({ path: '/tmp/data', size: 1_500_000, mode: 0o600, mtimeMs: 1_700_000_000_000 }),
  ]);
  const read = await daemon.send('GET', url('files', { path: '/tmp/data' }));
  expect(read.body.equals(bytes)).toBe(true);
  expect(JSON.parse(decodeURIComponent(String(read.headers['hutch-entry'])))).toMatchObject({ size: 1_500_000 });
  expect(
    (await daemon.send('GET', url('files', { path: '/tmp/data', offset: '1000', length: '10' }))).body.equals(bytes.subarray(1000, 1010)),
  ).toBe(true);
  await daemon.send('PUT', url('files', { path: '/tmp/data', at: '5' }), { body: 'HELLO' });
  expect((await daemon.send('GET', url('files', { path: '/tmp/data', length: '12' }))).body.subarray(5, 10).toString()).toBe('HELLO');
});

test('names with newlines, quotes and other bytes pass', async () => {
  for (const name of ['new\nline', 'quo"te\'s', 'späß', '-rf', 'a'.repeat(200)]) {
    const path = `/tmp/names/${name}`;
    expect((await daemon.send('PUT', url('files', { path, mkdirs: 'true' }), { body: name })).status).toBe(200);
    expect((await daemon.send('GET', url('files', { path }))).body.toString()).toBe(name);
  }
  const names: string[] = [];
  for await (const entry of daemon.lines('file.list', { ref: 'box', path: '/tmp/names' })) names.push(entry.name);
  expect(names).toHaveLength(5);
  const tooLong = await daemon.send('GET', url('files/stat', { path: `/${'a'.repeat(4_200)}` }));
  expect([tooLong.status, JSON.parse(tooLong.body.toString()).message]).toEqual([400, 'path must have at most 4096 characters']);
});

test('directories, links, modes and owners', async () => {
  expect(await daemon.call('file.mkdir', { ref: 'box', path: '/tmp/a/b/c', parents: true })).toMatchObject({ type: 'dir' });
  expect(await daemon.call('file.symlink', { ref: 'box', path: '/tmp/a/link', target: 'b/c' })).toMatchObject({
    type: 'symlink',
    target: 'b/c',
  });
  await daemon.send('PUT', url('files', { path: '/tmp/a/file' }), { body: '12345' });
  expect(await daemon.call('file.chmod', { ref: 'box', path: '/tmp/a/file', mode: 0o640 })).toMatchObject({ mode: 0o640 });
  expect(await daemon.call('file.chown', { ref: 'box', path: '/tmp/a/file', owner: 'user' })).toMatchObject({ uid: 1000, user: 'user' });
  expect(await daemon.call('file.truncate', { ref: 'box', path: '/tmp/a/file', size: 2 })).toMatchObject({ size: 2 });
  expect(await daemon.call('file.rename', { ref: 'box', from: '/tmp/a/file', to: '/tmp/a/other' })).toMatchObject({ name: 'other' });
  const found: string[] = [];
  for await (const entry of daemon.lines('file.list', { ref: 'box', path: '/tmp/a', depth: 5 })) found.push(entry.path);
  expect(found.sort()).toEqual(['/tmp/a/b', '/tmp/a/b/c', '/tmp/a/link', '/tmp/a/other']);
  const refused = await daemon.call('file.remove', { ref: 'box', path: '/tmp/a' }).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(ApiError);
  await daemon.call('file.remove', { ref: 'box', path: '/tmp/a', recursive: true });
  expect(((await daemon.call('file.stat', { ref: 'box', path: '/tmp/a' }).catch((error: unknown) => error)) as ApiError).code).toBe(
    'not_found',
  );
});

test('a directory that is not there is an answer, not a line', async () => {
  const answer = await daemon.send('GET', url('files/list', { path: '/nowhere' }));
  expect([answer.status, JSON.parse(answer.body.toString()).code]).toEqual([404, 'not_found']);
});

test('another user may do no more than it may', async () => {
  const answer = await daemon.send('PUT', url('files', { path: '/etc/passwd', user: 'user' }), { body: 'x' });
  expect([answer.status, JSON.parse(answer.body.toString()).code]).toEqual([403, 'permission_denied']);
});

test('a tree goes out as an archive and comes back the same', async () => {
  await daemon.run('box', [
    'sh',
    '-c',
    'mkdir -p /tmp/tree/sub && echo one > /tmp/tree/1 && echo two > /tmp/tree/sub/2 && chmod 700 /tmp/tree/sub && ln -s 1 /tmp/tree/link',
  ]);
  const packed = await daemon.send('GET', url('archive', { path: '/tmp/tree' }));
  expect([packed.status, packed.headers['content-type']]).toEqual([200, 'application/x-tar']);
  const unpacked = await daemon.send('PUT', url('archive', { path: '/tmp/copy', mkdirs: 'true' }), { body: packed.body });
  expect([unpacked.status, JSON.parse(unpacked.body.toString()).entries]).toEqual([200, expect.any(Number)]);
  const { stdout } = await daemon.run('box', ['sh', '-c', 'cd /tmp/copy; cat 1 sub/2 link; stat -c %a sub']);
  expect(stdout).toBe('one\ntwo\none\n700\n');
});

test('an archive that is cut in its middle is refused', async () => {
  const packed = await daemon.send('GET', url('archive', { path: '/bin/busybox' }));
  const cut = packed.body.subarray(0, 500_000);
  const answer = await daemon.send('PUT', url('archive', { path: '/tmp/cut', mkdirs: 'true' }), { body: cut });
  expect(answer.status).toBeGreaterThanOrEqual(400);
});

test('changes are told as they happen', async () => {
  const gone = new AbortController();
  const seen: string[] = [];
  const watching = (async () => {
    for await (const change of daemon.lines('file.watch', { ref: 'box', path: '/tmp' }, { signal: gone.signal }))
      seen.push(`${change.kind} ${change.path}`);
  })().catch(() => {});
  await eventually('a change is seen', async () => {
    await daemon.run('box', ['sh', '-c', 'echo x > /tmp/watched; rm /tmp/watched']);
    return seen.some((change) => change.startsWith('remove')) && seen.some((change) => change.startsWith('create'));
  });
  gone.abort();
  await watching;
});

test('an upload that its client gives up leaves the old file', async () => {
  await daemon.send('PUT', url('files', { path: '/tmp/old' }), { body: 'old' });
  const gone = new AbortController();
  const endless = (async function* () {
    for (let sent = 0; ; sent += 1) {
      if (sent === 20) gone.abort();
      yield randomBytes(65_536);
    }
  })();
  await daemon.send('PUT', url('files', { path: '/tmp/old' }), { body: endless, signal: gone.signal }).catch(() => {});
  await eventually('the upload has ended', async () =>
    (await daemon.call('operation.list', {})).operations.every(({ verb }) => verb !== 'file.write'),
  );
  expect((await daemon.send('GET', url('files', { path: '/tmp/old' }))).body.toString()).toBe('old');
});

test('a refused upload of any size is answered', async () => {
  const answer = await daemon.send('PUT', url('files', { path: '/nowhere/at/all' }), { body: randomBytes(5_000_000) });
  expect([answer.status, JSON.parse(answer.body.toString()).code]).toEqual([404, 'not_found']);
});

test('large contents keep their bytes', async () => {
  const hash = createHash('sha256');
  const body = (async function* () {
    for (let count = 0; count < 300; count += 1) {
      const chunk = randomBytes(100_000);
      hash.update(chunk);
      yield chunk;
    }
  })();
  expect((await daemon.send('PUT', url('files', { path: '/tmp/large' }), { body })).status).toBe(200);
  const back = createHash('sha256').update((await daemon.send('GET', url('files', { path: '/tmp/large' }))).body);
  expect(back.digest('hex')).toBe(hash.digest('hex'));
});

test('a stream to a port inside goes both ways and half-closes', async () => {
  const server = await daemon.exec('box', {
    argv: ['sh', '-c', 'echo up; nc -l -p 7777 127.0.0.1 -e sh -c "read line; echo you said \\$line"'],
  });
  await server.sawOutput('up');
  await eventually('it listens', async () => (await daemon.call('port.list', { ref: 'box' })).ports.some(({ port }) => port === 7_777));
  const tunnel = await daemon.socket('/v1/sandboxes/box/connect?port=7777');
  let said = '';
  tunnel.socket.on('message', (data: Buffer, isBinary: boolean) => {
    if (isBinary) said += data.toString();
  });
  await tunnel.saw('connected');
  tunnel.socket.send(Buffer.from('hello\n'));
  await tunnel.saw('end');
  expect(said).toBe('you said hello\n');
  tunnel.send({ type: 'end' });
  expect((await tunnel.closed).code).toBe(1000);
  server.socket.terminate();
});

test('a port where nobody listens refuses', async () => {
  const tunnel = await daemon.socket('/v1/sandboxes/box/connect?port=9');
  expect((await tunnel.saw('error'))['error']).toMatchObject({ code: expect.any(String) });
  expect((await tunnel.closed).code).toBe(1011);
});

test('figures are figures', async () => {
  const stats = await daemon.call('sandbox.stats', { ref: 'box' });
  expect(stats.memory.totalBytes).toBeGreaterThan(0);
  expect(stats.processes).toBeGreaterThan(0);
});
