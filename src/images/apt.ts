// Packages of the distribution, fetched by its own apt, which checks their signatures; nothing is
// installed and no root is needed. The machine's package lists are tried first; when they are
// missing or name a version that is no longer offered, lists of our own are fetched in `workDir`.
import { join } from 'node:path';
import { HutchError } from '../domain/errors.ts';
import type { Host, RunResult } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

export type Package = { readonly name: string; readonly version: string; readonly file: string };

/** Environment for apt and mmdebstrap alone: proxies, where this machine needs them. */
export type DownloadEnv = Readonly<Record<string, string>>;

export type PackageRequest = {
  /** Meta packages; the first that the distribution has is followed. */
  readonly firstOf: readonly string[];
  /** `itself`: they are no meta packages, and are downloaded too. Default: only what they depend on. */
  readonly wanted?: 'itself' | 'what-it-needs';
  /** Which dependencies of it, and of these, are downloaded. */
  readonly follow: RegExp;
  readonly workDir: string;
  /** What progress is reported under. */
  readonly step: string;
  readonly env: DownloadEnv;
};

/** What apt's lists say of a package's newest version. */
export type PackageFacts = {
  readonly name: string;
  readonly version: string;
  readonly architecture: string;
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly depends: readonly string[];
};

const APT_OUTPUT_BYTES_MAX = 16 * 1024 * 1024;
const PACKAGE_BYTES_MAX = 1024 * 1024 * 1024;
// As root apt would hand the work to its own user, who cannot write to our directory.
const COMMON_ARGS = [
  '-o',
  'APT::Sandbox::User=root',
  '-o',
  'Acquire::Retries=3',
  '-o',
  'Acquire::http::Timeout=30',
  '-o',
  'Acquire::https::Timeout=30',
];

/**
 * Downloads into `workDir` what the request asks for; each file has the checksum of the signed lists.
 * A file that an interrupted try left there whole is not downloaded again.
 */
export async function downloadPackages(op: Operation, host: Host, request: PackageRequest): Promise<readonly Package[]> {
  try {
    return await downloadWith(op, host, request, []);
  } catch (error) {
    if (!(error instanceof HutchError) || (error.code !== 'not_found' && error.code !== 'unavailable')) throw error;
    op.log.info({ cause: error.message }, "the machine's package lists do not serve; fetching own ones");
  }
  return downloadWith(op, host, request, await fetchLists(op, host, request));
}

async function downloadWith(op: Operation, host: Host, request: PackageRequest, listArgs: readonly string[]): Promise<readonly Package[]> {
  const packages: Package[] = [];
  for (const facts of await resolve(op, host, request, listArgs)) packages.push(await download(op, host, request, listArgs, facts));
  return packages;
}

async function resolve(op: Operation, host: Host, request: PackageRequest, listArgs: readonly string[]): Promise<readonly PackageFacts[]> {
  for (const meta of request.firstOf) {
    const found = new Map<string, PackageFacts>();
    const queue = request.wanted === 'itself' ? [meta] : [...((await packageFacts(op, host, listArgs, meta))?.depends ?? [])];
    for (const name of queue) {
      if (!request.follow.test(name) || found.has(name)) continue;
      const facts = await packageFacts(op, host, listArgs, name);
      if (facts === null) continue; // one of several alternatives
      found.set(name, facts);
      queue.push(...facts.depends);
    }
    if (found.size > 0) return [...found.values()];
  }
  const names = request.firstOf.join(', ');
  throw op.error('not_found', `this distribution offers none of the packages ${names}`, { hint: 'run: apt-get update' });
}

async function packageFacts(op: Operation, host: Host, listArgs: readonly string[], name: string): Promise<PackageFacts | null> {
  const shown = await host.run(op, ['apt-cache', ...listArgs, 'show', '--no-all-versions', name], { outputBytesMax: APT_OUTPUT_BYTES_MAX });
  return shown.exitCode === 0 ? parsePackageFacts(text(shown.stdout)) : null;
}

/** The first stanza of what `apt-cache show` prints; null when a field is missing or has another form. */
export function parsePackageFacts(shown: string): PackageFacts | null {
  const stanza = shown.split('\n\n')[0] ?? '';
  const field = (name: string) => new RegExp(`^${name}: (.*)$`, 'm').exec(stanza)?.[1]?.trim() ?? '';
  const [name, version, architecture] = [field('Package'), field('Version'), field('Architecture')];
  const sizeBytes = Number(field('Size'));
  const sha256 = field('SHA256');
  const valid =
    /^[a-z0-9][a-z0-9.+-]*$/.test(name) &&
    /^[A-Za-z0-9.+~:-]+$/.test(version) &&
    /^[a-z0-9-]+$/.test(architecture) &&
    /^[0-9a-f]{64}$/.test(sha256) &&
    sizeBytes > 0 &&
    sizeBytes <= PACKAGE_BYTES_MAX;
  if (!valid) return null;
  const depends = field('Depends')
    .split(/[,|]/)
    .map((dependency) => dependency.trim().split(/[ :(]/)[0] ?? '');
  return { name, version, architecture, sizeBytes, sha256, depends };
}

async function download(
  op: Operation,
  host: Host,
  request: PackageRequest,
  listArgs: readonly string[],
  facts: PackageFacts,
): Promise<Package> {
  const { name, version, sizeBytes } = facts;
  const file = join(request.workDir, `${name}_${version.replaceAll(':', '%3a')}_${facts.architecture}.deb`);
  const wanted = { name, version, file };
  if (await isWhole(op, host, file, facts)) return wanted;
  await host.remove(op, file); // apt takes a file of the right size for the right one
  const report = (percent: number) =>
    op.progress({
      step: request.step,
      detail: `downloading ${name}`,
      done: Math.round((sizeBytes * percent) / 100),
      total: sizeBytes,
      unit: 'bytes',
    });
  report(0);
  const argv = ['apt-get', ...listArgs, ...COMMON_ARGS, '-o', 'APT::Status-Fd=1', 'download', `${name}=${version}`];
  const fetched = await host.run(op, argv, { cwd: request.workDir, env: request.env, onOutput: followDownload(report) });
  if (fetched.exitCode !== 0) throw aptError(op, fetched, `download package ${name}`);
  if (await isWhole(op, host, file, facts)) return wanted;
  throw op.error('unavailable', `package ${name} ${version} was downloaded but does not have the checksum of the package lists`, {
    hint: 'run: apt-get update, then the same command again',
  });
}

async function isWhole(op: Operation, host: Host, file: string, facts: PackageFacts): Promise<boolean> {
  const info = await host.stat(op, file);
  return info?.type === 'file' && info.sizeBytes === facts.sizeBytes && (await host.sha256(op, file)) === facts.sha256;
}

/** Calls back with the percentage of apt's own status lines (`dlstatus:1:42.5000:…`) as they come. */
export function followDownload(onPercent: (percent: number) => void): (chunk: Uint8Array) => void {
  let rest = '';
  return (chunk) => {
    const lines = (rest + text(chunk)).split(/[\r\n]/);
    rest = (lines.pop() ?? '').slice(-1024);
    const last = lines.findLast((line) => line.startsWith('dlstatus:'));
    const percent = Number(last?.split(':')[2] ?? Number.NaN);
    if (Number.isFinite(percent)) onPercent(Math.min(100, Math.max(0, percent)));
  };
}

/** Fetches package lists of our own; gives the arguments that make apt use them. */
async function fetchLists(op: Operation, host: Host, request: PackageRequest): Promise<readonly string[]> {
  const state = join(request.workDir, 'apt-state');
  const cache = join(request.workDir, 'apt-cache');
  await host.makeDir(op, join(state, 'lists', 'partial'), 0o755);
  await host.makeDir(op, join(cache, 'archives', 'partial'), 0o755);
  const listArgs = ['-o', `Dir::State=${state}`, '-o', `Dir::Cache=${cache}`];
  const report = (percent: number) =>
    op.progress({ step: request.step, detail: 'fetching package lists', done: Math.round(percent), total: 100, unit: 'items' });
  const argv = ['apt-get', ...listArgs, ...COMMON_ARGS, '-o', 'APT::Status-Fd=1', 'update'];
  const updated = await host.run(op, argv, { env: request.env, onOutput: followDownload(report) });
  if (updated.exitCode !== 0) throw aptError(op, updated, 'fetch the package lists');
  return listArgs;
}

const NO_SUCH_PACKAGE = /Unable to locate package|No packages found|has no installation candidate|Can't find a source/;
const NO_SPACE = /No space left on device|enough free space|Write error - write \(28/;
const NO_CHROOT = /unable to pick chroot mode|newuidmap|newgidmap|\/etc\/sub[ug]id/;
const NO_NETWORK =
  /Failed to fetch|Temporary failure|Could not (?:connect|resolve|handshake)|Connection (?:timed out|refused|failed)|Unable to connect|Network is unreachable|\b404\b/;

/** What apt or mmdebstrap said, as one sentence with the next step. */
export function aptError(op: Operation, result: RunResult, what: string): HutchError {
  const said = `${text(result.stderr)}\n${text(result.stdout)}`;
  const lines = said.split('\n').map((line) => line.trim());
  const reason = reasonOf(lines) ?? `it ended with exit code ${result.exitCode}`;
  const cause = new Error(lines.slice(-40).join('\n'));
  if (NO_SPACE.test(said)) {
    return op.error('resource_exhausted', `cannot ${what}: the disk is full`, {
      hint: 'free some space, then run the same command again',
      cause,
    });
  }
  if (NO_SUCH_PACKAGE.test(said)) return op.error('not_found', `cannot ${what}: ${reason}`, { hint: 'run: apt-get update', cause });
  if (NO_NETWORK.test(said)) {
    return op.error('unavailable', `cannot ${what}: ${reason}`, {
      hint: 'check the network and the proxy settings of this machine, then run the same command again: it goes on where it stopped',
      cause,
    });
  }
  if (NO_CHROOT.test(said)) {
    return op.error('failed_precondition', `cannot ${what}: this user may not make user namespaces`, {
      hint: 'run: sudo apt-get install uidmap fakechroot fakeroot; and see that /etc/subuid has a line for this user',
      cause,
    });
  }
  return op.error('internal', `cannot ${what}: ${reason}`, { cause });
}

function reasonOf(lines: readonly string[]): string | null {
  const errors = lines.filter((line) => /^E: |^Err:\d+ |^FATAL ERROR: |: error: /.test(line));
  const line =
    errors.find((candidate) => /^E: (Failed to fetch|Unable)/.test(candidate)) ??
    errors.find((candidate) => /^(E|FATAL)/.test(candidate)) ??
    null;
  return line === null
    ? null
    : line
        .replace(/^(E: |Err:\d+ )/, '')
        .replace(/\s+/g, ' ')
        .slice(0, 400);
}

function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
