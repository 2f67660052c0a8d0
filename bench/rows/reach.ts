// A sandbox from outside: a published port against a bare relay, and scp against OpenSSH's own server.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, open as openFile, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import type { Bench } from '../context.ts';
import { judge, type Row, timed } from '../harness.ts';
import { execOk, mustRun } from '../place.ts';

const CONNECTIONS = 16;
const REQUESTS = { quick: 200, usual: 10_000, long: 40_000 } as const;
const FILE_MIB = { quick: 8, usual: 512, long: 512 } as const;
const GUEST_PORT = 8000;
const READY_MS = 30_000;
const PROGRAM_MS = 600_000;
const ASK = Buffer.from('GET / HTTP/1.1\r\nHost: bench\r\n\r\n');
const BODY_BYTES = 128;

/** Answers each request on its connection with as many bytes. */
const SERVER = `
import asyncio, sys
answer = b"HTTP/1.1 200 OK\\r\\nContent-Length: ${BODY_BYTES}\\r\\n\\r\\n" + b"x" * ${BODY_BYTES}
class P(asyncio.Protocol):
    def connection_made(self, t): self.t = t
    def data_received(self, d): self.t.write(answer * d.count(b"\\r\\n\\r\\n"))
async def main():
    s = await asyncio.get_running_loop().create_server(P, "127.0.0.1", int(sys.argv[1]))
    await s.serve_forever()
asyncio.run(main())`;
const ANSWER_BYTES = Buffer.byteLength(`HTTP/1.1 200 OK\r\nContent-Length: ${BODY_BYTES}\r\n\r\n`) + BODY_BYTES;

type Load = { readonly perSecond: number; readonly p99Ms: number };

/** One request after the other on each of some connections. */
async function load(port: number, requests: number): Promise<Load> {
  const latencies: number[] = [];
  const each = Math.ceil(requests / CONNECTIONS);
  const tookMs = await timed(async () => {
    await Promise.all(
      Array.from({ length: CONNECTIONS }, async () => {
        const socket = connect({ host: '127.0.0.1', port, noDelay: true });
        await once(socket, 'connect');
        for (let nth = 0; nth < each; nth += 1) latencies.push(await timed(() => answered(socket)));
        socket.destroy();
      }),
    );
  });
  const sorted = latencies.toSorted((a, b) => a - b);
  return { perSecond: (latencies.length / tookMs) * 1_000, p99Ms: sorted[Math.floor(sorted.length * 0.99)] ?? 0 };
}

async function answered(socket: Socket): Promise<void> {
  socket.write(ASK);
  for (let left = ANSWER_BYTES; left > 0; ) {
    const [chunk] = (await once(socket, 'data')) as [Buffer];
    left -= chunk.byteLength;
  }
}

/** What a person would write: a server that pipes each connection to the other port. */
async function bareRelay(target: number): Promise<Disposable & { readonly port: number }> {
  const server = createServer({ noDelay: true }, (peer) => {
    const inside = connect({ host: '127.0.0.1', port: target, noDelay: true });
    peer.pipe(inside).pipe(peer);
    for (const socket of [peer, inside]) socket.on('error', () => socket.destroy());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { port: (server.address() as AddressInfo).port, [Symbol.dispose]: () => void server.close() };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

async function isAnswered(port: number): Promise<void> {
  const until = performance.now() + READY_MS;
  for (;;) {
    try {
      const socket = connect({ host: '127.0.0.1', port });
      await once(socket, 'connect');
      socket.destroy();
      return;
    } catch (cause) {
      if (performance.now() > until) throw new Error(`nothing answers at port ${port}`, { cause });
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

function owned(scope: AsyncDisposableStack, child: ChildProcess): void {
  scope.defer(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  });
}

export async function publishedPort(bench: Bench): Promise<readonly Row[]> {
  await using scope = bench.scope();
  const requests = REQUESTS[bench.size];
  const local = await freePort();
  owned(scope, spawn('python3', ['-c', SERVER, String(local)], { stdio: 'ignore' }));
  using relay = await bareRelay(local);
  await isAnswered(local);
  // Where it can be: there a program is nearly as quick as on the host, and what is between is what is measured.
  const { backends } = await bench.place.hutch.api.call('backends.list', {});
  const isNative = backends.some(({ name, can }) => name === 'gvisor' && can !== null);
  const sandbox = scope.use(
    await bench.place.hutch.create({
      ...(isNative ? { backend: 'gvisor' as const } : {}),
      network: 'none',
      main: { argv: ['python3', '-c', SERVER, String(GUEST_PORT)] },
    }),
  );
  const { hostPort } = await sandbox.publish(GUEST_PORT);
  const until = performance.now() + READY_MS;
  while (!(await sandbox.ports()).some(({ port }) => port === GUEST_PORT)) {
    if (performance.now() > until) throw new Error('the server in the sandbox does not listen');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const taken = { relay: [] as Load[], port: [] as Load[] };
  for (let i = 0; i <= bench.runs(5); i += 1) {
    const [bare, ours] = [await load(relay.port, requests), await load(hostPort, requests)];
    if (i === 0) continue; // warm
    taken.relay.push(bare);
    taken.port.push(ours);
  }
  const what = `published port of ${isNative ? 'gVisor' : 'an emulated sandbox'}, ${CONNECTIONS} connections`;
  const note =
    'The same program answers, in the sandbox and, for the relay, on the host: what is slower inside (system calls of gVisor, all of it where the machine is emulated) is in the figure, beside the daemon’s relay over the agent.';
  const row = { unit: 'ms' as const, baselineName: 'a bare Node.js TCP relay to the same server on the host', note };
  const perRequest = ({ perSecond }: Load): number => 1_000 / perSecond;
  return [
    judge(
      { ...row, what: `${what}: time for each request`, target: '≤ 1.25× (≥ 0.8× the requests/s)', meets: (ratio) => ratio <= 1.25 },
      taken.relay.map(perRequest),
      taken.port.map(perRequest),
    ),
    judge(
      { ...row, what: `${what}: p99 of a request`, target: '≤ 1.5×', meets: (ratio) => ratio <= 1.5 },
      taken.relay.map(({ p99Ms }) => p99Ms),
      taken.port.map(({ p99Ms }) => p99Ms),
    ),
  ];
}

export async function scp(bench: Bench): Promise<readonly Row[]> {
  await using scope = bench.scope();
  const mib = FILE_MIB[bench.size];
  const dir = await mkdtemp('/tmp/hutch-bench-scp-');
  scope.defer(() => rm(dir, { recursive: true, force: true }));
  const at = (name: string): string => join(dir, name);
  await writeRandom(at('file'), mib);
  const there = await openSshServer(scope, dir);
  const sandbox = scope.use(await bench.place.hutch.create({ network: 'none', diskMiB: 4 * 1_024 }));
  const { code, stdout, stderr } = await bench.place.cli(['ssh-config']);
  if (code !== 0) throw new Error(`hutch ssh-config failed: ${stderr}`);
  await writeFile(at('config'), stdout);
  const copy = async (config: string, host: string, path: string): Promise<number> =>
    mib /
    ((await timed(() => mustRun(['timeout', String(PROGRAM_MS / 1_000), 'scp', '-q', '-F', config, at('file'), `${host}:${path}`]))) /
      1_000);
  const taken = { theirs: [] as number[], ours: [] as number[] };
  for (let i = 0; i <= bench.runs(3, 1); i += 1) {
    const [bare, ours] = [await copy(there, 'there', at('copied')), await copy(at('config'), `${sandbox.name}.hutch`, '/tmp/copied')];
    await rm(at('copied'));
    await execOk(sandbox, ['rm', '/tmp/copied']);
    if (i === 0) continue; // warm
    taken.theirs.push(bare);
    taken.ours.push(ours);
  }
  const note =
    'Each with its own start of scp and log-in. Ours starts the CLI as a proxy, is decrypted by the daemon in JavaScript with OpenSSL, and goes on to the sandbox’s agent.';
  return [
    judge(
      {
        ...{ what: `scp of ${mib} MiB into a sandbox`, unit: 'MiB/s' as const, baselineName: 'OpenSSH to OpenSSH on the loopback' },
        ...{ target: '≥ 0.5×', meets: (ratio: number) => ratio >= 0.5, note },
      },
      taken.theirs,
      taken.ours,
    ),
  ];
}

async function writeRandom(path: string, mib: number): Promise<void> {
  await using file = await openFile(path, 'w');
  const chunk = Buffer.alloc(1_048_576, 'not all of it is the same, and none of it is compressed\n');
  for (let nth = 0; nth < mib; nth += 1) await file.writeFile(chunk);
}

/** OpenSSH's own server with keys of its own; gives a configuration in which it is called `there`. */
async function openSshServer(scope: AsyncDisposableStack, dir: string): Promise<string> {
  const at = (name: string): string => join(dir, name);
  for (const name of ['host', 'own']) await mustRun(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', at(name)]);
  await mustRun(['cp', at('own.pub'), at('authorized')]);
  const port = await freePort();
  // Its server wants the directory, and a distribution makes it when that is started as a service.
  await mkdir('/run/sshd', { recursive: true });
  const server = {
    ...{ Port: port, ListenAddress: '127.0.0.1', HostKey: at('host'), AuthorizedKeysFile: at('authorized'), PidFile: 'none' },
    ...{ StrictModes: 'no', UsePAM: 'no', PermitRootLogin: 'yes', PasswordAuthentication: 'no', Subsystem: 'sftp internal-sftp' },
  };
  const lines = (settings: object): string =>
    Object.entries(settings)
      .map(([key, value]) => `${key} ${value}\n`)
      .join('');
  await writeFile(at('sshd_config'), lines(server));
  const sshd = (await mustRun(['sh', '-c', 'PATH=$PATH:/usr/sbin command -v sshd'])).trim();
  owned(scope, spawn(sshd, ['-D', '-e', '-f', at('sshd_config')], { stdio: 'ignore' }));
  await isAnswered(port);
  const client = {
    ...{ Host: 'there', HostName: '127.0.0.1', Port: port, User: userInfo().username, IdentityFile: at('own'), IdentitiesOnly: 'yes' },
    ...{
      IdentityAgent: 'none',
      StrictHostKeyChecking: 'no',
      UserKnownHostsFile: '/dev/null',
      LogLevel: 'ERROR',
      Ciphers: 'aes128-gcm@openssh.com',
    },
  };
  await writeFile(at('client'), lines(client));
  return at('client');
}
