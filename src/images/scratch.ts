// A directory for mmdebstrap to build its root in. As root it lies in the staging directory. As another
// user mmdebstrap works as one of that user's subordinate ids, who cannot pass through a private home:
// then it lies in /var/tmp, under a name that belongs to this staging directory, so that what a crash
// leaves there is found and removed by the next try.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

const REMOVE_MS = 120_000;

export type Scratch = AsyncDisposable & { readonly path: string };

/** Empty; whoever uses it holds the lock of the staging directory. */
export async function scratchDir(op: Operation, host: Host, staging: string): Promise<Scratch> {
  const path = scratchPath(host, staging);
  await removeScratch(op, host, path);
  await host.makeDir(op, path, host.uid === 0 ? 0o755 : 0o711);
  await mustBeOurs(op, host, path);
  if (host.uid !== 0) await host.chmod(op, path, 0o1777); // the subordinate user makes its directory in it
  return {
    path,
    async [Symbol.asyncDispose]() {
      using releasing = op.releasing(REMOVE_MS);
      try {
        await removeScratch(releasing, host, path);
      } catch (error) {
        op.log.warn({ path, cause: error }, 'scratch directory left behind; the next try removes it');
      }
    },
  };
}

export function scratchPath(host: Pick<Host, 'uid'>, staging: string): string {
  if (host.uid === 0) return join(staging, 'scratch');
  return join('/var/tmp', `hutch-image-${createHash('sha256').update(`${host.uid} ${staging}`).digest('hex').slice(0, 16)}`);
}

/** Also what belongs to subordinate ids, which takes their user namespace. */
export async function removeScratch(op: Operation, host: Host, path: string): Promise<void> {
  if ((await host.stat(op, path)) === null) return;
  await mustBeOurs(op, host, path);
  if (host.uid !== 0) await host.run(op, ['mmdebstrap', '--unshare-helper', 'find', path, '-mindepth', '1', '-delete']);
  await host.remove(op, path);
}

/** Anyone may make that name in /var/tmp first. */
async function mustBeOurs(op: Operation, host: Host, path: string): Promise<void> {
  const info = await host.stat(op, path);
  if (info?.type === 'directory' && info.uid === host.uid) return;
  throw op.error('failed_precondition', `${path} is in the way: it is not a directory of ours`, { hint: `remove it: sudo rm -r ${path}` });
}
