// On which snapshot each sandbox stands: written in the transaction that makes it so.
import type { SandboxId } from '../domain/ids.ts';
import type { SnapshotSource } from '../domain/sandbox.ts';
import type { Tx } from './tx.ts';

/** A sandbox begins with it, or goes on with it. What is not on record, as what a fork begins with, is no lineage. */
export function standOn(tx: Tx, sandboxId: SandboxId, source: SnapshotSource | undefined): void {
  if (source === undefined) return;
  const kind = tx.db.get('SELECT kind FROM snapshots WHERE id = ?', source.snapshotId)?.['kind'];
  if (kind === undefined) return;
  tx.db.run(
    `INSERT INTO sandbox_lineage (sandbox_id, head_id, made_from_id) VALUES (?1, ?2, ?3)
     ON CONFLICT (sandbox_id) DO UPDATE SET head_id = ?2, made_from_id = coalesce(?3, made_from_id)`,
    sandboxId,
    source.snapshotId,
    kind === 'undo' ? null : source.snapshotId,
  );
}

export function forgetLineage(tx: Tx, sandboxId: SandboxId): void {
  tx.db.run('DELETE FROM sandbox_lineage WHERE sandbox_id = ?', sandboxId);
}
