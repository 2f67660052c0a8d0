// Users for the sandboxes of a test: a block of this machine's that is the test's alone, taken as a daemon takes its own.
// So neither tests that run beside it, nor daemons, nor rules that a killed one has left get in its way; and
// what a test that is killed itself leaves is removed by whoever takes a block next.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { UidRange } from '../../src/domain/users.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { removeScript } from '../../src/network/firewall.ts';
import { transact } from '../../src/network/nft.ts';
import { removeLeftovers, tableOf } from '../../src/network/tables.ts';
import { UidClaims } from '../../src/network/uid-blocks.ts';
import { testOperation } from './operation.ts';

export type TestUsers = AsyncDisposable & { readonly uids: UidRange; readonly table: string };

export const isRoot = process.getuid?.() === 0;

/** Needs root. */
export async function takeUsers(): Promise<TestUsers> {
  const [op, host] = [testOperation(), nodeHost()];
  await using undo = new AsyncDisposableStack();
  const dir = await mkdtemp(join(tmpdir(), 'hutch-users-'));
  undo.defer(() => rm(dir, { recursive: true, force: true }));
  const self = await host.processRef(op, process.pid);
  if (self === null) throw new Error('this process is not in /proc');
  await using claims = await UidClaims.hold(op, host);
  const { how: _, ...uids } = await claims.take(op, dir, self);
  undo.defer(async () => {
    await using held = await UidClaims.hold(op, host);
    await held.giveBack(op, dir);
  });
  const table = tableOf(uids);
  undo.defer(async () => void (await transact(op, host, removeScript(table))));
  await removeLeftovers(op, host, claims, { uids, needed: [], outdated: [table] });
  const kept = undo.move();
  return { uids, table, [Symbol.asyncDispose]: () => kept[Symbol.asyncDispose]() };
}
