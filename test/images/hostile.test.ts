// Archives and registries that lie: none leads out of the image, hangs, or takes more than its bound; each
// is one error that says what is wrong, and nothing of it is left. What is only odd is taken as it is.

import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { HutchError } from '../../src/domain/errors.ts';
import { BLOCK_BYTES, padding } from '../../src/domain/tar-entry.ts';
import { TarReader } from '../../src/images/tar/reader.ts';
import { testOperation } from '../support/operation.ts';
import { digestOf, type ImageOptions, image, type MadeImage, type Member, member, pax, TYPES, tampered, tar, withPax } from './archives.ts';
import { type Place, place, readTree, treeOf } from './place.ts';
import { type FakeRegistry, fakeRegistry } from './registry.ts';

const LIMITS = { entriesMax: 5_000, metadataBytesMax: 1024 * 1024, contentBytesMax: 8 * 1024 * 1024, layerBytesMax: 16 * 1024 * 1024 };
const ONE_MS = 30_000;

let registry: FakeRegistry;
let here: Place;
beforeAll(async () => {
  registry = await fakeRegistry();
  here = await place({ limits: LIMITS });
});
afterAll(async () => {
  await here[Symbol.asyncDispose]();
  await registry[Symbol.asyncDispose]();
});

const file = (path: string, content = 'x') => ({ path, content });
const layer = (...members: readonly (Member | Buffer)[]): MadeImage => image([tar(...members)]);
const header = (path: string) => member({ path }).subarray(0, BLOCK_BYTES);
const deep = (depth: number) => `${'d/'.repeat(depth)}f`;
const links = (count: number) =>
  Array.from({ length: count }, (_, at) => ({ path: `l${at}`, type: 'symlink' as const, link: `l${at + 1}` }));

/** Form 1.0: the map lies in front of the data. */
function sparse1(map: string, data: string, realSize: number): Buffer {
  const text = Buffer.concat([Buffer.from(map), Buffer.alloc(padding(map.length))]).toString('latin1');
  const records =
    pax('GNU.sparse.major', '1') +
    pax('GNU.sparse.minor', '0') +
    pax('GNU.sparse.name', 's') +
    pax('GNU.sparse.realsize', String(realSize));
  return withPax(records, { path: 'GNUSparseFile.0/s', content: text + data });
}
const sparse01 = (map: string, size: number, data: string) =>
  withPax(pax('GNU.sparse.size', String(size)) + pax('GNU.sparse.map', map), { path: 's', content: data });

const ARCHIVES: Readonly<Record<string, [archive: () => MadeImage, error: RegExp]>> = {
  'a path with ..': [() => layer(file('../etc/passwd')), /'\.\.\/etc\/passwd' leads out/],
  'a path that leads out on a detour': [() => layer(file('a/b/../../../etc/x')), /leads out/],
  'an absolute path with ..': [() => layer(file('/../x')), /leads out/],
  'a symlink that follows itself': [
    () => layer({ path: 'a', type: 'symlink', link: 'b' }, { path: 'b', type: 'symlink', link: 'a' }, file('a/f')),
    /more than 40 symlinks/,
  ],
  'a chain of 41 symlinks': [() => layer(...links(41), file('l0/f')), /more than 40 symlinks/],
  'a symlink to nothing': [() => layer({ path: 'l', type: 'symlink', link: '' }), /target that Linux does not allow/],
  'a symlink to more than a path': [() => layer({ path: 'l', type: 'symlink', link: 'a'.repeat(4_096) }), /long link|target that Linux/],
  'a hard link that leads out': [() => layer({ path: 'h', type: 'hardlink', link: '../../etc/shadow' }), /leads out/],
  'a hard link to a file of this machine': [() => layer({ path: 'h', type: 'hardlink', link: '/etc/passwd' }), /which is not there/],
  'a hard link through a symlink to this machine': [
    () => layer({ path: 'l', type: 'symlink', link: '/etc' }, { path: 'h', type: 'hardlink', link: 'l/passwd' }),
    /which is not there/,
  ],
  'a hard link to a directory': [
    () => layer({ path: 'd', type: 'directory' }, { path: 'h', type: 'hardlink', link: 'd' }),
    /to a directory/,
  ],
  'a hard link to itself': [() => layer({ path: 'h', type: 'hardlink', link: 'h' }), /which is not there/],
  'a file below a file': [() => layer(file('f'), file('f/g')), /below something that is no directory/],
  'a file for the root': [() => layer(file('.')), /replace the root/],
  'a NUL in a name': [() => layer(withPax(pax('path', 'a\0b'), file('f'))), /NUL in its path/],
  'a name of 256 bytes': [() => layer(file('n'.repeat(256))), /more than 255 bytes/],
  'a path of 5,000 bytes': [() => layer(file(`${'n'.repeat(99)}/`.repeat(50))), /more than 4095 bytes/],
  'a depth of 2,000': [() => layer(file(deep(2_000))), /directories deep/],
  'a depth of 4,000': [() => layer(file(deep(4_000))), /more than 4095 bytes/],
  'a depth that grows by symlinks': [
    () => layer(file(deep(500)), { path: 'l', type: 'symlink', link: 'd/'.repeat(500) }, file(`l/${'e/'.repeat(600)}f`)),
    /directories deep/,
  ],
  'a whiteout of nothing': [() => layer(file('.wh.')), /has no name/],
  'a whiteout of .': [() => layer(file('.wh..')), /has no name/],
  'a whiteout of ..': [() => layer(file('d/.wh...')), /has no name/],
  'a size beyond the archive': [() => layer(tampered(header('f'), 124, '00000100000\0')), /cut off/],
  'a negative size': [() => layer(tampered(header('f'), 124, Buffer.alloc(12, 0xff))), /negative size/],
  'a size of 2^88': [
    () => layer(tampered(header('f'), 124, Buffer.concat([Buffer.from([0x80]), Buffer.alloc(11, 0x7f)]))),
    /size that is too large/,
  ],
  'a size that is no number': [() => layer(tampered(header('f'), 124, 'many things\0')), /size that is no number/],
  'a user that Linux does not have': [() => layer(withPax(pax('uid', '4294967296'), file('f'))), /which no Linux has/],
  'a mode that is no number': [() => layer(tampered(header('f'), 100, 'rwxr-xr\0')), /mode that is no number/],
  'a wrong checksum': [() => layer(Buffer.concat([Buffer.from(header('f')).fill('x', 0, 4)])), /no tar archive/],
  'a PAX record that is longer than its header': [() => layer(withPax('99 path=a\n', file('f'))), /PAX header is damaged/],
  'a PAX record of no length': [() => layer(withPax('0 path=a\n', file('f'))), /PAX header is damaged/],
  'a PAX record without an end': [() => layer(withPax('9 path=ab', file('f'))), /PAX header is damaged/],
  'a PAX record without a value': [() => layer(withPax('7 path\n', file('f'))), /PAX header is damaged/],
  'a PAX header of 2 MiB': [() => layer(withPax(pax('comment', 'c'.repeat(2 * 1024 * 1024)), file('f'))), /at most 1048576 are read/],
  'a PAX size that overflows': [() => layer(withPax(pax('size', '9'.repeat(16)), file('f'))), /too large/],
  'a PAX time that is none': [() => layer(withPax(pax('mtime', 'soon'), file('f'))), /no time/],
  'twenty headers before one entry': [
    () => layer(...Array.from({ length: 20 }, () => withPax(pax('comment', 'c'), { path: 'f' }).subarray(0, 1_024))),
    /headers stand before one entry/,
  ],
  'a header that announces nothing': [() => layer(withPax(pax('path', 'a'), { path: 'f' }).subarray(0, 1_024)), /announces an entry/],
  'a long name that does not end': [
    () => layer(tampered(tampered(header('././@LongLink'), 156, 'L'), 124, '00010000000\0')),
    /at most 4096 are read/,
  ],
  'a volume of several': [() => layer(tampered(header('v'), 156, 'M')), /kind that is not known/],
  'holes that overlap': [() => layer(sparse01('0,4,2,4', 10, 'abcdefgh')), /map of the holes/],
  'holes beyond the file': [() => layer(sparse01('0,4,100,4', 10, 'abcdefgh')), /map of the holes/],
  'holes that leave data over': [() => layer(sparse01('0,4', 10, 'abcdefgh')), /map of the holes/],
  'half a hole': [() => layer(sparse01('0', 10, '')), /map of the holes/],
  'a map of a million holes': [() => layer(sparse1('1000000\n', '', 10)), /more than 65536 pieces/],
  'a map of holes that is longer than the file': [() => layer(sparse1('3\n0\n', '', 10)), /longer than the file|map of the holes/],
  'a sparse file of 8 PiB': [() => layer(sparse1('0\n', '', 2 ** 53 - 1)), /more than 8388608 bytes/],
  'an extended attribute of 100 KiB': [
    () => layer({ ...file('f'), xattrs: new Map([['user.x', Buffer.alloc(100 * 1024)]]) }),
    /at most 65536 are allowed/,
  ],
  'extended attributes of 400 KiB': [
    () => layer({ ...file('f'), xattrs: new Map(Array.from({ length: 8 }, (_, at) => [`user.x${at}`, Buffer.alloc(50 * 1024)])) }),
    /attributes of one file/,
  ],
  'a device with a number that is none': [
    () => layer({ path: 'dev', type: 'block', devMajor: 5_000, devMinor: 0 }),
    /number that Linux does not have/,
  ],
  'more entries than are taken': [() => layer(...Array.from({ length: 5_001 }, (_, at) => ({ path: `f${at}` }))), /more than 5000 entries/],
  'directories that nobody describes, too many': [
    () => layer(...Array.from({ length: 50 }, (_, at) => file(`${at}/${deep(200)}`))),
    /more than 5000 entries/,
  ],
  'names that take too much memory': [
    () => layer(...Array.from({ length: 400 }, (_, at) => ({ path: `${'n'.repeat(200)}/`.repeat(18) + at }))),
    /take more than 1048576 bytes/,
  ],
  'a bomb of zeros in a file': [() => layer({ path: 'bomb', content: Buffer.alloc(9 * 1024 * 1024) }), /more than 8388608 bytes/],
  'a bomb of zeros behind the archive': [
    () => image([Buffer.concat([tar(file('f')), Buffer.alloc(17 * 1024 * 1024)])]),
    /more than 16777216 bytes when it is unpacked/,
  ],
  'a bomb of layers': [
    () => image(Array.from({ length: 3 }, (_, at) => tar({ path: `f${at}`, content: Buffer.alloc(3 * 1024 * 1024) }))),
    /more than 8388608 bytes/,
  ],
  'gzip that is cut off': [() => packed((bytes) => gzipSync(bytes).subarray(0, 60)), /does not unpack \(gzip\)/],
  'gzip with a wrong checksum': [
    () => packed((bytes) => Buffer.concat([gzipSync(bytes).subarray(0, -8), Buffer.alloc(8, 1)])),
    /does not unpack \(gzip\)/,
  ],
  'gzip with garbage behind it': [
    () => packed((bytes) => Buffer.concat([gzipSync(bytes), Buffer.from('garbage')])),
    /does not unpack \(gzip\)/,
  ],
  'zstd that is cut off': [() => packed((bytes) => zstdCompressSync(bytes).subarray(0, 20)), /does not unpack \(zstd\)/],
  'a layer in xz': [() => packed(() => Buffer.from('fd377a585a000004', 'hex')), /packed with xz/],
  'a layer in bzip2': [() => packed(() => Buffer.from('BZh91AY&SY')), /packed with bzip2/],
  'a disk image for a layer': [() => packed(() => Buffer.from('514649fb00000003', 'hex')), /disk image \(qcow2\)/],
  'noise for a layer': [() => packed(() => Buffer.from('not a tar archive, whatever else it may be'.repeat(20))), /no tar archive/],
};
const packed = (how: NonNullable<ImageOptions['packed']>) => image([tar(file('f'))], { packed: how });

let count = 0;
async function refused(make: () => MadeImage, expected: RegExp): Promise<void> {
  count += 1;
  registry.put(`bad/${count}`, '1', make());
  await fails(`${registry.name}/bad/${count}:1`, expected);
}

/** One error of ours, soon, that a person can read; and nothing is left of it but layers that are what they should be. */
async function fails(name: string, expected: RegExp, at: Place = here): Promise<void> {
  using op = testOperation().within(ONE_MS, 'one archive');
  const outcome = await at.pull(name, op).then(
    () => 'it was taken',
    (error: unknown) => error,
  );
  expect(outcome).toBeInstanceOf(HutchError);
  const { message, code } = outcome as HutchError;
  expect(message).toMatch(expected);
  expect(message).not.toMatch(/[^\x20-\x7e…]/);
  expect(message.length).toBeLessThan(700);
  expect(['failed_precondition', 'not_found', 'permission_denied', 'unavailable']).toContain(code);
  const left = await at.left();
  expect(left).toMatchObject({ staging: [], images: [] });
  for (const digest of left.blobs) expect(await at.host.sha256(op, at.library.blobs.path(digest))).toBe(digest);
}

test('an archive that lies is refused with one sentence, and leaves nothing', { timeout: 300_000 }, async () => {
  const before = process.memoryUsage().rss;
  for (const [name, [make, expected]] of Object.entries(ARCHIVES)) {
    await refused(make, expected).catch((error: unknown) => {
      throw new Error(`${name}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    });
  }
  expect(Object.keys(ARCHIVES).length).toBeGreaterThan(60);
  // The archives themselves, which are made here, are most of it.
  expect(process.memoryUsage().rss - before).toBeLessThan(512 * 1024 * 1024);
});

const MADE = image([tar(file('f'))]);
const MADE_LAYER = [...MADE.blobs.keys()].at(-1) ?? '';
const ofManifest = (change: (manifest: Record<string, unknown>) => unknown) => () => image([tar(file('f'))], { manifest: change });
const withLayer = (changes: object) =>
  ofManifest((said) => ({ ...said, layers: (said['layers'] as object[]).map((one) => ({ ...one, ...changes })) }));

const MANIFESTS: Readonly<Record<string, [archive: () => MadeImage, error: RegExp]>> = {
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
  for (const [name, [make, expected]] of Object.entries(MANIFESTS)) {
    await refused(make, expected).catch((error: unknown) => {
      throw new Error(`${name}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    });
  }
  registry.putManifest('bad/json', '1', Buffer.from('{"schemaVersion": 2, '));
  await fails(`${registry.name}/bad/json:1`, /no JSON/);
  registry.putManifest('bad/type', '1', MADE.manifest, 'application/vnd.docker.distribution.manifest.list.v2+json');
  await fails(`${registry.name}/bad/type:1`, /says that it is/);
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
    const name = `${registry.name}/deep:d${depth}`;
    if (depth < 4) await here.pull(name).then((found) => here.library.remove(testOperation(), found.record.digest));
    else await fails(name, /more than 4 deep/);
  }
  registry.putManifest('deep', 'arm', index(of(digest, 'arm64'), of(digest, 'riscv64')), TYPES.index);
  await fails(`${registry.name}/deep:arm`, /not there for linux\/amd64; it is for linux\/arm64, linux\/riscv64/);
  registry.putManifest('deep', 'none', index(), TYPES.index);
  await fails(`${registry.name}/deep:none`, /not there for linux\/amd64/);
  // No digest can point at itself; a registry that answers anything with one index could.
  registry.answer = (request, response) => {
    if (!request.url?.includes('/manifests/')) return false;
    response.writeHead(200, { 'Content-Type': TYPES.index }).end(index(of(digest)));
    return true;
  };
  await fails(`${registry.name}/deep:self`, /another manifest/);
  registry.answer = null;
});

/** The answer to one kind of request; all else as usual. */
async function withAnswer(part: string, answer: NonNullable<FakeRegistry['answer']>, work: () => Promise<void>): Promise<void> {
  registry.answer = (request, response) => (request.url?.includes(part) === true ? answer(request, response) : false);
  try {
    await work();
  } finally {
    registry.answer = null;
  }
}

test('a registry that lies, loops or falls silent is given up, and leaves nothing', { timeout: 120_000 }, async () => {
  registry.put('good', '1', MADE);
  const name = `${registry.name}/good:1`;
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
    await withAnswer(part, answer, () => fails(name, expected)).catch((error: unknown) => {
      throw new Error(`${part} ${String(expected)}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    });
  }
  // Of the gigabyte that was announced no more was read than may be, and what sockets hold.
  expect(sentMiB).toBeLessThan(64);
});

test('a hundred thousand entries are an image, and one more than may be are none', { timeout: 300_000 }, async (context) => {
  if (process.env['HUTCH_TEST_LONG'] === undefined) context.skip('with --long: it takes a while');
  await using wide = await place({ limits: { entriesMax: 100_001 } });
  const entries = (count: number) => tar(...Array.from({ length: count }, (_, at) => ({ path: `d${at % 100}/f${at}` })));
  registry.put('many', '1', image([entries(99_900)]));
  const found = await wide.pull(`${registry.name}/many:1`);
  expect((await treeOf(found)).size).toBeGreaterThan(99_900);
  await wide.library.remove(testOperation(), found.record.digest);
  registry.put('many', '2', image([entries(100_002)]));
  await fails(`${registry.name}/many:2`, /more than 100001 entries/, wide);
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
    await fails(`${registry.name}/good:1`, expected);
  }
  registry.answer = null;
});

test('a server that sends nothing, or a byte now and then, is given up', { timeout: 60_000 }, async () => {
  registry.put('good', '1', MADE);
  const name = `${registry.name}/good:1`;
  await using quick = await place({ patience: { idleMs: 300, tries: 2 } });
  await withAnswer(
    '/blobs/',
    () => true,
    () => fails(name, /sent nothing|broke the connection off|cannot be reached/, quick),
  );
  await using strict = await place({ patience: { slowMs: 200, slowBytes: 1_000, tries: 2 } });
  const timers: NodeJS.Timeout[] = [];
  const drip: NonNullable<FakeRegistry['answer']> = (_request, response) => {
    response.writeHead(200, { 'Content-Length': '1000000' });
    timers.push(setInterval(() => response.write('x'), 50));
    return true;
  };
  registry.put(
    'slow',
    '1',
    image([tar(file('f'))], {
      manifest: (said) => ({ ...said, layers: [{ mediaType: TYPES.layer, digest: MADE_LAYER, size: 1_000_000 }] }),
    }),
  );
  await withAnswer(MADE_LAYER, drip, () => fails(`${registry.name}/slow:1`, /comes too slowly/, strict));
  for (const timer of timers) clearInterval(timer);
});

test('what is no registry at all is one error', async () => {
  const server = createServer((socket) => socket.end('SSH-2.0-OpenSSH_9.2\r\n'));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await fails(`127.0.0.1:${port}/x:1`, /cannot be reached/);
  server.close();
  await fails(`127.0.0.1:${port}/x:1`, /cannot be reached: nothing listens there/);
});

test('what is only odd is taken as it is', async () => {
  const made = layer(
    { path: '/abs/', type: 'directory', mode: 0o700, uid: 70_000, gid: 3_000_000 },
    file('//abs//f', 'one'),
    file('./abs/./f', 'two'),
    { path: 'out', type: 'symlink', link: '../../../../tmp' },
    file('out/in', 'in the image'),
    { path: 'etc', type: 'symlink', link: '/usr/etc' },
    file('etc/passwd', 'root'),
    { path: 'hard', type: 'hardlink', link: '/etc/passwd' },
    file('new\nline'),
    file('caf\u00e9-latin1'),
    file('README'),
    file('readme'),
    { path: 'old', mtimeSeconds: 0 },
    tampered(header('before'), 136, Buffer.alloc(12, 0xff)),
    { path: 'suid', mode: 0o6755, content: 'x' },
    { path: 'null', type: 'character', mode: 0o666, devMajor: 1, devMinor: 3 },
    { path: 'disk', type: 'block', mode: 0o660, devMajor: 259, devMinor: 70_000 },
    { path: 'pipe', type: 'fifo' },
    {
      path: 'capable',
      xattrs: new Map([
        ['security.capability', Buffer.from('0100000200040000000000000000000000000000', 'hex')],
        ['user.note', Buffer.from('a=b\nc')],
        ['trusted.overlay.opaque', Buffer.from('y')],
        ['user.overlay.whiteout', Buffer.from('y')],
        ['system.posix_acl_access', Buffer.from('x')],
      ]),
    },
    // user::rw- user:1000:rwx group::r-- mask::rwx other::---
    {
      path: 'listed',
      mode: 0o670,
      xattrs: new Map([
        [
          'system.posix_acl_access',
          Buffer.from('0200000001000600ffffffff02000700e803000004000400ffffffff10000700ffffffff20000000ffffffff', 'hex'),
        ],
      ]),
    },
    sparse1('2\n2\n3\n8\n1\n', 'abcd', 10),
    file('.wh.never-was'),
    { path: `${'long/'.repeat(40)}name-${'n'.repeat(200)}`, content: 'deep' },
    { path: 'twice', type: 'directory' },
    file('twice', 'now a file'),
  );
  registry.put('odd', '1', made);
  const found = await here.pull(`${registry.name}/odd:1`);
  const tree = await treeOf(found);
  const content = (path: string) => tree.get(path)?.content.toString('latin1');
  expect(tree.get('abs')).toMatchObject({ mode: 0o700, uid: 70_000, gid: 3_000_000 });
  expect(content('abs/f')).toBe('two');
  expect(content('tmp/in')).toBe('in the image');
  expect(content('usr/etc/passwd') || content(tree.get('usr/etc/passwd')?.link ?? '')).toBe('root');
  expect([tree.get('hard')?.type, tree.get('usr/etc/passwd')?.type].sort()).toEqual(['file', 'hardlink']);
  for (const name of ['new\nline', 'caf\u00e9-latin1', 'README', 'readme', 'old', 'before']) expect([...tree.keys()], name).toContain(name);
  expect(tree.get('suid')?.mode).toBe(0o6755);
  // Its list is not kept; its group has what that gives it, and not the mask.
  expect(tree.get('listed')).toMatchObject({ mode: 0o640, xattrs: null });
  expect(tree.get('null')).toMatchObject({ type: 'character', devMajor: 1, devMinor: 3 });
  expect(tree.get('disk')).toMatchObject({ type: 'block', devMajor: 259, devMinor: 70_000 });
  expect(tree.get('pipe')?.type).toBe('fifo');
  expect([...(tree.get('capable')?.xattrs ?? [])].map(([name, value]) => [name, value.toString('latin1')]).sort()).toEqual([
    ['security.capability', Buffer.from('0100000200040000000000000000000000000000', 'hex').toString('latin1')],
    ['user.note', 'a=b\nc'],
  ]);
  expect(tree.get('s')?.content).toEqual(Buffer.from('\0\0abc\0\0\0d\0', 'latin1'));
  expect(content('twice')).toBe('now a file');
  expect(content(`${'long/'.repeat(40)}name-${'n'.repeat(200)}`)).toBe('deep');
  await here.library.remove(testOperation(), found.record.digest);
});

test('an archive that is cut off anywhere is refused, or is what stands before the cut', async () => {
  const whole = tar(
    file('one', 'content of one'),
    { path: `${'p'.repeat(90)}/${'q'.repeat(90)}`, content: 'y'.repeat(700) },
    { path: 'two', xattrs: new Map([['user.a', Buffer.alloc(600, 'v')]]) },
    sparse1('1\n0\n3\n', 'abc', 20),
  );
  const all = [...(await readTree(whole)).keys()];
  let refusals = 0;
  for (let length = 0; length < whole.byteLength; length += 64) {
    const outcome = await readTree(whole.subarray(0, length)).catch((error: unknown) => error);
    if (outcome instanceof Error) {
      expect(outcome.message).toMatch(/cut off|announces an entry/);
      refusals += 1;
    } else {
      const paths = [...(outcome as ReadonlyMap<string, unknown>).keys()];
      expect(paths).toEqual(all.slice(0, paths.length));
    }
  }
  expect(refusals).toBeGreaterThan(50);
});

test('bytes are parsed the same however they are cut into chunks', async () => {
  const whole = tar(file('one', 'content of one'), { path: 'x'.repeat(300), content: 'y'.repeat(700) }, sparse1('1\n0\n3\n', 'abc', 20));
  const expected = await readTree(whole);
  for (const size of [1, 7, 511, 513]) {
    await using reader = new TarReader(
      (async function* () {
        for (let at = 0; at < whole.byteLength; at += size) yield whole.subarray(at, at + size);
      })(),
    );
    const seen: [string, string][] = [];
    for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
      const chunks: Buffer[] = [];
      for await (const chunk of reader.content()) chunks.push(Buffer.from(chunk));
      seen.push([entry.path, Buffer.concat(chunks).toString()]);
    }
    expect(seen).toEqual([...expected].map(([path, { content }]) => [path, content.toString()]));
  }
});
