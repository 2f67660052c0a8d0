// Files that loop devices show. The processes of a sandbox are gone before the kernel has let go of their mounts.
import { join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { pause } from './wait.ts';

const LOOK_EVERY_MS = 5;
const DEVICES = '/sys/block';
const PATH_BYTES_MAX = 64 * 1024;

/** Until no device shows the file: only then all is in it. */
export async function awaitDetached(op: Operation, host: Host, file: string): Promise<void> {
  while (await isAttached(op, host, file)) await pause(op, LOOK_EVERY_MS);
}

export async function isAttached(op: Operation, host: Host, file: string): Promise<boolean> {
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
