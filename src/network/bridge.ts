// The rules for sandboxes whose packets come over a bridge, as containers' do: one bridge for those that
// reach the internet, one for those that reach private ranges too. A table of our own judges what comes
// from the two before anybody else's rules do, and the bridge passes nothing between two sandboxes.
import { errnoOf } from '../host/errors.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { destinationRules, REFUSE_RULES, tableName } from './firewall.ts';
import type { NetworkAbilities } from './network.ts';
import { hostResolvers } from './resolvers.ts';

export type Bridges = { readonly internet: string; readonly lan: string };

export type BridgeNetwork = {
  readonly bridges: Bridges;
  probe(op: Operation): Promise<NetworkAbilities>;
  /** The rules stand when this returns: before a sandbox's first packet, and at each start. Idempotent. */
  protect(op: Operation): Promise<void>;
  /** After a sandbox's port is on the bridge, before anything of it runs: sandboxes do not see each other. */
  isolate(op: Operation): Promise<void>;
  /** When no sandbox is left. Idempotent. */
  end(op: Operation): Promise<void>;
};

export type BridgeConfig = {
  readonly host: Host;
  /** One per daemon on this machine; names the bridges too. */
  readonly table: string;
  readonly bridges: Bridges;
};

const ONE = new TextEncoder().encode('1');
const NFT_MS = 10_000;
/** Before anybody else's chains of the same hook. */
const PRIORITY = -10;

export function bridgeNetwork({ host, table, bridges }: BridgeConfig): BridgeNetwork {
  /** Transactions follow each other. */
  let turn: Promise<unknown> = Promise.resolve();

  async function nft(op: Operation, script: string): Promise<string> {
    const path = await host.which(op, 'nft');
    if (path === null) return 'nftables (nft) is not installed: nothing would keep a sandbox from this host';
    using limited = op.within(NFT_MS, 'nft');
    const { exitCode, stderr } = await host.run(limited, [path, '-f', '-'], { input: new TextEncoder().encode(script) });
    return exitCode === 0 ? '' : new TextDecoder().decode(stderr).trim() || `nft ended with ${exitCode}`;
  }

  function inTurn(op: Operation, script: string): Promise<string> {
    const mine = turn.then(() => nft(op, script));
    turn = mine.catch(() => {}); // its caller hears it
    return mine;
  }

  return {
    bridges,
    async probe(op) {
      if (host.uid !== 0) {
        return {
          modes: ['none'],
          notes: ['no network: the daemon does not run as root, so nothing would keep a sandbox from this machine'],
        };
      }
      const trial = `${table}_probe`;
      const refused = await inTurn(op, bridgeScript(trial, bridges, []) + removeBridgeScript(trial));
      if (refused !== '') return { modes: ['none'], notes: [`no network: ${refused}`] };
      return { modes: ['none', 'allow', 'allow-lan'], notes: [] };
    },
    async protect(op) {
      const refused = await inTurn(op, bridgeScript(table, bridges, await hostResolvers(op, host)));
      if (refused !== '') {
        throw op.error('failed_precondition', `the firewall rules cannot be installed: ${refused}`, {
          hint: 'start it with --no-net, or see: hutch doctor',
        });
      }
    },
    async isolate(op) {
      for (const bridge of [bridges.internet, bridges.lan]) {
        const dir = `/sys/class/net/${bridge}/brif`;
        if ((await host.stat(op, dir)) === null) continue;
        for (const port of await host.list(op, dir)) {
          await host.appendFile(op, `${dir}/${port}/isolated`, ONE).catch((cause: unknown) => {
            // A sandbox that ended just now took its port with it.
            if (errnoOf(cause) !== 'ENOENT') throw cause;
          });
        }
      }
    },
    async end(op) {
      if ((await host.which(op, 'nft')) === null || host.uid !== 0) return;
      const refused = await inTurn(op, removeBridgeScript(table));
      if (refused !== '') throw op.error('internal', `the firewall rules cannot be removed: ${refused}`);
    },
  };
}

/** One transaction that installs everything and heals what is missing. */
export function bridgeScript(table: string, { internet, lan }: Bridges, resolvers: readonly string[]): string {
  const name = tableName(table);
  const ours = `{ ${bridgeName(internet)}, ${bridgeName(lan)} }`;
  const hook = (kind: string): string => `{ type filter hook ${kind} priority ${PRIORITY}; policy accept; }`;
  const chain = (chainName: string, rules: readonly string[], base = ''): string[] => [
    `add chain inet ${name} ${chainName} ${base}`.trimEnd(),
    `flush chain inet ${name} ${chainName}`,
    ...rules.map((rule) => `add rule inet ${name} ${chainName} ${rule}`),
  ];
  return [
    `add table inet ${name}`,
    `add chain inet ${name} refuse`,
    `add chain inet ${name} sandbox`,
    ...chain('refuse', REFUSE_RULES),
    ...chain('sandbox', destinationRules(resolvers, `iifname ${bridgeName(lan)}`)),
    ...chain(
      'forward',
      [
        `iifname ${ours} ct state established,related accept`,
        `iifname ${ours} jump sandbox`,
        // Nobody begins a conversation with a sandbox over the network.
        `oifname ${ours} ct state new goto refuse`,
      ],
      hook('forward'),
    ),
    ...chain(
      'input',
      // The host's own resolver may be asked; everything else of the host is refused, whatever its address.
      [`iifname ${ours} ct state established,related accept`, `iifname ${ours} jump sandbox`, `iifname ${ours} goto refuse`],
      hook('input'),
    ),
    '',
  ].join('\n');
}

export function removeBridgeScript(table: string): string {
  const name = tableName(table);
  return `add table inet ${name}\ndelete table inet ${name}\n`;
}

function bridgeName(name: string): string {
  if (!/^[a-z][a-z0-9]{0,14}$/.test(name)) throw new Error(`not a name for a bridge: ${JSON.stringify(name)}`);
  return `"${name}"`;
}
