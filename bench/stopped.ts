// Sandboxes that ran and were stopped, as many as wanted, without running them: written by the store's
// own changes while no daemon has it, each with the files that it would have.
import { randomBytes } from 'node:crypto';
import { mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isId, newId } from '../src/domain/ids.ts';
import { BLOCKS, blockOf } from '../src/domain/users.ts';
import { nodeHost } from '../src/host/node-host.ts';
import type { Change } from '../src/store/contract.ts';
import { openStore } from '../src/store/store.ts';
import { benchOperation } from './operation.ts';
import type { Place } from './place.ts';

const PER_COMMIT = 25;

/** All are like the one that exists. */
export async function addStopped(place: Place, like: string, count: number): Promise<void> {
  const op = benchOperation();
  await using store = await openStore({ path: join(place.dataDir, 'hutch.db'), host: nodeHost(), op });
  if (!isId('sbx', like)) throw new Error(`not a sandbox: ${like}`);
  const model = await store.query('sandbox', { id: like });
  if (model === null) throw new Error(`there is no sandbox ${like}`);
  const { projectId, spec } = model;
  const atMs = Date.now();
  for (let made = 0; made < count; made += PER_COMMIT) {
    const ids = Array.from({ length: Math.min(PER_COMMIT, count - made) }, () => newId('sbx', (bytes) => randomBytes(bytes)));
    const changes = ids.flatMap((id, i): Change[] => {
      const ended = { cause: 'stopped', exitCode: null, oomKilled: false, actor: 'daemon', atMs } as const;
      const stamp = { atMs, opId: op.id } as const;
      return [
        { change: 'allocateUid', sandboxId: id, uids: blockOf(BLOCKS[0] ?? 0) },
        { change: 'createSandbox', id, projectId, spec: { ...spec, name: `stopped-${made + i}` }, atMs },
        { change: 'applyEvent', sandboxId: id, event: { ...stamp, type: 'started', reason: 'boot', deadlineAtMs: null } },
        {
          change: 'applyEvent',
          sandboxId: id,
          event: { ...stamp, type: 'ended', reason: 'stop-user', ended, diedAtMs: atMs, evidence: 'exit.json' },
        },
      ];
    });
    await store.commit(op, changes, 'relaxed');
    for (const id of ids) {
      const dir = join(place.dataDir, 'sandboxes', id, 'vm');
      mkdirSync(dir, { recursive: true });
      writeFileSync(join(dir, 'disk.img'), '');
      truncateSync(join(dir, 'disk.img'), spec.shape.diskMiB * 2 ** 20);
    }
  }
}
