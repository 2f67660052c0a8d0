// Registries that lie: each is one error that says what is wrong, soon, and nothing of it is left.
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { testOperation } from '../support/operation.ts';
import { digestOf, image, TYPES, tar } from './archives.ts';
import { type Cases, failsElsewhere, file, Hostile } from './hostile.ts';
import { type Place, place } from './place.ts';
import type { FakeRegistry } from './registry.ts';

let hostile: Hostile;
let registry: FakeRegistry;
let here: Place;
beforeAll(async () => {
  hostile = await Hostile.make();
  ({ registry, here } = hostile);
});
afterAll(async () => await hostile?.[Symbol.asyncDispose]());

const MADE = image([tar(file('f'))]);
const MADE_LAYER = [...MADE.blobs.keys()].at(-1) ?? '';
const ofManifest = (change: (manifest: Record<string, unknown>) => unknown) => () => image([tar(file('f'))], { manifest: change });
const withLayer = (changes: object) =>
  ofManifest((said) => ({ ...said, layers: (said['layers'] as object[]).map((one) => ({ ...one, ...changes })) }));

const MANIFESTS: Cases = {
  'a manifest of a chart': [
    ofManifest((said) => ({ ...said, config: { ...(said['config'] as object), mediaType: 'application/vnd.cncf.helm.config.v1+json' } })),
    /no image of a file system/,
  ],
  'a layer that is no file system': [withLayer({ mediaType: 'application/vnd.in-toto+json' }), /no file system/],
  'a layer of a negative size': [withLayer({ size: -1 }), /damaged: layers\.0\.size/],
  'a layer with a digest of another kind': [withLayer({ digest: 'md5:0' }), /damaged: layers\.0\.digest/],
  'a layer of 1 EiB': [withLayer({ size: 2 ** 52 }), /at most 68719476736 are pulled/],
  'a layer that is longer than it says': [withLayer({ size: 10 }), /more than the 10 bytes/],
  'a layer that is shorter than it says': [withLayer({ size: 100_000 }), /ended after/],
  'six hundred layers': [
    ofManifest((said) => ({ ...said, layers: Array.from({ length: 600 }, () => (said['layers'] as object[])[0]) })),
    /damaged: layers/,
  ],
  'a configuration of 1 GiB': [
    ofManifest((said) => ({ ...said, config: { ...(said['config'] as object), size: 2 ** 30 } })),
    /at most 4194304 are read/,
  ],
  'no configuration': [ofManifest(({ config: _config, ...said }) => said), /damaged: config/],
  'fewer layers than the configuration says': [
    () => image([tar(file('f'))], { diffIds: [digestOf(Buffer.from('a')), digestOf(Buffer.from('b'))] }),
    /has 1 layers, and its configuration 2/,
  ],
  'a layer of other content than the configuration says': [
    () => image([tar(file('f'))], { diffIds: [digestOf(Buffer.from('a'))] }),
    /not what the image says/,
  ],
  'an image for another processor': [() => image([tar(file('f'))], { top: { architecture: 'arm64' } }), /is for linux on arm64/],
  'an image for another system': [() => image([tar(file('f'))], { top: { os: 'windows' } }), /is for windows/],
  'a configuration that is odd': [() => image([tar(file('f'))], { config: { Env: 'A=B' } }), /damaged: config\.Env/],
  'a command without end': [() => image([tar(file('f'))], { config: { Cmd: Array.from({ length: 5_000 }, () => 'x') } }), /too long/],
  'schema 1': [ofManifest(() => ({ schemaVersion: 1, name: 'x', tag: 'y', fsLayers: [] })), /"schema 1"/],
  'an answer that is no manifest': [ofManifest(() => ['what']), /no image|damaged/],
};

test('a manifest that lies is refused with one sentence, and leaves nothing', { timeout: 120_000 }, async () => {
  await hostile.refusesAll(MANIFESTS);
  registry.putManifest('bad/json', '1', Buffer.from('{"schemaVersion": 2, '));
  await hostile.fails(`bad/json:1`, /no JSON/);
  registry.putManifest('bad/type', '1', MADE.manifest, 'application/vnd.docker.distribution.manifest.list.v2+json');
  await hostile.fails(`bad/type:1`, /says that it is/);
});

test('an index that goes in circles, too deep, or has nothing for this machine is refused', async () => {
  const index = (...manifests: object[]) => Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: TYPES.index, manifests }));
  const of = (digest: string, architecture = 'amd64') => ({
    mediaType: TYPES.index,
    digest,
    size: 1,
    platform: { os: 'linux', architecture },
  });
  registry.put('deep', 'image', MADE);
  let digest = digestOf(MADE.manifest);
  for (let depth = 1; depth <= 10; depth += 1) {
    digest = registry.putManifest('deep', `d${depth}`, index(of(digest)), TYPES.index);
    const name = `deep:d${depth}`;
    if (depth < 4) await here.pull(`${registry.name}/${name}`).then((found) => here.library.remove(testOperation(), found.record.digest));
    else await hostile.fails(name, /more than 4 deep/);
  }
  registry.putManifest('deep', 'arm', index(of(digest, 'arm64'), of(digest, 'riscv64')), TYPES.index);
  await hostile.fails(`deep:arm`, /not there for linux\/amd64; it is for linux\/arm64, linux\/riscv64/);
  registry.putManifest('deep', 'none', index(), TYPES.index);
  await hostile.fails(`deep:none`, /not there for linux\/amd64/);
  // No digest can point at itself; a registry that answers anything with one index could.
  registry.answer = (request, response) => {
    if (!request.url?.includes('/manifests/')) return false;
    response.writeHead(200, { 'Content-Type': TYPES.index }).end(index(of(digest)));
    return true;
  };
  await hostile.fails(`deep:self`, /another manifest/);
  registry.answer = null;
});

test('a registry that lies, loops or falls silent is given up, and leaves nothing', { timeout: 120_000 }, async () => {
  registry.put('good', '1', MADE);
  const name = 'good:1';
  const status =
    (code: number, headers: Record<string, string> = {}, body = '') =>
    (_request: unknown, response: Parameters<NonNullable<FakeRegistry['answer']>>[1]) => {
      response.writeHead(code, headers).end(body);
      return true;
    };
  const to = (location: string) => status(307, { Location: location });
  let sentMiB = 0;
  const cases: [part: string, answer: NonNullable<FakeRegistry['answer']>, error: RegExp][] = [
    ['/blobs/', status(200, {}, 'something else, but of some length'), /more than the|not what it should be|ended after/],
    ['/manifests/', status(200, { 'Content-Type': TYPES.manifest }, '{}'), /damaged/],
    ['/manifests/', status(200, {}, 'x'.repeat(5 * 1024 * 1024)), /more than 4194304 bytes/],
    // The right length, and one bit of another.
    ['/blobs/', status(200, {}, `${MADE.config.toString().slice(0, -1)} `), /not what it should be|ended after|more than/],
    [
      '/manifests/',
      (_request, response) => {
        response.writeHead(200, { 'Content-Type': TYPES.manifest, 'Content-Length': String(2 ** 30) });
        const more = (): void => {
          while (!response.destroyed && response.write(Buffer.alloc(1024 * 1024, ' '))) sentMiB += 1;
        };
        response.on('drain', more);
        more();
        return true;
      },
      /more than 4194304 bytes/,
    ],
    ['/manifests/', status(500), /answered 500/],
    ['/manifests/', status(429, { 'Retry-After': '3600' }), /too many requests/],
    ['/manifests/', status(403), /does not give out/],
    ['/manifests/', status(404), /^127\.0\.0\.1:\d+ has no good:1$/],
    ['/manifests/', status(418), /answered 418/],
    ['/manifests/', to('/v2/good/manifests/1'), /redirects more than 5 times/],
    ['/blobs/', to('http://169.254.169.254/latest/meta-data/'), /169\.254\.169\.254, an address of a private network/],
    ['/blobs/', to('http://[fe80::1]/x'), /private network/],
    ['/blobs/', to('http://0.0.0.0/x'), /private network/],
    ['/blobs/', to('file:///etc/passwd'), /not followed/],
    ['/blobs/', to('http://user:secret@127.0.0.1/x'), /not followed/],
    ['/blobs/', to('http://'), /not followed/],
    ['/manifests/', status(401), /login of a kind that is not known/],
    ['/manifests/', status(401, { 'WWW-Authenticate': 'Negotiate' }), /login of a kind that is not known/],
    ['/manifests/', status(401, { 'WWW-Authenticate': 'Basic realm="x"' }), /wants a login/],
    ['/manifests/', status(401, { 'WWW-Authenticate': 'Bearer realm="ftp://x/"' }), /not followed/],
    ['/manifests/', status(401, { 'WWW-Authenticate': 'Bearer realm="http://169.254.169.254/token"' }), /private network/],
    ['/manifests/', status(401, { 'WWW-Authenticate': `Bearer realm="http://${registry.name}/nowhere"` }), /token server .* answered 404/],
  ];
  for (const [part, answer, expected] of cases) {
    await hostile
      .withAnswer(part, answer, () => hostile.fails(name, expected))
      .catch((error: unknown) => {
        throw new Error(`${part} ${String(expected)}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
      });
  }
  // Of the gigabyte that was announced no more was read than may be, and what sockets hold.
  expect(sentMiB).toBeLessThan(64);
});

test('a token server that lies is given up', async () => {
  registry.put('good', '1', MADE);
  const bodies: [body: string, error: RegExp][] = [
    ['no json', /gave no token/],
    ['{"token": 5}', /gave no token/],
    ['{"token": "a\\nX-Evil: 1"}', /gave no token/],
    [`{"token": "${'x'.repeat(100_000)}"}`, /more than 65536 bytes/],
    ['{"token": "wrong"}', /does not give out/],
  ];
  for (const [body, expected] of bodies) {
    registry.answer = (request, response) => {
      if (request.url?.startsWith('/token') === true) response.end(body);
      else response.writeHead(401, { 'WWW-Authenticate': `Bearer realm="http://${registry.name}/token",service="s"` }).end();
      return true;
    };
    await hostile.fails(`good:1`, expected);
  }
  registry.answer = null;
});

test('a server that sends nothing, or a byte now and then, is given up, wherever it does so', { timeout: 60_000 }, async () => {
  registry.put('good', '1', MADE);
  await using quick = await place({ patience: { idleMs: 300, tries: 2 } });
  await hostile.withAnswer(
    '/blobs/',
    () => true,
    () => hostile.fails('good:1', /sent nothing|broke the connection off|cannot be reached/, quick),
  );
  const sized = image([tar(file('f'))], {
    manifest: (said) => ({ ...said, layers: [{ mediaType: TYPES.layer, digest: MADE_LAYER, size: 1_000_000 }] }),
  });
  await using timers = new DisposableStack();
  const every = (work: () => void): true => {
    timers.adopt(setInterval(work, 40), clearInterval);
    return true;
  };
  const drip: NonNullable<FakeRegistry['answer']> = (_request, response) => {
    response.writeHead(200, { 'Content-Type': TYPES.manifest, 'Content-Length': '1000000' });
    return every(() => response.write(' '));
  };
  const raw = (first: string, more: string): NonNullable<FakeRegistry['answer']> => {
    return (_request, { socket }) => {
      socket?.write(first);
      return every(() => socket?.write(more));
    };
  };
  const token = `Bearer realm="http://${registry.name}/token",service="s"`;
  const cases: Readonly<Record<string, [part: RegExp, answer: NonNullable<FakeRegistry['answer']>]>> = {
    'slow/manifest': [/manifests/, drip],
    'slow/config': [new RegExp(`/blobs/${digestOf(MADE.config)}`), drip],
    'slow/layer': [new RegExp(MADE_LAYER), drip],
    'slow/head': [/manifests/, raw('HTTP/1.1 200 OK\r\n', 'X-More: more\r\n')],
    'slow/hints': [/manifests/, raw('', 'HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n')],
    'slow/refusal': [
      /manifests/,
      (_request, response) => {
        response.writeHead(500, { 'Content-Length': '10000' });
        return every(() => response.write(' '));
      },
    ],
    'slow/token': [
      /manifests/,
      (_request, response) => {
        response.writeHead(401, { 'WWW-Authenticate': token }).end();
        return true;
      },
    ],
  };
  registry.answer = (request, response) => {
    if (request.url?.startsWith('/token') === true) return drip(request, response);
    const [part, answer] = Object.entries(cases).find(([name]) => request.url?.includes(`/${name}/`))?.[1] ?? [];
    return part?.test(request.url ?? '') === true ? answer?.(request, response) : false;
  };
  await Promise.all(
    Object.keys(cases).map(async (name) => {
      await using strict = await place({ patience: { slowMs: 1_500, slowBytes: 1_000, tries: 1 } });
      registry.put(name, '1', name === 'slow/layer' ? sized : MADE);
      const expected = name === 'slow/refusal' ? /answered 500|comes too slowly/ : /comes too slowly|has not answered within/;
      await hostile.fails(`${name}:1`, expected, strict);
    }),
  );
  registry.answer = null;
});

test('what is no registry at all is one error', async () => {
  const server = createServer((socket) => socket.end('SSH-2.0-OpenSSH_9.2\r\n'));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await failsElsewhere(`127.0.0.1:${port}/x:1`, /cannot be reached/, here);
  server.close();
  await failsElsewhere(`127.0.0.1:${port}/x:1`, /cannot be reached: nothing listens there/, here);
});
