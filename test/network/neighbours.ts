// A little world around this machine for tests: a network namespace that is its LAN and its internet,
// behind a veth pair, with servers that say a word to whoever reaches them. Everything is gone on
// dispose. Needs root.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { nodeHost } from '../../src/host/node-host.ts';
import { testOperation } from '../support/operation.ts';

/** Another test may have its own so long. */
const ALONE_MS = 120_000;
export const CANARY = 'reached';

/** Of a server in the namespace that gives back what it is sent, for as long as it is; of a datagram too. */
export const ECHO_PORT = 7;

/** In the namespace: a private address, one of documentation's (public to every rule), the metadata address. */
export const LAN = '10.213.77.2';
export const PUBLIC = '203.0.113.77';
export const METADATA = '169.254.169.254';
/** Of this machine, on the veth: an address that no default route shows. */
export const HOST_EXTRA = '10.213.77.1';

/** What of these a sandbox reaches: each address on its own, the machine itself never. */
export const REACHED = { none: [], allow: [PUBLIC], 'allow-lan': [LAN, PUBLIC] } as const;

/** For python3 in a sandbox: tries every address of its arguments at once, at the port of the first; prints those that said the word. */
export const PROBE = `
import socket, sys, threading
found = []
def attempt(address):
    try:
        with socket.create_connection((address, int(sys.argv[1])), 8) as s:
            s.settimeout(8)
            if s.recv(64) == b'${CANARY}': found.append(address)
    except OSError: pass
tries = [threading.Thread(target=attempt, args=(a,)) for a in sys.argv[2:]]
for t in tries: t.start()
for t in tries: t.join()
print(' '.join(sorted(found)))
`;

/** For python3 in a sandbox: what becomes of a connection to each of its arguments, where nobody listens or nobody may. */
export const REFUSALS = `
import socket, sys
def attempt(address):
    try: socket.create_connection((address, 1), 10).close()
    except OSError as error: return type(error).__name__
    return 'answered'
print(' '.join(attempt(address) for address in sys.argv[1:]))
`;
/** Each is refused: by the other machine, or by our own rules. */
export const REFUSED = [PUBLIC, METADATA, HOST_EXTRA];

/** Of what the probe printed. */
export const addressesIn = (stdout: string): readonly string[] => stdout.trim().split(' ').filter(Boolean);

/** It ends with its parent, whose pipe it reads. */
const SERVER = `process.stdin.resume().on('end', () => process.exit()); const echo = require('node:dgram').createSocket('udp4'); echo.on('message', (sent, from) => echo.send(sent, from.port, from.address)).bind(${ECHO_PORT}, '0.0.0.0'); const { createServer } = require('node:net'); createServer((c) => { c.on('error', () => {}); c.pipe(c); }).listen(${ECHO_PORT}, '0.0.0.0', () => createServer((c) => { c.on('error', () => {}); c.end('${CANARY}'); }).listen(Number(process.argv[1]), '0.0.0.0', () => console.log('listening')))`;

export type Neighbours = AsyncDisposable & {
  readonly port: number;
  /** What else of this machine answers at that port: its own addresses. */
  readonly hostAddresses: readonly string[];
};

/** All that a sandbox may try; `gateways`: what its network shows the host under. */
export function targetsIn({ hostAddresses }: Pick<Neighbours, 'hostAddresses'>, gateways: readonly string[]): readonly string[] {
  return [...new Set([...hostAddresses, HOST_EXTRA, '127.0.0.1', ...gateways, LAN, PUBLIC, METADATA])];
}

export async function neighbours(): Promise<Neighbours> {
  await using undo = new AsyncDisposableStack();
  undo.use(await alone());
  removeStale();
  const tag = randomBytes(3).toString('hex');
  const [namespace, inside, outside] = [`hutch-${tag}`, `hti${tag}`, `hto${tag}`];
  run('ip', 'netns', 'add', namespace);
  undo.defer(() => void run('ip', 'netns', 'del', namespace));
  run('ip', 'link', 'add', outside, 'type', 'veth', 'peer', 'name', inside);
  undo.defer(() => void spawnSync('ip', ['link', 'del', outside])); // it may have gone with the namespace
  run('ip', 'link', 'set', inside, 'netns', namespace);
  run('ip', 'addr', 'add', `${HOST_EXTRA}/24`, 'dev', outside);
  run('ip', 'link', 'set', outside, 'up');
  for (const address of [`${LAN}/24`, `${PUBLIC}/32`, `${METADATA}/32`]) run('ip', '-n', namespace, 'addr', 'add', address, 'dev', inside);
  run('ip', '-n', namespace, 'link', 'set', inside, 'up');
  run('ip', '-n', namespace, 'route', 'add', 'default', 'via', HOST_EXTRA);
  for (const address of [PUBLIC, METADATA]) run('ip', 'route', 'add', address, 'via', LAN, 'dev', outside);

  const own = createServer((client) => {
    client.on('error', () => {});
    client.end(CANARY);
  });
  own.listen(0, '0.0.0.0');
  await once(own, 'listening');
  undo.defer(() => void own.close());
  const bound = own.address();
  const port = typeof bound === 'object' && bound !== null ? bound.port : 0;
  const server = spawn('ip', ['netns', 'exec', namespace, process.execPath, '-e', SERVER, String(port)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  undo.defer(() => ended(server));
  await once(server.stdout, 'data');
  const kept = undo.move();
  return { port, hostAddresses: ownAddresses(), [Symbol.asyncDispose]: () => kept[Symbol.asyncDispose]() };
}

/** There is one such world at a time: its addresses are fixed, and tests run side by side. */
async function alone(): Promise<AsyncDisposable> {
  const path = join(tmpdir(), 'hutch-neighbours.lock');
  for (const until = performance.now() + ALONE_MS; performance.now() < until; ) {
    const lock = await nodeHost().lockFile(testOperation(), path);
    if (lock !== null) return lock;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  throw new Error(`waited ${ALONE_MS} ms in vain for another test to take its neighbours away: ${path}`);
}

/** What a test that was killed has left: a namespace of ours in which nothing runs. */
function removeStale(): void {
  for (const [name] of run('ip', 'netns', 'list').matchAll(/^hutch-[0-9a-f]{6}\b/gm)) {
    if (run('ip', 'netns', 'pids', name).trim() === '') run('ip', 'netns', 'del', name);
  }
}

async function ended(server: ChildProcess): Promise<void> {
  const exit = once(server, 'exit');
  server.kill('SIGKILL');
  if (server.exitCode === null && server.signalCode === null) await exit;
}

function ownAddresses(): readonly string[] {
  const listed = JSON.parse(run('ip', '-j', '-4', 'addr', 'show', 'up')) as { addr_info: { local: string }[] }[];
  return listed.flatMap(({ addr_info }) => addr_info.map(({ local }) => local));
}

function run(program: string, ...args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${stderr}`);
  return stdout;
}
