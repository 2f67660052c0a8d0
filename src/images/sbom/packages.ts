// Packages, as the databases of package managers in an image's own file system name them. Pure. What an image says of
// itself is hostile: every text has a bound and no control characters, and what makes no sense is left out.

import { rpmPackages } from './rpm.ts';

export type Found = {
  readonly kind: 'deb' | 'apk' | 'rpm' | 'pypi' | 'npm';
  readonly name: string;
  readonly version: string;
  readonly architecture: string | null;
  readonly license: string | null;
  /** Where it was found, below the root. */
  readonly path: string;
};

const TEXT_CHARS_MAX = 256;
const LINE_CHARS_MAX = 4_096;
const HEADER_LINES_MAX = 1_000;

export type Database = { readonly kind: Found['kind'] | 'old-rpm' | 'os-release'; readonly bytesMax: number };

const MIB = 2 ** 20;
const PLACES: readonly (readonly [pattern: RegExp, database: Database])[] = [
  [/^var\/lib\/dpkg\/(status|status\.d\/[^/]+)$/, { kind: 'deb', bytesMax: 64 * MIB }],
  [/^(usr\/)?lib\/apk\/db\/installed$/, { kind: 'apk', bytesMax: 64 * MIB }],
  [/\/[^/]+\.(dist-info\/METADATA|egg-info\/PKG-INFO|egg-info)$/, { kind: 'pypi', bytesMax: MIB }],
  [/(^|\/)node_modules\/(@[^/]+\/)?[^/]+\/package\.json$/, { kind: 'npm', bytesMax: MIB }],
  [/^(var\/lib|usr\/lib\/sysimage)\/rpm\/rpmdb\.sqlite$/, { kind: 'rpm', bytesMax: 128 * MIB }],
  [/^(var\/lib|usr\/lib\/sysimage)\/rpm\/Packages(\.db)?$/, { kind: 'old-rpm', bytesMax: 0 }],
  [/^(etc|usr\/lib)\/os-release$/, { kind: 'os-release', bytesMax: 64 * 1024 }],
];

/** What a file of that name is; null: nothing of the kind. */
export function databaseAt(path: string): Database | null {
  return PLACES.find(([pattern]) => pattern.test(path))?.[1] ?? null;
}

/** Null: it is none of those. */
export function packagesIn(kind: Found['kind'], path: string, content: Buffer): readonly Found[] | null {
  if (kind === 'rpm') {
    const packages = rpmPackages(content);
    return (
      packages?.flatMap(({ name, version, architecture, license }) => found('rpm', path, name, version, architecture, license)) ?? null
    );
  }
  const text = content.toString('utf8');
  switch (kind) {
    case 'deb':
      return stanzas(text).flatMap((fields) => dpkg(fields, path));
    case 'apk':
      return stanzas(text).flatMap((fields) => found('apk', path, fields.get('P'), fields.get('V'), fields.get('A'), fields.get('L')));
    case 'pypi': {
      const [fields = new Map<string, string>()] = stanzas(text.slice(0, HEADER_LINES_MAX * LINE_CHARS_MAX), 1);
      return found(
        'pypi',
        path,
        fields.get('Name'),
        fields.get('Version'),
        undefined,
        fields.get('License-Expression') ?? fields.get('License'),
      );
    }
    default:
      return npm(text, path);
  }
}

/** ID of /etc/os-release, for the names of its packages. */
export function distributionOf(content: Buffer): string | null {
  const id = /^ID=["']?([a-z0-9._-]{1,64})["']?\s*$/m.exec(content.toString('utf8'))?.[1];
  return id ?? null;
}

/** A status without one: the form that images without dpkg itself have. */
function dpkg(fields: ReadonlyMap<string, string>, path: string): readonly Found[] {
  const status = fields.get('Status');
  if (status !== undefined && !status.endsWith(' installed')) return [];
  return found('deb', path, fields.get('Package'), fields.get('Version'), fields.get('Architecture'), undefined);
}

function npm(text: string, path: string): readonly Found[] {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return [];
  }
  if (typeof json !== 'object' || json === null) return [];
  const { name, version, license } = json as Record<string, unknown>;
  return found('npm', path, name, version, undefined, license);
}

function found(
  kind: Found['kind'],
  path: string,
  name: unknown,
  version: unknown,
  architecture: unknown,
  license: unknown,
): readonly Found[] {
  const [shownName, shownVersion] = [plain(name), plain(version)];
  if (shownName === null || shownVersion === null) return [];
  return [
    { kind, name: shownName, version: shownVersion, architecture: plain(architecture), license: plain(license), path: plain(path) ?? '' },
  ];
}

function plain(value: unknown): string | null {
  if (typeof value !== 'string') return null;
  const text = value
    .replace(/[\x00-\x1f\x7f]/g, ' ')
    .trim()
    .slice(0, TEXT_CHARS_MAX);
  return text === '' ? null : text;
}

/** `Key: value` or `K:value`, in groups that an empty line ends; lines that go on are not looked at. */
function stanzas(text: string, max = Number.POSITIVE_INFINITY): readonly ReadonlyMap<string, string>[] {
  const groups: Map<string, string>[] = [];
  let open: Map<string, string> | null = null;
  for (let at = 0; at < text.length; ) {
    const end = text.indexOf('\n', at);
    const line = text.slice(at, Math.min(end < 0 ? text.length : end, at + LINE_CHARS_MAX)).replace(/\r$/, '');
    at = end < 0 ? text.length : end + 1;
    if (line === '') {
      if (open !== null && groups.length >= max) break;
      open = null;
      continue;
    }
    const colon = line.indexOf(':');
    if (colon <= 0 || line.startsWith(' ') || line.startsWith('\t')) continue;
    if (open === null) {
      open = new Map();
      groups.push(open);
    }
    const key = line.slice(0, colon);
    if (open.size < HEADER_LINES_MAX && !open.has(key)) open.set(key, line.slice(colon + 1).trim());
  }
  return groups;
}
