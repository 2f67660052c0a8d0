// The kernels that the distribution offers as packages: which there are, and which one a version or a
// flavour means. What apt knows is asked of apt.
import { HutchError } from '../domain/errors.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { type DownloadEnv, downloadPackages, type Package, type PackageFacts, parsePackageFacts } from './apt.ts';
import { KERNEL_PACKAGES, KERNEL_STEP, META_PACKAGES } from './kernel.ts';

export type KernelPackage = {
  readonly package: string;
  /** As `uname -r` will show it. */
  readonly version: string;
  readonly packageVersion: string;
  readonly sizeBytes: number;
};

const APT_OUTPUT_BYTES_MAX = 16 * 1024 * 1024;
const PREFIX = 'linux-image-';
/** Debug symbols, and what Debian's signed packages are made from. */
const NO_KERNEL = /-(dbg|dbgsym|unsigned|template)$/;
/** Smaller ones are meta packages: they depend on a kernel and hold none. */
const KERNEL_BYTES_MIN = 1024 * 1024;
const PACKAGES_MAX = 2_000;
/** The flavours that are made for virtual machines, when a version alone is asked for. */
const PREFERRED = [/-cloud-amd64$/, /-(virtual|kvm|azure|aws|gcp)$/, /-generic$/, /-amd64$/];

/** All that the package lists of this machine have, the newest first. @throws HutchError `unavailable` without any list. */
export async function availableKernels(op: Operation, host: Host): Promise<readonly KernelPackage[]> {
  const named = await host.run(op, ['apt-cache', 'pkgnames', PREFIX], { outputBytesMax: APT_OUTPUT_BYTES_MAX });
  const names = text(named.stdout)
    .split('\n')
    .filter((name) => KERNEL_PACKAGES.test(name) && name.startsWith(PREFIX) && !NO_KERNEL.test(name))
    .slice(0, PACKAGES_MAX);
  if (names.length === 0) {
    throw op.error('unavailable', 'the package lists of this machine offer no kernel', { hint: 'fetch them: sudo apt-get update' });
  }
  const shown = await host.run(op, ['apt-cache', 'show', '--no-all-versions', ...names], { outputBytesMax: APT_OUTPUT_BYTES_MAX });
  return text(shown.stdout)
    .split('\n\n')
    .map(parsePackageFacts)
    .filter((facts): facts is PackageFacts => facts !== null && facts.sizeBytes >= KERNEL_BYTES_MIN && names.includes(facts.name))
    .map(({ name, version, sizeBytes }) => ({
      package: name,
      version: name.slice(PREFIX.length),
      packageVersion: version,
      sizeBytes,
    }))
    .toSorted((a, b) => compareVersions(b.version, a.version));
}

/** Downloads what `wanted` means: null is what Hutch takes by itself; else a package, a version, the beginning of one, or a flavour. */
export async function downloadKernel(
  op: Operation,
  host: Host,
  wanted: string | null,
  workDir: string,
  env: DownloadEnv,
): Promise<readonly Package[]> {
  const request = { follow: KERNEL_PACKAGES, workDir, step: KERNEL_STEP, env };
  if (wanted === null) return await downloadPackages(op, host, { ...request, firstOf: META_PACKAGES });
  const asked = wanted.startsWith(PREFIX) ? wanted.slice(PREFIX.length) : wanted;
  if (/^[0-9]/.test(asked))
    return await downloadPackages(op, host, { ...request, firstOf: [await named(op, host, asked)], wanted: 'itself' });
  const metas = [`${PREFIX}${asked}-amd64`, `${PREFIX}${asked}`];
  return await downloadPackages(op, host, { ...request, firstOf: metas }).catch((error: unknown) => {
    if (!(error instanceof HutchError) || error.code !== 'not_found') throw error;
    throw op.error('not_found', `the distribution has no kernel of the flavour '${asked}'`, { hint: 'see: hutch kernel ls --available' });
  });
}

async function named(op: Operation, host: Host, version: string): Promise<string> {
  const found = matching(version, await availableKernels(op, host));
  if (found !== null) return found.package;
  throw op.error('not_found', `the distribution has no kernel ${version}`, { hint: 'see: hutch kernel ls --available' });
}

/** The kernel of exactly this version, else the newest whose version begins so, made for virtual machines before others. */
export function matching(version: string, available: readonly KernelPackage[]): KernelPackage | null {
  const exact = available.find((kernel) => kernel.version === version);
  if (exact !== undefined) return exact;
  const isBegun = (whole: string) => whole.startsWith(version) && !/^[0-9]/.test(whole.slice(version.length));
  const begun = available.filter((kernel) => isBegun(kernel.version)).toSorted((a, b) => compareVersions(b.version, a.version));
  for (const flavour of PREFERRED) {
    const found = begun.find((kernel) => flavour.test(kernel.version));
    if (found !== undefined) return found;
  }
  return begun[0] ?? null;
}

/** Number by number, as people mean them: 6.1.0-9 is older than 6.1.0-47. */
export function compareVersions(a: string, b: string): number {
  return a.localeCompare(b, 'en', { numeric: true });
}

function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
