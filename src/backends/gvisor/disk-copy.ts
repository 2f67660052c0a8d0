// The file with a sandbox's private layer, for as long as nothing has it mounted.
import { join } from 'node:path';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { pause } from '../wait.ts';
import { diskPath } from './paths.ts';

const LET_GO_MS = 60_000;
const LOOK_EVERY_MS = 5;
const DEVICES = '/sys/block';
const PATH_BYTES_MAX = 64 * 1024;

/** Its processes are gone before the kernel has let go of their mounts, and only then all is in the file. */
export async function awaitLetGo(op: Operation, host: Host, plan: Pick<SandboxPlan, 'dataDir'>): Promise<void> {
  const path = diskPath(plan);
  if ((await host.stat(op, path)) === null) return;
  using limited = op.within(LET_GO_MS, 'the end of the mount of a private layer');
  while (await isAttached(limited, host, path)) await pause(limited, LOOK_EVERY_MS);
}

async function isAttached(op: Operation, host: Host, file: string): Promise<boolean> {
  for (const device of await host.list(op, DEVICES)) {
    if (!device.startsWith('loop')) continue;
    const shown = join(DEVICES, device, 'loop/backing_file');
    // Only devices that show something have the file, and that may change at any time.
    const content = await host.readFile(op, shown, PATH_BYTES_MAX).catch(() => null);
    op.signal.throwIfAborted();
    if (content !== null && new TextDecoder().decode(content).replace(/\n$/, '') === file) return true;
  }
  return false;
}
