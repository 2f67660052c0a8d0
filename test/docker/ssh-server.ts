// A real ssh server on the loopback, with keys of the test's own; and the `ssh` command that finds them.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { eventually } from '../support/eventually.ts';
import { freePort } from '../support/free-port.ts';

const run = promisify(execFile);
/** It wants its own path, as it runs itself again for each connection. */
const SSHD = '/usr/sbin/sshd';
const SSH = '/usr/bin/ssh';

export class SshServer implements AsyncDisposable {
  /** First in the PATH of who is to use it. */
  readonly dir: string;
  readonly port: number;
  readonly #environment: Readonly<Record<string, string>>;
  #child: ChildProcess | null = null;

  private constructor(dir: string, port: number, environment: Readonly<Record<string, string>>) {
    this.dir = dir;
    this.port = port;
    this.#environment = environment;
  }

  /** `environment`: of what runs there. */
  static async start(environment: Readonly<Record<string, string>>): Promise<SshServer> {
    const server = new SshServer(await mkdtemp('/tmp/hutch-ssh-'), await freePort(), environment);
    await server.#prepare();
    await server.#listen();
    return server;
  }

  get url(): string {
    return `ssh://root@127.0.0.1:${this.port}`;
  }

  /** So many have been let in. */
  logins(): number {
    return readFileSync(join(this.dir, 'log'), 'utf8').match(/Accepted publickey/g)?.length ?? 0;
  }

  /** Ends all connections. */
  async #hangUp(): Promise<void> {
    const { stdout } = await run('ps', ['-eo', 'ppid=,pid=']);
    for (const [parent, pid] of stdout.split('\n').map((line) => line.trim().split(/\s+/)))
      if (parent === `${this.#child?.pid}`) process.kill(Number(pid), 'SIGKILL');
  }

  async #prepare(): Promise<void> {
    const { dir, port } = this;
    for (const name of ['host', 'user']) await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(dir, name)]);
    await writeFile(join(dir, 'authorized'), readFileSync(join(dir, 'user.pub')));
    const [type, key] = readFileSync(join(dir, 'host.pub'), 'utf8').split(' ');
    await writeFile(join(dir, 'known'), `[127.0.0.1]:${port} ${type} ${key}\n`);
    const settings = [`IdentityFile ${dir}/user`, 'IdentitiesOnly yes', `UserKnownHostsFile ${dir}/known`, 'GlobalKnownHostsFile none'];
    await writeFile(join(dir, 'config'), `${settings.join('\n')}\nStrictHostKeyChecking yes\n`);
    await writeFile(join(dir, 'ssh'), `#!/bin/sh\nexec ${SSH} -F ${dir}/config "$@"\n`, { mode: 0o755 });
    await mkdir('/run/sshd', { recursive: true, mode: 0o755 });
  }

  async #listen(): Promise<void> {
    const { dir, port } = this;
    const set = Object.entries(this.#environment).map(([name, value]) => `${name}=${value}`);
    const options = {
      ...{ Port: port, ListenAddress: '127.0.0.1', HostKey: `${dir}/host`, AuthorizedKeysFile: `${dir}/authorized`, PidFile: 'none' },
      ...{ UsePAM: 'no', StrictModes: 'no', PasswordAuthentication: 'no', PermitRootLogin: 'prohibit-password', SetEnv: set.join(' ') },
    };
    const log = openSync(join(dir, 'log'), 'a');
    const flags = Object.entries(options).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
    this.#child = spawn(SSHD, ['-D', '-e', '-f', '/dev/null', ...flags], { stdio: ['ignore', log, log], detached: true });
    closeSync(log);
    await eventually('the ssh server to listen', async () => {
      const socket = connect({ host: '127.0.0.1', port });
      return await new Promise<boolean>((resolve) => {
        socket.once('connect', () => resolve(true));
        socket.once('error', () => resolve(false));
      }).finally(() => socket.destroy());
    });
  }

  async #end(): Promise<void> {
    await this.#hangUp();
    const child = this.#child;
    this.#child = null;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#end();
    await rm(this.dir, { recursive: true });
  }
}
