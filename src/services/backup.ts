// hutch system backup: the store, copied at one instant while it is in use, and checked before a byte of it is given away.
import { join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { checkCopy, headerLine } from '../store/backup.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';

const RELEASE_MS = 60_000;
const COPY = '.backup-';

export function backupVerbs({ deps }: Core): Pick<Handlers, 'system.backup'> {
  const { host, store, places, versions } = deps;
  return {
    'system.backup': async ({ op, caller }) => {
      if (caller.projectId !== store.defaultProjectId)
        throw op.error('permission_denied', 'the store has all projects: it is backed up with a key of the project default');
      const path = join(places.dataDir, `${COPY}${op.id}`);
      const remove = async (): Promise<void> => {
        using late = op.releasing(RELEASE_MS);
        for (const suffix of ['', '-wal']) await host.remove(late, `${path}${suffix}`);
      };
      try {
        // The worker cannot make files of a mode.
        await host.writeFileAtomic(op, path, '', 0o600);
        const createdAtMs = host.nowMs();
        await store.copyInto(op, path);
        const { schemaVersion, ledger } = await checkCopy(op, path);
        const sizeBytes = (await host.stat(op, path))?.sizeBytes ?? 0;
        const first = headerLine({
          ...{ format: 'hutch-backup-1', version: versions.daemon, schemaVersion, createdAtMs, sizeBytes },
          ...{ sha256: await host.sha256(op, path), ledger },
        });
        return {
          contentType: 'application/octet-stream',
          headers: { 'Content-Length': String(first.byteLength + sizeBytes) },
          bytes: (async function* () {
            try {
              yield first;
              yield* host.readStream(op, path);
            } finally {
              await remove();
            }
          })(),
        };
      } catch (error) {
        await remove();
        throw error;
      }
    },
  };
}

/** What a daemon that was killed has left of a backup. */
export async function removeOldCopies(op: Operation, host: Pick<Host, 'list' | 'remove'>, dataDir: string): Promise<void> {
  for (const name of await host.list(op, dataDir)) if (name.startsWith(COPY)) await host.remove(op, join(dataDir, name));
}
