// Making a sandbox's private disk. On failure there is no directory of it.
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { type DiskSeeds, layDisk } from '../disk.ts';
import { type QemuConfig, RELEASE_MS } from './config.ts';
import { diskPath, freshMarkPath } from './paths.ts';
import type { Template } from './template.ts';

/**
 * A disk of the template's size is a copy of the template's, marked as such: the first start then finds
 * it mounted. One that boots without a template has an empty one. The caller's parent directories let the sandbox's user through.
 */
export async function createSandbox(
  op: Operation,
  { host }: QemuConfig,
  seeds: DiskSeeds,
  plan: SandboxPlan,
  take: (op: Operation) => Promise<Pick<Template, 'id' | 'disk'> | null>,
): Promise<void> {
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await host
      .remove(late, plan.dataDir)
      .catch((cause: unknown) => op.log.warn({ sandbox: plan.id, cause }, 'a failed create left something behind'));
  });
  const sizeBytes = plan.shape.diskMiB * 1024 * 1024;
  const template = await take(op);
  await host.makeDir(op, plan.dataDir, 0o711);
  await host.remove(op, freshMarkPath(plan)); // of an earlier try
  if (template?.disk.sizeBytes === sizeBytes) {
    await layDisk(op, host, diskPath(plan), template.disk, plan.runAs);
    await host.appendFile(op, freshMarkPath(plan), new TextEncoder().encode(template.id));
  } else {
    await seeds.makeDisk(op, diskPath(plan), sizeBytes, plan.runAs);
  }
  undo.move();
}
