// What files of package managers say about where packages come from, and nothing else that they say. Pure.
import type { AptMirror } from '../../domain/package-settings.ts';
import { APT_ARCHIVES } from '../../domain/package-settings.ts';

export type Expand = (name: string) => string | undefined;

const LOOPBACK = /^(?:localhost|.*\.localhost|127\.\d+\.\d+\.\d+|\[?::1\]?|0\.0\.0\.0)$/i;

/** Whether an address is this machine's own, which no sandbox reaches. */
export function isLoopback(address: string): boolean {
  const text = /^[a-z][a-z0-9+.-]*:\/\//i.test(address) ? address : `http://${address}`;
  return URL.canParse(text) && LOOPBACK.test(new URL(text).hostname);
}

const PIP_SECTIONS = new Set(['global', 'install', 'download', 'wheel']);
const PIP_KEYS = new Set(['index-url', 'extra-index-url', 'trusted-host', 'proxy', 'timeout', 'retries', 'find-links']);

export type PipSettings = { readonly text: string; readonly certificates: readonly string[] };

/** Of several files the later comes before. */
export function pipSettings(files: readonly string[]): PipSettings {
  const kept = new Map<string, Map<string, string>>();
  const certificates: string[] = [];
  for (const [section, key, value] of files.flatMap(iniOf)) {
    if (!PIP_SECTIONS.has(section)) continue;
    if (key === 'cert') certificates.push(value);
    if (!PIP_KEYS.has(key)) continue;
    // Files of this machine are in no sandbox.
    const isUsable = (word: string) => (/^https?:/.test(word) ? !isLoopback(word) : key !== 'find-links');
    const words = value.split(/\s+/).filter((word) => word !== '' && isUsable(word));
    if (words.length === 0 || (key === 'proxy' && isLoopback(value))) continue;
    const own = kept.get(section) ?? new Map<string, string>();
    kept.set(section, own.set(key, words.join('\n    ')));
  }
  const text = [...kept]
    .map(([section, own]) => `[${section}]\n${[...own].map(([key, value]) => `${key} = ${value}\n`).join('')}`)
    .join('');
  return { text, certificates };
}

function iniOf(text: string): (readonly [string, string, string])[] {
  const found: [string, string, string][] = [];
  let section = '';
  for (const line of text.split(/\r?\n/)) {
    if (/^\s*(?:[#;].*)?$/.test(line)) continue;
    const [, name] = /^\[([^\]]+)\]/.exec(line) ?? [];
    if (name !== undefined) {
      section = name.trim().toLowerCase();
      continue;
    }
    const last = found.at(-1);
    if (/^\s/.test(line) && last !== undefined) {
      last[2] = `${last[2]} ${line.trim()}`.trim();
      continue;
    }
    const [, key = '', value = ''] = /^([^=:]+)[=:](.*)$/.exec(line) ?? [];
    if (key !== '') found.push([section, key.trim().toLowerCase().replaceAll('_', '-'), value.trim()]);
  }
  return found;
}

const NPM_KEYS = new Set(['proxy', 'https-proxy', 'noproxy', 'strict-ssl', 'fetch-retries', 'fetch-timeout', 'maxsockets']);
/** Its tokens are for publishing: nobody needs one to fetch. */
const NPM_PUBLIC = /^(?:https?:)?\/\/registry\.(?:npmjs\.org|yarnpkg\.com)(?:\/|$)/;

export type NpmSettings = { readonly text: string; readonly certificates: readonly string[]; readonly authorities: readonly string[] };

/** Of several files the later comes before. `certificates`: their files; `authorities`: such as stand in the file itself. */
export function npmSettings(files: readonly string[], expand: Expand): NpmSettings {
  const all = new Map<string, string>();
  const authorities: string[] = [];
  for (const line of files.flatMap((text) => text.split(/\r?\n/))) {
    const [, key = '', raw = ''] = /^\s*([^#;=\s][^=]*?)\s*=\s*(.*?)\s*$/.exec(line) ?? [];
    const value = raw.replace(/\$\{([^}]+)\}/g, (whole, name: string) => expand(name) ?? whole).replace(/^"(.*)"$/, '$1');
    if (key === 'ca' || key === 'ca[]') authorities.push(value.replaceAll('\\n', '\n'));
    else if (key !== '') all.set(key, value);
  }
  const registries = [...all].filter(([key]) => key === 'registry' || /^@[^:]+:registry$/.test(key)).map(([, url]) => url);
  const mirrors = registries.filter((url) => /^https?:/.test(url) && !NPM_PUBLIC.test(url)).map((url) => url.replace(/^https?:/, ''));
  const isOurs = (key: string): boolean => {
    if (key === 'registry' || /^@[^:]+:registry$/.test(key)) return !isLoopback(all.get(key) ?? '');
    if (NPM_KEYS.has(key)) return true;
    const [, place] = /^(\/\/.*?\/?):(?:_authToken|_auth|username|_password|always-auth)$/.exec(key) ?? [];
    return place !== undefined && mirrors.some((url) => `${url}/`.startsWith(place.endsWith('/') ? place : `${place}/`));
  };
  const kept = [...all].filter(([key, value]) => isOurs(key) && !(/proxy$/.test(key) && key !== 'noproxy' && isLoopback(value)));
  // A lock file would have the mirror's address.
  if (mirrors.length > 0) kept.push(['omit-lockfile-registry-resolved', 'true']);
  const cafile = all.get('cafile');
  return {
    text: kept.map(([key, value]) => `${key}=${value}\n`).join(''),
    certificates: cafile === undefined ? [] : [cafile],
    authorities,
  };
}

const APT_KEYS =
  /^Acquire::(?:(?:http|https|ftp)::(?:Proxy(?:::.+)?|Timeout|Pipeline-Depth)|Retries|Check-Valid-Until|Check-Date|ForceIPv[46])$/;

export type AptSettings = { readonly text: string; readonly certificates: readonly string[] };

/** Of what `apt-config dump Acquire` prints. */
export function aptSettings(dump: string): AptSettings {
  const lines: string[] = [];
  const certificates: string[] = [];
  for (const line of dump.split('\n')) {
    const [, key = '', value = ''] = /^(\S+) "(.*)";$/.exec(line) ?? [];
    if (value === '') continue;
    if (/^Acquire::https(::[^:]+)?::CAInfo$/i.test(key)) certificates.push(value);
    if (APT_KEYS.test(key) && !(/::Proxy/.test(key) && isLoopback(value))) lines.push(`${key} "${value}";\n`);
  }
  return { text: lines.join(''), certificates };
}

/** A file of apt in which each line is `Key "value";`, as `apt-config dump` says it; null: there is more in it. */
export function plainApt(text: string): string | null {
  const lines = text.split('\n').filter((line) => !/^\s*(?:(?:#(?!include|clear)|\/\/).*)?$/.test(line));
  const read = lines.map((line) => /^\s*([\w-]+(?:::[\w.*-]*)*)\s+"([^"\\]*)"\s*;\s*$/.exec(line));
  return read.includes(null) ? null : read.map((found) => `${found?.[1]} "${found?.[2]}";\n`).join('');
}

/** Where this machine's apt fetches its own distribution from, where that is not the distribution's own server. */
export function aptMirrors(osRelease: string, sources: readonly string[]): readonly AptMirror[] {
  const field = (name: string) => new RegExp(`^${name}="?([^"\n]*)"?$`, 'm').exec(osRelease)?.[1] ?? '';
  const [id, codename] = [field('ID'), field('VERSION_CODENAME')];
  if ((id !== 'debian' && id !== 'ubuntu') || codename === '') return [];
  const mirrors = new Map<AptMirror['of'], string>();
  for (const { uri, suites } of sources.flatMap((text) => [...oneLine(text), ...deb822(text)])) {
    for (const suite of suites) {
      const of = suite === codename ? id : id === 'debian' && suite === `${codename}-security` ? 'debian-security' : null;
      if (of !== null && !mirrors.has(of)) mirrors.set(of, uri.replace(/\/+$/, ''));
    }
  }
  return [...mirrors]
    .map(([of, uri]) => ({ of, uri }))
    .filter(({ of, uri }) => /^https?:/.test(uri) && !APT_ARCHIVES[of].test(uri) && !isLoopback(uri));
}

type Source = { readonly uri: string; readonly suites: readonly string[] };

function oneLine(text: string): readonly Source[] {
  return [...text.matchAll(/^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)/gm)].map(([, uri = '', suite = '']) => ({ uri, suites: [suite] }));
}

function deb822(text: string): readonly Source[] {
  return text.split(/\n\s*\n/).flatMap((stanza) => {
    const field = (name: string) =>
      (new RegExp(`^${name}:\\s*(.*)$`, 'im').exec(stanza)?.[1] ?? '').split(/\s+/).filter((word) => word !== '');
    if (!field('Types').includes('deb') || /^Enabled:\s*no/im.test(stanza)) return [];
    return field('URIs').map((uri) => ({ uri, suites: field('Suites') }));
  });
}
