// A kernel out of a file: a Debian package, a tar archive of a kernel and its modules, or a kernel alone that
// has all built in. What it is, its first bytes say. Nothing of an archive is unpacked on this machine: the
// kernel and the dozen modules that guests load are read out of it, by names that it cannot choose.
import { join } from 'node:path';
import { ArchiveError } from '../domain/archive-error.ts';
import { TarReader } from '../domain/tar/reader.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { kernelVersion, VMLINUZ_BYTES_MAX } from './bzimage.ts';
import { bounded } from './chunks.ts';
import { assembleKernel, INDEX_BYTES_MAX, KERNEL_STEP, type KernelParts, MODULE_BYTES_MAX, type PreparedKernel } from './kernel.ts';
import { builtinByConfig, CONFIG_BYTES_MAX, carriedConfig, parseKernelConfig } from './kernel-config.ts';
import { unpacked } from './layers/unpack.ts';
import type { ImagePaths } from './layout.ts';
import { DamagedPayload } from './payload-error.ts';

/** Ubuntu's generic modules have 700 MB unpacked. */
const ARCHIVE_BYTES_MAX = 4 * 1024 ** 3;
const FILES_MAX = 100_000;
const MAGIC_BYTES = 6;
const IMAGE = /^(?:boot\/)?(?:vmlinuz|vmlinux|bzImage)(?:-([A-Za-z0-9._+~-]{1,128}))?$/;
const CONFIG = /^(?:boot\/)?config(?:-[A-Za-z0-9._+~-]{1,128})?$/;

type Place = { readonly offset: number; readonly length: number };

/** Takes the kernel that `source` gives. @throws HutchError `failed_precondition`, with what is wrong with it. */
export async function importKernel(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  staging: string,
  source: AsyncIterable<Uint8Array>,
): Promise<PreparedKernel> {
  const file = join(staging, 'given');
  return await noKernel(
    op,
    'give a package (.deb), or a kernel with the directory of its modules: hutch kernel import FILE --modules DIR',
    async () => {
      op.progress({ step: KERNEL_STEP, detail: 'reading' });
      await host.appendStream(op, file, bounded(source, ARCHIVE_BYTES_MAX));
      const parts = await partsOf(op, host, file, staging);
      return await assembleKernel(op, host, paths, join(staging, 'out'), parts, { packages: [], by: 'user' });
    },
  );
}

/** What it cannot be made of is an answer with what to do. */
export async function noKernel<T>(op: Operation, hint: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof DamagedPayload) && !(error instanceof ArchiveError)) throw error;
    throw op.error('failed_precondition', `this is no kernel that sandboxes can boot: ${error.message}`, { hint, cause: error });
  }
}

async function partsOf(op: Operation, host: Host, file: string, staging: string): Promise<KernelParts> {
  const start = Buffer.from(await host.readRange(op, file, 0, 0x206));
  if (start.toString('latin1', 0, 8) === '!<arch>\n') return await partsOfArchive(op, host, await tarOfPackage(op, host, file, staging));
  const isElf = start.toString('latin1', 0, 4) === '\x7fELF';
  if (isElf || start.toString('latin1', 0x202, 0x206) === 'HdrS') return await partsAlone(op, host, file);
  const tar = join(staging, 'tar');
  const isPacked = start.length < MAGIC_BYTES || start[0] === 0x1f || start[0] === 0x28;
  if (!isPacked) return await partsOfArchive(op, host, file);
  await host.appendStream(op, tar, unpacked(op, host, file, ARCHIVE_BYTES_MAX));
  return await partsOfArchive(op, host, tar);
}

/** The tar archive in a Debian package. The program that unpacks it makes this one file, and no larger than it may be. */
async function tarOfPackage(op: Operation, host: Host, file: string, staging: string): Promise<string> {
  const tar = join(staging, 'tar');
  const script = `ulimit -f ${ARCHIVE_BYTES_MAX / 512}; exec dpkg-deb --fsys-tarfile "$0" > "$1"`;
  const unpacking = await host.run(op, ['sh', '-c', script, file, tar]);
  if (unpacking.exitCode === 0) return tar;
  const said = Buffer.from(unpacking.stderr).toString().trim().split('\n')[0] ?? '';
  if (/No space left/.test(said)) throw op.error('resource_exhausted', 'the package cannot be unpacked: the disk is full');
  throw new DamagedPayload(
    `dpkg-deb cannot unpack it: ${said
      .replace(/[^\x20-\x7e]/g, '?')
      .replaceAll(file, 'the package')
      .slice(0, 300)}`,
  );
}

/** A kernel without modules beside it must say itself that it has all built in. */
export async function partsAlone(op: Operation, host: Host, file: string): Promise<KernelParts> {
  const image = () => host.readFile(op, file, VMLINUZ_BYTES_MAX * 2);
  const bytes = await image();
  const config = await carriedConfig(bytes);
  const builtin = config === null ? null : builtinByConfig(parseKernelConfig(config), 'its own configuration');
  return {
    version: versionOf(bytes, null),
    image,
    config: async () => config,
    async index(name) {
      if (builtin === null) throw new DamagedPayload('its modules are not with it, and it does not say that it needs none');
      return name === 'modules.order' ? '' : builtin;
    },
    module: async () => null,
  };
}

async function partsOfArchive(op: Operation, host: Host, tar: string): Promise<KernelParts> {
  const places = await scan(host.readStream(op, tar));
  const [imagePath, ...others] = [...places.keys()].filter((path) => IMAGE.test(path));
  if (imagePath === undefined) throw new DamagedPayload('there is no vmlinuz in it');
  if (others.length > 0) throw new DamagedPayload(`there are ${others.length + 1} kernels in it`);
  const configPath = [...places.keys()].find((path) => CONFIG.test(path));
  const orders = [...places.keys()].filter((path) => path === 'modules.order' || path.endsWith('/modules.order'));
  const [order = ''] = orders;
  if (orders.length !== 1) throw new DamagedPayload(`there are ${orders.length} files modules.order in it, and not one`);
  const modules = order.slice(0, -'modules.order'.length);
  const read = async (path: string, bytesMax: number): Promise<Uint8Array | null> => {
    const place = places.get(path);
    if (place === undefined) return null;
    if (place.length > bytesMax) throw new DamagedPayload(`its ${path} has ${place.length} bytes; at most ${bytesMax} are read`);
    return place.length === 0 ? new Uint8Array() : await host.readRange(op, tar, place.offset, place.length);
  };
  const image = async () => (await read(imagePath, VMLINUZ_BYTES_MAX * 2)) ?? new Uint8Array();
  const version = versionOf(await image(), IMAGE.exec(imagePath)?.[1] ?? null);
  const named = /(?:^|\/)lib\/modules\/([^/]+)\/$/.exec(modules)?.[1];
  if (named !== undefined && named !== version) throw new DamagedPayload(`its kernel is ${version}, and its modules are for ${named}`);
  return {
    version,
    image,
    async config() {
      const bytes = configPath === undefined ? null : await read(configPath, CONFIG_BYTES_MAX);
      return bytes === null ? null : Buffer.from(bytes).toString('latin1');
    },
    async index(name) {
      const bytes = await read(`${modules}${name}`, INDEX_BYTES_MAX);
      if (bytes === null) throw new DamagedPayload(`there is no ${name} in it`);
      return Buffer.from(bytes).toString();
    },
    module: (path, suffix) => read(`${modules}${path}${suffix}`, MODULE_BYTES_MAX),
  };
}

function versionOf(image: Uint8Array, named: string | null): string {
  const version = kernelVersion(image) ?? named;
  if (version === null) throw new DamagedPayload('it does not say its version, and neither does its name');
  return version;
}

/** Where its files lie. */
async function scan(chunks: AsyncIterable<Uint8Array>): Promise<ReadonlyMap<string, Place>> {
  const places = new Map<string, Place>();
  await using reader = new TarReader(chunks);
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    if (entry.type !== 'file' || entry.sparse !== null) continue;
    const path = entry.path.replace(/^(\.?\/)+/, '');
    if (places.size >= FILES_MAX) throw new ArchiveError(`it has more than ${FILES_MAX} files`);
    places.set(path, { offset: reader.offset, length: entry.sizeBytes });
  }
  if (places.size === 0) throw new ArchiveError('there is nothing in it');
  return places;
}
