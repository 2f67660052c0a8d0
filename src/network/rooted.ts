// The network where the daemon is root: each sandbox's passt runs as the sandbox's own user, and
// nftables judges that user's packets. The rules are installed before passt starts and again at each
// start, so a firewall that was reloaded meanwhile does not open the host.
import { join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { admitScript, dismissScript, installScript, removeScript, type UidRange } from './firewall.ts';
import type { Link, Network, NetworkAbilities, NetworkPlan } from './network.ts';
import { findPasst, guestAddress, type Passt, passtArgv } from './passt.ts';
import { parseResolvers } from './resolvers.ts';

const RESOLV_CONF = '/etc/resolv.conf';
const NFT_MS = 10_000;

export type RootedNetworkConfig = {
  readonly host: Host;
  readonly uids: UidRange;
  /** One per daemon on this machine. */
  readonly table: string;
};

type Tools = { readonly passt: Passt; readonly nft: string } | { readonly missing: string };

export function rootedNetwork(config: RootedNetworkConfig): Network {
  const { host, uids, table } = config;
  let found: Tools | undefined;
  /** Transactions of one table follow each other: the last to leave removes it. */
  let turn: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const mine = turn.then(work);
    turn = mine.catch(() => {}); // its caller hears it
    return mine;
  };

  const tools = async (op: Operation): Promise<Tools> => {
    if (found !== undefined && !('missing' in found)) return found;
    const [passt, nft] = await Promise.all([findPasst(op, host), host.which(op, 'nft')]);
    if ('missing' in passt) found = passt;
    else if (nft === null) found = { missing: 'nftables (nft) is not installed: nothing would keep a sandbox from this host' };
    else found = { passt, nft };
    return found;
  };

  const needed = async (op: Operation): Promise<Exclude<Tools, { readonly missing: string }>> => {
    const have = await tools(op);
    if (!('missing' in have)) return have;
    throw op.error('failed_precondition', `no network: ${have.missing}`, { hint: 'start it with --no-net, or see: hutch doctor' });
  };

  const resolvers = async (op: Operation): Promise<readonly string[]> => {
    if ((await host.stat(op, RESOLV_CONF)) === null) return [];
    return parseResolvers(new TextDecoder().decode(await host.readRange(op, RESOLV_CONF, 0, 65_536)));
  };

  const nft = async (op: Operation, path: string, script: string): Promise<string> => {
    using limited = op.within(NFT_MS, 'nft');
    const { exitCode, stderr } = await host.run(limited, [path, '-f', '-'], { input: new TextEncoder().encode(script) });
    return exitCode === 0 ? '' : new TextDecoder().decode(stderr).trim() || `nft ended with ${exitCode}`;
  };

  return {
    async probe(op): Promise<NetworkAbilities> {
      const have = await tools(op);
      if ('missing' in have) return { modes: ['none'], notes: [`no network: ${have.missing}`] };
      const trial = `${table}_probe`;
      const refused = await nft(op, have.nft, installScript({ table: trial, uids, resolvers: [] }) + removeScript(trial));
      if (refused !== '') return { modes: ['none'], notes: [`no network: nftables does not work here: ${refused}`] };
      return { modes: ['none', 'allow', 'allow-lan'], notes: [] };
    },

    async wire(op, plan): Promise<Link> {
      if (plan.mode === 'none') return { kind: 'none' };
      userOf(op, plan, uids);
      const { passt } = await needed(op);
      return {
        kind: 'passt',
        argv: passtArgv(passt, join(plan.socketDir, 'passt.log')),
        guest: guestAddress(plan.id, await resolvers(op)),
      };
    },

    async admit(op, plan) {
      if (plan.mode === 'none') return;
      const user = userOf(op, plan, uids);
      const have = await needed(op);
      const install = installScript({ table, uids, resolvers: await resolvers(op) });
      const refused = await inTurn(() =>
        nft(op, have.nft, install + admitScript(table, user, plan.mode === 'allow-lan' ? 'lan' : 'internet')),
      );
      if (refused !== '') throw op.error('failed_precondition', `the firewall rules cannot be installed: ${refused}`);
    },

    async close(op, plan) {
      if (plan.mode === 'none' || plan.runAs === null) return;
      const user = userOf(op, plan, uids);
      const path = await host.which(op, 'nft');
      if (path === null) return;
      await inTurn(async () => {
        const users = await openUsers(op, host, path, table);
        if (users === null) return; // nothing of ours is there
        const others = users.filter((other) => other !== `${user}`);
        const refused = await nft(op, path, others.length > 0 ? dismissScript(table, user) : removeScript(table));
        if (refused !== '') throw op.error('internal', `the firewall entry of user ${user} cannot be removed: ${refused}`);
      });
    },
  };
}

function userOf(op: Operation, plan: NetworkPlan, uids: UidRange): number {
  const user = plan.runAs?.uid;
  // Without a user of its own, its packets could not be told from the daemon's.
  if (user === undefined || user < uids.first || user > uids.last) {
    throw op.error('failed_precondition', `a sandbox with a network needs a user between ${uids.first} and ${uids.last}`, {
      hint: 'start it with --no-net',
    });
  }
  return user;
}

/** The users that the table lets out, as numbers; null when there is no table. */
async function openUsers(op: Operation, host: Host, nft: string, table: string): Promise<readonly string[] | null> {
  using limited = op.within(NFT_MS, 'nft');
  const { exitCode, stdout } = await host.run(limited, [nft, '-n', 'list', 'set', 'inet', table, 'open']);
  if (exitCode !== 0) return null;
  const elements = /elements = \{([^}]*)\}/s.exec(new TextDecoder().decode(stdout))?.[1] ?? '';
  return elements
    .split(',')
    .map((element) => element.trim())
    .filter((element) => element !== '');
}
