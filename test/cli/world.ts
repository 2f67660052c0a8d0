// The bundled CLI as a child process, over a daemon that it starts itself (the real one, with the
// reference backend). Disposing a world deletes what is left and ends the daemon.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { bundled, bundledCli } from '../support/bundled.ts';

const ROOT = join(import.meta.dirname, '../..');
const DAEMON = join(ROOT, 'test/support/faulty-daemon.ts');
const RUN_MS = 60_000;

/** The real backend, with the image and kernel of this checkout. */
export const MACHINES = join(ROOT, 'test/faults/real-daemon.ts');

export type WorldBackend = 'qemu' | 'gvisor';
export type Result = { readonly code: number | null; readonly stdout: string; readonly stderr: string; readonly bytes: Buffer };
export type RunOptions = { readonly input?: string | Uint8Array; readonly env?: Readonly<Record<string, string>>; readonly cwd?: string };

export class World implements AsyncDisposable {
  readonly dir: string;
  readonly home: string;
  readonly bundle: string;
  readonly env: Readonly<Record<string, string>>;
  readonly #children = new Set<ChildProcessWithoutNullStreams>();

  private constructor(dir: string, daemon: string, backend: string) {
    this.dir = dir;
    this.home = join(dir, 'home');
    this.bundle = bundledCli();
    this.env = {
      PATH: process.env['PATH'] ?? '',
      HOME: dir,
      TERM: 'xterm',
      HUTCH_HOME: this.home,
      HUTCH_DAEMON_LISTEN: 'off',
      HUTCH_SANDBOX_WARM: '0', // tests count processes
      HUTCH_SANDBOX_BACKEND: backend, // whatever else this machine can do
      HUTCH_DEV_DAEMON: bundled(daemon),
      NODE_COMPILE_CACHE: process.env['NODE_COMPILE_CACHE'] ?? join(dir, 'compile-cache'),
    };
  }

  static async make(daemon: string = DAEMON, backend: WorldBackend = 'qemu'): Promise<World> {
    const world = new World(await mkdtemp(join(tmpdir(), 'hutch-cli-')), daemon, backend);
    await chmod(world.dir, 0o711); // machines run as users of their own and must pass through
    return world;
  }

  spawn(args: readonly string[], options: RunOptions = {}): ChildProcessWithoutNullStreams {
    const child = spawn(process.execPath, [this.bundle, ...args], { env: { ...this.env, ...options.env }, cwd: options.cwd ?? this.dir });
    this.#children.add(child);
    child.on('exit', () => this.#children.delete(child));
    return child;
  }

  /** Runs to the end. Never throws for an exit code. */
  async run(args: readonly string[], options: RunOptions = {}): Promise<Result> {
    const child = this.spawn(args, options);
    child.stdin.on('error', () => {}); // it may end without reading
    child.stdin.end(options.input ?? '');
    return await outcomeOf(child, args);
  }

  /** Runs and fails unless the code is 0; gives what it printed, without the newline. */
  async ok(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(args);
    if (code !== 0) throw new Error(`hutch ${args.join(' ')} ended with ${code}: ${stderr}${stdout}`);
    return stdout.trimEnd();
  }

  async json<T>(...args: string[]): Promise<T> {
    return JSON.parse(await this.ok(...args, '--json')) as T;
  }

  async daemonPid(): Promise<number> {
    return (await this.json<{ pid: number }>('daemon', 'status')).pid;
  }

  async killDaemon(): Promise<void> {
    const pid = await this.daemonPid();
    process.kill(pid, 'SIGKILL');
    while (await isAlive(pid)) await new Promise((resolve) => setTimeout(resolve, 5));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#children) if (child.exitCode === null) child.kill('SIGKILL');
    const problems: string[] = [];
    if (existsSync(this.home)) {
      // One that a test has stopped, or told to misbehave, is no use for cleaning up.
      await this.run(['daemon', 'stop']);
      const list = await this.run(['ls', '-q']);
      const ids = list.stdout.split('\n').filter((id) => id !== '');
      if (ids.length > 0) problems.push((await this.run(['rm', '-f', ...ids])).stderr);
      const leaks = await this.run(['doctor', '--leaks']);
      if (leaks.code !== 0) problems.push(leaks.stdout, leaks.stderr);
      await this.run(['daemon', 'stop']);
    }
    await rm(this.dir, { recursive: true, force: true });
    if (problems.join('') !== '') throw new Error(`left behind: ${problems.join('')}`);
  }
}

export async function outcomeOf(child: ChildProcessWithoutNullStreams, args: readonly string[] = [], withinMs = RUN_MS): Promise<Result> {
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
  child.stderr.on('data', (chunk: Buffer) => err.push(chunk));
  const limit = setTimeout(() => child.kill('SIGKILL'), withinMs);
  const [code] = (await once(child, 'close')) as [number | null];
  clearTimeout(limit);
  const bytes = Buffer.concat(out);
  const stderr = Buffer.concat(err).toString('utf8');
  if (code === null) throw new Error(`hutch ${args.join(' ')} was killed by a signal, or did not end: ${stderr}`);
  return { code, bytes, stdout: bytes.toString('utf8'), stderr };
}

export async function isAlive(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => null);
  return stat !== null && !/\) Z /.test(stat);
}
