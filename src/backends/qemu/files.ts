// The program that serves directories of this machine to one virtual machine (rust/files): started before the VMM, which
// connects to it, under a shim of its own, so that it outlives the daemon as the VMM does. When either ends, so does the
// connection: the guest is told, and this program ends by itself.
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { inspectShim, startShim } from '../../host/shim.ts';
import type { GuestDirectory, SandboxPlan } from '../backend.ts';
import { tailOf } from '../dead.ts';
import { pause } from '../wait.ts';
import { leaveCgroups } from './cgroup.ts';
import type { Owner, QemuConfig } from './config.ts';
import { FILES_SOCKET, FILES_SOCKET_BESIDE, filesDir, filesLogPath, filesSocketPath } from './paths.ts';
import { killVmm } from './vmm.ts';

const READY_MS = 15_000;
const LOOK_EVERY_MS = 3;
/** Its death is looked for less often than its socket. */
const LOOKS_PER_INSPECTION = 10;

/** What it says of a directory that is not what its path said a moment ago. */
const REPLACED = /hutch-files: (\/.*): (?:it was replaced|.*\(os error \d+\)|No such file or directory|Not a directory)/;

/** Where the VMM connects to it, and its process. */
export type Files = { readonly socket: string; readonly pid: number };

/** Null where nothing is to be served. @throws HutchError `failed_precondition` when a directory is not what it was. */
export async function startFiles(op: Operation, config: QemuConfig, plan: SandboxPlan, vmm: Owner | null): Promise<Files | null> {
  const { host, filesPath, shimPath } = config;
  const { mounts = [] } = plan;
  if (mounts.length === 0) return null;
  if (filesPath === undefined) throw op.error('unimplemented', 'this backend has no program that serves directories of this machine');
  const dir = filesDir(plan);
  // The VMM's user goes through it, and may write nothing there.
  await host.makeDir(op, dir, 0o711);
  await host.remove(op, filesLogPath(plan));
  const peer = vmm === null ? [] : ['--peer', `${vmm.uid}`];
  const served = mounts.flatMap(({ source, readOnly }) => [readOnly ? '--dir-ro' : '--dir', source]);
  const { child } = await startShim(op, host, shimPath, {
    ...{ dir, cwd: dir, logPath: filesLogPath(plan), runAs: null, cgroups: [], also: [], awaitSockets: [] },
    argv: [filesPath, '--listen', FILES_SOCKET, ...peer, ...served],
  });
  await untilReady(op, host, plan);
  return { socket: FILES_SOCKET_BESIDE, pid: child.pid };
}

async function untilReady(op: Operation, host: Host, plan: SandboxPlan): Promise<void> {
  using limited = op.within(READY_MS, 'the program that serves directories');
  for (let look = 1; (await host.stat(limited, filesSocketPath(plan))) === null; look += 1) {
    if (look % LOOKS_PER_INSPECTION === 0 && !(await inspectShim(limited, host, filesDir(plan))).alive) throw await whyNot(op, host, plan);
    await pause(limited, LOOK_EVERY_MS);
  }
}

async function whyNot(op: Operation, host: Host, plan: SandboxPlan): Promise<HutchError> {
  const said = await tailOf(op, host, filesLogPath(plan));
  const [, replaced] = REPLACED.exec(said) ?? [];
  if (replaced === undefined)
    return op.error('unavailable', `the program that serves directories ended while starting${said === '' ? '' : `: ${said}`}`);
  return op.error('failed_precondition', `${replaced} was replaced while it was mounted: what it leads to by now is not shown`, {
    hint: 'put the directory back, and start the sandbox again',
  });
}

/** Its VMM is dead, so it is about to end by itself; one that hangs is not waited for, and keeps no cgroup. */
export async function endFiles(op: Operation, config: QemuConfig, plan: SandboxPlan): Promise<void> {
  const { host } = config;
  if ((await host.stat(op, filesDir(plan))) === null) return;
  try {
    await killVmm(op, host, filesDir(plan), 'now');
  } catch (cause) {
    // It may be in the middle of a call to a file system that does not answer: then it ends when that does.
    if (!(cause instanceof HutchError) || cause.code !== 'deadline_exceeded' || op.signal.aborted) throw cause;
    op.log.warn({ sandbox: plan.id, cause }, 'the program that serves directories does not end');
    const evidence = await inspectShim(op, host, filesDir(plan));
    if (evidence.alive) await leaveCgroups(op, config, evidence.pid);
  }
}

export function guestDirectories({ mounts = [] }: SandboxPlan): readonly GuestDirectory[] {
  return mounts.map(({ target, readOnly }) => ({ target, readOnly }));
}
