// Where Debian's packages come from while the image is made: the mirror that this machine uses when
// it is a Debian of the same release, else Debian's own; and the proxy that its apt uses. None of it
// gets into the image.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { DownloadEnv } from './apt.ts';

/** Debian 12: its archive is signed with keys that Ubuntu 22.04 knows as well. */
export const SUITE = 'bookworm';
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';
const PUBLIC: Readonly<Record<string, string>> = {
  [SUITE]: 'http://deb.debian.org/debian',
  [`${SUITE}-updates`]: 'http://deb.debian.org/debian',
  [`${SUITE}-security`]: 'http://deb.debian.org/debian-security',
};
const INDEX_FORMAT = '$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)';

/** `deb …` lines for mmdebstrap. @throws HutchError when Debian's keys are not on this machine. */
export async function mirrorLines(op: Operation, host: Host): Promise<readonly string[]> {
  if ((await host.stat(op, KEYRING)) === null) {
    throw op.error('failed_precondition', "Debian's archive keys are not on this machine", {
      hint: 'run: sudo apt-get install debian-archive-keyring',
    });
  }
  const listed = await host.run(op, ['apt-get', 'indextargets', '--format', INDEX_FORMAT, 'Created-By: Packages']);
  const mirrors = listed.exitCode === 0 ? parseMirrors(Buffer.from(listed.stdout).toString()) : new Map<string, string>();
  return Object.entries(PUBLIC).map(([suite, uri]) => `deb [signed-by=${KEYRING}] ${mirrors.get(suite) ?? uri} ${suite} main`);
}

/** Suite → address, of what this machine has of our suites. Others, and forms that are not plain, are left out. */
export function parseMirrors(listed: string): ReadonlyMap<string, string> {
  const mirrors = new Map<string, string>();
  for (const line of listed.split('\n')) {
    const [origin, suite = '', component, uri = ''] = line.split('|');
    const ours = origin === 'Debian' && component === 'main' && suite in PUBLIC && !mirrors.has(suite);
    if (ours && /^https?:\/\/[A-Za-z0-9.:_~%/@+-]+$/.test(uri)) mirrors.set(suite, uri.replace(/\/$/, ''));
  }
  return mirrors;
}

/** The user's own proxies, by the names that apt and mmdebstrap read; apt's configuration goes before them. */
export function proxyVariables(env: Readonly<Record<string, string | undefined>>): DownloadEnv {
  const found: Record<string, string> = {};
  for (const name of ['http_proxy', 'https_proxy', 'no_proxy']) {
    const value = env[name] || env[name.toUpperCase()];
    if (value !== undefined && value !== '') found[name] = value;
  }
  return found;
}

/** The proxies of this machine's apt as environment variables: mmdebstrap reads no apt configuration. */
export async function machineProxies(op: Operation, host: Host): Promise<DownloadEnv> {
  const env: Record<string, string> = {};
  for (const scheme of ['http', 'https']) {
    const shown = await host.run(op, ['apt-config', '--format', '%v%n', 'dump', `Acquire::${scheme}::Proxy`]);
    const proxy = Buffer.from(shown.stdout).toString().trim().split('\n')[0] ?? '';
    if (shown.exitCode === 0 && proxy !== '') env[`${scheme}_proxy`] = proxy;
  }
  return env;
}
