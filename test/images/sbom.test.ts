// What an image is made of, by its own databases: those of real packages, and such as lie.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { packagesIn } from '../../src/images/sbom/packages.ts';
import { testOperation } from '../support/operation.ts';
import { image, type Member, tar } from './archives.ts';
import { place } from './place.ts';
import { fakeRegistry } from './registry.ts';

const op = testOperation();
type Document = {
  packages: { name: string; versionInfo: string; SPDXID: string; externalRefs?: { referenceLocator: string }[] }[];
  creationInfo: { comment?: string };
};

async function sbom(...members: readonly Member[]): Promise<Document> {
  await using registry = await fakeRegistry();
  registry.put('web', '1', image([tar(...members)]));
  await using here = await place();
  const { record } = await here.pull(`${registry.name}/web:1`);
  const document = (await here.library.sbom(op, record.digest, 'web:1', 'hutch-test')) as unknown as Document;
  expect(await here.library.sbom(op, record.digest, 'web:1', 'hutch-test')).toEqual(document);
  expect((await here.left()).staging).toEqual([]);
  expect(new Set(document.packages.map(({ SPDXID }) => SPDXID)).size).toBe(document.packages.length);
  return document;
}

const purls = ({ packages }: Document) =>
  packages.flatMap(({ externalRefs = [] }) => externalRefs.map(({ referenceLocator }) => referenceLocator));

test('the packages of dpkg, apk, pip and npm in an image are in its SPDX document, each with where it was found', {
  timeout: 60_000,
}, async () => {
  const document = await sbom(
    { path: 'etc/os-release', content: 'NAME="x"\nID=debian\n' },
    {
      path: 'var/lib/dpkg/status',
      content:
        'Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2.15-2+b7\nDescription: a shell\n and more:\n Package: nothing\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n',
    },
    { path: 'var/lib/dpkg/status.d/base', content: 'Package: base-files\nVersion: 12.4\nArchitecture: amd64\n' },
    { path: 'lib/apk/db/installed', content: 'C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\n\nP:busybox\nV:1.36\n\n' },
    {
      path: 'usr/lib/python3/dist-packages/Foo_Bar-1.0.dist-info/METADATA',
      content: 'Metadata-Version: 2.1\nName: Foo_Bar\nVersion: 1.0\n\nName: body\n',
    },
    { path: 'app/node_modules/@scope/tool/package.json', content: '{"name":"@scope/tool","version":"2.0.0","license":"ISC"}' },
    { path: 'app/node_modules/tool/lib/package.json', content: '{"name":"inner","version":"1.0.0"}' },
    { path: 'var/lib/rpm/rpmdb.sqlite', content: 'SQLite format 3' },
  );
  expect(purls(document)).toEqual([
    'pkg:apk/debian/busybox@1.36',
    'pkg:apk/debian/musl@1.2.4-r2?arch=x86_64',
    'pkg:deb/debian/base-files@12.4?arch=amd64',
    'pkg:deb/debian/bash@5.2.15-2%2Bb7?arch=amd64',
    'pkg:npm/%40scope/tool@2.0.0',
    'pkg:pypi/foo-bar@1.0',
  ]);
  expect(document.creationInfo.comment).toContain('rpm at var/lib/rpm/rpmdb.sqlite was not read');
});

test('databases that lie give less, and never more than their bounds', { timeout: 60_000 }, async () => {
  const document = await sbom(
    { path: 'a/node_modules/deep/package.json', content: '['.repeat(200_000) },
    { path: 'a/node_modules/number/package.json', content: '{"name":7,"version":{}}' },
    { path: 'a/node_modules/long/package.json', content: JSON.stringify({ name: `n\u0000${'x'.repeat(5_000)}`, version: '\u001b[31m1' }) },
    { path: 'a/node_modules/large/package.json', content: Buffer.alloc(2 ** 20 + 1, ' ') },
    { path: 'var/lib/dpkg/status', content: 'Package\n:\n\n\nPackage: only\n\nVersion: 1\n'.repeat(100) },
    { path: 'etc/os-release', type: 'symlink', link: '/etc/passwd' },
  );
  const [, ...rest] = document.packages;
  expect(rest).toHaveLength(1);
  expect(rest[0]?.name).toHaveLength(256);
  expect(JSON.stringify(document)).not.toMatch(/\\u0000|\\u001b/);
  expect(document.creationInfo.comment).toContain('a/node_modules/large/package.json was not read');
});

test('any bytes give packages with names and versions, or none', () => {
  const piece = fc.oneof(
    fc.string(),
    fc.constantFrom(
      'Package: a\n',
      'Version: 1\n',
      'P:x\n',
      'V:1\n',
      '\n',
      'Name: n\n',
      '{"name":"a","version":"1"}',
      ':',
      ' ',
      '\r\n',
      '\0',
    ),
  );
  fc.assert(
    fc.property(fc.constantFrom('deb', 'apk', 'pypi', 'npm'), fc.array(piece), (kind, pieces) => {
      for (const { name, version } of packagesIn(kind, 'p', Buffer.from(pieces.join('')))) {
        expect(name.length).toBeGreaterThan(0);
        expect(name.length).toBeLessThanOrEqual(256);
        expect(version.length).toBeLessThanOrEqual(256);
      }
    }),
  );
});

test('what dpkg-query says of this machine’s packages is what is read from its database', async (context) => {
  const host = nodeHost();
  if ((await host.which(op, 'dpkg-query')) === null) context.skip('this machine has no dpkg');
  // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own
  const { stdout } = await host.run(op, ['dpkg-query', '-W', '-f', '${db:Status-Abbrev} ${Package} ${Version}\n'], {
    outputBytesMax: 2 ** 24,
  });
  const said = Buffer.from(stdout)
    .toString()
    .split('\n')
    .flatMap((line) => /^ii\s+(\S+ \S+)$/.exec(line)?.[1] ?? []);
  const status = Buffer.from(await host.readFile(op, '/var/lib/dpkg/status', 2 ** 26));
  const read = packagesIn('deb', 'var/lib/dpkg/status', status).map(({ name, version }) => `${name} ${version}`);
  expect(read.toSorted()).toEqual(said.toSorted());
  expect(read.length).toBeGreaterThan(50);
});
