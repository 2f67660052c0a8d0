// The network where the daemon is not root: each sandbox's passt runs in a user and a network namespace of
// its own, in which nftables judges its packets, and pasta carries what they let through to the
// sockets of the user outside. Rules and namespaces live and die with the sandbox: nothing is the machine's.
//
// The host's own addresses are not local in there, so they are refused by name, as they are when the
// sandbox starts.
import { join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { destinationRules, REFUSE_RULES } from './firewall.ts';
import type { Link, Network, NetworkAbilities, NetworkPlan, WiredAt } from './network.ts';
import { findPasst, guestAddress, optionsOf, type Passt, passtArgv, unmapOptions } from './passt.ts';
import { parseResolvers } from './resolvers.ts';

const RESOLV_CONF = '/etc/resolv.conf';
const LOCAL_ADDRESSES = '/proc/net/fib_trie';
const FILE_BYTES_MAX = 1024 * 1024;
const TRIAL_MS = 15_000;
const HINT = 'start it with --no-net, or see: hutch doctor';

/** Names are asked for at this address, which pasta turns into the host's resolver, wherever that is. */
const RESOLVER = '192.0.0.9';
/** The namespace's way out. */
const INTERFACE = 'hutch0';
/** Is true of every packet. */
const ANY = 'meta nfproto { ipv4, ipv6 }';

const NEEDED = ['--config-net', '--no-map-gw', '--dns-forward', '--ns-ifname', '--tcp-ns', '--udp-ns', '--log-file'] as const;

type Pasta = { readonly path: string; readonly options: readonly string[] };
type Tools = { readonly passt: Passt; readonly pasta: Pasta; readonly nft: string; readonly unshare: string };
type Reach = 'internet' | 'lan';

export function rootlessNetwork({ host }: { readonly host: Host }): Network {
  let found: Tools | undefined;
  const tools = async (op: Operation): Promise<Tools | { readonly missing: string }> => {
    if (found !== undefined) return found;
    const looked = await findTools(op, host);
    if (!('missing' in looked)) found = looked;
    return looked;
  };
  /** A namespace that works once works again; one that does not may do so after something was installed or allowed. */
  let works = false;
  const refusal = async (op: Operation): Promise<string | null> => {
    const have = await tools(op);
    if ('missing' in have) return have.missing;
    if (works) return null;
    using limited = op.within(TRIAL_MS, 'trying a network namespace');
    const argv = trialArgv(have, namespaceRules('internet', await localAddresses(op, host)));
    const { exitCode, stderr } = await host.run(limited, argv);
    works = exitCode === 0;
    return works ? null : `a network namespace of its own does not work here: ${lastLine(stderr) ?? `it ended with ${exitCode}`}`;
  };

  return {
    async probe(op): Promise<NetworkAbilities> {
      const why = await refusal(op);
      if (why !== null) return { modes: ['none'], notes: [`no network: ${why}`] };
      return { modes: ['none', 'allow', 'allow-lan'], notes: [] };
    },

    async wire(op, plan): Promise<Link> {
      if (plan.mode === 'none') return { kind: 'none' };
      const have = await tools(op);
      if ('missing' in have) throw op.error('failed_precondition', `no network: ${have.missing}`, { hint: HINT });
      const resolvConf = join(plan.socketDir, 'resolv.conf');
      const [addresses, resolvers] = await Promise.all([
        localAddresses(op, host),
        textOf(op, host, RESOLV_CONF).then(parseResolvers),
        host.writeFileAtomic(op, resolvConf, `nameserver ${RESOLVER}\n`, 0o444),
      ]);
      return {
        kind: 'passt',
        argv: namespaceArgv(have, plan, namespaceRules(plan.mode === 'allow-lan' ? 'lan' : 'internet', addresses), resolvConf),
        guest: guestAddress(plan.id, resolvers),
        wiredAt: 0 as WiredAt,
      };
    },

    // The rules stand before passt runs, in a namespace that nobody else can change.
    admit: async () => {},
    close: async () => {},
    end: async () => {},
  };
}

async function findTools(op: Operation, host: Host): Promise<Tools | { readonly missing: string }> {
  const [passt, pastaPath, nft, unshare] = await Promise.all([
    findPasst(op, host),
    host.which(op, 'pasta'),
    host.which(op, 'nft'),
    host.which(op, 'unshare'),
  ]);
  if ('missing' in passt) return passt;
  if (pastaPath === null) return { missing: 'pasta is not installed, which comes with passt' };
  if (nft === null) return { missing: 'nftables (nft) is not installed: nothing would keep a sandbox from this host' };
  if (unshare === null) return { missing: 'unshare is not installed, which comes with util-linux' };
  const has = await optionsOf(op, host, pastaPath);
  const lacking = NEEDED.filter((option) => !has(option));
  if (lacking.length > 0) return { missing: `pasta lacks ${lacking.join(', ')}: it is too old` };
  return { passt, pasta: { path: pastaPath, options: unmapOptions(has) }, nft, unshare };
}

async function localAddresses(op: Operation, host: Host): Promise<readonly string[]> {
  return parseLocalAddresses(await textOf(op, host, LOCAL_ADDRESSES));
}

async function textOf(op: Operation, host: Host, path: string): Promise<string> {
  if ((await host.stat(op, path)) === null) return '';
  return new TextDecoder().decode(await host.readFile(op, path, FILE_BYTES_MAX));
}

/** The IPv4 addresses of this host, of the kernel's own table of routes. */
export function parseLocalAddresses(fibTrie: string): readonly string[] {
  const found = [...fibTrie.matchAll(/^\s*\|-- ([\d.]+)\n(?:\s+\/\d+ .*\n)*?\s+\/32 host LOCAL$/gm)];
  return [...new Set(found.map(([, address = '']) => address))];
}

/** As for sandboxes of a daemon that is root, and the host's own addresses by name. */
export function namespaceRules(reach: Reach, hostAddresses: readonly string[]): string {
  // What refuses a connection goes to an address of the host, which is the namespace's own in here: it is not refused itself.
  const refusals = 'oif lo tcp flags & rst == rst accept';
  const own = hostAddresses.length === 0 ? [] : [`ip daddr { ${hostAddresses.join(', ')} } goto refuse`];
  const [port53 = '', ...others] = destinationRules([RESOLVER], ANY);
  const rules = [port53, refusals, ...own, ...others.filter((rule) => reach === 'lan' || rule !== `${ANY} accept`)];
  return [
    'add table inet hutch',
    'add chain inet hutch refuse',
    'add chain inet hutch output { type filter hook output priority 0; policy accept; }',
    ...REFUSE_RULES.map((rule) => `add rule inet hutch refuse ${rule}`),
    ...rules.map((rule) => `add rule inet hutch output ${rule}`),
    '',
  ].join('\n');
}

/** Inside: rules first, then the way out, then what is to run. Arguments: nft, rules, resolv.conf or nothing, program. */
const INSIDE = `
set -eu
printf %s "$2" | "$1" -f -
tries=0
until grep -q '^${INTERFACE}[[:space:]]00000000' /proc/net/route; do
  tries=$((tries + 1))
  [ "$tries" -lt 1000 ] || { echo 'pasta has set up no route' >&2; exit 1; }
  sleep 0.01
done
[ -z "$3" ] || mount --bind "$3" ${RESOLV_CONF} || echo 'names cannot be asked for' >&2
# So that passt may send the guest's pings. The kernel may refuse: then there are none.
{ echo 0 0 > /proc/sys/net/ipv4/ping_group_range; } 2>/dev/null || :
shift 3
exec "$@"
`;

/** Outside: makes the namespaces and waits until they can be entered. `$inside` is the process in them. */
const ENTER = `
set -eu
outside=$(readlink /proc/self/ns/net)
"$1" --user --map-root-user --net --mount sh -c "$2" hutch-network "$3" "$4" "$5" PROGRAM &
inside=$!
exec 3>&-
tries=0
until [ "$(readlink "/proc/$inside/ns/net" || :)" != "$outside" ] && read -r mapped < "/proc/$inside/uid_map"; do
  [ -d "/proc/$inside" ] || { wait "$inside" || exit $?; exit 1; }
  tries=$((tries + 1))
  [ "$tries" -lt 500 ] || { echo 'no namespace was made' >&2; exit 1; }
  sleep 0.01
done
`;

/** Ends with pasta, which whoever started this can kill; passt ends with the other end of its socket. */
function namespaceArgv(tools: Tools, { socketDir }: NetworkPlan, rules: string, resolvConf: string): readonly string[] {
  const passt = passtArgv(tools.passt, join(socketDir, 'passt.log'));
  const pasta = pastaArgv(tools.pasta, ['--log-file', join(socketDir, 'pasta.log')]);
  return shell(`${ENTER.replace('PROGRAM', () => words(passt))}exec ${words(pasta)} "$inside"`, tools, rules, resolvConf);
}

/** The same with nothing in it; its exit code says whether it worked. A pasta that gives up ends it. */
function trialArgv(tools: Tools, rules: string): readonly string[] {
  const pasta = words(pastaArgv(tools.pasta, []));
  const script = `${ENTER.replace('PROGRAM', 'true')}{
  ${pasta} "$inside" & pasta=$!
  trap 'kill "$pasta" 2>/dev/null' TERM
  wait "$pasta" || kill "$inside" 2>/dev/null || :
} &
outer=$!
code=0; wait "$inside" || code=$?
kill "$outer" 2>/dev/null || :
wait "$outer" 2>/dev/null || :
exit "$code"`;
  return shell(script, tools, rules, '');
}

function shell(script: string, { unshare, nft }: Tools, rules: string, resolvConf: string): readonly string[] {
  return ['sh', '-c', script, 'hutch-network', unshare, INSIDE, nft, rules, resolvConf];
}

function pastaArgv(pasta: Pasta, more: readonly string[]): readonly string[] {
  return [
    pasta.path,
    ...['--foreground', '--quiet', ...more, '--config-net', '--ipv4-only', '--ns-ifname', INTERFACE],
    // Nothing of the host is mapped into the namespace, and no port is forwarded either way: by default pasta forwards them all.
    ...['--no-map-gw', ...pasta.options, '--tcp-ports', 'none', '--udp-ports', 'none', '--tcp-ns', 'none', '--udp-ns', 'none'],
    ...['--dns-forward', RESOLVER],
  ];
}

/** For a shell, whatever is in them. */
function words(argv: readonly string[]): string {
  return argv.map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(' ');
}

function lastLine(bytes: Uint8Array): string | null {
  const lines = new TextDecoder()
    .decode(bytes)
    .replaceAll(/[^\n\x20-\x7e]/g, '')
    .split('\n')
    .map((line) => line.trim());
  return lines.findLast((line) => line !== '' && !NOISE.test(line))?.slice(0, 300) ?? null;
}

/** What the shell says of whom it killed, and pasta of a syslog that is not there. */
const NOISE = /^(Terminated|Failed to send \d+ bytes to syslog)$/;
