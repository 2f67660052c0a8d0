// Tables of rules that daemons have left behind: killed, or their data directory deleted. Such a table goes on judging
// users that are somebody else's by now, or bridges. It is removed only when no process runs as one of its users and
// there is none of its bridges, because a sandbox that still runs must not be let out.
import { blockOf, type UidRange } from '../domain/users.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { removeScript } from './firewall.ts';
import { runNft, transact } from './nft.ts';
import { bridgesOfTable, bridgeTableOf } from './own-name.ts';
import { CLAIMS_DIR, type Claim, type UidClaims } from './uid-blocks.ts';

export type Leftover = { readonly kind: 'claim' | 'table'; readonly what: string };
type Stale = {
  readonly claims: readonly { readonly first: number; readonly claim: Claim | null; readonly isBusy: boolean }[];
  readonly tables: readonly { readonly name: string; readonly isBusy: boolean }[];
};

export const tableOf = ({ first }: UidRange): string => `hutch_uids_${first}`;

/** Of a Hutch in which every daemon had all users. */
const OLD_TABLE = /^hutch(?:_[0-9a-f]{8})?$/;

/** What of the machine's is the asking daemon's: its block, tables that it needs, and tables of its own that it needs no more. */
export type Own = { readonly uids: UidRange; readonly needed: readonly string[]; readonly outdated: readonly string[] };

/** Removes what nobody needs; tells what that was. */
export async function removeLeftovers(op: Operation, host: Host, claims: UidClaims, own: Own): Promise<readonly Leftover[]> {
  const stale = await findStale(op, host, claims, own);
  const found = describe({
    claims: stale.claims.filter(({ isBusy }) => !isBusy),
    tables: stale.tables.filter(({ isBusy }) => !isBusy),
  });
  for (const { name, isBusy } of stale.tables) {
    if (isBusy) continue;
    const refused = await transact(op, host, removeScript(name));
    if (refused !== '') op.log.warn({ table: name, refused }, 'a table that another daemon has left cannot be removed');
  }
  // After its table, so that whoever takes the block finds none.
  for (const { first, isBusy } of stale.claims) if (!isBusy) await claims.forget(op, first);
  return found;
}

export async function listLeftovers(op: Operation, host: Host, claims: UidClaims, own: Own): Promise<readonly Leftover[]> {
  return describe(await findStale(op, host, claims, own));
}

async function findStale(op: Operation, host: Host, claims: UidClaims, own: Own): Promise<Stale> {
  const staleClaims: Stale['claims'][number][] = [];
  const kept = new Set<number>();
  const bridging = new Set<string>();
  for (const [first, claim] of await claims.all(op)) {
    const isOwn = first === own.uids.first;
    if (isOwn || (await claims.stands(op, first, claim))) {
      if (claim !== null) bridging.add(bridgeTableOf(claim.dataDir));
      if (!isOwn) kept.add(first);
    } else staleClaims.push({ first, claim, isBusy: await claims.isBusy(op, blockOf(first)) });
  }
  const tables: Stale['tables'][number][] = [];
  for (const name of await tableNames(op, host)) {
    if (own.needed.includes(name) || bridging.has(name)) continue;
    const bridges = bridgesOfTable(name);
    const first = Number(/^hutch_uids_(\d+)$/.exec(name)?.[1] ?? Number.NaN);
    if (own.outdated.includes(name)) tables.push({ name, isBusy: false });
    else if (Number.isInteger(first)) {
      if (!kept.has(first)) tables.push({ name, isBusy: await claims.isBusy(op, blockOf(first)) });
    } else if (bridges !== null) {
      // While a bridge is there an Engine may have containers on it.
      const found = await Promise.all(Object.values(bridges).map((bridge) => host.stat(op, `/sys/class/net/${bridge}`)));
      tables.push({ name, isBusy: found.some((bridge) => bridge !== null) });
    } else if (OLD_TABLE.test(name)) {
      // Whose it is cannot be told. Where nothing runs that might be its, it judges others' sandboxes alone.
      tables.push({ name, isBusy: (await claims.busyWithoutClaim(op)).length > 0 });
    }
  }
  return { claims: staleClaims, tables };
}

/** Of the family `inet`. */
export async function tableNames(op: Operation, host: Host): Promise<readonly string[]> {
  if ((await host.which(op, 'nft')) === null) return [];
  const { exitCode, stdout } = await runNft(op, host, ['list', 'tables']);
  if (exitCode !== 0) return []; // this kernel has none
  return [...new TextDecoder().decode(stdout).matchAll(/^table inet (\S+)$/gm)].map(([, name = '']) => name);
}

function describe({ claims, tables }: Stale): readonly Leftover[] {
  const busy = (isBusy: boolean): string => (isBusy ? '; processes still run as its users' : '');
  return [
    ...claims.map(({ first, claim, isBusy }) => ({
      kind: 'claim' as const,
      what: `${CLAIMS_DIR}/${first} (of ${claim?.dataDir ?? 'nobody'}, which does not have it${busy(isBusy)})`,
    })),
    // Rules of bridges that are there are an Engine's in use, whatever became of the daemon: nothing is left over yet.
    ...tables
      .filter(({ name, isBusy }) => !isBusy || bridgesOfTable(name) === null)
      .map(({ name, isBusy }) => ({ kind: 'table' as const, what: `nft table inet ${name}${busy(isBusy)}` })),
  ];
}
