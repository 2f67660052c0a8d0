// Volumes of a container: each is mounted through a loop device where the Engine finds it, and only until the container has it.
// Its own mount holds the device from then on, so that nothing is left to be undone however the container, or this daemon, ends.
import { join } from 'node:path';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { DiskSeeds, mendVolume, requireClosed } from '../disk.ts';
import { type DockerConfig, RELEASE_MS } from './config.ts';
import { parseMounts } from './mounted.ts';

const MOUNT_MS = 30_000;
const TABLE_BYTES_MAX = 16 * 2 ** 20;
const TRIAL_BYTES = 4 * 2 ** 20;

type Parts = Pick<DockerConfig, 'host' | 'workDir'>;
type Whose = Pick<SandboxPlan, 'id' | 'volumes'>;

/** Empty, but for the moment of a start; not among the sandbox's own files, which are removed with all that lies in them. */
const placesOf = ({ workDir }: Pick<Parts, 'workDir'>, { id }: Pick<Whose, 'id'>): string => join(workDir, 'volumes', id);

export const volumeAt = (parts: Pick<Parts, 'workDir'>, plan: Whose, at: number): string => join(placesOf(parts, plan), `${at}`);

/** The Engine wants them to be there when a container is made. */
export async function makeVolumePlaces(op: Operation, parts: Parts, plan: Whose): Promise<void> {
  for (const at of (plan.volumes ?? []).keys()) await parts.host.makeDir(op, volumeAt(parts, plan, at), 0o700);
}

/** Until it is disposed of. @throws HutchError `failed_precondition` for one that is damaged, gone or in use. */
export async function mountVolumes(op: Operation, parts: Parts, plan: Whose): Promise<AsyncDisposable> {
  const { host } = parts;
  const { volumes = [] } = plan;
  if (volumes.length === 0) return new AsyncDisposableStack();
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await unmountVolumes(late, parts, plan).catch((cause: unknown) =>
      op.log.warn({ sandbox: plan.id, cause }, 'a volume stays mounted on this machine until its sandbox has ended'),
    );
  });
  // A daemon that was killed in the middle of a start has left them.
  await unmountVolumes(op, parts, plan);
  await makeVolumePlaces(op, parts, plan);
  for (const [at, { path, target, readOnly }] of volumes.entries()) {
    await (readOnly ? requireClosed : mendVolume)(op, host, path, target);
    await mount(op, host, path, volumeAt(parts, plan, at), readOnly, `the volume at ${target} cannot be used`);
  }
  return undo.move();
}

async function mount(op: Operation, host: Host, file: string, at: string, readOnly: boolean, what: string): Promise<void> {
  using limited = op.within(MOUNT_MS, 'mounting a volume');
  // As with gVisor (rust/cell): of one that is only read nothing is written.
  const options = ['loop', 'nosuid', 'nodev', ...(readOnly ? ['ro', 'noload'] : ['noinit_itable', 'discard'])];
  const { exitCode, stderr } = await host.run(limited, ['mount', '-t', 'ext4', '-o', options.join(','), file, at]);
  if (exitCode === 0) return;
  throw op.error('failed_precondition', `${what}: ${new TextDecoder().decode(stderr).trim()}`, { hint: `try: e2fsck -f ${file}` });
}

/** Whatever of them is mounted here. A container that has it keeps it. */
export async function unmountVolumes(op: Operation, parts: Parts, plan: Pick<Whose, 'id'>): Promise<void> {
  const { host } = parts;
  const places = placesOf(parts, plan);
  if ((await host.stat(op, places)) === null) return;
  const table = parseMounts(await host.readFile(op, '/proc/self/mountinfo', TABLE_BYTES_MAX));
  // Of several over each other the last comes off first.
  for (const { at } of table.filter(({ at }) => at.startsWith(`${places}/`)).toReversed()) {
    using limited = op.within(MOUNT_MS, 'unmounting a volume');
    const { exitCode, stderr } = await host.run(limited, ['umount', at]);
    if (exitCode !== 0) throw op.error('unavailable', `${at} cannot be unmounted: ${new TextDecoder().decode(stderr).trim()}`);
  }
}

/** With its sandbox: only empty directories go. */
export async function removeVolumePlaces(op: Operation, parts: Parts, plan: Pick<Whose, 'id'>): Promise<void> {
  await unmountVolumes(op, parts, plan);
  await parts.host.remove(op, placesOf(parts, plan));
}

/** Null: a disk in a file can be mounted here; else why not. That a loop device is there does not say that it can be used. */
export async function whyNoVolumes(op: Operation, { host, workDir }: Parts): Promise<string | null> {
  if (host.uid !== 0) return 'volumes: a loop device takes root';
  const dir = `${workDir}-trial-${Buffer.from(host.randomBytes(8)).toString('hex')}`;
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await host.remove(late, dir);
  });
  const [file, at] = [join(dir, 'disk'), join(dir, 'mounted')];
  await host.makeDir(op, at, 0o700);
  await new DiskSeeds(host, dir).makeDisk(op, file, TRIAL_BYTES, null);
  const { exitCode, stderr } = await host.run(op, ['mount', '-t', 'ext4', '-o', 'loop,nosuid,nodev', file, at]);
  if (exitCode !== 0) return `volumes: no disk in a file can be mounted: ${new TextDecoder().decode(stderr).trim().replaceAll(dir, '…')}`;
  const undone = await host.run(op, ['umount', at]);
  if (undone.exitCode !== 0) throw op.error('internal', `${at} cannot be unmounted: ${new TextDecoder().decode(undone.stderr).trim()}`);
  return null;
}
