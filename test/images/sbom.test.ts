// What an image is made of, by its own databases: those of real packages, and such as lie.
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
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

/** As rpm keeps it: a header of entries, and what they point to. */
function rpmHeader(tags: readonly (readonly [tag: number, value: string | number])[]): Buffer {
  const entries: Buffer[] = [];
  const data: Buffer[] = [];
  let at = 0;
  for (const [tag, value] of tags) {
    const bytes = Buffer.alloc(typeof value === 'string' ? Buffer.byteLength(value) + 1 : 4);
    if (typeof value === 'string') bytes.write(value);
    else bytes.writeUInt32BE(value);
    const entry = Buffer.alloc(16);
    for (const [index, word] of [tag, typeof value === 'string' ? 6 : 4, at, 1].entries()) entry.writeUInt32BE(word, 4 * index);
    entries.push(entry);
    data.push(bytes);
    at += bytes.byteLength;
  }
  const head = Buffer.alloc(8);
  head.writeUInt32BE(entries.length);
  head.writeUInt32BE(at, 4);
  return Buffer.concat([head, ...entries, ...data]);
}

/** Real SQLite: many rows, and some that are longer than a page. */
async function rpmDatabase(count: number): Promise<Buffer> {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-rpm-'));
  try {
    const db = new DatabaseSync(join(dir, 'rpmdb.sqlite'));
    db.exec(
      "CREATE TABLE IF NOT EXISTS 'Name' (key TEXT, hnum INTEGER); CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)",
    );
    const put = db.prepare('INSERT INTO Packages (blob) VALUES (?)');
    for (let nth = 0; nth < count; nth += 1) {
      const epoch = nth === 1 ? [[1003, 2] as const] : [];
      const size = nth % 7 === 0 ? 30_000 : 3;
      put.run(
        rpmHeader([
          [1000, `p${nth}`],
          [1001, '1.0'],
          [1002, `${nth}.el9`],
          ...epoch,
          [1014, 'MIT'],
          [1022, 'x86_64'],
          [1004, 'x'.repeat(size)],
        ]),
      );
    }
    put.run(
      rpmHeader([
        [1000, 'gpg-pubkey'],
        [1001, '1'],
        [1002, '2'],
      ]),
    );
    db.close();
    return await readFile(join(dir, 'rpmdb.sqlite'));
  } finally {
    await rm(dir, { recursive: true });
  }
}

test('the packages of rpm are read out of its database, whatever else its bytes are', { timeout: 60_000 }, async () => {
  const content = await rpmDatabase(150);
  const document = await sbom({ path: 'etc/os-release', content: 'ID="rocky"\n' }, { path: 'var/lib/rpm/rpmdb.sqlite', content });
  const found = purls(document);
  expect(found).toHaveLength(150);
  expect(found).toContain('pkg:rpm/rocky/p1@1.0-1.el9?arch=x86_64&epoch=2');
  expect(found).toContain('pkg:rpm/rocky/p149@1.0-149.el9?arch=x86_64');
  expect(document.creationInfo.comment).toBeUndefined();
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(content.byteLength - 1), fc.nat(255)), { minLength: 1 }),
      fc.nat(content.byteLength),
      (bytes, end) => {
        const changed = Buffer.from(content.subarray(0, end));
        for (const [at, value] of bytes) if (at < end) changed[at % 300] = value;
        for (const { name } of packagesIn('rpm', 'p', changed) ?? []) expect(name).not.toBe('');
        const anywhere = Buffer.from(content);
        for (const [at, value] of bytes) anywhere[at] = value;
        for (const { version } of packagesIn('rpm', 'p', anywhere) ?? []) expect(version.length).toBeLessThanOrEqual(256);
      },
    ),
    { numRuns: 30 },
  );
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
    fc.property(fc.constantFrom('deb', 'apk', 'rpm', 'pypi', 'npm'), fc.array(piece), (kind, pieces) => {
      for (const { name, version } of packagesIn(kind, 'p', Buffer.from(pieces.join(''))) ?? []) {
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
  const read = packagesIn('deb', 'var/lib/dpkg/status', status)?.map(({ name, version }) => `${name} ${version}`);
  expect(read?.toSorted()).toEqual(said.toSorted());
  expect(read?.length).toBeGreaterThan(50);
});
