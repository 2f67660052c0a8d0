// Images that go to a registry: Debian's own, with TLS and a login and with connections that break, read again by
// skopeo; and one of ours, for what a real one does not do.
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmod, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { requireImageReference } from '../../src/domain/image-reference.ts';
import { breakingProxy } from '../support/breaking-proxy.ts';
import { selfSigned } from '../support/certificate.ts';
import { LOGIN, Registry } from '../support/debian-registry.ts';
import { testOperation } from '../support/operation.ts';
import { digestOf, image, type MadeImage, tar } from './archives.ts';
import { type Place, place, treeOf } from './place.ts';
import { fakeRegistry } from './registry.ts';
import { takesUploads } from './uploads.ts';

const op = testOperation();
const LOWER = tar(
  { path: 'etc/', type: 'directory' },
  { path: 'etc/keep', content: 'keep' },
  { path: 'noise', content: randomBytes(400_000) },
);
const MADE = image([LOWER, tar({ path: 'etc/upper', content: 'upper' })], { config: { Cmd: ['tool'] } });
/** The same layers, and what it says is another. */
const OTHER = image([LOWER, tar({ path: 'etc/upper', content: 'upper' })], { config: { Cmd: ['other'] } });

let dir: string;
let real: Registry | undefined;
let certificate: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-push-'));
  certificate = join(dir, 'cert.pem');
  const tls = { certificate, key: join(dir, 'key.pem') };
  selfSigned({ name: 'localhost', ...tls, extensions: ['subjectAltName=IP:127.0.0.1,DNS:localhost'] });
  real = await Registry.start(tls);
}, 60_000);

afterAll(async () => {
  await real?.[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

/** With the image on disk, as if it had been pulled. */
async function withImage(made: MadeImage, here: Place): Promise<string> {
  await using source = await fakeRegistry();
  source.put('web', '1', made);
  return (await here.pull(`${source.name}/web:1`)).record.digest;
}

async function push(here: Place, digest: string, name: string, known: readonly string[] = [], pushing = op) {
  const { digest: found, blobs } = await here.library.push(
    pushing,
    digest,
    requireImageReference(name),
    await repositories(here, digest, known),
  );
  return { digest: found, how: blobs.map(({ how }) => how) };
}

/** All its layers may be in all of them. */
async function repositories(here: Place, digest: string, known: readonly string[]) {
  return new Map((await here.library.layers(op, digest)).map((layer) => [layer.digest, known]));
}

function skopeo(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync('skopeo', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`skopeo ${args.join(' ')}: ${stderr}`);
  return stdout;
}

const READS = ['--tls-verify=false', '--creds', `${LOGIN.username}:${LOGIN.password}`];

test('what is pushed to Debian’s registry is what skopeo reads there; what is there already is not sent again', {
  timeout: 60_000,
}, async () => {
  const name = real?.name ?? '';
  await using here = await place({ caPaths: new Map([[name, certificate]]) });
  const digest = await withImage(MADE, here);
  await expect(push(here, digest, `${name}/team/web:1`)).rejects.toMatchObject({
    code: 'permission_denied',
    hint: `log in with: hutch image login ${name}`,
  });
  await here.library.credentials.keep(op, name, LOGIN);
  const first = await push(here, digest, `${name}/team/web:1`);
  expect(first).toEqual({ digest: digestOf(MADE.manifest), how: ['uploaded', 'uploaded', 'uploaded'] });
  expect(skopeo('inspect', '--raw', ...READS, `docker://${name}/team/web:1`)).toBe(MADE.manifest.toString());
  // It reads every layer, and compares it with its digest.
  const into = join(dir, 'copied');
  skopeo(
    'copy',
    '--src-tls-verify=false',
    '--src-creds',
    `${LOGIN.username}:${LOGIN.password}`,
    `docker://${name}/team/web:1`,
    `dir:${into}`,
  );
  expect((await readdir(into)).toSorted()).toEqual(
    [...MADE.blobs.keys()]
      .map((blob) => blob.slice(7))
      .concat('manifest.json', 'version')
      .toSorted(),
  );
  expect((await push(here, digest, `${name}/team/web:again`)).how).toEqual(['existed', 'existed', 'existed']);
  // Layers of another repository of the same registry are not sent either.
  const other = await withImage(OTHER, here);
  expect((await push(here, other, `${name}/team/other:1`, ['team/none', 'team/web'])).how).toEqual(['mounted', 'mounted', 'uploaded']);
  expect(skopeo('inspect', '--config', ...READS, `docker://${name}/team/other:1`)).toContain('other');
  expect((await here.left()).staging).toEqual([]);
});

test('a certificate that the registry’s own authority has not signed is refused, on the loopback too', async () => {
  const name = real?.name ?? '';
  const stranger = join(dir, 'stranger.pem');
  selfSigned({ name: 'stranger', key: join(dir, 'stranger.key'), certificate: stranger });
  await using here = await place({ caPaths: new Map([[name, stranger]]) });
  const digest = await withImage(MADE, here);
  await expect(push(here, digest, `${name}/team/tls:1`)).rejects.toMatchObject({
    code: 'unavailable',
    message: expect.stringMatching(/certificate is signed by nobody who is trusted here/),
    hint: expect.stringContaining(`images.registry_ca = ["${name}=FILE.pem"]`),
  });
  for (const [path, said] of [
    [join(dir, 'nothing.pem'), /^images\.registry_ca: .*nothing\.pem/],
    [join(dir, 'key.pem'), /^images\.registry_ca: .*key\.pem has no certificate in PEM/],
  ] as const) {
    await using wrong = await place({ caPaths: new Map([[name, path]]) });
    await expect(wrong.pull(`${name}/any:1`)).rejects.toMatchObject({ code: 'failed_precondition', message: expect.stringMatching(said) });
  }
});

test('connections that break in the middle of a push and a pull are made good, at Debian’s registry', { timeout: 60_000 }, async () => {
  await using proxy = await breakingProxy(real?.name ?? '');
  await using here = await place({ patience: { tries: 5 } });
  await here.library.credentials.keep(op, proxy.name, LOGIN);
  const noisy = image([tar({ path: 'noise', content: randomBytes(3_000_000) })]);
  const digest = await withImage(noisy, here);
  proxy.breaks.push({ way: 'up', afterBytes: 1_000_000 }, { way: 'up', afterBytes: 2_000_000 });
  expect((await push(here, digest, `${proxy.name}/team/noisy:1`)).digest).toBe(digestOf(noisy.manifest));
  expect(proxy.broken()).toBe(2);
  await using there = await place({ patience: { tries: 5 } });
  await there.library.credentials.keep(op, proxy.name, LOGIN);
  proxy.breaks.push({ way: 'down', afterBytes: 1_000_000 }, { way: 'down', afterBytes: 700_000 });
  expect((await there.pull(`${proxy.name}/team/noisy:1`)).record.digest).toBe(digest);
  expect(proxy.broken()).toBe(4);
  await there.library.verify(op, digest);
});

test('layers that came as bare archives are pushed compressed, and are compressed once', { timeout: 60_000 }, async () => {
  const name = real?.name ?? '';
  await using here = await place({ caPaths: new Map([[name, certificate]]) });
  await here.library.credentials.keep(op, name, LOGIN);
  const noise = tar({ path: 'text', content: 'again and again '.repeat(50_000) }, { path: 'noise', content: randomBytes(100_000) });
  const [imported] = (
    await here.library.import(
      op,
      (async function* () {
        yield noise;
      })(),
    )
  ).images;
  const digest = imported?.image.record.digest ?? '';
  const [layer] = await here.library.layers(op, digest);
  const steps: string[] = [];
  const told = () => testOperation({ onProgress: ({ detail = '' }) => void steps.push(detail) });
  expect((await push(here, digest, `${name}/team/bare:1`, [], told())).how).toEqual(['uploaded', 'uploaded']);
  expect(steps.join()).toContain('compressing');
  const { layers } = JSON.parse(skopeo('inspect', '--raw', ...READS, `docker://${name}/team/bare:1`));
  expect(layers).toMatchObject([{ mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip' }]);
  expect(layers[0].size).toBeLessThan(noise.byteLength / 4);
  // What its configuration says of it is what the unpacked layer is.
  expect(skopeo('inspect', '--config', ...READS, `docker://${name}/team/bare:1`)).toContain(layer?.digest);
  steps.length = 0;
  expect((await push(here, digest, `${name}/team/bare:2`, [], told())).how).toEqual(['existed', 'existed']);
  expect(steps.join()).not.toContain('compressing');
  await using there = await place({ caPaths: new Map([[name, certificate]]) });
  await there.library.credentials.keep(op, name, LOGIN);
  expect((await there.pull(`${name}/team/bare:2`)).record.digest).toBe(digest);

  // What is remembered of it is not believed where it is another now.
  const path = here.library.blobs.path(layer?.digest ?? '');
  await chmod(path, 0o600);
  await writeFile(path, Buffer.alloc(layer?.sizeBytes ?? 0, 'x'));
  await expect(push(here, digest, `${name}/team/elsewhere:1`)).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('it has changed on disk'),
  });
  await here.library.dropLayers(op, new Set(), true);
  expect([await readdir(join(path, '..')), (await here.left()).staging]).toEqual([[], []]);
});

test('an image whose layers are not kept is pushed as one layer, packed', { timeout: 60_000 }, async () => {
  const name = real?.name ?? '';
  await using here = await place({ caPaths: new Map([[name, certificate]]) });
  await here.library.credentials.keep(op, name, LOGIN);
  const first = await withImage(MADE, here);
  await here.library.dropLayers(op, new Set(), true);
  expect((await push(here, first, `${name}/team/flat:1`)).how).toEqual(['uploaded', 'uploaded']);
  await using there = await place({ caPaths: new Map([[name, certificate]]) });
  await there.library.credentials.keep(op, name, LOGIN);
  const flat = await there.pull(`${name}/team/flat:1`);
  expect(flat.source).toMatchObject({ layers: [{ mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip' }] });
  expect(flat.record.config.command).toEqual(['tool']);
  const tree = await treeOf(flat);
  expect([tree.get('etc/keep')?.content.toString(), tree.get('etc/upper')?.content.toString()]).toEqual(['keep', 'upper']);
  expect((await here.left()).staging).toEqual([]);
});

test('an upload that breaks off goes on where it broke, where the registry can; the manifest comes last', async () => {
  await using registry = await fakeRegistry();
  const uploads = takesUploads(registry, undefined, [150_000, 100_000]);
  await using here = await place();
  const digest = await withImage(MADE, here);
  await push(here, digest, `${registry.name}/web:1`);
  expect([...uploads.blobs.keys()].toSorted()).toEqual([...MADE.blobs.keys()].toSorted());
  expect(uploads.manifests.get('1')).toBe(MADE.manifest.toString());
  // The three blobs, each begun once: what was sent before the break counted.
  expect(uploads.open.size).toBe(3);
  expect(registry.asked.filter((path) => path.startsWith('PATCH'))).toHaveLength(5);
  expect(registry.asked.findIndex((path) => path.startsWith('PUT') && path.includes('/manifests/'))).toBe(registry.asked.length - 1);
});

test('a layer that has changed on disk is not pushed, nor is a manifest that would name it', async () => {
  await using registry = await fakeRegistry();
  const uploads = takesUploads(registry);
  await using here = await place();
  const digest = await withImage(MADE, here);
  const [layer] = (await here.library.layers(op, digest)).toSorted((a, b) => b.sizeBytes - a.sizeBytes);
  const path = here.library.blobs.path(layer?.digest ?? '');
  await chmod(path, 0o600);
  await writeFile(path, Buffer.alloc(layer?.sizeBytes ?? 0, 'x'));
  await expect(push(here, digest, `${registry.name}/web:1`)).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('it has changed on disk'),
  });
  expect(uploads.manifests.size).toBe(0);
  expect(uploads.cancelled).toHaveLength(1);
  expect((await here.left()).staging).toEqual([]);
});

test('a push that is cancelled ends at once, and takes back what it began', async () => {
  await using registry = await fakeRegistry();
  const uploads = takesUploads(registry);
  const usual = registry.answer;
  const stuck = Promise.withResolvers<void>();
  registry.answer = (request, response) => {
    if (request.method !== 'PATCH') return usual?.(request, response);
    stuck.resolve();
    return true; // and says nothing
  };
  await using here = await place();
  const digest = await withImage(MADE, here);
  const abort = new AbortController();
  const pushing = push(here, digest, `${registry.name}/web:1`, [], testOperation({ signal: abort.signal }));
  const outcome = pushing.catch((error: unknown) => error);
  await stuck.promise;
  abort.abort();
  expect(await outcome).toMatchObject({ code: 'cancelled' });
  expect(uploads.cancelled.length).toBeGreaterThan(0);
  expect(uploads.manifests.size).toBe(0);
});

test('a login does not go where uploads go, nor to a token server that a store of theirs names', async () => {
  await using registry = await fakeRegistry();
  await using store = await fakeRegistry();
  const uploads = takesUploads(registry, `http://${store.name}`);
  const usual = registry.answer;
  store.answer = usual; // has what was begun at the other
  registry.answer = (request, response) => {
    if (request.headers.authorization !== undefined || request.url === '/v2/') return usual?.(request, response);
    response.writeHead(401, { 'WWW-Authenticate': 'Basic realm="x"' }).end();
    return true;
  };
  await using here = await place();
  const digest = await withImage(MADE, here);
  await here.library.credentials.keep(op, registry.name, LOGIN);
  await push(here, digest, `${registry.name}/web:1`);
  expect(uploads.manifests.size).toBe(1);
  expect(store.secrets.length).toBeGreaterThan(5);
  expect(store.secrets.filter(({ authorization }) => authorization !== undefined)).toEqual([]);
  // It wants a login of its own all of a sudden, and names who takes it.
  store.answer = (request, response) => {
    const path = request.url ?? '';
    if (path.startsWith('/token')) response.end('{"token":"t"}');
    else response.writeHead(401, { 'WWW-Authenticate': `Bearer realm="http://${store.name}/token"` }).end();
    return true;
  };
  uploads.blobs.clear();
  await expect(push(here, digest, `${registry.name}/web:2`)).rejects.toMatchObject({ code: 'permission_denied' });
  expect(store.asked.filter((path) => path.includes('/token'))).toEqual([]);
});

test('a token for a push is asked for this repository, and the one that layers are taken from', async () => {
  await using registry = await fakeRegistry();
  const uploads = takesUploads(registry);
  const usual = registry.answer;
  const scopes = new Set<string>();
  registry.answer = (request, response) => {
    const url = new URL(request.url ?? '', `http://${registry.name}`);
    if (url.pathname === '/token') {
      for (const scope of url.searchParams.getAll('scope')) scopes.add(scope);
      response.end(JSON.stringify({ token: 'good', expires_in: 300 }));
      return true;
    }
    if (request.headers.authorization === 'Bearer good' || url.pathname === '/v2/') return usual?.(request, response);
    response.writeHead(401, { 'WWW-Authenticate': `Bearer realm="http://${registry.name}/token",service="s"` }).end();
    return true;
  };
  await using here = await place();
  await push(here, await withImage(MADE, here), `${registry.name}/web:1`, ['base']);
  expect(uploads.manifests.size).toBe(1);
  expect([...scopes].toSorted()).toEqual(['repository:base:pull', 'repository:web:pull,push']);
});
