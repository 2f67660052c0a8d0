// The bill of materials of an image, in SPDX 2.3: what the package managers' own databases in its file system name. The
// file system is read once; nothing of it is run, and nobody is asked. The same image gives the same document.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { TarReader } from '../../domain/tar/reader.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Blobs } from '../blobs.ts';
import { unpackedTo } from '../export.ts';
import type { PreparedImage } from '../image.ts';
import { SHARED_DIR_MODE } from '../layout.ts';
import { databaseAt, distributionOf, type Found, packagesIn } from './packages.ts';

const PACKAGES_MAX = 100_000;
const READ_BYTES_MAX = 512 * 1024 * 1024;
const ENTRIES_PER_TURN = 2_000;

export type Spdx = Readonly<Record<string, unknown>> & { readonly packages: readonly object[] };

export async function sbomOf(
  op: Operation,
  { host, blobs }: { readonly host: Host; readonly blobs: Blobs },
  image: PreparedImage,
  name: string,
  tool: string,
): Promise<Spdx> {
  await using staged = await blobs.stage(op, `export-${op.id}`);
  await host.makeDir(op, staged.path, SHARED_DIR_MODE);
  const tar = join(staged.path, 'root.tar');
  op.progress({ step: 'sbom', detail: 'reading the file system' });
  await unpackedTo(op, host, image.path, tar);
  const { found, distribution, notes } = await search(op, host, tar);
  return document({ image, name, tool, found, distribution, notes });
}

type Searched = { readonly found: readonly Found[]; readonly distribution: string | null; readonly notes: readonly string[] };

async function search(op: Operation, host: Host, tar: string): Promise<Searched> {
  await using reader = new TarReader(host.readStream(op, tar));
  const found: Found[] = [];
  const notes: string[] = [];
  let distribution: string | null = null;
  let bytes = 0;
  let entries = 0;
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    entries += 1;
    if (entries % ENTRIES_PER_TURN === 0) await turn();
    const path = Buffer.from(entry.path.replace(/^(\.?\/)+/, ''), 'latin1').toString('utf8');
    const database = entry.type === 'file' ? databaseAt(path) : null;
    if (database === null) continue;
    if (database.kind === 'old-rpm') {
      notes.push(`the database of rpm at ${path} was not read`);
      continue;
    }
    bytes += entry.sizeBytes;
    if (entry.sizeBytes > database.bytesMax || bytes > READ_BYTES_MAX || found.length > PACKAGES_MAX) {
      notes.push(`${path} was not read: it is too large, or there are too many`);
      if (notes.length > 100) break;
      continue;
    }
    const parts: Buffer[] = [];
    for await (const part of reader.content()) parts.push(Buffer.from(part));
    const content = Buffer.concat(parts);
    if (database.kind === 'os-release') distribution ??= distributionOf(content);
    else {
      const packages = packagesIn(database.kind, path, content);
      if (packages === null) notes.push(`the database of ${database.kind} at ${path} was not read`);
      else found.push(...packages.slice(0, PACKAGES_MAX - found.length));
    }
  }
  return { found: unique(found), distribution, notes };
}

/** A package that is in two places is one for each place; each once, in an order that does not depend on the archive. */
function unique(found: readonly Found[]): readonly Found[] {
  const byKey = new Map(found.map((one) => [[one.kind, one.name, one.version, one.architecture, one.path].join('\0'), one]));
  return [...byKey].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([, one]) => one);
}

function document({
  image,
  name,
  tool,
  found,
  distribution,
  notes,
}: Searched & { readonly image: PreparedImage; readonly name: string; readonly tool: string }): Spdx {
  const { digest, createdAtMs } = image.record;
  const hex = digest.replace(/^sha256:/, '');
  const none = 'NOASSERTION';
  const unknown = { downloadLocation: none, filesAnalyzed: false, licenseConcluded: none, copyrightText: none };
  const root = {
    ...unknown,
    name,
    SPDXID: 'SPDXRef-Image',
    versionInfo: digest,
    licenseDeclared: none,
    primaryPackagePurpose: 'CONTAINER',
    checksums: [{ algorithm: 'SHA256', checksumValue: hex }],
  };
  const packages = found.map((one) => ({
    ...unknown,
    name: one.name,
    SPDXID: `SPDXRef-Package-${createHash('sha256').update([one.kind, one.name, one.version, one.architecture, one.path].join('\0')).digest('hex').slice(0, 20)}`,
    versionInfo: one.version,
    licenseDeclared: none, // what they write is often no SPDX expression
    sourceInfo: `found in ${one.path}`,
    ...(one.license === null ? {} : { licenseComments: `says of itself: ${one.license}` }),
    externalRefs: [{ referenceCategory: 'PACKAGE-MANAGER', referenceType: 'purl', referenceLocator: purlOf(one, distribution) }],
  }));
  return {
    spdxVersion: 'SPDX-2.3',
    dataLicense: 'CC0-1.0',
    SPDXID: 'SPDXRef-DOCUMENT',
    name,
    documentNamespace: `https://spdx.org/spdxdocs/hutch-${hex}`,
    creationInfo: {
      created: new Date(createdAtMs).toISOString().replace(/\.\d+Z$/, 'Z'),
      creators: [`Tool: ${tool}`],
      ...(notes.length === 0 ? {} : { comment: notes.join('; ') }),
    },
    packages: [root, ...packages],
    relationships: [
      { spdxElementId: 'SPDXRef-DOCUMENT', relationshipType: 'DESCRIBES', relatedSpdxElement: root.SPDXID },
      ...packages.map(({ SPDXID }) => ({ spdxElementId: root.SPDXID, relationshipType: 'CONTAINS', relatedSpdxElement: SPDXID })),
    ],
  };
}

/** https://github.com/package-url/purl-spec */
function purlOf({ kind, name, version, architecture }: Found, distribution: string | null): string {
  const arch = architecture === null ? '' : `?arch=${encodeURIComponent(architecture)}`;
  const at = `@${encodeURIComponent(version)}`;
  switch (kind) {
    case 'deb':
      return `pkg:deb/${distribution ?? 'debian'}/${encodeURIComponent(name)}${at}${arch}`;
    case 'apk':
      return `pkg:apk/${distribution ?? 'alpine'}/${encodeURIComponent(name)}${at}${arch}`;
    case 'rpm': {
      const [, epoch, rest = ''] = /^(?:(\d+):)?(.*)$/s.exec(version) ?? [];
      const more = [
        ...(architecture === null ? [] : [`arch=${encodeURIComponent(architecture)}`]),
        ...(epoch === undefined ? [] : [`epoch=${epoch}`]),
      ];
      const said = more.length === 0 ? '' : `?${more.join('&')}`;
      return `pkg:rpm/${distribution ?? 'redhat'}/${encodeURIComponent(name)}@${encodeURIComponent(rest)}${said}`;
    }
    case 'pypi':
      return `pkg:pypi/${encodeURIComponent(name.toLowerCase().replaceAll('_', '-'))}${at}`;
    default:
      return `pkg:npm/${name.split('/').map(encodeURIComponent).join('/')}${at}`;
  }
}
