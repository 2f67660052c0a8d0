// What may be pulled at all, and from whom it really comes: rules of the configuration, signatures as cosign makes them
// with a key, and mirrors.
import { generateKeyPairSync } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { parseImageReference, requireImageReference } from '../../src/domain/image-reference.ts';
import { matches } from '../../src/images/trust/policy.ts';
import { freePort } from '../support/free-port.ts';
import { testOperation } from '../support/operation.ts';
import { digestOf, image, TYPES, tar } from './archives.ts';
import { place } from './place.ts';
import { type FakeRegistry, fakeRegistry } from './registry.ts';
import { signed } from './signed.ts';

const MADE = image([tar({ path: 'a', content: 'a' })]);
const OTHER = image([tar({ path: 'b', content: 'b' })]);

test.for([
  ['docker.io/library/*', 'python:3', true],
  ['docker.io/library/*', 'team/python:3', false],
  ['docker.io/**', 'team/python:3', true],
  ['ghcr.io/owner/**', 'ghcr.io/owner/a/b', true],
  ['ghcr.io/owner/**', 'ghcr.io/owner2/a', false],
  ['ghcr.io/owner/*', 'ghcr.io/owner/a/b', false],
  ['ghcr.io/owner/web-*', 'ghcr.io/owner/web-1', true],
  ['*/owner/**', 'registry.example:5000/owner/x', true],
  ['registry.example/x', 'registryxexample/x', false],
] as const)('the rule %s for %s: %s', ([pattern, name, expected]) => {
  expect(matches(pattern, requireImageReference(name))).toBe(expected);
});

test('a rule of one repository is for that one alone, whatever its name', () => {
  const name = fc.stringMatching(/^[a-z0-9]{1,8}(\.[a-z0-9]{1,4})?(:[1-9]\d{0,3})?\/[a-z0-9]{1,6}(\/[a-z0-9._-]{1,6}){0,2}$/);
  fc.assert(
    fc.property(name, name, (one, other) => {
      const [rule, asked] = [parseImageReference(one), parseImageReference(other)];
      fc.pre(rule !== null && asked !== null);
      const full = `${rule?.registry}/${rule?.repository}`;
      expect(asked !== null && matches(full, asked)).toBe(full === `${asked?.registry}/${asked?.repository}`);
      expect(rule !== null && matches(full, rule)).toBe(true);
    }),
  );
});

test('what is not allowed, or named by a tag where a digest is wanted, is refused by the name of the rule, and nobody is asked', async () => {
  await using registry = await fakeRegistry();
  registry.put('team/web', '1', MADE);
  await using here = await place({ policy: { allow: [`${registry.name}/team/*`, 'ghcr.io/**'], requireDigest: [`${registry.name}/**`] } });
  await expect(here.pull(`${registry.name}/other/web:1`)).rejects.toMatchObject({
    code: 'permission_denied',
    message: `${registry.name}/other/web:1 may not be pulled: images.allow does not list it`,
    hint: `what may: ${registry.name}/team/*, ghcr.io/**`,
  });
  await expect(here.pull(`${registry.name}/team/web:1`)).rejects.toMatchObject({
    code: 'permission_denied',
    message: expect.stringContaining(`images.require_digest lists ${registry.name}/**`),
  });
  expect(registry.asked).toEqual([]);
  const found = await here.pull(`${registry.name}/team/web@${digestOf(MADE.manifest)}`);
  expect(found.record.digest).toBe(digestOf(MADE.config));
});

const P256 = () => generateKeyPairSync('ec', { namedCurve: 'P-256' });
const P384 = () => generateKeyPairSync('ec', { namedCurve: 'P-384' });
const RSA = () => generateKeyPairSync('rsa', { modulusLength: 2048 });
const ED25519 = () => generateKeyPairSync('ed25519');

test('an image that must be signed is pulled only with a signature of its digest by one of the keys', { timeout: 60_000 }, async () => {
  await using registry = await fakeRegistry();
  const digest = digestOf(MADE.manifest);
  for (const make of [P256, P384, RSA, ED25519]) {
    const [own, stranger] = [make(), P256()];
    registry.put('team/web', '1', MADE);
    await using here = await place();
    const keyPath = join(here.dir, 'cosign.pub');
    await writeFile(keyPath, own.publicKey.export({ type: 'spki', format: 'pem' }));
    await using strict = await place({ policy: { signed: [{ pattern: `${registry.name}/team/**`, keyPath }] } });
    const pull = () => strict.pull(`${registry.name}/team/web:1`);
    const refused = (why: string) => ({
      code: 'permission_denied',
      message: expect.stringMatching(new RegExp(`images\\.signed wants a signature.*${why}`)),
    });
    registry.putManifest('team/web', `${digest.replace(':', '-')}.sig`, Buffer.from('{"layers":7}'));
    await expect(pull()).rejects.toMatchObject(refused('it has no signature'));
    signed(registry, 'team/web', digest, stranger.privateKey);
    await expect(pull()).rejects.toMatchObject(refused('none is by that key'));
    // By the right key, but of another image, and of something that is no image.
    signed(registry, 'team/web', digest, own.privateKey, { digest: digestOf(OTHER.manifest) });
    await expect(pull()).rejects.toMatchObject(refused('none is by that key'));
    signed(registry, 'team/web', digest, own.privateKey, { type: 'atomic container signature' });
    await expect(pull()).rejects.toMatchObject(refused('none is by that key'));
    expect((await strict.left()).images).toEqual([]);
    // By a hash as wide as its curve, as newer releases of cosign sign, and by SHA-256.
    for (const hash of make === P384 ? ['sha384', 'sha256'] : ['sha256']) {
      signed(registry, 'team/web', digest, own.privateKey, { hash });
      expect((await pull()).record.digest, hash).toBe(digestOf(MADE.config));
    }
    // The tag moves on: what is there now is not signed, though something of that name is here.
    registry.put('team/web', '1', OTHER);
    await expect(pull()).rejects.toMatchObject(refused('it has no signature'));
    // No rule is about this one.
    registry.put('free', '1', OTHER);
    await strict.pull(`${registry.name}/free:1`);
  }
});

test('of an image for several machines the signature of the index counts', async () => {
  await using registry = await fakeRegistry();
  for (const [digest, bytes] of MADE.blobs) expect(digestOf(bytes)).toBe(digest);
  registry.put('web', 'plain', MADE);
  const index = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: TYPES.index,
      manifests: [
        {
          mediaType: TYPES.manifest,
          digest: digestOf(MADE.manifest),
          size: MADE.manifest.byteLength,
          platform: { os: 'linux', architecture: 'amd64' },
        },
      ],
    }),
  );
  const digest = registry.putManifest('web', '1', index, TYPES.index);
  const own = P256();
  await using keys = await place();
  const keyPath = join(keys.dir, 'cosign.pub');
  await writeFile(keyPath, own.publicKey.export({ type: 'spki', format: 'pem' }));
  await using here = await place({ policy: { signed: [{ pattern: '**', keyPath }] } });
  await expect(here.pull(`${registry.name}/web:1`)).rejects.toMatchObject({ code: 'permission_denied' });
  signed(registry, 'web', digest, own.privateKey);
  await here.pull(`${registry.name}/web:1`);
  await writeFile(keyPath, 'no key');
  await expect(here.pull(`${registry.name}/web:1`)).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('no public key'),
  });
});

test('a mirror is asked first; what it lacks, gives wrongly, or cannot give comes from the registry itself', {
  timeout: 60_000,
}, async () => {
  await using registry = await fakeRegistry();
  await using mirror = await fakeRegistry();
  registry.put('team/web', '1', MADE);
  mirror.put('copies/team/web', '1', MADE);
  const mirrors = [{ of: registry.name, registry: mirror.name, prefix: 'copies' }];
  {
    await using here = await place({ mirrors });
    await here.pull(`${registry.name}/team/web:1`);
    expect(registry.asked).toEqual([]);
    registry.put('team/two', '1', OTHER);
    expect((await here.pull(`${registry.name}/team/two:1`)).record.digest).toBe(digestOf(OTHER.config));
  }
  {
    // One that has changed a layer: its bytes are not taken.
    mirror.answer = (request, response) => {
      if (request.url?.includes('/blobs/') !== true) return false;
      response.end('something else');
      return true;
    };
    await using here = await place({ mirrors });
    const found = await here.pull(`${registry.name}/team/web:1`);
    await here.library.verify(testOperation(), found.record.digest);
  }
  {
    // One that is not there is asked once, and not for each layer.
    const gone = `127.0.0.1:${await freePort()}`;
    await using here = await place({ mirrors: [{ of: registry.name, registry: gone, prefix: '' }] });
    registry.asked.length = 0;
    await here.pull(`${registry.name}/team/web:1`);
    expect(registry.asked.length).toBeGreaterThan(2);
  }
});

test('mirrors are asked in their order, each with its own login and none with another’s', async () => {
  await using registry = await fakeRegistry();
  await using first = await fakeRegistry();
  await using second = await fakeRegistry();
  await using here = await place({ mirrors: [first, second].map(({ name }) => ({ of: registry.name, registry: name, prefix: '' })) });
  const basic = (word: string) => `Basic ${Buffer.from(`me:${word}`).toString('base64')}`;
  const wants = (of: FakeRegistry, word: string): void => {
    of.answer = (request, response) => {
      if (request.url === '/v2/' || request.headers.authorization === basic(word)) return false;
      response.writeHead(401, { 'WWW-Authenticate': 'Basic realm="x"' }).end();
      return true;
    };
  };
  const said = (of: FakeRegistry) => [...new Set(of.secrets.flatMap(({ authorization }) => authorization ?? []))];
  for (const [of, word] of [
    [registry, 'origin'],
    [first, 'nobody has it'],
    [second, 'mirror'],
  ] as const) {
    of.put('web', '1', MADE);
    wants(of, word);
  }
  await here.library.credentials.keep(testOperation(), registry.name, { username: 'me', password: 'origin' });
  await here.library.credentials.keep(testOperation(), second.name, { username: 'me', password: 'mirror' });
  await here.pull(`${registry.name}/web:1`);
  expect(first.asked.length).toBeGreaterThan(0);
  expect([said(first), said(second), registry.asked]).toEqual([[], [basic('mirror')], []]);
  registry.put('only', '1', OTHER);
  await here.pull(`${registry.name}/only:1`);
  expect([said(first), said(second), said(registry)]).toEqual([[], [basic('mirror')], [basic('origin')]]);
});
