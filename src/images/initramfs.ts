// What a guest's kernel unpacks before it has a disk: the agent as /init, the modules with the order
// to load them in, and empty mount points. Not packed: it is read once per template. Named by digest,
// so that another agent or kernel makes another one and the old stays as it was.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { type CpioEntry, cpioArchive } from './cpio.ts';
import type { PreparedKernel } from './kernel.ts';
import { type ImagePaths, SHARED_DIR_MODE, SHARED_FILE_MODE } from './layout.ts';

export type Initramfs = { readonly path: string; readonly digest: string; readonly sizeBytes: number };

const AGENT_BYTES_MAX = 64 * 1024 * 1024;
const MODULE_BYTES_MAX = 64 * 1024 * 1024;
const FIRST_BYTES_MAX = 512 * 1024 * 1024;
/** At which a kernel looks for the next archive. */
const ARCHIVE_ALIGN_BYTES = 4;
const MOUNT_POINTS = ['dev', 'proc', 'sys', 'run', 'tmp', 'mnt', 'newroot'];

/** Makes it, or finds it made: the content decides. `first`: an initrd that the kernel unpacks before ours, which wins where both have a file. */
export async function prepareInitramfs(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  from: { readonly kernel: PreparedKernel; readonly agentPath: string; readonly first?: string },
): Promise<Initramfs> {
  if ((await host.stat(op, from.agentPath)) === null) {
    throw op.error('failed_precondition', `the agent's program is missing at ${from.agentPath}`, {
      hint: 'take a fresh copy of Hutch: its prebuilt directory is incomplete',
    });
  }
  const ours = initramfsArchive(await host.readFile(op, from.agentPath, AGENT_BYTES_MAX), await readModules(op, host, from.kernel));
  const first = from.first === undefined ? new Uint8Array() : await host.readFile(op, from.first, FIRST_BYTES_MAX);
  const gap = -first.byteLength & (ARCHIVE_ALIGN_BYTES - 1);
  const archive = first.byteLength === 0 ? ours : Buffer.concat([first, Buffer.alloc(gap), ours]);
  const hex = createHash('sha256').update(archive).digest('hex');
  const path = join(paths.initramfs, `${hex}.cpio`);
  const made = { path, digest: `sha256:${hex}`, sizeBytes: archive.byteLength };
  const there = await host.stat(op, path);
  if (there?.sizeBytes === archive.byteLength && (await host.sha256(op, path)) === hex) return made;
  await host.makeDir(op, paths.initramfs, SHARED_DIR_MODE);
  await host.writeFileAtomic(op, path, archive, SHARED_FILE_MODE);
  return made;
}

async function readModules(op: Operation, host: Host, kernel: PreparedKernel): Promise<readonly NamedModule[]> {
  const modules: NamedModule[] = [];
  for (const file of kernel.moduleFiles)
    modules.push({ file, bytes: await host.readFile(op, join(kernel.modulesDir, file), MODULE_BYTES_MAX) });
  return modules;
}

type NamedModule = { readonly file: string; readonly bytes: Uint8Array };

/** `/lib/modules/order` names the files of `/lib/modules`, one a line, in the order of loading. */
export function initramfsArchive(agent: Uint8Array, modules: readonly NamedModule[]): Uint8Array {
  const directories = [...MOUNT_POINTS, 'lib', 'lib/modules'].toSorted();
  return cpioArchive([
    ...directories.map((path): CpioEntry => ({ type: 'directory', path, mode: 0o755 })),
    // The kernel opens it for /init's standard streams before anyone could mount /dev.
    { type: 'character-device', path: 'dev/console', mode: 0o600, major: 5, minor: 1 },
    { type: 'file', path: 'init', mode: 0o755, content: agent },
    { type: 'file', path: 'lib/modules/order', mode: 0o644, content: Buffer.from(modules.map(({ file }) => `${file}\n`).join('')) },
    ...modules.map(({ file, bytes }): CpioEntry => ({ type: 'file', path: `lib/modules/${file}`, mode: 0o644, content: bytes })),
  ]);
}
