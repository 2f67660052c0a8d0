// The guest's kernel: the distribution's own, taken from its package and never installed. Kept as
// `kernels/DIGEST/` with `vmlinux`, the modules that a guest loads, and a manifest that has the
// checksum of each. The digest is over that list, so a kernel is its modules too.
import { createHash } from 'node:crypto';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { gunzip, zstdDecompress } from 'node:zlib';
import * as z from 'zod';
import { type Architecture, KERNEL_FROM, type Kernel, type KernelFrom } from '../domain/image.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { type DownloadEnv, downloadPackages, type Package } from './apt.ts';
import { unpackKernel, unpackOr, VMLINUX_BYTES_MAX, VMLINUZ_BYTES_MAX } from './bzimage.ts';
import { idOfDigest } from './digest.ts';
import { BUILT, CONFIG_BYTES_MAX, carriedConfig, configByModules, parseKernelConfig } from './kernel-config.ts';
import { alone, commit, type ImagePaths, listOr, SHARED_DIR_MODE, SHARED_FILE_MODE, unlessDamaged } from './layout.ts';
import { GUEST_MODULES, moduleIndex, modulesInOrder, OPTIONAL_MODULES } from './modules.ts';
import { DamagedPayload } from './payload-error.ts';

export type PreparedKernel = {
  readonly record: Kernel;
  readonly vmlinuxPath: string;
  readonly modulesDir: string;
  /** In the order of loading. */
  readonly moduleFiles: readonly string[];
  readonly by: KernelFrom;
};

/** Debian's and Ubuntu's small kernels for virtual machines first, then what any Debian has. */
export const META_PACKAGES = ['linux-image-cloud-amd64', 'linux-image-virtual', 'linux-image-kvm', 'linux-image-amd64'];
export const KERNEL_PACKAGES = /^linux-(image|modules)-[0-9]/;
/** Ours of an older recipe (1: without the balloon; 2: without FUSE) are made anew where that is possible; all of these can be used. */
const RECIPE = 3;
const RECIPE_MIN = 1;
export const KERNEL_STEP = 'kernel';
export const KERNEL_MANIFEST = 'manifest.json';
const MANIFEST_BYTES_MAX = 64 * 1024;
export const MODULE_BYTES_MAX = 32 * 1024 * 1024;
export const INDEX_BYTES_MAX = 4 * 1024 * 1024;

const hex64 = z.string().regex(/^[0-9a-f]{64}$/, 'must be 64 hex digits');
const manifestSchema = z.strictObject({
  recipe: z.int(),
  architecture: z.literal('x86_64'),
  /** As `uname -r` shows it. */
  version: z.string().min(1).max(128),
  packages: z.array(z.strictObject({ name: z.string().max(128), version: z.string().max(128) })).max(16),
  createdAtMs: z.int(),
  sizeBytes: z.int(),
  vmlinux: hex64,
  modules: z.array(z.strictObject({ file: z.string().regex(/^[A-Za-z0-9_-]{1,64}\.ko$/), sha256: hex64 })).max(64),
  // Manifests of before have neither.
  config: z.record(z.string().regex(/^[A-Z0-9_]{1,64}$/), z.enum(BUILT)).optional(),
  by: z.enum(KERNEL_FROM).default('hutch'),
});
type Manifest = z.infer<typeof manifestSchema>;
export type KernelManifest = Manifest;

/**
 * Finds the kernel and reads it through, or gets it: download, unpack, choose modules, move into
 * place. One that is damaged is made anew. Needs no root.
 */
export async function prepareKernel(op: Operation, host: Host, paths: ImagePaths, env: DownloadEnv = {}): Promise<PreparedKernel> {
  return alone(op, host, paths, 'kernel', {
    find: async () => {
      const kernel = await soundKernel(op, host, paths);
      return kernel !== null && kernel.by === 'hutch' && recipeOf(kernel) < RECIPE ? null : kernel;
    },
    keep: /\.deb$/,
    make: async (staging) => {
      try {
        return await makeKernel(op, host, paths, staging, env);
      } catch (error) {
        // Without a network one of before is better than none.
        const before = op.signal.aborted ? null : await soundKernel(op, host, paths);
        if (before === null) throw error;
        op.log.warn({ error, kernel: before.record.digest }, 'a newer kernel cannot be made: the one of before is used');
        return before;
      }
    },
  });
}

const isOfUse = (recipe: number): boolean => recipe >= RECIPE_MIN && recipe <= RECIPE;
const recipeOf = ({ record }: PreparedKernel): number => Number(record.detail['recipe']);

async function soundKernel(op: Operation, host: Host, paths: ImagePaths): Promise<PreparedKernel | null> {
  const kernel = await findKernel(op, host, paths);
  if (kernel === null) return null;
  return unlessDamaged(op, async () => {
    await verifyKernel(op, host, paths, kernel.record.digest);
    return kernel;
  });
}

/** The newest kernel that Hutch chose, else the newest that a user brought. */
export async function findKernel(op: Operation, host: Host, paths: ImagePaths): Promise<PreparedKernel | null> {
  const there = await listKernels(op, host, paths);
  return there.find(({ by }) => by === 'hutch') ?? there.find(({ by }) => by === 'user') ?? null;
}

/** All kernels that this Hutch can use, the newest first; damaged ones are passed over. */
export async function listKernels(op: Operation, host: Host, paths: ImagePaths): Promise<readonly PreparedKernel[]> {
  const found: PreparedKernel[] = [];
  for (const name of await listOr(op, host, paths.kernels)) {
    if (!hex64.safeParse(name).success) continue;
    const kernel = await unlessDamaged(op, () => openKernel(op, host, paths, `sha256:${name}`));
    if (kernel !== null && isOfUse(recipeOf(kernel))) found.push(kernel);
  }
  return found.toSorted((a, b) => b.record.createdAtMs - a.record.createdAtMs);
}

/** The kernel of a digest; null when it is not there. Its files are not read: `verifyKernel` does that. */
export async function openKernel(op: Operation, host: Host, paths: ImagePaths, digest: string): Promise<PreparedKernel | null> {
  const dir = join(paths.kernels, digest.replace(/^sha256:/, ''));
  if ((await host.stat(op, join(dir, KERNEL_MANIFEST))) === null) return null;
  const manifest = await readManifest(op, host, join(dir, KERNEL_MANIFEST));
  if (`sha256:${digestOf(manifest)}` !== digest) throw damaged(op, dir, 'its manifest does not belong to its digest');
  return {
    record: recordOf(manifest),
    vmlinuxPath: join(dir, 'vmlinux'),
    modulesDir: join(dir, 'modules'),
    moduleFiles: manifest.modules.map(({ file }) => file),
    by: manifest.by,
  };
}

/** Reads every file of a kernel. @throws HutchError `failed_precondition` when one is not what it was. */
export async function verifyKernel(op: Operation, host: Host, paths: ImagePaths, digest: string): Promise<void> {
  const dir = join(paths.kernels, digest.replace(/^sha256:/, ''));
  const manifest = await readManifest(op, host, join(dir, KERNEL_MANIFEST));
  if (`sha256:${digestOf(manifest)}` !== digest) throw damaged(op, dir, 'its manifest does not belong to its digest');
  for (const { path, sha256 } of kernelFiles(manifest)) {
    if ((await host.stat(op, join(dir, path))) === null) throw damaged(op, dir, `${path} is missing`);
    if ((await host.sha256(op, join(dir, path))) !== sha256) throw damaged(op, dir, `${path} has changed`);
  }
}

async function makeKernel(op: Operation, host: Host, paths: ImagePaths, staging: string, env: DownloadEnv): Promise<PreparedKernel> {
  const request = { firstOf: META_PACKAGES, follow: KERNEL_PACKAGES, workDir: staging, step: KERNEL_STEP, env };
  return await kernelOfPackages(op, host, paths, staging, await downloadPackages(op, host, request), 'hutch');
}

/** The kernel in packages that were downloaded to `staging`. Those that hold none are removed. */
export async function kernelOfPackages(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  staging: string,
  packages: readonly Package[],
  by: PreparedKernel['by'],
): Promise<PreparedKernel> {
  const names = packages.map(({ name }) => name).join(' and ');
  try {
    const tree = join(staging, 'tree');
    op.progress({ step: KERNEL_STEP, detail: `unpacking ${names}` });
    for (const { file } of packages) await unpackPackage(op, host, file, tree);
    const origin = { packages: packages.map(({ name, version }) => ({ name, version })), by };
    return await assembleKernel(op, host, paths, join(staging, 'out'), await partsOfTree(op, host, tree), origin);
  } catch (error) {
    if (!(error instanceof DamagedPayload)) throw error;
    for (const { file } of packages) await host.remove(op, file); // or the next try would go on with it
    throw op.error('failed_precondition', `the kernel in package ${names} cannot be used: ${error.message}`, {
      hint: 'run the same command again to download it anew; if that does not help, this distribution has no kernel for microVMs',
      cause: error,
    });
  }
}

async function unpackPackage(op: Operation, host: Host, file: string, tree: string): Promise<void> {
  const unpacked = await host.run(op, ['dpkg-deb', '-x', file, tree]);
  if (unpacked.exitCode === 0) return;
  const said = Buffer.from(unpacked.stderr).toString().trim();
  if (/No space left/.test(said))
    throw op.error('resource_exhausted', `cannot unpack ${basename(file)}: the disk is full`, {
      hint: 'free some space, then run the same command again',
    });
  throw new DamagedPayload(`dpkg-deb cannot unpack it: ${said.split('\n')[0]}`);
}

export type Origin = Pick<Manifest, 'packages' | 'by'>;

/** What a kernel is made of, wherever it lies. Read when it is wanted: of thousands of modules a dozen are. */
export type KernelParts = {
  /** As `uname -r` shows it. */
  readonly version: string;
  /** A bzImage, or an ELF file as it is. */
  image(): Promise<Uint8Array>;
  /** Null where it has none beside it. */
  config(): Promise<string | null>;
  /** `modules.order` and `modules.builtin`. */
  index(name: 'modules.order' | 'modules.builtin'): Promise<string>;
  /** The module at this path of the index, packed or not: `suffix` says how. Null when it is not there. */
  module(path: string, suffix: string): Promise<Uint8Array | null>;
};

/** Makes a kernel of its parts in `out`, and moves it into place. @throws DamagedPayload when it is none that guests boot. */
export async function assembleKernel(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  out: string,
  parts: KernelParts,
  origin: Origin,
): Promise<PreparedKernel> {
  const manifest = await assemble(op, host, out, parts, origin);
  const digest = digestOf(manifest);
  // Two names for one kernel are one kernel: the first stays, with what is known of it.
  const there = await unlessDamaged(op, () => openKernel(op, host, paths, `sha256:${digest}`));
  const write = async (dir: string): Promise<void> =>
    await host.writeFileAtomic(op, join(dir, KERNEL_MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`, SHARED_FILE_MODE);
  if (there !== null && (await isSound(op, host, paths, there.record.digest))) {
    if (recipeOf(there) === RECIPE || there.by !== 'hutch') return there;
    // By today's recipe it is what it was: from now on it is found as such.
    await write(join(paths.kernels, digest));
    return (await openKernel(op, host, paths, there.record.digest)) ?? there;
  }
  await write(out);
  await commit(op, host, out, join(paths.kernels, digest), ['vmlinux', ...manifest.modules.map(({ file }) => join('modules', file))]);
  const kernel = await openKernel(op, host, paths, `sha256:${digest}`);
  if (kernel === null) throw op.error('internal', 'the kernel was moved into place but is not there');
  return kernel;
}

async function isSound(op: Operation, host: Host, paths: ImagePaths, digest: string): Promise<boolean> {
  return (await unlessDamaged(op, () => verifyKernel(op, host, paths, digest).then(() => true))) ?? false;
}

/** Puts vmlinux and modules into `out`. */
async function assemble(op: Operation, host: Host, out: string, parts: KernelParts, origin: Origin): Promise<Manifest> {
  op.progress({ step: KERNEL_STEP, detail: 'unpacking vmlinux' });
  const unpackXz = (packed: Uint8Array, bytesMax: number) => runXz(op, host, packed, bytesMax);
  const vmlinux = await unpackKernel(await parts.image(), unpackXz);
  await host.makeDir(op, join(out, 'modules'), SHARED_DIR_MODE);
  await host.writeFileAtomic(op, join(out, 'vmlinux'), vmlinux, SHARED_FILE_MODE);

  op.progress({ step: KERNEL_STEP, detail: 'choosing modules' });
  const index = moduleIndex(await parts.index('modules.order'), await parts.index('modules.builtin'));
  const modules = await modulesInOrder(GUEST_MODULES, index, (path) => readModule(op, host, parts, path), OPTIONAL_MODULES);
  for (const { name, bytes } of modules) await host.writeFileAtomic(op, join(out, 'modules', `${name}.ko`), bytes, SHARED_FILE_MODE);
  const said = (await parts.config()) ?? (await carriedConfig(vmlinux));
  return {
    recipe: RECIPE,
    architecture: 'x86_64',
    version: parts.version,
    ...origin,
    createdAtMs: host.nowMs(),
    sizeBytes: modules.reduce((sum, { bytes }) => sum + bytes.byteLength, vmlinux.byteLength),
    vmlinux: sha256(vmlinux),
    modules: modules.map(({ name, bytes }) => ({ file: `${name}.ko`, sha256: sha256(bytes) })),
    ...(said === null ? {} : { config: parseKernelConfig(said) }),
  };
}

/** As a package of the distribution is laid out. */
async function partsOfTree(op: Operation, host: Host, tree: string): Promise<KernelParts> {
  const boot = join(tree, 'boot');
  const vmlinuz = (await listOr(op, host, boot)).find((name) => name.startsWith('vmlinuz-'));
  if (vmlinuz === undefined) throw new DamagedPayload('it has no /boot/vmlinuz');
  const version = vmlinuz.slice('vmlinuz-'.length);
  const dir = await modulesDirOf(op, host, tree, version);
  const readOr = async (path: string, bytesMax: number) =>
    (await host.stat(op, path)) === null ? null : await host.readFile(op, path, bytesMax);
  return {
    version,
    image: () => host.readFile(op, join(boot, vmlinuz), VMLINUZ_BYTES_MAX),
    async config() {
      const config = await readOr(join(boot, `config-${version}`), CONFIG_BYTES_MAX);
      return config === null ? null : Buffer.from(config).toString('latin1');
    },
    index: async (name) => Buffer.from(await host.readFile(op, join(dir, name), INDEX_BYTES_MAX)).toString(),
    module: (path, suffix) => readOr(join(dir, `${path}${suffix}`), MODULE_BYTES_MAX),
  };
}

async function modulesDirOf(op: Operation, host: Host, tree: string, version: string): Promise<string> {
  for (const lib of ['lib', 'usr/lib']) {
    const dir = join(tree, lib, 'modules', version);
    if ((await host.stat(op, join(dir, 'modules.order'))) !== null) return dir;
  }
  throw new DamagedPayload(`it has no modules for ${version}`);
}

/** A module as the kernel loads it: unpacked, whichever way the distribution packs its modules. */
async function readModule(op: Operation, host: Host, parts: KernelParts, path: string): Promise<Uint8Array> {
  const limit = { maxOutputLength: MODULE_BYTES_MAX };
  const unpack: Readonly<Record<string, (packed: Uint8Array) => Promise<Uint8Array>>> = {
    '': async (bytes) => bytes,
    '.xz': (packed) => runXz(op, host, packed, MODULE_BYTES_MAX),
    '.zst': (packed) => unpackOr('zstd', () => promisify(zstdDecompress)(packed, limit)),
    '.gz': (packed) => unpackOr('gzip', () => promisify(gunzip)(packed, limit)),
  };
  for (const [suffix, unpackWith] of Object.entries(unpack)) {
    const packed = await parts.module(path, suffix);
    if (packed !== null) return unpackWith(packed);
  }
  throw new DamagedPayload(`its module ${basename(path)} is missing`);
}

async function runXz(op: Operation, host: Host, packed: Uint8Array, bytesMax: number): Promise<Uint8Array> {
  const result = await host.run(op, ['xz', '--decompress', '--stdout', '--single-stream'], {
    input: packed,
    outputBytesMax: Math.min(bytesMax, VMLINUX_BYTES_MAX),
  });
  if (result.exitCode === 0) return result.stdout;
  throw new DamagedPayload(`its xz stream does not unpack: ${Buffer.from(result.stderr).toString().trim()}`);
}

async function readManifest(op: Operation, host: Host, path: string): Promise<Manifest> {
  const content = Buffer.from(await host.readFile(op, path, MANIFEST_BYTES_MAX)).toString();
  try {
    return manifestSchema.parse(JSON.parse(content));
  } catch (cause) {
    throw damaged(op, join(path, '..'), 'its manifest cannot be read', cause);
  }
}

function damaged(op: Operation, dir: string, why: string, cause?: unknown): Error {
  return op.error('failed_precondition', `the kernel in ${dir} is damaged: ${why}`, {
    hint: `remove it (rm -r ${dir}) and bring it again as it came: pull or import it; the one that Hutch chose is made anew`,
    cause,
  });
}

/** Null for what is no manifest of a kernel, or one of a recipe that is not known here. */
export function parseKernelManifest(json: unknown): KernelManifest | null {
  const parsed = manifestSchema.safeParse(json);
  return parsed.success && isOfUse(parsed.data.recipe) ? parsed.data : null;
}

/** By their place below the kernel's directory. */
export function kernelFiles(manifest: KernelManifest): readonly { readonly path: string; readonly sha256: string }[] {
  return [
    { path: 'vmlinux', sha256: manifest.vmlinux },
    ...manifest.modules.map(({ file, sha256: sum }) => ({ path: join('modules', file), sha256: sum })),
  ];
}

/** `sha256:…` of a kernel of that manifest. */
export function kernelDigest(manifest: KernelManifest): string {
  return `sha256:${digestOf(manifest)}`;
}

/** Over lines as `sha256sum` writes them: the kernel, then its modules in the order of loading. */
function digestOf(manifest: Manifest): string {
  const lines = [`${manifest.vmlinux}  vmlinux\n`, ...manifest.modules.map(({ file, sha256: sum }) => `${sum}  modules/${file}\n`)];
  return sha256(Buffer.from(lines.join('')));
}

function recordOf(manifest: Manifest): Kernel {
  const { version, sizeBytes, createdAtMs, recipe, packages, by } = manifest;
  const config = manifest.config ?? configByModules(manifest.modules.map(({ file }) => file));
  const detail = { recipe, packages, by, config, modules: manifest.modules.map(({ file }) => file) };
  const digest = `sha256:${digestOf(manifest)}`;
  const architecture: Architecture = manifest.architecture;
  return { id: idOfDigest('krn', digest), digest, version, architecture, sizeBytes, createdAtMs, detail };
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
