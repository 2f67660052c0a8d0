// The tables of volumes and of which sandbox mounts which: a volume cannot vanish under a sandbox.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import type { SandboxId, VolumeId } from '../domain/ids.ts';
import type { Mount } from '../domain/mount.ts';
import { type Volume, type VolumeUser, volumeEntries } from '../domain/volume.ts';
import { idColumn, timeColumn } from './columns.ts';
import type { ChangeMap, QueryMap } from './contract.ts';
import type { Db, Row } from './db.ts';
import { addEvent } from './events.ts';
import { appendLedger } from './ledger.ts';
import { requireName } from './names.ts';
import { roomForVolume } from './quotas.ts';
import type { Tx } from './tx.ts';

const row = z.object({
  id: idColumn('vol'),
  project_id: idColumn('prj'),
  name: z.string(),
  size_mib: z.int(),
  created_at_ms: timeColumn,
  guest_written: z.int(),
});

function fromRow(raw: Row): Volume {
  const { id, project_id, name, size_mib, created_at_ms, guest_written } = row.parse(raw);
  return { id, projectId: project_id, name, sizeMiB: size_mib, createdAtMs: created_at_ms, guestWritten: guest_written === 1 };
}

export function createVolume(tx: Tx, { volume }: ChangeMap['createVolume']['args']): Volume {
  const { db } = tx;
  const { id, projectId, name, sizeMiB, createdAtMs } = volume;
  claimVolumeName(db, projectId, name);
  roomForVolume(tx, projectId, sizeMiB);
  db.run(
    'INSERT INTO volumes (id, project_id, name, size_mib, created_at_ms, guest_written) VALUES (?, ?, ?, ?, ?, 0)',
    id,
    projectId,
    name,
    sizeMiB,
    createdAtMs,
  );
  record(tx, 'volume.created', volume, createdAtMs);
  appendLedger(tx, volumeEntries(null, volume, createdAtMs, tx.stamp.opId));
  return existing(db, id);
}

/** Names are the project's, apart from those of sandboxes and snapshots. */
function claimVolumeName(db: Db, projectId: Volume['projectId'], name: string): void {
  requireName(name);
  const holder = db.get('SELECT id FROM volumes WHERE project_id = ? AND name = ?', projectId, name)?.['id'];
  if (holder === undefined) return;
  throw new HutchError({
    code: 'conflict',
    message: `the name ${name} is taken by volume ${holder}`,
    hint: `choose another, or remove it: hutch volume rm ${name}`,
  });
}

/** What it takes on the disk goes afterwards. */
export function removeVolume(tx: Tx, { id, atMs }: ChangeMap['removeVolume']['args']): Volume {
  const volume = existing(tx.db, id);
  const users = volumeUsers(tx.db, { id });
  if (users.length > 0) {
    throw new HutchError({
      code: 'failed_precondition',
      message: `volume ${volume.name} is mounted by ${users.length === 1 ? 'sandbox' : 'sandboxes'} ${users.map(({ sandbox }) => sandbox).join(', ')}`,
      hint: `delete those first: hutch rm ${users.some(({ alive }) => alive) ? '-f ' : ''}${users.map(({ sandbox }) => sandbox).join(' ')}`,
    });
  }
  tx.db.run('DELETE FROM volumes WHERE id = ?', id);
  record(tx, 'volume.removed', volume, atMs);
  appendLedger(tx, volumeEntries(volume, null, atMs, tx.stamp.opId));
  return volume;
}

export function growVolume(tx: Tx, { id, sizeMiB, atMs }: ChangeMap['growVolume']['args']): Volume {
  const before = existing(tx.db, id);
  roomForVolume(tx, before.projectId, Math.max(0, sizeMiB - before.sizeMiB));
  tx.db.run('UPDATE volumes SET size_mib = max(size_mib, ?) WHERE id = ?', sizeMiB, id);
  const volume = existing(tx.db, id);
  record(tx, 'volume.grown', volume, atMs);
  appendLedger(tx, volumeEntries(before, volume, atMs, tx.stamp.opId));
  return volume;
}

export function markGuestWritten(tx: Tx, { id }: ChangeMap['markGuestWritten']['args']): null {
  tx.db.run('UPDATE volumes SET guest_written = 1 WHERE id = ?', id);
  return null;
}

/** In the transaction that makes the sandbox. */
export function mountVolumes(tx: Tx, sandboxId: SandboxId, mounts: readonly Mount[]): void {
  for (const { volumeId, readOnly } of mounts) {
    if (volumeId === undefined) continue;
    existing(tx.db, volumeId);
    tx.db.run('INSERT INTO sandbox_volumes (sandbox_id, volume_id, read_only) VALUES (?, ?, ?)', sandboxId, volumeId, readOnly ? 1 : 0);
  }
}

export function forgetVolumes(tx: Tx, sandboxId: SandboxId): void {
  tx.db.run('DELETE FROM sandbox_volumes WHERE sandbox_id = ?', sandboxId);
}

export function readVolume(db: Db, id: VolumeId): Volume | null {
  const found = db.get('SELECT * FROM volumes WHERE id = ?', id);
  return found === undefined ? null : fromRow(found);
}

export function listVolumes(db: Db, { projectId }: QueryMap['volumes']['args']): readonly Volume[] {
  return db.all('SELECT * FROM volumes WHERE ?1 IS NULL OR project_id = ?1 ORDER BY name, id', projectId ?? null).map(fromRow);
}

export function volumeUsers(db: Db, { id }: QueryMap['volumeUsers']['args']): readonly VolumeUser[] {
  return db
    .all(
      `SELECT v.volume_id, s.name, v.read_only, s.open_compute_since_ms IS NOT NULL AS alive FROM sandbox_volumes v
       JOIN sandboxes s ON s.id = v.sandbox_id WHERE ?1 IS NULL OR v.volume_id = ?1 ORDER BY s.name`,
      id ?? null,
    )
    .map((found) => ({
      volumeId: idColumn('vol').parse(found['volume_id']),
      sandbox: String(found['name']),
      readOnly: found['read_only'] === 1,
      alive: found['alive'] === 1,
    }));
}

function existing(db: Db, id: VolumeId): Volume {
  const found = readVolume(db, id);
  if (found === null) throw new HutchError({ code: 'not_found', message: `there is no volume ${id}` });
  return found;
}

function record(tx: Tx, type: string, { id, name, projectId, sizeMiB }: Volume, atMs: number): void {
  addEvent(tx, { type, atMs, projectId, detail: { volumeId: id, name, sizeMiB } });
}
