// The network where the daemon is root: each sandbox's passt runs as the sandbox's own user, and
// nftables judges that user's packets. The rules stand before a sandbox's link goes up; at each start it
// is looked whether they are still ours, so a firewall that was reloaded meanwhile does not open the host.
import { join } from 'node:path';
import type { Host, RunResult } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { installScript, removeScript, type UidRange } from './firewall.ts';
import type { Link, Network, NetworkAbilities, NetworkPlan } from './network.ts';
import { findPasst, guestAddress, type Passt, passtArgv } from './passt.ts';
import { parseResolvers } from './resolvers.ts';
import { Rules } from './rules.ts';

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

  /** Deaf to its caller's cancellation: other sandboxes may wait for the same transaction. */
  const nft = async (op: Operation, args: readonly string[], input = ''): Promise<RunResult> => {
    using limited = op.releasing(NFT_MS);
    return await host.run(limited, [(await host.which(limited, 'nft')) ?? 'nft', ...args], { input: new TextEncoder().encode(input) });
  };

  const rules = new Rules(
    table,
    async (op, script) => {
      const { exitCode, stderr } = await nft(op, ['-f', '-'], script);
      return exitCode === 0 ? '' : new TextDecoder().decode(stderr).trim() || `nft ended with ${exitCode}`;
    },
    async (op) => usersIn(await nft(op, ['-n', 'list', 'set', 'inet', table, 'lan'])),
  );

  return {
    async probe(op): Promise<NetworkAbilities> {
      const have = await tools(op);
      if ('missing' in have) return { modes: ['none'], notes: [`no network: ${have.missing}`] };
      const trial = `${table}_probe`;
      const refused = await rules.other(op, installScript({ table: trial, uids, resolvers: [] }) + removeScript(trial));
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
        wiredAt: rules.now,
      };
    },

    async admit(op, plan, seen) {
      if (plan.mode === 'none') return;
      const user = userOf(op, plan, uids);
      await needed(op);
      const script = installScript({ table, uids, resolvers: await resolvers(op) });
      const refused = await rules.admit(op, script, user, reachOf(plan), seen);
      if (refused !== '') throw op.error('failed_precondition', `the firewall rules cannot be installed: ${refused}`);
    },

    async close(op, plan) {
      if (plan.mode === 'none' || plan.runAs === null) return;
      const user = userOf(op, plan, uids);
      if ((await host.which(op, 'nft')) === null) return;
      const refused = await rules.dismiss(op, user, reachOf(plan));
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

/** Of nft's list of a set; none where it could not be listed. */
function usersIn({ exitCode, stdout }: RunResult): readonly number[] {
  if (exitCode !== 0) return [];
  const elements = /elements = \{([^}]*)\}/s.exec(new TextDecoder().decode(stdout))?.[1] ?? '';
  return [...elements.matchAll(/\d+/g)].map(([digits]) => Number(digits));
}
