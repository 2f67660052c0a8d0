// A Docker Engine of the tests' own: its data, its state and its socket lie in one directory that is
// gone afterwards, with every process, mount and firewall rule that it has made.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { nodeHost } from '../../src/host/node-host.ts';
import { eventually } from './eventually.ts';
import { testOperation } from './operation.ts';

const run = promisify(execFile);
const STOP_MS = 30_000;
/** One that does not answer is killed: it would hold up every other test that wants an Engine. */
const CLEAR_MS = 60_000;
const LOCK_MS = 10 * 60_000;
const LOCK_PATH = '/tmp/hutch-test-docker-engine.lock';

const EMPTY_TAR = Buffer.alloc(1024);

export type EngineOptions = {
  /** As on another machine: it has neither our network nor our temporary directories, and its own containerd. `files`: it has the network. */
  readonly elsewhere?: boolean | 'files';
  /** Beside its own. */
  readonly args?: readonly string[];
  /** All that it keeps is on a disk of that size. */
  readonly dataMiB?: number;
};

export class DockerEngine implements AsyncDisposable {
  readonly dir: string;
  readonly #options: EngineOptions;
  readonly #release: () => Promise<void>;
  #containerd: ChildProcess | null = null;
  #child: ChildProcess | null = null;

  private constructor(dir: string, options: EngineOptions, release: () => Promise<void>) {
    this.dir = dir;
    this.#options = options;
    this.#release = release;
  }

  /** Null when this machine has none: only root can start one, and `dockerd` must be installed. */
  static async start(options: EngineOptions = {}): Promise<DockerEngine | null> {
    if (process.getuid?.() !== 0) return null;
    const host = nodeHost();
    if ((await host.which(testOperation(), 'dockerd')) === null) return null;
    // They all keep their rules in the same chains of this machine: one at a time.
    const lock = await held(async () => await host.lockFile(testOperation(), LOCK_PATH));
    const rules = (await run('iptables-save')).stdout;
    const dir = await mkdtemp((options.elsewhere ?? false) !== false ? '/var/tmp/hutch-de-' : '/tmp/hutch-de-');
    await chmod(dir, 0o711);
    const engine = new DockerEngine(dir, options, async () => {
      const restoring = run('iptables-restore');
      restoring.child.stdin?.end(rules);
      await restoring;
      await lock[Symbol.asyncDispose]();
    });
    try {
      if (options.dataMiB !== undefined) {
        const [disk, data] = [join(dir, 'data.img'), join(dir, 'data')];
        await run('truncate', ['-s', `${options.dataMiB}M`, disk]);
        await run('mkfs.ext4', ['-q', disk]);
        await mkdir(data);
        await run('mount', ['-o', 'loop', disk, data]);
      }
      await engine.startAgain();
      return engine;
    } catch (error) {
      await engine.#remove();
      throw error;
    }
  }

  get socketPath(): string {
    return join(this.dir, 'docker.sock');
  }

  /** For a daemon under test. */
  get env(): Readonly<Record<string, string>> {
    return { DOCKER_HOST: `unix://${this.socketPath}` };
  }

  async startAgain(): Promise<void> {
    const { elsewhere = false, args = [] } = this.#options;
    const isElsewhere = elsewhere !== false;
    const own = join(this.dir, 'containerd.sock');
    if (!isElsewhere) {
      // A process of its own, as on any machine: it does not end with dockerd.
      const state = ['--root', join(this.dir, 'containerd'), '--state', join(this.dir, 'containerd-run'), '--address', own];
      this.#containerd ??= this.#spawn(['containerd', ...state]);
      await eventually('containerd to listen', () => existsSync(own), 60_000);
    }
    const child = this.#spawn([
      ...(isElsewhere
        ? [
            'unshare',
            ...(elsewhere === 'files' ? [] : ['--net']),
            '--mount',
            '--',
            'sh',
            '-c',
            'mount -t tmpfs none /tmp && exec "$@"',
            'elsewhere',
          ]
        : []),
      'dockerd',
      ...['--data-root', join(this.dir, 'data'), '--exec-root', join(this.dir, 'exec'), '--pidfile', join(this.dir, 'pid')],
      ...['--host', `unix://${this.socketPath}`, '--bridge', 'none', '--userland-proxy=false', '--shutdown-timeout', '1'],
      ...(isElsewhere ? [] : ['--containerd', own]),
      ...args,
    ]);
    this.#child = child;
    const ended = once(child, 'exit').then(async () => {
      throw new Error(`dockerd ended:\n${(await readFile(join(this.dir, 'log'), 'utf8')).slice(-2_000)}`);
    });
    ended.catch(() => {});
    const answers = async () => (await this.ask('GET', '/_ping').catch(() => null))?.status === 200;
    await Promise.race([eventually('the Docker Engine to answer', answers, 60_000), ended]);
  }

  #spawn([program = '', ...args]: readonly string[]): ChildProcess {
    const log = openSync(join(this.dir, 'log'), 'a');
    try {
      return spawn(program, args, { stdio: ['ignore', log, log], detached: true });
    } finally {
      closeSync(log);
    }
  }

  /** Of one elsewhere: it does not see what lies in a directory of ours. */
  async hide(dir: string): Promise<void> {
    await run('nsenter', ['--target', `${this.#child?.pid ?? 0}`, '--mount', '--', 'mount', '-t', 'tmpfs', 'none', dir]);
  }

  /** It answers nobody until it is killed, or thawed. */
  freeze(): void {
    this.#child?.kill('SIGSTOP');
  }

  thaw(): void {
    this.#child?.kill('SIGCONT');
  }

  /** Its containers go on, and its containerd, as on any machine. */
  async kill9(): Promise<void> {
    await this.#end('SIGKILL');
  }

  /** As `systemctl stop docker`: its containers are stopped. */
  async stop(): Promise<void> {
    await this.#end('SIGTERM');
  }

  async ask(method: string, path: string, body?: object): Promise<{ readonly status: number; readonly body: unknown }> {
    const sent = request({ socketPath: this.socketPath, method, path: `/v1.41${path}`, headers: { 'Content-Type': 'application/json' } });
    sent.end(body === undefined ? undefined : JSON.stringify(body));
    const [answer] = await once(sent, 'response');
    const chunks: Buffer[] = [];
    for await (const chunk of answer) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString();
    return { status: answer.statusCode, body: text.startsWith('{') || text.startsWith('[') ? JSON.parse(text) : text };
  }

  /** An image of a tar archive, or with nothing in it; its id. */
  async import(
    repository: string,
    tag: string,
    { tar = EMPTY_TAR, changes = [] }: { readonly tar?: Buffer; readonly changes?: readonly string[] } = {},
  ): Promise<string> {
    const query = new URLSearchParams({ fromSrc: '-', repo: repository, tag });
    for (const change of changes) query.append('changes', change);
    const sent = request({ socketPath: this.socketPath, method: 'POST', path: `/v1.41/images/create?${query}` });
    sent.end(tar);
    const [answer] = await once(sent, 'response');
    const chunks: Buffer[] = [];
    for await (const chunk of answer) chunks.push(chunk);
    return (JSON.parse(Buffer.concat(chunks).toString().trim().split('\n').at(-1) ?? '{}') as { status?: string }).status ?? '';
  }

  /** To its registry; its digest there. */
  async push(repository: string, tag: string, login: { readonly username: string; readonly password: string }): Promise<string> {
    const sent = request({
      socketPath: this.socketPath,
      method: 'POST',
      path: `/v1.41/images/${repository}/push?tag=${tag}`,
      headers: { 'X-Registry-Auth': Buffer.from(JSON.stringify(login)).toString('base64') },
    });
    sent.end();
    const [answer] = await once(sent, 'response');
    const chunks: Buffer[] = [];
    for await (const chunk of answer) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString();
    const digest = /"Digest":"(sha256:[0-9a-f]{64})"/.exec(text)?.[1];
    if (digest === undefined) throw new Error(`it was not pushed: ${text.slice(-500)}`);
    return digest;
  }

  async containers(): Promise<readonly { Id: string; Names: string[]; State: string; Labels: Record<string, string> }[]> {
    return (await this.ask('GET', '/containers/json?all=1')).body as never;
  }

  async removeContainers(): Promise<void> {
    for (const { Id } of await this.containers()) await this.ask('DELETE', `/containers/${Id}?force=1&v=1`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#clear();
    } finally {
      await this.#remove();
    }
  }

  /** Its containers, and then itself. A test that failed may have left it frozen. */
  async #clear(): Promise<void> {
    this.thaw();
    if (this.#child === null) await this.startAgain();
    const late = setTimeout(() => this.#child?.kill('SIGKILL'), CLEAR_MS);
    try {
      await this.removeContainers();
      await this.stop();
    } finally {
      clearTimeout(late);
    }
  }

  /** All that is of it on this machine. */
  async #remove(): Promise<void> {
    try {
      this.#child?.kill('SIGKILL');
      const containerd = this.#containerd;
      if (containerd !== null && containerd.exitCode === null && containerd.signalCode === null) {
        const gone = once(containerd, 'exit');
        containerd.kill('SIGTERM');
        await gone;
      }
      for (const pid of await this.#processes()) killed(pid);
      const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n').map((line) => line.split(' ')[4] ?? '');
      for (const mount of mounts.filter((path) => path.startsWith(`${this.dir}/`)).reverse()) await run('umount', ['-l', mount]);
      await rm(this.dir, { recursive: true, force: true, maxRetries: 5 });
    } finally {
      await this.#release();
    }
  }

  async #end(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const child = this.#child;
    this.#child = null;
    if (child === null || child.exitCode !== null) return;
    child.kill(signal);
    await eventually('dockerd to end', () => child.exitCode !== null || child.signalCode !== null, STOP_MS);
  }

  /** Of this Engine alone: its directory stands in their arguments. */
  async #processes(): Promise<readonly number[]> {
    const { stdout } = await run('ps', ['-eo', 'pid=,args=']);
    return stdout
      .split('\n')
      .filter((line) => line.includes(`${this.dir}/`) && !line.includes('ps -eo'))
      .map((line) => Number(line.trim().split(' ')[0]));
  }
}

function killed(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
}

async function held(take: () => Promise<AsyncDisposable | null>): Promise<AsyncDisposable> {
  let lock: AsyncDisposable | null = null;
  await eventually(
    'another Docker Engine of the tests to end',
    async () => {
      lock = await take();
      return lock !== null;
    },
    LOCK_MS,
  );
  return lock as unknown as AsyncDisposable;
}
