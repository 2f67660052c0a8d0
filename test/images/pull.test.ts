// How an image comes here on good and bad days: layers once, however many want them; connections that break;
// logins that go only where they belong; calls that are cancelled or fail.
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { expect, test } from 'vitest';
import type { Host } from '../../src/host/host.ts';
import { openImage, verifyImage } from '../../src/images/image.ts';
import { type FaultyHost, failNthCall } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { digestOf, image, TYPES, tar } from './archives.ts';
import { place, treeOf } from './place.ts';
import { fakeRegistry } from './registry.ts';

const op = testOperation();
/** The whole list with --long, else every fifth call, beginning where the seed says. */
const FAULT_STRIDE = process.env['HUTCH_TEST_LONG'] === undefined ? 5 : 1;
const FIRST_FAULT = 1 + (Number(process.env['HUTCH_TEST_SEED'] ?? 0) % FAULT_STRIDE);

const LOWER = tar(
  { path: 'etc/', type: 'directory' },
  { path: 'etc/keep', content: 'keep' },
  { path: 'etc/drop', content: 'drop' },
  { path: 'etc/change', content: 'old' },
  { path: 'full/', type: 'directory', mode: 0o700 },
  { path: 'full/a', content: 'a' },
  { path: 'full/sub/b', content: 'b' },
  { path: 'was-dir/x', content: 'x' },
  { path: 'was-file', content: 'x' },
  { path: 'lib', type: 'symlink', link: 'usr/lib' },
  { path: 'usr/lib/', type: 'directory' },
  { path: 'first', content: 'shared' },
  { path: 'second', type: 'hardlink', link: 'first' },
  { path: 'big', content: Buffer.alloc(300_000, 'noise that does not pack well: '.repeat(3)) },
);
const UPPER = tar(
  { path: 'full/c', content: 'c' }, // before the whiteout: what is of this layer stays
  { path: 'full/.wh..wh..opq' },
  { path: 'etc/.wh.drop' },
  { path: 'etc/change', content: 'new', mode: 0o600, uid: 7 },
  { path: '.wh.was-dir' },
  { path: 'was-dir', content: 'a file now' },
  { path: 'was-file', type: 'directory' },
  { path: 'was-file/y', content: 'y' },
  { path: 'lib/module', content: 'through the link' },
  { path: 'third', type: 'hardlink', link: 'second' },
  { path: '.wh.first' },
  { path: '.wh..wh.plnk/', type: 'directory' },
);
const CONFIG = {
  Env: ['A=b=c'],
  Entrypoint: ['/e'],
  Cmd: ['one', 'two'],
  User: 'u:g',
  WorkingDir: '/w',
  StopSignal: 'SIGQUIT',
  ExposedPorts: { '80/tcp': {} },
};
const MADE = image([LOWER, UPPER], { config: CONFIG });

test('layers make one file system: whiteouts, opaque directories, links through links, and what replaces what', async () => {
  await using registry = await fakeRegistry();
  await using here = await place();
  registry.put('team/web', '1', MADE);
  const found = await here.pull(`${registry.name}/team/web:1`);
  expect(found.record).toMatchObject({
    digest: digestOf(MADE.config),
    architecture: 'x86_64',
    config: {
      env: { A: 'b=c' },
      entrypoint: ['/e'],
      command: ['one', 'two'],
      user: 'u:g',
      workdir: '/w',
      stopSignal: 'SIGQUIT',
      exposedPorts: ['80/tcp'],
    },
  });
  const tree = await treeOf(found);
  const files = [...tree].filter(([, { type }]) => type === 'file').map(([path, { content }]) => [path, content.toString().slice(0, 20)]);
  expect(Object.fromEntries(files)).toEqual({
    'etc/keep': 'keep',
    'etc/change': 'new',
    'full/c': 'c',
    'was-dir': 'a file now',
    'was-file/y': 'y',
    'usr/lib/module': 'through the link',
    second: 'shared',
    big: 'noise that does not ',
  });
  expect(tree.get('third')).toMatchObject({ type: 'hardlink', link: 'second' });
  expect(tree.get('etc/change')).toMatchObject({ mode: 0o600, uid: 7 });
  expect(tree.get('full')?.mode).toBe(0o700);
  expect(tree.get('lib')).toMatchObject({ type: 'symlink', link: 'usr/lib' });
  await verifyImage(op, here.host, here.library.paths, found.record.digest);
  expect(await here.left()).toMatchObject({ staging: [], images: [expect.any(String)], blobs: [expect.any(String), expect.any(String)] });
});

test('the same image is the same to the byte on every machine, and is not pulled twice', async () => {
  await using registry = await fakeRegistry();
  await using one = await place();
  await using other = await place();
  registry.put('web', '1', MADE);
  const first = await one.pull(`${registry.name}/web:1`);
  registry.asked.length = 0;
  await one.pull(`${registry.name}/web:1`);
  expect(registry.asked.filter((path) => path.includes('/blobs/'))).toEqual([]);
  // By the same content, packed by somebody else: the same image, in another registry.
  const second = await other.pull(`${registry.name}/web@${digestOf(MADE.manifest)}`);
  expect([second.record.digest, second.rootDigest]).toEqual([first.record.digest, first.rootDigest]);
  expect(await readFile(second.path)).toEqual(await readFile(first.path));
});

test('images that share a layer download it once, also at the same time; one that is cancelled does not stop the other', async () => {
  await using registry = await fakeRegistry();
  await using here = await place();
  const two = image([LOWER, tar({ path: 'other', content: 'x' })]);
  registry.put('one', '1', MADE);
  registry.put('two', '1', two);
  const lower = (JSON.parse(MADE.manifest.toString()) as { layers: { digest: string }[] }).layers[0]?.digest ?? '';
  const held = Promise.withResolvers<void>();
  let waiting = 0;
  registry.answer = (request, response) => {
    if (request.url?.includes(lower) !== true) return false;
    waiting += 1;
    held.promise.then(() => response.end(MADE.blobs.get(lower)));
    return true;
  };
  const abort = new AbortController();
  const leaving = here.pull(`${registry.name}/one:1`, testOperation({ signal: abort.signal })).catch((error: unknown) => error);
  const staying = [`${registry.name}/two:1`, `${registry.name}/two:1`].map((name) => here.pull(name));
  await expect.poll(() => registry.asked.filter((path) => path.includes('/blobs/')).length, { timeout: 20_000 }).toBeGreaterThan(3);
  abort.abort();
  held.resolve();
  expect(await leaving).toMatchObject({ code: 'cancelled' });
  const [first, second] = await Promise.all(staying);
  expect(first?.record.digest).toBe(digestOf(two.config));
  expect(second?.record).toEqual(first?.record);
  expect(waiting).toBe(1);
  expect((await here.left()).staging).toEqual([]);
});

test('layers of one image come side by side', async () => {
  await using registry = await fakeRegistry();
  await using here = await place();
  registry.put('web', '1', MADE);
  const layers = (JSON.parse(MADE.manifest.toString()) as { layers: { digest: string }[] }).layers.map(({ digest }) => digest);
  expect(layers).toHaveLength(2);
  const allAsked = Promise.withResolvers<void>();
  const asked = new Set<string>();
  registry.answer = (request, response) => {
    const digest = layers.find((one) => request.url?.includes(one) === true);
    if (digest === undefined) return false;
    if (asked.add(digest).size === layers.length) allAsked.resolve();
    allAsked.promise.then(() => response.end(MADE.blobs.get(digest)));
    return true;
  };
  expect((await here.pull(`${registry.name}/web:1`)).record.digest).toBe(digestOf(MADE.config));
});

test('a connection that breaks is gone on with where it broke; a registry that is busy is asked again', async () => {
  await using registry = await fakeRegistry();
  await using here = await place();
  registry.put('web', '1', MADE);
  const ranges: (string | undefined)[] = [];
  let busy = 0;
  const big = [...MADE.blobs].toSorted(([, a], [, b]) => b.byteLength - a.byteLength)[0];
  if (big === undefined) throw new Error('no blob');
  registry.answer = (request, response) => {
    if (request.url?.includes('/manifests/') === true && busy < 1) {
      busy += 1;
      response.writeHead(429, { 'Retry-After': '0' }).end();
      return true;
    }
    if (request.url?.includes(big[0]) !== true) return false;
    ranges.push(request.headers.range);
    if (ranges.length > 1) return false;
    response.writeHead(200, { 'Content-Length': String(big[1].byteLength) });
    response.write(big[1].subarray(0, 700), () => setTimeout(() => response.destroy(), 50));
    return true;
  };
  const found = await here.pull(`${registry.name}/web:1`);
  expect(ranges).toEqual([undefined, 'bytes=700-']);
  expect(await verifyImage(op, here.host, here.library.paths, found.record.digest)).toBeUndefined();
});

test('a registry that says when it may be asked again is asked then, not before, and not at all when that is too far off', {
  timeout: 60_000,
}, async () => {
  await using registry = await fakeRegistry();
  await using here = await place({ patience: { pauseMs: 1, retryAfterMsMax: 20_000 } });
  registry.put('web', '1', MADE);
  const at: number[] = [];
  let says: () => string = () => '2';
  registry.answer = (request, response) => {
    if (request.url?.includes('/manifests/') !== true || at.push(performance.now()) % 2 === 0) return false;
    response.writeHead(429, { 'Retry-After': says() }).end();
    return true;
  };
  const name = `${registry.name}/web:1`;
  const told: (string | undefined)[] = [];
  await here.pull(name, testOperation({ onProgress: ({ step, detail }) => void (step === 'registry' && told.push(detail)) }));
  expect(told).toEqual([expect.stringMatching(/too many requests; asked again in 2 s$/)]);
  says = () => new Date(Date.now() + 2_500).toUTCString(); // in whole seconds: at least 1.5 from now
  await here.pull(name);
  const [first = 0, second = 0, third = 0, fourth = 0] = at;
  expect(second - first).toBeGreaterThan(1_950);
  expect(fourth - third).toBeGreaterThan(1_450);
  at.length = 0;
  says = () => '21';
  await expect(here.pull(name)).rejects.toThrow(/too many requests/);
  expect(at).toHaveLength(1);
});

test('a token that is taken no longer in the middle of a pull is asked for anew, with the token that was kept in place of a password', async () => {
  await using registry = await fakeRegistry();
  await using here = await place();
  registry.put('web', '1', MADE);
  await mkdir(join(here.dir, '.docker'));
  await writeFile(join(here.dir, '.docker', 'config.json'), JSON.stringify({ auths: { [registry.name]: { identitytoken: 'kept' } } }));
  const forms: Promise<string>[] = [];
  const taken = new Set<string>();
  const refused: string[] = [];
  registry.answer = (request, response) => {
    const path = request.url ?? '';
    if (path.startsWith('/token')) {
      forms.push(text(request));
      const token = `token-${forms.length}`;
      taken.add(`Bearer ${token}`);
      response.end(JSON.stringify({ access_token: token, expires_in: 300 }));
      return true;
    }
    if (path === '/v2/') return false;
    const { authorization = 'nothing' } = request.headers;
    if (!taken.has(authorization)) {
      refused.push(authorization);
      response.writeHead(401, { 'WWW-Authenticate': `Bearer realm="http://${registry.name}/token",service="s"` }).end();
      return true;
    }
    if (path.includes('/manifests/')) taken.clear(); // the first one has done its work, and is over before it said
    return false;
  };
  const { record } = await here.pull(`${registry.name}/web:1`);
  expect(record.digest).toBe(digestOf(MADE.config));
  expect(refused).toContain('nothing');
  expect(refused).toContain('Bearer token-1');
  const asked = (await Promise.all(forms)).map((form) => Object.fromEntries(new URLSearchParams(form)));
  expect(asked.length).toBeGreaterThan(1);
  for (const form of asked) {
    expect(form).toMatchObject({ grant_type: 'refresh_token', refresh_token: 'kept', service: 's', scope: 'repository:web:pull' });
  }
});

test('a registry without TLS, or with any certificate, is taken where it is named, and no other one is', async () => {
  await using registry = await fakeRegistry();
  registry.put('web', '1', MADE);
  const asked: string[] = [];
  /** The registry, under a name that is not of the loopback. */
  const elsewhere = (host: Host): Host => ({
    ...host,
    request: async (operation, { url, ...more }) => {
      asked.push(`${url.protocol}//${url.host}${more.anyCertificate === true ? ', any certificate' : ''}`);
      if (url.protocol === 'https:') throw operation.error('unavailable', 'it has no TLS');
      const there = new URL(url.href);
      there.host = registry.name;
      return await host.request(operation, { ...more, url: there });
    },
  });
  for (const insecure of [[], ['other.test', 'sub.registry.test', 'registry.test:443']]) {
    await using here = await place({ host: elsewhere, insecure });
    await expect(here.pull('registry.test/web:1')).rejects.toMatchObject({ code: 'unavailable', message: 'it has no TLS' });
    expect(new Set(asked)).toEqual(new Set(['https://registry.test']));
  }
  asked.length = 0;
  await using here = await place({ host: elsewhere, insecure: ['registry.test'] });
  expect((await here.pull('registry.test/web:1')).record.digest).toBe(digestOf(MADE.config));
  expect([...new Set(asked)]).toEqual(['https://registry.test, any certificate', 'http://registry.test, any certificate']);
});

test('a login goes to its registry and the token server that this names, and never with a redirect', async () => {
  await using registry = await fakeRegistry();
  await using store = await fakeRegistry();
  await using here = await place();
  registry.put('private', '1', MADE);
  store.put('x', '1', MADE);
  await mkdir(join(here.dir, '.docker'));
  const auth = Buffer.from('me:secret').toString('base64');
  await writeFile(join(here.dir, '.docker', 'config.json'), JSON.stringify({ auths: { [registry.name]: { auth } } }));
  const tokens: (string | undefined)[] = [];
  registry.answer = (request, response) => {
    const path = request.url ?? '';
    if (path.startsWith('/token')) {
      tokens.push(request.headers.authorization);
      expect(path).toContain(encodeURIComponent('repository:private:pull'));
      response.end(JSON.stringify({ token: null, access_token: 'good', expires_in: null }));
      return true;
    }
    if (path === '/v2/') return false;
    if (request.headers.authorization !== 'Bearer good') {
      response
        .writeHead(401, {
          'WWW-Authenticate': `Bearer realm="http://${registry.name}/token",service="s",scope="repository:other:push,pull"`,
        })
        .end();
      return true;
    }
    if (!path.includes('/blobs/')) return false;
    response.writeHead(307, { Location: `http://${store.name}/v2/x/blobs/${path.split('/').at(-1)}` }).end();
    return true;
  };
  await here.pull(`${registry.name}/private:1`);
  expect(tokens).toEqual([`Basic ${auth}`]);
  expect(store.asked.length).toBeGreaterThan(0);
  expect(store.secrets.map(({ authorization }) => authorization)).toEqual(store.secrets.map(() => undefined));
});

test('whichever host call fails, no half image is found and the next try succeeds', { timeout: 120_000 }, async () => {
  await using registry = await fakeRegistry();
  registry.put('web', '1', MADE);
  for (let nth = FIRST_FAULT; ; nth += FAULT_STRIDE) {
    const faulty: { host: FaultyHost | null } = { host: null };
    await using here = await place({
      patience: { tries: 1 },
      host: (host) => {
        faulty.host = failNthCall(host, nth);
        return faulty.host;
      },
    });
    const name = `${registry.name}/web:1`;
    await here.pull(name).catch(() => {});
    if (faulty.host?.hit === undefined) {
      expect(nth).toBeGreaterThan(20);
      return;
    }
    const digest = digestOf(MADE.config);
    const half = await openImage(op, here.host, here.library.paths, digest);
    if (half !== null) await verifyImage(op, here.host, here.library.paths, digest);
    await here.library.sweep(op);
    expect((await here.left()).staging, `call ${nth}: ${faulty.host.hit.method}`).toEqual([]);
    await verifyImage(op, here.host, here.library.paths, (await here.pull(name)).record.digest);
  }
});

test('a layer without a login, an index of one, a configuration without a word: what is small works too', async () => {
  await using registry = await fakeRegistry();
  await using here = await place();
  const empty = image([]);
  registry.put('empty', 'latest', empty);
  const index = {
    schemaVersion: 2,
    manifests: [{ mediaType: TYPES.manifest, digest: digestOf(empty.manifest), size: empty.manifest.byteLength }],
  };
  registry.putManifest('empty', 'index', Buffer.from(JSON.stringify(index)), TYPES.index);
  const found = await here.pull(`${registry.name}/empty:index`);
  expect(found.record.digest).toBe((await here.pull(`${registry.name}/empty`)).record.digest);
  expect([...(await treeOf(found)).keys()].filter((path) => path !== '')).toEqual([]);
});
