// A sandbox from outside: scp against OpenSSH's own server.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, open as openFile, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, connect, createServer } from 'node:net';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { DockerEngine } from '../../test/support/docker-engine.ts';
import type { Bench, Measurement } from '../context.ts';
import { judge, type Row, timed } from '../harness.ts';
import { execOk, mustRun, Place } from '../place.ts';

export type Backend = 'docker' | 'gvisor' | 'qemu';

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

/** Its daemon is not started yet; an Engine is, where the backend wants one. */
export async function makePlace(scope: AsyncDisposableStack, backend: Backend): Promise<Place> {
  const engine = backend === 'docker' ? scope.use(await DockerEngine.start()) : null;
  if (backend === 'docker' && engine === null) throw new Error('no Docker Engine can be started here: it takes dockerd');
  const place = scope.use(await Place.make());
  Object.assign(place.env, engine?.env ?? {}, { HUTCH_SANDBOX_BACKEND: backend });
  return place;
}

const EACH = 'Each with its own start of scp and log-in. Ours starts the CLI, which passes the daemon’s connection to ssh and ends.';
const NOTES: Readonly<Record<Backend, string>> = {
  docker: `${EACH} The daemon decrypts in JavaScript with OpenSSL, and the agent writes: of each 128 MiB the daemon took 0.33 to 0.41 s of processor time, and scp with its ssh 0.24.`,
  gvisor: `${EACH} Of each 128 MiB the daemon took 0.43 to 0.67 s of processor time, beside other work (0.95 to 1.3 while the memory of what it decrypts was left to the collector), the runtime’s processes 0.35 to 0.45, and scp with its ssh 0.3.`,
  qemu: `${EACH} Without hardware virtualization one emulated processor takes the bytes from the agent’s port and writes them to its disk, one after the other: of what it takes for a file of 512 MiB a third is the port’s, and the rest is what a \`dd\` of as many zeros to the same disk takes in the guest, which is slower than the target by itself. Without a disk (to /dev/null) the same copy took half the time.`,
};

async function scp(bench: Bench, backend: Backend): Promise<readonly Row[]> {
  await using scope = bench.scope();
  const place = await makePlace(scope, backend);
  await place.startDaemon();
  const mib = FILE_MIB[bench.size];
  const dir = await mkdtemp('/tmp/hutch-bench-scp-');
  scope.defer(() => rm(dir, { recursive: true, force: true }));
  const at = (name: string): string => join(dir, name);
  await writeRandom(at('file'), mib);
  const there = await openSshServer(scope, dir);
  const sandbox = scope.use(await place.hutch.create({ network: 'none', ...(backend === 'docker' ? {} : { diskMiB: 4 * 1_024 }) }));
  const { code, stdout, stderr } = await place.cli(['ssh-config']);
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
  return [
    judge(
      {
        ...{
          what: `scp of ${mib} MiB into a sandbox, ${backend}`,
          unit: 'MiB/s' as const,
          baselineName: 'OpenSSH to OpenSSH on the loopback',
        },
        ...{ target: '≥ 0.5×', meets: (ratio: number) => ratio >= 0.5, note: NOTES[backend] },
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

export const SCP: readonly Measurement[] = (['docker', 'gvisor', 'qemu'] as const).map((backend) => ({
  name: 'scp',
  about: `scp into a sandbox on ${backend}, against OpenSSH’s own server`,
  rows: (bench) => scp(bench, backend),
}));
