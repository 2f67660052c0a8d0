// The package settings of this machine, as its user has them: what a build is lent so that its commands reach registries as commands here
// do. Only where packages come from and whom to trust: nothing else of these files, and no token that is for publishing.
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type PackageSettings, SETTINGS_DIR } from '../../domain/package-settings.ts';
import { aptMirrors, aptSettings, isLoopback, npmSettings, pipSettings, plainApt } from './package-files.ts';

const FILE_BYTES_MAX = 4 * 1024 * 1024;
const APT_CONFIG_MS = 5_000;
/** A file of apt without one of these sets nothing that is lent. */
const APT_WORDS = /(?<![\w-])(?:proxy|timeout|pipeline-depth|retries|check-valid-until|check-date|forceipv[46]|cainfo)\s*(?:::|"|\{)/i;

export type Machine = {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** `/`, but for tests. */
  readonly root: string;
};

const PROXIES = ['http_proxy', 'https_proxy', 'ftp_proxy', 'all_proxy'].flatMap((name) => [name, name.toUpperCase()]);
const NO_PROXIES = ['no_proxy', 'NO_PROXY'];
const ADDRESSES = [
  ...['PIP_INDEX_URL', 'PIP_EXTRA_INDEX_URL', 'UV_INDEX_URL', 'UV_DEFAULT_INDEX', 'UV_EXTRA_INDEX_URL', 'UV_INDEX'],
  ...['GOPROXY', 'YARN_REGISTRY', 'YARN_NPM_REGISTRY_SERVER', 'RUSTUP_DIST_SERVER', 'RUSTUP_UPDATE_ROOT'],
];
const WORDS = ['PIP_TRUSTED_HOST', 'PIP_DEFAULT_TIMEOUT', 'UV_INSECURE_HOST', 'GOSUMDB', 'GONOSUMDB', 'GOPRIVATE'];
/** Who names a file of certificates here has some of their own; and what a command is told instead. */
const TRUST = [
  ...['SSL_CERT_FILE', 'CURL_CA_BUNDLE', 'REQUESTS_CA_BUNDLE', 'PIP_CERT', 'NODE_EXTRA_CA_CERTS', 'GIT_SSL_CAINFO', 'AWS_CA_BUNDLE'],
  ...['NIX_SSL_CERT_FILE', 'CARGO_HTTP_CAINFO', 'DENO_CERT', 'BUNDLE_SSL_CA_CERT'],
];
const ANCHORS = [
  ...['/usr/local/share/ca-certificates', '/etc/pki/ca-trust/source/anchors', '/etc/ca-certificates/trust-source/anchors'],
  ...['/usr/share/pki/trust/anchors', '/etc/pki/trust/anchors'],
];
const BUNDLES = ['/etc/ssl/certs/ca-certificates.crt', '/etc/pki/tls/certs/ca-bundle.crt', '/etc/ssl/ca-bundle.pem', '/etc/ssl/cert.pem'];

/** `left`: what is not lent although it is set, each with why. */
export async function packageSettings(machine: Machine): Promise<{ readonly settings: PackageSettings; readonly left: readonly string[] }> {
  const { env } = machine;
  const given: Record<string, string> = {};
  const left: string[] = [];
  for (const name of PROXIES) {
    const value = env[name] ?? '';
    if (value === '') continue;
    if (isLoopback(value)) left.push(`${name} is an address of this machine itself, which no sandbox reaches`);
    else given[name] = value;
  }
  for (const name of NO_PROXIES) if ((env[name] ?? '') !== '') given[name] = env[name] ?? '';
  for (const name of ADDRESSES) {
    const value = env[name] ?? '';
    if (/https?:\/\//.test(value) && !value.split(/[\s,|]+/).some(isLoopback)) given[name] = value;
  }
  for (const name of WORDS) if ((env[name] ?? '') !== '') given[name] = env[name] ?? '';

  const [pip, npm, apt] = [pipOf(machine), npmOf(machine), aptOf(machine)];
  const trust = await trustOf(machine, [...pip.certificates, ...npm.certificates, ...apt.certificates], npm.authorities);
  const files = new Map<string, Buffer>();
  const lend = (name: string, text: string, ...variables: string[]) => {
    if (text === '') return;
    files.set(name, Buffer.from(text));
    for (const variable of variables) given[variable] = `${SETTINGS_DIR}/${name}`;
  };
  const authorities = `${SETTINGS_DIR}/ca.pem`;
  lend('ca.pem', trust, ...TRUST);
  if (trust !== '') lend('wgetrc', `ca_certificate = ${authorities}\n`, 'WGETRC');
  lend('pip.conf', pip.text, 'PIP_CONFIG_FILE');
  lend('npmrc', npm.text + (trust === '' ? '' : `cafile=${authorities}\n`), 'NPM_CONFIG_GLOBALCONFIG');
  lend('apt.conf', apt.text + (trust === '' ? '' : `Acquire::https::CAInfo "${authorities}";\n`), 'APT_CONFIG');
  return { settings: { env: given, files, aptMirrors: apt.mirrors }, left };
}

function pipOf(machine: Machine) {
  const { env } = machine;
  const home = env['HOME'] ?? '/root';
  const own = env['PIP_CONFIG_FILE'];
  const files = [
    '/etc/xdg/pip/pip.conf',
    '/etc/pip.conf',
    `${home}/.pip/pip.conf`,
    `${env['XDG_CONFIG_HOME'] ?? `${home}/.config`}/pip/pip.conf`,
  ];
  return pipSettings(texts(machine, own === undefined ? files : [...files, own]));
}

function npmOf(machine: Machine) {
  const { env } = machine;
  const variable = (name: string) => env[`npm_config_${name}`] ?? env[`NPM_CONFIG_${name.toUpperCase()}`];
  const user = variable('userconfig') ?? `${env['HOME'] ?? '/root'}/.npmrc`;
  const global = variable('globalconfig');
  const files = ['/etc/npmrc', '/usr/etc/npmrc', '/usr/local/etc/npmrc', ...(global === undefined ? [] : [global]), user];
  const said = ['registry', 'proxy', 'https_proxy', 'noproxy', 'strict_ssl', 'cafile'].flatMap((name) => {
    const value = variable(name);
    return value === undefined || value === '' ? [] : [`${name.replaceAll('_', '-')}=${value}\n`];
  });
  return npmSettings([...texts(machine, files), said.join('')], (name) => env[name]);
}

function aptOf(machine: Machine) {
  const { root } = machine;
  const dir = join(root, 'etc/apt');
  if (!isDirectory(dir)) return { ...aptSettings(''), mirrors: [] };
  const dump = aptDump(machine, dir);
  const parts = namesIn(join(dir, 'sources.list.d'))
    .filter((name) => /\.(list|sources)$/.test(name))
    .toSorted();
  const sources = texts(machine, ['/etc/apt/sources.list', ...parts.map((name) => `/etc/apt/sources.list.d/${name}`)]);
  const [release = ''] = texts(machine, ['/etc/os-release']);
  return { ...aptSettings(dump), mirrors: aptMirrors(release, sources) };
}

/** What apt is set to, a line for each. It says so itself, but takes longer for it than all else here: where its files are plain they are read. */
function aptDump({ env, root }: Machine, dir: string): string {
  const own = root === '/' ? env['APT_CONFIG'] : undefined;
  const parts = namesIn(join(dir, 'apt.conf.d'))
    .toSorted()
    .map((name) => `/etc/apt/apt.conf.d/${name}`);
  const files = texts({ env, root }, [...(own === undefined ? [] : [own]), ...parts, '/etc/apt/apt.conf']).filter((text) =>
    APT_WORDS.test(text),
  );
  const plain = files.map(plainApt);
  if (plain.every((text) => text !== null)) return plain.join('');
  try {
    return execFileSync('apt-config', ['-o', `Dir::Etc=${dir}`, 'dump', '--format', '%f "%v";%n', 'Acquire'], {
      timeout: APT_CONFIG_MS,
      env: { ...env, APT_CONFIG: own } as NodeJS.ProcessEnv,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
  } catch {
    return '';
  }
}

/** Certificates as one file, where this machine trusts more than a machine does by itself; else ''. */
async function trustOf(machine: Machine, files: readonly string[], authorities: readonly string[]): Promise<string> {
  const named = [...TRUST.flatMap((name) => machine.env[name] ?? []), ...files];
  const anchors: string[] = [];
  for (const dir of ANCHORS) {
    const found = namesIn(join(machine.root, dir), 'and-below');
    anchors.push(...found.filter((name) => /\.(crt|pem|cer)$/.test(name)).map((name) => `${dir}/${name}`));
  }
  const [bundle] = texts(machine, BUNDLES);
  const found = [...authorities, ...texts(machine, [...new Set([...named, ...anchors])])];
  // Nearly always the bundle is what is named, and has the others already: then it is given as it is, and not looked through.
  const others = certificatesIn(found.filter((text) => text !== bundle));
  if (bundle !== undefined && others.every((one) => bundle.includes(one))) return found.some(hasCertificate) ? bundle : '';
  const own = certificatesIn(found);
  if (own.length === 0) return '';
  // Loaded where it is needed: all of TLS comes with it.
  const known = bundle === undefined ? (await import('node:tls')).rootCertificates : [bundle];
  return `${[...new Set([...certificatesIn(known), ...own])].join('\n')}\n`;
}

const hasCertificate = (text: string): boolean => text.includes('CERTIFICATE-----');

function certificatesIn(found: readonly string[]): readonly string[] {
  return found.flatMap(
    (text) => text.match(/-----BEGIN (?:TRUSTED )?CERTIFICATE-----[\s\S]+?-----END (?:TRUSTED )?CERTIFICATE-----/g) ?? [],
  );
}

/** Of those that are there, and that their user may read. Some forty paths that mostly are not: asked one after the other that is nothing. */
function texts({ root }: Machine, paths: readonly string[]): readonly string[] {
  return paths.flatMap((path) => {
    const at = join(root, path);
    try {
      const info = statSync(at, { throwIfNoEntry: false });
      return info?.isFile() === true && info.size <= FILE_BYTES_MAX ? [readFileSync(at, 'utf8')] : [];
    } catch {
      return [];
    }
  });
}

function isDirectory(path: string): boolean {
  try {
    return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
  } catch {
    return false;
  }
}

function namesIn(path: string, depth: 'itself' | 'and-below' = 'itself'): readonly string[] {
  if (!isDirectory(path)) return [];
  try {
    return readdirSync(path, { recursive: depth === 'and-below', encoding: 'utf8' });
  } catch {
    return [];
  }
}
