// The network where the daemon is root: each sandbox's passt runs as the sandbox's own user, and
// nftables judges that user's packets. The rules stand before a sandbox's link goes up; at each start it
// is looked whether they are still ours, so a firewall that was reloaded meanwhile does not open the host.
import { join } from 'node:path';
import { isWithin, type UidRange } from '../domain/users.ts';
import type { Host, RunResult } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { installScript, removeScript } from './firewall.ts';
import type { Link, Network, NetworkAbilities, NetworkPlan } from './network.ts';
import { runNft, transact } from './nft.ts';
import { findPasst, guestAddress, type Passt, passtArgv } from './passt.ts';
import { hostResolvers } from './resolvers.ts';
import { Rules } from './rules.ts';

export type RootedNetworkConfig = {
  readonly host: Host;
  /** Nobody else's on this machine. */
  readonly uids: UidRange;
  /** Users beside those that sandboxes run as from before; each is taken out when its sandbox has ended. */
  readonly others?: Set<number>;
  /** One per block of users. */
  readonly table: string;
};

type Tools = { readonly passt: Passt; readonly nft: string } | { readonly missing: string };

export function rootedNetwork(config: RootedNetworkConfig): Network {
  const { host, uids, table, others = new Set() } = config;
  let found: Tools | undefined;
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

  const ruleset = async (op: Operation): Promise<string> =>
    installScript({ table, uids, others, resolvers: await hostResolvers(op, host) });

  const rules = new Rules(
    table,
    (op, script) => transact(op, host, script),
    async (op) => usersIn(await runNft(op, host, ['-n', 'list', 'set', 'inet', table, 'lan'])),
  );

  const isOurs = (user: number): boolean => isWithin(uids, user) || others.has(user);

  function userOf(op: Operation, plan: NetworkPlan): number {
    const user = plan.runAs?.uid;
    // Without a user of its own, its packets could not be told from the daemon's, or another sandbox's.
    if (user === undefined || !isOurs(user)) {
      throw op.error('failed_precondition', `a sandbox with a network needs a user between ${uids.first} and ${uids.last}`, {
        hint: 'start it with --no-net',
      });
    }
    return user;
  }

  return {
    async probe(op): Promise<NetworkAbilities> {
      const have = await tools(op);
      if ('missing' in have) return { modes: ['none'], notes: [`no network: ${have.missing}`] };
      const trial = `${table}_probe`;
      const refused = await rules.other(op, installScript({ table: trial, uids, others, resolvers: [] }) + removeScript(trial));
      if (refused !== '') return { modes: ['none'], notes: [`no network: nftables does not work here: ${refused}`] };
      return { modes: ['none', 'allow', 'allow-lan'], notes: [] };
    },

    async wire(op, plan): Promise<Link> {
      if (plan.mode === 'none') return { kind: 'none' };
      userOf(op, plan);
      const { passt } = await needed(op);
      return {
        kind: 'passt',
        argv: passtArgv(passt, join(plan.socketDir, 'passt.log')),
        guest: guestAddress(plan.id, await hostResolvers(op, host)),
        wiredAt: rules.now,
      };
    },

    async admit(op, plan, seen) {
      if (plan.mode === 'none') return;
      const user = userOf(op, plan);
      await needed(op);
      const refused = await rules.admit(op, await ruleset(op), user, reachOf(plan), seen);
      if (refused !== '') throw op.error('failed_precondition', `the firewall rules cannot be installed: ${refused}`);
    },

    async close(op, plan) {
      const user = plan.runAs?.uid;
      // One that is not ours has no entry here: its sandbox has not run since the directory has its block.
      if (plan.mode === 'none' || user === undefined || !isOurs(user)) return;
      if ((await host.which(op, 'nft')) === null) return;
      const refused =
        (await rules.dismiss(op, user, reachOf(plan))) || (others.delete(user) ? await rules.other(op, await ruleset(op)) : '');
      if (refused !== '') throw op.error('internal', `the firewall entry of user ${user} cannot be removed: ${refused}`);
    },

    async end(op) {
      if ((await host.which(op, 'nft')) === null) return;
      const refused = await rules.other(op, removeScript(table));
      rules.forget();
      if (refused !== '') throw op.error('internal', `the firewall rules cannot be removed: ${refused}`);
    },
  };
}

const reachOf = ({ mode }: NetworkPlan) => (mode === 'allow-lan' ? 'lan' : 'internet');

/** Of nft's list of a set; none where it could not be listed. */
function usersIn({ exitCode, stdout }: RunResult): readonly number[] {
  if (exitCode !== 0) return [];
  const elements = /elements = \{([^}]*)\}/s.exec(new TextDecoder().decode(stdout))?.[1] ?? '';
  return [...elements.matchAll(/\d+/g)].map(([digits]) => Number(digits));
}
