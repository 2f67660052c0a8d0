// What must be true of the bytes of snapshots at any time: each that lies on the disk counts once, for one snapshot, in the list, in the quota
// and in the ledger; what the machine's own templates have counts for none.
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import type { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { filesIn } from './saved-files.ts';

const MIB = 2 ** 20;
const BLOCK_BYTES = 512;

type Entry = { readonly kind: string; readonly snapshotId: string; readonly shape: { readonly storageBytes: number } };

/** `elsewhereBytes`: of what lies in an engine. */
export async function expectBytesCounted(daemon: DaemonUnderTest, elsewhereBytes = 0): Promise<void> {
  const { snapshots } = await daemon.call('snapshot.list', { all: true });
  const counted = snapshots.reduce((sum, { ownBytes }) => sum + ownBytes, 0);
  expect(counted, 'what is counted is what is there').toBe(bytesIn(daemon) + elsewhereBytes);
  for (const { id, ownBytes, apparentBytes } of snapshots) expect(apparentBytes, id).toBeGreaterThanOrEqual(ownBytes);
  const { projects } = await daemon.call('quota.list', {});
  expect(projects[0]?.use['snapshotMiB']).toBe(Math.ceil(counted / MIB));
  const open = new Map<string, number>();
  for await (const line of daemon.lines('ledger.list', {})) {
    const { kind, snapshotId, shape } = line as Entry;
    if (kind === 'snap.storage.stop') {
      expect(open.get(snapshotId), 'an interval ends as it began').toBe(shape.storageBytes);
      open.delete(snapshotId);
    } else if (kind === 'snap.storage.start') {
      expect(open.has(snapshotId), 'one interval at a time').toBe(false);
      open.set(snapshotId, shape.storageBytes);
    }
  }
  expect(open, 'what is billed is what is counted').toEqual(new Map(snapshots.map(({ id, ownBytes }) => [id, ownBytes])));
  await daemon.call('ledger.verify', {});
}

/** Each file once, however many names it has. */
function bytesIn({ home }: DaemonUnderTest): number {
  const [snapshots, templates] = ['snapshots', 'templates'].map((name) => join(home, 'data', name)) as [string, string];
  const isTemplates = new Set(existsSync(templates) ? filesIn(templates).map((path) => statSync(path).ino) : []);
  const bytes = new Map<number, number>();
  for (const name of existsSync(snapshots) ? readdirSync(snapshots) : []) {
    for (const path of filesIn(join(snapshots, name))) {
      const { ino, blocks } = statSync(path);
      if (!isTemplates.has(ino)) bytes.set(ino, blocks * BLOCK_BYTES);
    }
  }
  return [...bytes.values()].reduce((sum, each) => sum + each, 0);
}
