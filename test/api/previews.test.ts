// Shared ports: over the daemon's own TCP address, by links, as browsers and programs open them.
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

let daemon: DaemonUnderTest;

/** Gives back the head of each request; where it is to become a WebSocket, whatever comes. */
const SERVE = `#!/bin/sh
head=
while IFS= read -r line; do
  line=$(printf %s "$line" | tr -d '\\r')
  [ -z "$line" ] && break
  head="$head$line
"
done
case "$head" in
  *pgrade:*) printf 'HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n\\r\\n'; exec cat ;;
esac
printf 'HTTP/1.1 200 OK\\r\\nSet-Cookie: own=1; Domain=hutch.localhost; Path=/\\r\\nSet-Cookie: hutch_preview=evil\\r\\nConnection: close\\r\\n\\r\\n%s' "$head"
`;

/** Keeps its connection, and says which one it is; once asked for /drop it ends at the next request, without a word. */
const KEEP = `#!/bin/sh
touch /tmp/kept.$$
trap 'rm /tmp/kept.$$' EXIT
drop=
while :; do
  path= method=
  while IFS= read -r line; do
    line=$(printf %s "$line" | tr -d '\\r')
    [ -z "$path" ] && method=\${line%% *} path=\${line#* }
    [ -z "$line" ] && break
  done
  [ -n "$path" ] && [ -z "$drop" ] || exit
  case "$path" in /drop*) drop=1 ;; esac
  said="$method $$"
  printf 'HTTP/1.1 200 OK\\r\\nContent-Length: %s\\r\\n\\r\\n%s' \${#said} "$said"
done
`;

beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
  const main = {
    argv: [
      'sh',
      '-c',
      `printf %s "$SERVE" > /tmp/serve; chmod 755 /tmp/serve; printf %s "$KEEP" > /tmp/keep; chmod 755 /tmp/keep; nc -ll -p 3001 -e /tmp/keep & exec nc -ll -p 3000 -e /tmp/serve`,
    ],
  };
  await daemon.call('sandbox.create', { name: 'web', network: 'none', env: { SERVE, KEEP }, main });
  await daemon.call('sandbox.create', { name: 'other', network: 'none' });
  await eventually(
    'it listens',
    async () => (await daemon.call('port.list', { ref: 'web' })).ports.filter(({ port }) => port === 3000 || port === 3001).length === 2,
  );
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

type Shared = { readonly host: string; readonly path: string; readonly token: string };

async function share(port = 3000, expiresInMs = 60_000): Promise<Shared> {
  const { url, host } = await daemon.call('port.share', { ref: 'web', port, expiresInMs });
  const { pathname, search, searchParams } = new URL(url);
  expect(new URL(url).host).toBe(host);
  return { host, path: pathname + search, token: searchParams.get('hutch_preview') ?? '' };
}

async function get(host: string, path: string, headers: Record<string, string> = {}) {
  const { status, headers: answer, body } = await daemon.send('GET', path, { via: 'tcp', headers: { ...headers, Host: host } });
  return { status, headers: answer, text: body.toString('utf8') };
}

test('a shared link opens the port, once by its token and then by a cookie, and the sandbox is told of neither', async () => {
  const { host, path, token } = await share();
  expect(host).toMatch(/^3000-web\.hutch\.localhost:\d+$/);
  const page = await get(host, `${path}&a=1`, { Accept: 'text/html' });
  expect(page).toMatchObject({ status: 303, headers: { location: '/?a=1', 'referrer-policy': 'no-referrer' } });
  const [cookie = ''] = page.headers['set-cookie'] ?? [];
  expect(cookie).toMatch(/^hutch_preview=[^;]+; Path=\/; HttpOnly; SameSite=Lax; Expires=/);
  const asset = await get(host, '/style.css?v=2', {
    Cookie: `mine=1; ${cookie.split(';')[0]}; more=2`,
    Referer: `http://${host}${path}`,
    Authorization: `Bearer ${daemon.key}`,
    'X-API-Key': daemon.key,
    'Keep-Alive': 'x',
  });
  expect(asset.status).toBe(200);
  expect(asset.text).toMatch(/^GET \/style\.css\?v=2 HTTP\/1\.1\n/);
  expect(asset.text).toContain('cookie: mine=1; more=2\n');
  expect(asset.text.toLowerCase()).toContain(`host: ${host}\n`);
  expect(asset.text).not.toContain(token);
  expect(asset.text).not.toContain(daemon.key);
  expect(asset.text.toLowerCase()).not.toMatch(/referer|authorization|keep-alive: x/);
  // What it sets is for its own host, and not in place of ours.
  expect(asset.headers['set-cookie']).toEqual(['own=1; Path=/']);
  // A program without cookies.
  const program = await get(host, path);
  expect(program).toMatchObject({ status: 200, text: expect.not.stringContaining('hutch_preview') });
});

test('requests to a shared port go over one connection into the sandbox, as long as none waits and the sandbox keeps it', async () => {
  const { host, path } = await share(3001);
  const ask = async (at = '/', method: 'GET' | 'POST' = 'GET') => {
    const { status, body } = await daemon.send(method, `${at}${path.slice(1)}`, { via: 'tcp', headers: { Host: host } });
    return { status, text: body.toString('utf8') };
  };
  const first = await ask();
  expect(first).toMatchObject({ status: 200, text: expect.stringMatching(/^GET \d+$/) });
  expect(await ask()).toEqual(first);
  // What changes something is never in doubt: it has a connection of its own.
  const posted = await ask('/', 'POST');
  expect(posted).toMatchObject({ status: 200, text: expect.stringMatching(/^POST \d+$/) });
  expect(posted.text.split(' ')[1]).not.toBe(first.text.split(' ')[1]);
  // One that ends just as it is asked is asked again, by another.
  expect(await ask('/drop')).toEqual(first);
  const next = await ask();
  expect(next).toMatchObject({ status: 200, text: expect.stringMatching(/^GET \d+$/) });
  expect(next).not.toEqual(first);
  const each = await Promise.all([ask(), ask(), ask(), ask()]);
  expect(new Set(each.map(({ text }) => text)).size).toBeGreaterThan(1); // none waits for another
  // What nobody asks any more is let go.
  await eventually('they have ended', async () => {
    const names: string[] = [];
    for await (const { name } of daemon.lines('file.list', { ref: 'web', path: '/tmp' })) names.push(name);
    return !names.some((name) => name.startsWith('kept.'));
  });
});

test('what is no link, has expired, was taken back or is for another address is refused, to people with a page', async () => {
  const { host, path, token } = await share();
  const port = host.split(':')[1];
  expect(await get(host, '/')).toMatchObject({ status: 403, text: expect.stringContaining('is opened by the link that was shared') });
  expect(await get(host, '/', { Accept: 'text/html' })).toMatchObject({ status: 403, text: expect.stringContaining('<h1>403</h1>') });
  const other = token.replace(/.$/, (last) => (last === 'A' ? 'E' : 'A'));
  for (const wrong of [other, token.replace('3000', '3001'), 'x', `${token}x`, 'a'.repeat(5_000)])
    expect(await get(host, `/?hutch_preview=${wrong}`)).toMatchObject({ status: 403 });
  expect(await get(`3001-web.hutch.localhost:${port}`, path)).toMatchObject({ status: 403 });
  expect(await get(`3000-other.hutch.localhost:${port}`, path)).toMatchObject({
    status: 403,
    text: expect.stringContaining('another address'),
  });
  const short = await share(3000, 1_000);
  await eventually('it has expired', async () => (await get(short.host, short.path)).text.includes('has expired'));
  await daemon.call('port.unshare', { ref: 'web', port: 3000 });
  expect(await get(host, path)).toMatchObject({ status: 403, text: expect.stringContaining('was taken back') });
  const anew = await share();
  expect(await get(anew.host, anew.path)).toMatchObject({ status: 200 });
  const idle = await share(9);
  expect(await get(idle.host, idle.path)).toMatchObject({ status: expect.toSatisfy((status: number) => status >= 400) as number });
});

test('the API never answers at a shared address, nor a shared port at the API’s', async () => {
  const { host, path } = await share();
  const { address } = daemon.ready;
  for (const name of [`hutch.localhost:${address?.port}`, `api.hutch.localhost:${address?.port}`])
    expect(await get(name, '/health')).toMatchObject({ status: 404, text: expect.stringContaining('nothing is shared') });
  expect(await get(host, '/health')).toMatchObject({ status: 403 });
  const { text } = await get(host, `/v1/sandboxes${path.slice(1)}`, { Authorization: `Bearer ${daemon.key}` });
  expect(text).toContain('GET /v1/sandboxes HTTP/1.1'); // the sandbox's own, whatever the path
  expect(await get(`127.0.0.1:${address?.port}`, path)).toMatchObject({ status: 404 });
  expect(await get('3000-web.hutch.localhost.example.com', path)).toMatchObject({ status: 403 });
});

test('WebSockets pass, but none that a page of another address opens', async () => {
  const { host, path, token } = await share();
  const upgrade = async (more: Record<string, string>): Promise<IncomingMessage | { readonly echoed: string }> => {
    const { address } = daemon.ready;
    const headers = { Host: host, Connection: 'Upgrade', Upgrade: 'websocket', ...more };
    const asked = httpRequest({ host: address?.host, port: address?.port, path, headers });
    asked.end();
    return await new Promise((resolve, reject) => {
      asked.once('error', reject);
      asked.once('response', resolve);
      asked.once('upgrade', (_, socket) => {
        socket.write('ping');
        once(socket, 'data').then(([bytes]: Buffer[]) => {
          socket.destroy();
          resolve({ echoed: String(bytes) });
        }, reject);
      });
    });
  };
  expect(await upgrade({ Origin: `http://${host}`, Cookie: `hutch_preview=${token}` })).toEqual({ echoed: 'ping' });
  expect(await upgrade({ Origin: 'http://evil.example' })).toMatchObject({ statusCode: 403 });
});

test('no log has a token, and without an address of the daemon nothing is shared', async () => {
  const { host, path, token } = await share();
  await get(host, path);
  const logDir = join(daemon.home, 'log');
  const names = (await readdir(logDir, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
  expect(names.length).toBeGreaterThan(0);
  for (const { parentPath, name } of names) expect(await readFile(join(parentPath, name), 'utf8')).not.toContain(token.split('.').at(-1));
  await daemon.terminate();
  await daemon.startAgain({ env: { HUTCH_DAEMON_LISTEN: 'off' } });
  const refused = await daemon.call('port.share', { ref: 'web', port: 3000 }).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(ApiError);
  expect(refused).toMatchObject({ body: { code: 'failed_precondition', hint: expect.stringContaining('daemon.listen') } });
  // Links outlive the daemon that made them.
  await daemon.terminate();
  await daemon.startAgain();
  const anew = `3000-web.hutch.localhost:${daemon.ready.address?.port}`;
  expect(await get(anew, path)).toMatchObject({ status: 200 });
});
