// Volumes: named disks. The file lies in a directory of its own before the volume is on record, and the record goes before the
// file does: what is on record is there, and what a crash leaves is nobody's and removed by the next start.
import { DiskSeeds, requireVolumeFile } from '../backends/disk.ts';
import { newId } from '../domain/ids.ts';
import { requireReference } from '../domain/reference.ts';
import type { SandboxSpec } from '../domain/sandbox.ts';
import { useRefusal, type Volume, type VolumeUser } from '../domain/volume.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { type Deps, volumeDir, volumePath, volumesDir } from './deps.ts';
import { requireFreeSpace } from './free-space.ts';
import type { Handlers } from './handlers.ts';
import { removeUnknown } from './unknown.ts';
import type { Output } from './verbs.ts';

type Verbs = 'volume.create' | 'volume.list' | 'volume.get' | 'volume.grow' | 'volume.remove';

const MIB = 1_048_576;
const RELEASE_MS = 60_000;

export function volumeVerbs(core: Core): Pick<Handlers, Verbs> {
  const { deps, turns } = core;
  const { host, store, settings, places } = deps;
  const seeds = new DiskSeeds(host, volumesDir(places), 'gives-back');

  async function found(call: Call, text: string): Promise<Volume> {
    const volume = await findVolume(deps, call, text);
    call.target(volume.id);
    return volume;
  }

  return {
    'volume.create': async (call, { name, sizeMiB = settings.diskMiB }) => {
      const { op, caller } = call;
      requireSize(op, deps, sizeMiB);
      await requireFreeSpace(op, deps);
      const id = newId('vol', (count) => host.randomBytes(count));
      call.target(id);
      await using undo = new AsyncDisposableStack();
      undo.defer(async () => {
        using late = op.releasing(RELEASE_MS);
        await host
          .remove(late, volumeDir(places, id))
          .catch((cause: unknown) =>
            op.log.warn({ id, cause }, 'what a failed volume wrote stays; the next start of the daemon removes it'),
          );
      });
      op.progress({ step: 'making the file system' });
      await host.makeDir(op, volumesDir(places), 0o711);
      await host.makeDir(op, volumeDir(places, id), 0o711);
      await seeds.makeDisk(op, volumePath(places, id), sizeMiB * MIB, null);
      await host.sync(op, volumePath(places, id));
      await host.sync(op, volumesDir(places));
      const volume = { id, projectId: caller.projectId, name, sizeMiB, createdAtMs: host.nowMs(), guestWritten: false };
      const [made] = await call.commit([{ change: 'createVolume', volume }]);
      undo.move();
      return await viewOf(deps, op, made, []);
    },
    'volume.list': async ({ op, caller }) => {
      const users = await store.query('volumeUsers', {});
      const volumes = [];
      for (const volume of await store.query('volumes', { projectId: caller.projectId }))
        volumes.push(await viewOf(deps, op, volume, users));
      return { volumes };
    },
    'volume.get': async (call, { volume }) => {
      const one = await findVolume(deps, call, volume);
      return await viewOf(deps, call.op, one, await store.query('volumeUsers', { id: one.id }));
    },
    'volume.grow': async (call, { volume: text, sizeMiB }) => {
      const { op } = call;
      const { id } = await found(call, text);
      return await turns.take(op, id, async () => {
        const now = await findVolume(deps, call, id);
        if (sizeMiB < now.sizeMiB)
          throw op.error('failed_precondition', `volume ${now.name} has ${now.sizeMiB} MiB; disks only grow, and ${sizeMiB} MiB is less`, {
            hint: 'ask for more; a smaller volume is a new one: hutch volume create --size SIZE NAME',
          });
        requireSize(op, deps, sizeMiB);
        const users = await store.query('volumeUsers', { id });
        refuseInUse(op, now, { readOnly: false, shares: false }, users);
        await requireVolumeFile(op, host, volumePath(places, id), `volume ${now.name}`);
        await using undo = new AsyncDisposableStack();
        undo.defer(async () => {
          using late = op.releasing(RELEASE_MS);
          // Nobody has used what lies behind its end.
          await host.truncate(late, volumePath(places, id), now.sizeMiB * MIB);
        });
        await host.truncate(op, volumePath(places, id), sizeMiB * MIB);
        const [grown] = await call.commit([{ change: 'growVolume', id, sizeMiB, atMs: host.nowMs() }]);
        undo.move();
        return await viewOf(deps, op, grown, users);
      });
    },
    'volume.remove': async (call, { volume: text }) => {
      const { op } = call;
      const { id } = await found(call, text);
      return await turns.take(op, id, async () => {
        const shown = await viewOf(deps, op, await findVolume(deps, call, id), []);
        await call.commit([{ change: 'removeVolume', id, atMs: host.nowMs() }]);
        using late = op.releasing(RELEASE_MS);
        await host.remove(late, volumeDir(places, id));
        return shown;
      });
    },
  };
}

function requireSize(op: Operation, { settings: { limits } }: Pick<Deps, 'settings'>, sizeMiB: number): void {
  if (sizeMiB <= limits.diskMiB) return;
  throw op.error('resource_exhausted', `sizeMiB must be at most ${limits.diskMiB} MiB here`, { hint: 'limits.disk in the configuration' });
}

/** @throws HutchError `not_found`, `conflict` when it may be several. */
export async function findVolume({ store }: Pick<Deps, 'store'>, { caller }: Pick<Call, 'caller'>, text: string): Promise<Volume> {
  return requireReference('volume', text, await store.query('volumes', { projectId: caller.projectId }));
}

/**
 * Runs `work`, which starts the sandbox and records that, while nobody else starts another with one of its volumes.
 * `shares`: several of that backend may read one. @throws HutchError `failed_precondition` that names who uses it.
 */
export async function withVolumes<T>(
  core: Core,
  op: Operation,
  { name, backend, mounts = [] }: Pick<SandboxSpec, 'name' | 'backend' | 'mounts'>,
  work: () => Promise<T>,
): Promise<T> {
  const { store } = core.deps;
  const wanted = mounts.flatMap(({ volumeId, readOnly }) => (volumeId === undefined ? [] : [{ volumeId, readOnly }]));
  // Always in the same order, so that two who want the same ones never wait for each other.
  wanted.sort((left, right) => (left.volumeId < right.volumeId ? -1 : 1));
  const go = async (at: number): Promise<T> => {
    const next = wanted[at];
    if (next === undefined) return await work();
    const { volumeId, readOnly } = next;
    return await core.turns.take(op, volumeId, async () => {
      const volume = await store.query('volume', { id: volumeId });
      if (volume === null) throw op.error('failed_precondition', `volume ${volumeId} of sandbox ${name} is gone`);
      const others = (await store.query('volumeUsers', { id: volumeId })).filter(({ sandbox }) => sandbox !== name);
      refuseInUse(op, volume, { readOnly, shares: backend !== 'qemu' }, others);
      if (backend !== 'qemu' && volume.guestWritten) throw guestWritten(op, volume);
      if (backend === 'qemu' && !readOnly && !volume.guestWritten) await store.commit(op, [{ change: 'markGuestWritten', id: volumeId }]);
      return await go(at + 1);
    });
  };
  return await go(0);
}

function guestWritten(op: Operation, { name }: Volume): Error {
  return op.error(
    'failed_precondition',
    `volume ${name} was written by a virtual machine: its file system is never mounted by this machine's own kernel`,
    { hint: 'use it with --backend qemu, or copy what is on it: hutch cp' },
  );
}

function refuseInUse(op: Operation, { name }: Volume, wanted: Parameters<typeof useRefusal>[0], users: readonly VolumeUser[]): void {
  const why = useRefusal(wanted, users);
  if (why === null) return;
  throw op.error('failed_precondition', `volume ${name} cannot be used: ${why}`, {
    hint: `stop what uses it first: hutch stop ${users.flatMap(({ sandbox, alive }) => (alive ? [sandbox] : [])).join(' ')}`,
  });
}

async function viewOf(
  { host, places }: Pick<Deps, 'host' | 'places'>,
  op: Operation,
  { id, projectId, name, sizeMiB, createdAtMs, guestWritten: isGuests }: Volume,
  users: readonly VolumeUser[],
): Promise<Output<'volume.get'>> {
  const usedBy = users.filter(({ volumeId }) => volumeId === id).map(({ sandbox, readOnly, alive }) => ({ sandbox, readOnly, alive }));
  const allocatedBytes = (await host.stat(op, volumePath(places, id)))?.allocatedBytes ?? 0;
  return { id, projectId, name, sizeMiB, fileSystem: 'ext4', allocatedBytes, createdAtMs, guestWritten: isGuests, usedBy };
}

/** At the start of the daemon: what a crash left of volumes that were not made, or are removed. */
export async function sweepVolumes({ deps }: Core, op: Operation, kept: ReadonlySet<string>): Promise<void> {
  const known = new Set<string>([...kept, ...(await deps.store.query('volumes', {})).map(({ id }) => id)]);
  await removeUnknown(op, deps.host, volumesDir(deps.places), known);
}
