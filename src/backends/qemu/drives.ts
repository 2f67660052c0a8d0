// Which file is which drive of a sandbox that starts (docs/decisions/0010).
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { layDisk } from '../disk.ts';
import type { QemuConfig } from './config.ts';
import type { Disks } from './machine.ts';
import { diskPath, freshMarkPath, scratchDiskPath } from './paths.ts';
import type { Template } from './template.ts';

const MARK_BYTES_MAX = 1024;

export type ChosenDisks = {
  readonly drives: Disks;
  /** Which of them is the sandbox's own. */
  readonly own: 'vdb' | 'vdc';
  /** The disk is not marked as fresh any more, durably. */
  readonly settled: Promise<void>;
};

/**
 * A disk that no guest has seen takes the place of the template's; any other stands beside a copy of it.
 * The mark goes before the guest may write: a restored kernel must never meet a disk that another run
 * has changed.
 */
export async function chooseDisks(op: Operation, { host }: QemuConfig, plan: SandboxPlan, template: Template): Promise<ChosenDisks> {
  const mark = await readMark(op, host, plan);
  if (mark === null) {
    await layDisk(op, host, scratchDiskPath(plan), template.disk, plan.runAs);
    return { drives: { vdb: scratchDiskPath(plan), vdc: diskPath(plan) }, own: 'vdc', settled: Promise.resolve() };
  }
  // Made from a template that was built again since: nobody has used it, so it is made again too.
  if (mark !== template.id) await layDisk(op, host, diskPath(plan), template.disk, plan.runAs);
  await host.remove(op, freshMarkPath(plan));
  const settled = host.sync(op, plan.dataDir);
  settled.catch(() => {}); // heard where it is waited for
  return { drives: { vdb: diskPath(plan), vdc: null }, own: 'vdb', settled };
}

async function readMark(op: Operation, host: Host, plan: SandboxPlan): Promise<string | null> {
  const path = freshMarkPath(plan);
  if ((await host.stat(op, path)) === null) return null;
  return new TextDecoder().decode(await host.readFile(op, path, MARK_BYTES_MAX));
}
