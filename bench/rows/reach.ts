// A sandbox from outside: scp against OpenSSH's own server.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, open as openFile, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, connect, createServer } from 'node:net';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import type { Bench } from '../context.ts';
import { judge, type Row, timed } from '../harness.ts';
import { execOk, mustRun } from '../place.ts';

const FILE_MIB = { quick: 8, usual: 512, long: 512 } as const;
const READY_MS = 30_000;
const PROGRAM_MS = 600_000;
/** One that nobody has. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Waits until somebody listens there. */
export async function isAnswered(port: number): Promise<void> {
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

/** Killed at the end. */
export function owned(scope: AsyncDisposableStack, child: ChildProcess): void {
  scope.defer(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  });
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
    'Each with its own start of scp and log-in. Ours starts the CLI, which passes the daemon’s connection to ssh and ends. Bound by the daemon, which decrypts in JavaScript with OpenSSL: of each 128 MiB into a sandbox on gVisor it took 0.7 s of processor time (about two fifths for collecting the memory in which Node hands over what is read and decrypted, a quarter for writing to the agent), the sandbox’s runtime 0.7 s beside it, and the baseline’s client 0.3 s (its server was not counted). This row is of QEMU, where without hardware virtualization one emulated processor takes the bytes from the agent’s port and writes them to its disk, one after the other: of what it takes for a file of 512 MiB a third is the port’s, and the rest is what a `dd` of as many zeros to the same disk takes in the guest, which is slower than the target by itself. Without a disk (to /dev/null) the same copy took half the time.';
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
