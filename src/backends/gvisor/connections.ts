// TCP connections of a sandbox through its network, as this host's kernel shows those that passt has open for it. The runtime cannot save
// an end of one, finds that out itself and is no use afterwards, so they are ended from outside first: passt, whose own
// end is aborted, resets the sandbox's.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { pause } from '../wait.ts';
import { passtLogPath } from './paths.ts';

const COMMAND_BYTES_MAX = 64 * 1024;
const TABLE_BYTES_MAX = 64 * 1024 * 1024;
/** `ss` takes them on its command line. */
const AT_ONCE_MAX = 200;
const LOOKS = 20;
const LOOK_EVERY_MS = 10;
/** What passt has sent goes through the bridge to the sandbox's own network, which nobody outside can ask. */
const ARRIVES_MS = 50;
/** Of the kernel's table (include/net/tcp_states.h): no end of it is a program's. */
const NOBODYS: ReadonlySet<string> = new Set(['06', '07', '0A', '0C']);

export type Connection = { readonly local: string; readonly remote: string };

/**
 * Of one that stands still: afterwards it has none. In words what could not be ended; null: there is nothing.
 * What has been ended stays so.
 */
export async function cutConnections(op: Operation, host: Host, plan: SandboxPlan): Promise<string | null> {
  if (plan.network === 'none') return null;
  const pid = await passtOf(op, host, plan);
  if (pid === null) return null; // with it all have ended
  const look = () => connectionsOf(op, host, pid, plan.runAs?.uid ?? null);
  let open = await look();
  if (open.length === 0) return null;
  for (let looks = 0; looks < LOOKS && open.length > 0; looks += 1) {
    if (!(await end(op, host, open.slice(0, AT_ONCE_MAX)))) break;
    await pause(op, LOOK_EVERY_MS);
    open = await look();
  }
  const [first] = open;
  if (first === undefined) {
    await pause(op, ARRIVES_MS);
    return null;
  }
  const others = open.length - 1;
  return `the connection to ${first.remote}${others === 0 ? '' : `, as ${others} more,`} is open, and cannot be ended from outside`;
}

/** It has that log, and nobody else. */
async function passtOf(op: Operation, host: Host, plan: SandboxPlan): Promise<number | null> {
  const log = passtLogPath(plan);
  for (const name of await host.list(op, '/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const argv = new TextDecoder().decode(await readOrNone(op, host, `/proc/${name}/cmdline`, COMMAND_BYTES_MAX)).split('\0');
    if (argv[argv.indexOf('--log-file') + 1] === log && argv.includes('--fd')) return Number(name);
  }
  return null;
}

/** Where passt is; `uid`: whose they are, where others' are there too. */
async function connectionsOf(op: Operation, host: Host, pid: number, uid: number | null): Promise<readonly Connection[]> {
  return parseConnections(new TextDecoder().decode(await readOrNone(op, host, `/proc/${pid}/net/tcp`, TABLE_BYTES_MAX)), uid);
}

/** The kernel's table of TCP over IPv4, which is all that passt is let use. */
export function parseConnections(table: string, uid: number | null): readonly Connection[] {
  const found: Connection[] = [];
  for (const line of table.split('\n').slice(1)) {
    const [, local = '', remote = '', state = '', , , , owner = ''] = line.trim().split(/\s+/);
    if (state === '' || NOBODYS.has(state) || (uid !== null && Number(owner) !== uid)) continue;
    found.push({ local: addressIn(local), remote: addressIn(remote) });
  }
  return found;
}

/** `0100007F:0050` is 127.0.0.1:80 on a machine that stores the low byte first, as all do that we run on. */
function addressIn(text: string): string {
  const [address = '', port = ''] = text.split(':');
  const bytes = address.match(/../g) ?? [];
  return `${bytes
    .reverse()
    .map((byte) => Number.parseInt(byte, 16))
    .join('.')}:${Number.parseInt(port, 16)}`;
}

/** False: this host cannot. */
async function end(op: Operation, host: Host, connections: readonly Connection[]): Promise<boolean> {
  const ss = await host.which(op, 'ss');
  if (ss === null) return false;
  const each = connections.map(({ local, remote }) => `( src ${local} and dst ${remote} )`);
  const { exitCode } = await host.run(op, [ss, '--no-header', '--kill', '--tcp', '--numeric', 'state', 'connected', each.join(' or ')]);
  return exitCode === 0;
}

/** A process may have ended since. */
async function readOrNone(op: Operation, host: Host, path: string, bytesMax: number): Promise<Uint8Array> {
  try {
    return await host.readFile(op, path, bytesMax);
  } catch (error) {
    if (op.signal.aborted) throw error;
    return new Uint8Array();
  }
}
