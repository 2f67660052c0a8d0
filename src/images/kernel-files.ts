// A kernel of files that lie on this machine: an image as it was built or installed, and the directory of its modules.
// What guests load of it is copied; the files stay the user's.
import { basename, join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { kernelVersion, VMLINUZ_BYTES_MAX } from './bzimage.ts';
import { assembleKernel, INDEX_BYTES_MAX, KERNEL_STEP, type KernelParts, MODULE_BYTES_MAX, type PreparedKernel } from './kernel.ts';
import { CONFIG_BYTES_MAX } from './kernel-config.ts';
import { noKernel, partsAlone } from './kernel-import.ts';
import type { ImagePaths } from './layout.ts';
import { DamagedPayload } from './payload-error.ts';

/** `modules`: where its `modules.order` lies; null: it has all built in. @throws HutchError `failed_precondition`, with what is wrong with it. */
export async function kernelOfFiles(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  staging: string,
  { image, modules }: { readonly image: string; readonly modules: string | null },
): Promise<PreparedKernel> {
  op.progress({ step: KERNEL_STEP, detail: 'reading' });
  return await noKernel(op, 'give the directory of its modules too, or import its package: hutch kernel import FILE', async () => {
    const parts = modules === null ? await partsAlone(op, host, image) : await partsOfFiles(op, host, image, modules);
    return await assembleKernel(op, host, paths, join(staging, 'out'), parts, { packages: [], by: 'user' });
  });
}

async function partsOfFiles(op: Operation, host: Host, path: string, modules: string): Promise<KernelParts> {
  const image = () => host.readFile(op, path, VMLINUZ_BYTES_MAX * 2);
  const readOr = async (file: string, bytesMax: number) =>
    (await host.stat(op, file)) === null ? null : await host.readFile(op, file, bytesMax);
  const version = kernelVersion(await image()) ?? /^(?:vmlinuz|vmlinux|bzImage)-(.+)$/.exec(basename(path))?.[1] ?? null;
  if (version === null) throw new DamagedPayload('it does not say its version, and neither does its name');
  return {
    version,
    image,
    async config() {
      const bytes = await readOr(join(path, '..', `config-${version}`), CONFIG_BYTES_MAX);
      return bytes === null ? null : Buffer.from(bytes).toString('latin1');
    },
    async index(name) {
      const bytes = await readOr(join(modules, name), INDEX_BYTES_MAX);
      if (bytes === null) throw new DamagedPayload(`there is no ${name} in ${modules}`);
      return Buffer.from(bytes).toString();
    },
    module: (file, suffix) => readOr(join(modules, `${file}${suffix}`), MODULE_BYTES_MAX),
  };
}
