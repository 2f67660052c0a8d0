// A named disk that outlives the sandboxes that mount it: an ext4 in a file of its own.
import type { OpId, ProjectId, VolumeId } from './ids.ts';
import type { LedgerDraft } from './ledger.ts';

export type Volume = {
  readonly id: VolumeId;
  readonly projectId: ProjectId;
  readonly name: string;
  readonly sizeMiB: number;
  readonly createdAtMs: number;
  /** A virtual machine has had it to write: what is on it is its guest's making, and this machine's kernel never mounts it again. */
  readonly guestWritten: boolean;
};

/** Of one sandbox. */
export const VOLUMES_MAX = 4;

/** A sandbox that mounts a volume. `alive`: its process is not proven dead. */
export type VolumeUser = { readonly volumeId: VolumeId; readonly sandbox: string; readonly readOnly: boolean; readonly alive: boolean };

/**
 * Why a sandbox may not start with it now; null: it may. Who writes is alone with it; several may read where each has a mount of
 * this machine's kernel.
 */
export function useRefusal(wanted: { readonly readOnly: boolean; readonly shares: boolean }, others: readonly VolumeUser[]): string | null {
  const inWay = others.filter(({ alive, readOnly }) => alive && !(wanted.readOnly && readOnly && wanted.shares));
  if (inWay.length === 0) return null;
  const names = inWay.map(({ sandbox }) => sandbox).join(', ');
  return `it is in use by ${inWay.length === 1 ? 'sandbox' : 'sandboxes'} ${names}`;
}

const MIB = 1_048_576;

/**
 * Endpoints of the intervals in which it is stored: as large as it may become, as with the disk of a sandbox. One that grows
 * closes the interval of its size before and opens the next.
 */
export function volumeEntries(before: Volume | null, after: Volume | null, atMs: number, opId: OpId): readonly LedgerDraft[] {
  if (before?.sizeMiB === after?.sizeMiB) return [];
  const reason = before !== null && after !== null ? 'set' : before === null ? null : 'volume-rm';
  const endpoint = (kind: 'volume.storage.start' | 'volume.storage.stop', volume: Volume): LedgerDraft => ({
    kind,
    reason,
    // A clock that was stepped back ends nothing before it began.
    atMs: Math.max(atMs, volume.createdAtMs),
    projectId: volume.projectId,
    sandboxId: null,
    snapshotId: null,
    sourceSnapshotId: null,
    parentId: null,
    backend: null,
    shape: { storageBytes: volume.sizeMiB * MIB },
    opId,
    evidence: null,
    volumeId: volume.id,
  });
  return [
    ...(before === null ? [] : [endpoint('volume.storage.stop', before)]),
    ...(after === null ? [] : [endpoint('volume.storage.start', after)]),
  ];
}
