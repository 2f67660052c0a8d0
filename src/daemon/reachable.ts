// As root each VMM runs as a user of its own, and must get through every directory above its files.
// A home below /root or another private directory would fail late and unclearly: so it is told at once.
import { dirname } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

const OTHERS_MAY_PASS = 0o001;

/** @throws HutchError `failed_precondition` that names the first directory in the way and what opens it. */
export async function checkReachable(op: Operation, host: Host, dirs: readonly string[]): Promise<void> {
  for (const dir of dirs) {
    for (let above = dirname(dir); ; above = dirname(above)) {
      const info = await host.stat(op, above);
      if (info !== null && (info.mode & OTHERS_MAY_PASS) === 0) {
        throw op.error('failed_precondition', `sandboxes run as users of their own and cannot pass through ${above} to ${dir}`, {
          hint: `chmod o+x ${above}, or choose another place with HUTCH_HOME`,
        });
      }
      if (above === '/') break;
    }
  }
}
