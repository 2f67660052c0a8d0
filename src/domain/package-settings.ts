// How a machine reaches what packages are fetched from: proxies, mirrors, certificates of its own. A build is lent the settings of the
// machine on which it was asked for: its commands see them, and nothing that stays does.

export type PackageSettings = {
  /** Of each command; what its image or its Dockerfile says comes before. */
  readonly env: Readonly<Record<string, string>>;
  /** Content by name: each lies in `SETTINGS_DIR`. */
  readonly files: ReadonlyMap<string, Buffer>;
  /** Where apt fetches from in place of the distribution's own servers. */
  readonly aptMirrors: readonly AptMirror[];
};

export type AptMirror = { readonly of: keyof typeof APT_ARCHIVES; readonly uri: string };

/** In a sandbox, in memory. */
export const SETTINGS_DIR = '/run/hutch-build/settings';

export const NO_PACKAGE_SETTINGS: PackageSettings = { env: {}, files: new Map(), aptMirrors: [] };

/** What images of a distribution name as its archive, without a slash at the end. */
export const APT_ARCHIVES = {
  debian: /^https?:\/\/(?:deb|httpredir|cdn-fastly\.deb|ftp(?:\.[a-z]{2})?)\.debian\.org\/debian$/,
  'debian-security': /^https?:\/\/(?:deb\.debian\.org\/debian-security|security\.debian\.org(?:\/debian-security)?)$/,
  ubuntu: /^https?:\/\/(?:[a-z]{2}\.)?(?:archive|security)\.ubuntu\.com\/ubuntu$/,
} as const;

const URL_TEXT = /\b(?:https?|ftp|socks[45]?h?):\/\/[^\s"',;|]+/gi;
const TOKEN = /(?:_authToken|_password|_auth)\s*=\s*"?([^\s"]+)/g;
const CHARS_MIN = 4;

/**
 * What of it no log shows: `addresses` of proxies and mirrors, and `credentials`, which no file of an image may have either.
 * Certificates are public.
 */
export function confidential({ env, files, aptMirrors }: PackageSettings): {
  readonly addresses: readonly string[];
  readonly credentials: readonly string[];
} {
  const texts = [
    ...Object.values(env),
    ...[...files.values()].map(String).filter((text) => !text.includes('-----BEGIN')),
    ...aptMirrors.map(({ uri }) => uri),
  ];
  const addresses = new Set<string>();
  const credentials = new Set<string>();
  for (const text of texts) {
    for (const [url] of text.matchAll(URL_TEXT)) {
      addresses.add(url.replace(/\/+$/, ''));
      if (URL.canParse(url)) addresses.add(new URL(url).host);
      const [, login] = /^[a-z0-9]+:\/\/([^/@]+)@/i.exec(url) ?? [];
      if (login === undefined) continue;
      const password = login.includes(':') ? login.slice(login.indexOf(':') + 1) : login;
      for (const each of [login, password, decoded(password)]) credentials.add(each);
    }
    for (const [, token = ''] of text.matchAll(TOKEN)) credentials.add(token);
  }
  const known = (found: ReadonlySet<string>) => [...found].filter((each) => each.length >= CHARS_MIN).sort((a, b) => b.length - a.length);
  return { addresses: known(addresses), credentials: known(credentials) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a percent sign of its own
  }
}

/** A list of apt's sources, with the mirrors in place of what they mirror; the same text where there is nothing to replace. */
export function withMirrors(sources: string, mirrors: readonly AptMirror[]): string {
  return sources.replace(/\bhttps?:\/\/[^\s\]]+/g, (uri) => {
    const mirror = mirrors.find(({ of }) => APT_ARCHIVES[of].test(uri.replace(/\/+$/, '')));
    return mirror?.uri ?? uri;
  });
}
