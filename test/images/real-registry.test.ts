// Debian's own registry, with a login and TLS, filled by skopeo; and what umoci unpacks of the same images.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { prepareDefaultImage } from '../../src/images/default-image.ts';
import { imagePaths } from '../../src/images/layout.ts';
import { selfSigned } from '../support/certificate.ts';
import { Registry } from '../support/debian-registry.ts';
import { testOperation } from '../support/operation.ts';
import { digestOf, image, type MadeImage, TYPES, tar } from './archives.ts';
import { place, readTree, treeOf } from './place.ts';

const op = testOperation();

const LOWER = tar(
  { path: './', type: 'directory', mode: 0o755 },
  { path: 'bin/', type: 'directory' },
  { path: 'bin/busybox', content: Buffer.alloc(200_000, 'a program, more or less; '), mode: 0o4755, uid: 0, gid: 50 },
  { path: 'bin/sh', type: 'hardlink', link: 'bin/busybox' },
  { path: 'bin/ls', type: 'symlink', link: 'busybox' },
  { path: 'home/', type: 'directory', mode: 0o2775, uid: 1000, gid: 1000 },
  { path: 'home/me', content: 'mine', uid: 1000, gid: 1000, mode: 0o640 },
  { path: 'etc/', type: 'directory' },
  { path: 'etc/gone', content: 'x' },
  { path: 'cache/', type: 'directory' },
  { path: 'cache/old', content: 'x' },
  { path: `${'deep/'.repeat(30)}${'n'.repeat(200)}`, content: 'long' },
  { path: 'dev/', type: 'directory' },
  { path: 'dev/null', type: 'character', mode: 0o666, devMajor: 1, devMinor: 3 },
  { path: 'fifo', type: 'fifo', mode: 0o600 },
  { path: 'note', content: 'n', xattrs: new Map([['user.note', Buffer.from('kept')]]) },
  { path: 'cap', content: 'n', xattrs: new Map([['security.capability', Buffer.from('0100000200040000000000000000000000000000', 'hex')]]) },
  { path: 'umlaut-\u00fc', content: 'latin1' },
);
const UPPER = tar(
  { path: 'etc/.wh.gone' },
  { path: 'cache/', type: 'directory', mode: 0o711 },
  { path: 'cache/.wh..wh..opq' },
  { path: 'cache/new', content: 'new' },
  { path: 'home/me', content: 'changed', uid: 1001, gid: 1000, mode: 0o600 },
  { path: 'empty', content: '' },
);
const TOP = tar({ path: 'app', content: 'v3', mode: 0o755 }, { path: '.wh.fifo' });

let dir: string;
let registry: Registry | undefined;
let name: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-registry-'));
  const tls = { certificate: join(dir, 'cert.pem'), key: join(dir, 'key.pem') };
  selfSigned({ name: 'localhost', ...tls, extensions: ['subjectAltName=IP:127.0.0.1,DNS:localhost'] });
  registry = await Registry.start(tls);
  name = registry.name;
}, 60_000);

afterAll(async () => {
  await registry?.[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

function run(program: string, ...args: string[]): string {
  const result = spawnSync(program, args, { encoding: 'utf8' });
  if (result.status !== 0) throw new Error(`${program} ${args.join(' ')}: ${result.stderr}${result.error?.message ?? ''}`);
  return result.stdout;
}

/** As an OCI layout, for skopeo and umoci. */
async function layout(made: MadeImage): Promise<string> {
  const path = join(dir, digestOf(made.manifest).slice(7, 19));
  await mkdir(join(path, 'blobs', 'sha256'), { recursive: true });
  for (const bytes of [...made.blobs.values(), made.manifest])
    await writeFile(join(path, 'blobs', 'sha256', digestOf(bytes).slice(7)), bytes);
  await writeFile(join(path, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  const descriptor = {
    mediaType: TYPES.manifest,
    digest: digestOf(made.manifest),
    size: made.manifest.byteLength,
    annotations: { 'org.opencontainers.image.ref.name': 'it' },
  };
  await writeFile(join(path, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [descriptor] }));
  return path;
}

test('a registry with TLS and a login gives out what skopeo put there, and only to who has the login', { timeout: 60_000 }, async () => {
  const made = image([LOWER, UPPER, TOP]);
  const from = await layout(made);
  // Once as it is, once in Docker's form of a manifest.
  run('skopeo', 'copy', '--dest-tls-verify=false', '--dest-creds', 'hutch:open-sesame', `oci:${from}:it`, `docker://${name}/team/web:1`);
  run(
    'skopeo',
    'copy',
    '--format',
    'v2s2',
    '--dest-tls-verify=false',
    '--dest-creds',
    'hutch:open-sesame',
    `oci:${from}:it`,
    `docker://${name}/team/web:docker`,
  );
  await using here = await place({ caPath: join(dir, 'cert.pem') });
  const { credentials, registry: client } = here.library;
  await expect(here.pull(`${name}/team/web:1`)).rejects.toMatchObject({
    code: 'permission_denied',
    hint: `log in with: hutch image login ${name}`,
  });
  await expect(client.checkLogin(op, name, { username: 'hutch', password: 'wrong' })).rejects.toMatchObject({ code: 'permission_denied' });
  await client.checkLogin(op, name, { username: 'hutch', password: 'open-sesame' });
  await credentials.keep(op, name, { username: 'hutch', password: 'open-sesame' });
  // skopeo reads the same file.
  expect(
    run(
      'skopeo',
      'inspect',
      '--raw',
      '--tls-verify=false',
      '--authfile',
      join(here.dir, '.docker', 'config.json'),
      `docker://${name}/team/web:1`,
    ),
  ).toBe(made.manifest.toString());
  const found = await here.pull(`${name}/team/web:1`);
  expect(found.record.digest).toBe(digestOf(made.config));
  const docker = await here.pull(`${name}/team/web:docker`);
  expect(docker.rootDigest).toBe(found.rootDigest);
  await expect(here.pull(`${name}/team/none:1`)).rejects.toMatchObject({ code: 'not_found' });
  expect(await credentials.forget(op, name)).toBe(true);
  client.forget(name);
  await expect(here.pull(`${name}/team/web:docker`)).rejects.toMatchObject({ code: 'permission_denied' });
});

test('a certificate is looked at: one of nobody’s is refused, one of a given authority is not', async () => {
  const asked = { method: 'GET', url: new URL(`https://${name}/v2/`), headers: {}, idleMs: 10_000 } as const;
  const host = nodeHost();
  await expect(host.request(op, asked)).rejects.toMatchObject({
    code: 'unavailable',
    message: expect.stringMatching(/signed by nobody who is trusted here/),
  });
  using answer = await host.request(op, { ...asked, trusted: await readFile(join(dir, 'cert.pem'), 'utf8') });
  expect(answer.status).toBe(401);
});

test('file by file an image is what umoci unpacks', { timeout: 60_000 }, async (context) => {
  if (process.getuid?.() !== 0) context.skip('only root can unpack what belongs to others');
  const bundle = await sameAsUmoci(image([LOWER, UPPER, TOP]), 40);
  expect(existsSync(join(bundle, 'rootfs', 'fifo'))).toBe(false);
});

type Part = { readonly name: string; readonly filesMin: number; readonly layers: () => Promise<readonly Buffer[]> };

/** Of real images as much as takes seconds. */
const PARTS: readonly Part[] = [
  { name: 'Debian', filesMin: 100, layers: async () => [await partOfDebian('etc'), await partOfDebian('var/lib/dpkg')] },
  { name: 'Python', filesMin: 100, layers: async () => [await partOfDebian('usr/lib/python3.*')] },
  { name: 'busybox', filesMin: 2, layers: async () => [await busyboxLayer()] },
  { name: 'Node.js', filesMin: 5, layers: async () => [await busyboxLayer(), await nodeLayer(16 * 2 ** 20)] },
];
const PART = PARTS[Number(process.env['HUTCH_TEST_SEED'] ?? Date.now()) % PARTS.length] as Part;

test('file by file a part of a real image, by the seed, is what umoci unpacks', { timeout: 120_000 }, async (context) => {
  if (process.getuid?.() !== 0) context.skip('only root can unpack what belongs to others');
  await sameAsUmoci(image(await PART.layers(), { packed: (bytes) => gzipSync(bytes, { level: 1 }) }), PART.filesMin, PART.name);
});

async function debianImage(): Promise<string> {
  return (await prepareDefaultImage(op, nodeHost(), imagePaths(join(import.meta.dirname, '../../.tools/data')))).path;
}

/** Names in `directory` may have an asterisk. */
async function partOfDebian(directory: string): Promise<Buffer> {
  const [root, part] = [await mkdtemp(join(dir, 'root-')), join(dir, 'part.tar')];
  const kept = ['--numeric-owner', '--xattrs', '--xattrs-include=*'];
  run('sh', '-c', 'sqfs2tar "$0" | tar -xp --wildcards "$@"', await debianImage(), ...kept, '-C', root, directory);
  run('tar', ...kept, '--sort=name', '--format=posix', '-C', root, '-cf', part, '.');
  return await readFile(part);
}

async function nodeLayer(bytesMax = Number.POSITIVE_INFINITY): Promise<Buffer> {
  const program = await readFile(process.execPath);
  return tar(
    { path: 'usr/local/bin/node', mode: 0o755, content: program.subarray(0, bytesMax) },
    { path: 'usr/local/bin/nodejs', type: 'symlink', link: 'node' },
  );
}

async function busyboxLayer(): Promise<Buffer> {
  return tar(
    { path: 'bin/busybox', mode: 0o755, content: await readFile('/bin/busybox') },
    { path: 'bin/sh', type: 'hardlink', link: 'bin/busybox' },
  );
}

test('file by file real images are what umoci unpacks: Debian with Python, busybox, Node.js', { timeout: 900_000 }, async (context) => {
  if (process.getuid?.() !== 0) context.skip('only root can unpack what belongs to others');
  if (process.env['HUTCH_TEST_LONG'] === undefined) context.skip('takes a minute: --long');
  const root = join(dir, 'debian.tar');
  run('sh', '-c', 'sqfs2tar "$0" > "$1"', await debianImage(), root);
  const upper = tar({ path: 'etc/.wh.motd' }, { path: 'usr/share/doc/', type: 'directory' }, { path: 'usr/share/doc/.wh..wh..opq' });
  await sameAsUmoci(image([await busyboxLayer(), await nodeLayer()]), 5);
  await sameAsUmoci(image([await readFile(root), upper]), 5_000);
});

/** Unpacked by umoci, and pulled by us: the same. Gives umoci's bundle. */
async function sameAsUmoci(made: MadeImage, filesMin: number, what = 'the image'): Promise<string> {
  const from = await layout(made);
  const bundle = join(dir, `bundle-${digestOf(made.manifest).slice(7, 19)}`);
  run('umoci', 'unpack', '--image', `${from}:it`, bundle);
  const packed = `${bundle}.tar`;
  run(
    'tar',
    '--xattrs',
    '--xattrs-include=*',
    '--numeric-owner',
    '--sort=name',
    '--format=posix',
    '-C',
    join(bundle, 'rootfs'),
    '-cf',
    packed,
    '.',
  );
  const theirs = await readTree(await readFile(packed));
  await using here = await place({ caPath: join(dir, 'cert.pem') });
  await here.library.credentials.keep(op, name, { username: 'hutch', password: 'open-sesame' });
  run('skopeo', 'copy', '--dest-tls-verify=false', '--dest-creds', 'hutch:open-sesame', `oci:${from}:it`, `docker://${name}/team/web:1`);
  const ours = await treeOf(await here.pull(`${name}/team/web:1`));
  const rows = (tree: typeof ours) => {
    const named = linked(tree);
    return Object.fromEntries(
      [...tree]
        .filter(([path]) => path !== '')
        .map(([path, seen]) => {
          const file = named.get(path) ?? seen;
          return [
            path,
            {
              type: file.type,
              mode: file.type === 'symlink' ? 0 : file.mode,
              owner: `${file.uid}:${file.gid}`,
              link: file.type === 'symlink' ? file.link : '',
              device: `${file.devMajor}:${file.devMinor}`,
              content: digestOf(file.content),
              xattrs: [...(file.xattrs ?? [])]
                .filter(([key]) => !key.startsWith('user.umoci'))
                .map(([key, value]) => `${key}=${value.toString('hex')}`),
              // Directories that somebody else made got the time of the day.
              mtime: file.type === 'file' ? file.mtimeSeconds : 0,
            },
          ];
        }),
    );
  };
  expect(rows(ours), what).toEqual(rows(theirs));
  expect(groups(ours), what).toEqual(groups(theirs));
  expect(ours.size).toBeGreaterThan(filesMin);
  return bundle;
}

type Tree = Awaited<ReturnType<typeof readTree>>;

/** Further names of a file, with the file that they are. */
function linked(tree: Tree): Map<string, ReturnType<Tree['get']> & object> {
  const found = new Map<string, ReturnType<Tree['get']> & object>();
  for (const [path, seen] of tree) {
    const target = seen.type === 'hardlink' ? tree.get(seen.link.replace(/^\.?\//, '')) : undefined;
    if (target !== undefined) found.set(path, target);
  }
  return found;
}

/** Names that are one file. */
function groups(tree: Tree): string[] {
  const found = new Map<string, string[]>();
  for (const [path, seen] of tree) {
    const first = seen.type === 'hardlink' ? seen.link.replace(/^\.?\//, '') : path;
    found.set(first, [...(found.get(first) ?? []), path]);
  }
  return [...found.values()].filter((names) => names.length > 1).map((names) => names.sort().join(' = '));
}
