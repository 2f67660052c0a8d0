// The users that this daemon's sandboxes run as: a block of the machine's, taken at the start together with what
// others have left of it. Sandboxes that run as users of before (every daemon had all of them, once) keep
// those until they are started again, and are judged by the same rules meanwhile.
import type { Places } from '../config/places.ts';
import type { SandboxId } from '../domain/ids.ts';
import { isWithin, type UidRange } from '../domain/users.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { installScript, lanScript, removeScript } from '../network/firewall.ts';
import { transact } from '../network/nft.ts';
import { hostResolvers } from '../network/resolvers.ts';
import { type Leftover, listLeftovers, removeLeftovers, tableOf } from '../network/tables.ts';
import { UidClaims } from '../network/uid-blocks.ts';
import type { Store } from '../store/contract.ts';

export type Users = {
  readonly uids: UidRange;
  readonly table: string;
  /** Users outside of the block that sandboxes of ours run as. */
  readonly others: Set<number>;
  /** What other data directories have left on this machine. */
  leftovers(op: Operation): Promise<readonly Leftover[]>;
  /** Gives the block back when no sandbox has a user of it. */
  close(op: Operation): Promise<void>;
};

type Needs = {
  readonly host: Host;
  readonly store: Store;
  readonly places: Places;
  /** The name that our table had when every daemon had all users. */
  readonly oldTable: string;
};

const CLOSE_MS = 10_000;

export async function openUsers(op: Operation, { host, store, places, oldTable }: Needs): Promise<Users> {
  const { dataDir } = places;
  const self = await host.processRef(op, process.pid);
  if (self === null) throw new Error('this process is not in /proc');
  await using claims = await UidClaims.hold(op, host);
  const { how, ...uids } = await claims.take(op, dataDir, self);
  const table = tableOf(uids);
  const outside = await runningOutside(store, uids);
  // A table of a block that is new to us was another's, in which nothing runs.
  const needed = [...(how === 'kept' ? [table] : []), ...(outside.length > 0 ? [oldTable] : [])];
  const outdated = [table, oldTable].filter((name) => !needed.includes(name));
  const removed = await removeLeftovers(op, host, claims, { uids, needed, outdated });
  for (const { kind, what } of removed) op.log.info({ kind, what }, 'something that another daemon left was removed');
  const others = new Set(outside.map(({ uid }) => uid));
  await replaceOldTable(op, host, { uids, table, oldTable, outside });
  return {
    uids,
    table,
    others,
    async leftovers(asking) {
      await using held = await UidClaims.hold(asking, host);
      return await listLeftovers(asking, host, held, { uids, needed: [table], outdated: [] });
    },
    async close(closing) {
      if ((await store.query('uids', {})).length > 0) return;
      using late = closing.releasing(CLOSE_MS);
      await using held = await UidClaims.hold(late, host);
      await held.giveBack(late, dataDir);
    },
  };
}

type Outside = { readonly id: SandboxId; readonly uid: number; readonly reachesLan: boolean };

async function runningOutside(store: Store, uids: UidRange): Promise<readonly Outside[]> {
  const handedOut = (await store.query('uids', {})).filter(({ uid }) => !isWithin(uids, uid));
  if (handedOut.length === 0) return [];
  const running = new Map((await store.query('openSandboxes', {})).map(({ id, spec }) => [id, spec]));
  return handedOut.flatMap(({ sandboxId, uid }) => {
    const spec = running.get(sandboxId);
    return spec === undefined ? [] : [{ id: sandboxId, uid, reachesLan: spec.network === 'allow-lan' }];
  });
}

/** In one transaction, so that no packet finds neither. */
async function replaceOldTable(
  op: Operation,
  host: Host,
  { uids, table, oldTable, outside }: { uids: UidRange; table: string; oldTable: string; outside: readonly Outside[] },
): Promise<void> {
  if (outside.length === 0 || (await host.which(op, 'nft')) === null) return;
  const into = outside.filter(({ reachesLan }) => reachesLan).map(({ uid }) => uid);
  const script = [
    installScript({ table, uids, others: outside.map(({ uid }) => uid), resolvers: await hostResolvers(op, host) }),
    lanScript(table, { into, outOf: [] }),
    removeScript(oldTable),
  ];
  const refused = await transact(op, host, script.join(''));
  if (refused !== '') op.log.warn({ table: oldTable, refused }, 'the rules of before cannot be replaced; they go on standing');
}
