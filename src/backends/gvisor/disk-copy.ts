// The file with a sandbox's private layer, for as long as nothing has it mounted.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { awaitDetached } from '../loop.ts';
import { diskPath } from './paths.ts';

const LET_GO_MS = 60_000;

/** Its processes are gone before the kernel has let go of their mounts, and only then all is in the file. */
export async function awaitLetGo(op: Operation, host: Host, plan: Pick<SandboxPlan, 'dataDir'>): Promise<void> {
  const path = diskPath(plan);
  if ((await host.stat(op, path)) === null) return;
  using limited = op.within(LET_GO_MS, 'the end of the mount of a private layer');
  await awaitDetached(limited, host, path);
}
