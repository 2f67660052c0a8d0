// The ledger as others read it: one JSON object a line. `hutch` has everything; `cocoon` has exactly
// the six kinds and the field names of Cocoon's metering ledger, frozen, since consumers key on them.
import { COCOON_KINDS, type CocoonKind, type LedgerEntry } from '../domain/ledger.ts';

export const LEDGER_FORMATS = ['hutch', 'cocoon'] as const;
export type LedgerFormat = (typeof LEDGER_FORMATS)[number];

/** Absent members mean "does not apply" or "not known"; `shape` is always there, perhaps empty. */
export type CocoonEntry = {
  readonly kind: CocoonKind;
  readonly vm_id?: string;
  readonly snapshot_id?: string;
  readonly source_snapshot_id?: string;
  readonly reason?: string;
  readonly hypervisor?: string;
  readonly shape: { readonly cpu?: number; readonly mem_bytes?: number; readonly storage_bytes?: number };
  /**
   * RFC 3339, UTC. The billed instant: the format has one time only, and its readers subtract these.
   * So a crash ends when the process died, and not when that was noticed.
   */
  readonly emitted_at: string;
};

/** Null for kinds that the format does not have: paused time is an overlay that it knows nothing of, and so are volumes. */
export function cocoonEntry(entry: LedgerEntry): CocoonEntry | null {
  const { kind, sandboxId, snapshotId, sourceSnapshotId, reason, backend, shape, atMs } = entry;
  if (!isCocoonKind(kind)) return null;
  return {
    kind,
    ...(sandboxId === null ? {} : { vm_id: sandboxId }),
    ...(snapshotId === null ? {} : { snapshot_id: snapshotId }),
    ...(sourceSnapshotId === null ? {} : { source_snapshot_id: sourceSnapshotId }),
    ...(reason === null ? {} : { reason }),
    ...(backend === null ? {} : { hypervisor: backend }),
    shape: {
      ...(shape.cpus === undefined ? {} : { cpu: shape.cpus }),
      ...(shape.memoryBytes === undefined ? {} : { mem_bytes: shape.memoryBytes }),
      ...(shape.storageBytes === undefined ? {} : { storage_bytes: shape.storageBytes }),
    },
    emitted_at: new Date(atMs).toISOString(),
  };
}

/** One line without its newline; null when the format leaves the entry out. */
export function ledgerLine(entry: LedgerEntry, format: LedgerFormat): string | null {
  if (format === 'hutch') return JSON.stringify(entry);
  const cocoon = cocoonEntry(entry);
  return cocoon === null ? null : JSON.stringify(cocoon);
}

function isCocoonKind(kind: string): kind is CocoonKind {
  return (COCOON_KINDS as readonly string[]).includes(kind);
}
