// A disk that cannot be used any more: one error, whatever of a backend has found out.
import type { HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';

/** What the cell ends with (rust/cell) when the private disk is what keeps it from starting. */
export const CELL_DISK_DAMAGED = 124;

export type Damage = {
  readonly name: string;
  /** Of the file that a repair would be of; null: it is not ours. */
  readonly path: string | null;
  readonly hasSnapshots: boolean;
  readonly why: string;
  readonly cause?: unknown;
};

/** `failed_precondition`: trying again does not help, and the sandbox stays as it is until somebody has chosen what does. */
export function damagedDisk(op: Operation, { name, path, hasSnapshots, why, cause }: Damage): HutchError {
  const ways = [
    ...(hasSnapshots ? [`let it go back to a snapshot (hutch snapshot ls; hutch restore ${name} SNAPSHOT)`] : []),
    ...(path === null ? [] : [`repair its file system (e2fsck -f ${path})`]),
    `delete it (hutch rm ${name})`,
  ];
  return op.error('failed_precondition', `the disk of sandbox ${name} is damaged: ${why}`, { hint: ways.join(', or '), cause });
}
