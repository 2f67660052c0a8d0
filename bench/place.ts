// The bench's own Hutch: a fresh HUTCH_HOME under the temporary directory, a daemon of its own that
// listens on its unix socket only, and nothing left of either at the end. Image and kernel are linked
// from where they have been prepared already; the template is made anew.
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { MALLOC_ENV, NODE_FLAGS } from '../src/cli/daemon-start.ts';
import { placesOf } from '../src/config/places.ts';
import { nodeHost } from '../src/host/node-host.ts';
import { prepareDefaultImage } from '../src/images/default-image.ts';
import { prepareKernel } from '../src/images/kernel.ts';
import { imagePaths } from '../src/images/layout.ts';
import { Hutch } from '../src/sdk/hutch.ts';
import { readOwnerKey } from '../src/sdk/owner-key.ts';
import type { Sandbox } from '../src/sdk/sandbox.ts';
import { benchOperation } from './operation.ts';

export const ROOT = resolve(import.meta.dirname, '..');
const CLI = join(ROOT, 'hutch');
const DAEMON = join(ROOT, 'dist', 'hutchd.mjs');
const ENDED_MS = 30_000;

/** Set by Ctrl-C: what measures ends at its next step, and releases what it has made. */
const interruption = new AbortController();
export const interrupted = interruption.signal;

export function interrupt(): void {
  interruption.abort(new Error('interrupted'));
}

export function isInterrupted(): boolean {
  return interruption.signal.aborted;
}

export type Wrapped = { readonly program: string; readonly args: readonly string[] };

export class Place implements AsyncDisposable {
  readonly home: string;
  readonly env: NodeJS.ProcessEnv;
  readonly #places: ReturnType<typeof placesOf>;
  #daemon: ChildProcess | null = null;
  #hutch: Hutch | null = null;

  private constructor(home: string, env: NodeJS.ProcessEnv) {
    this.home = home;
    this.env = {
      ...process.env,
      ...{ HUTCH_HOME: home, HUTCH_DAEMON_LISTEN: 'off', HUTCH_SANDBOX_BACKEND: 'qemu', HUTCH_SANDBOX_WARM: '0' },
      ...env,
    };
    // Where ./hutch keeps compiled code is its own affair: with this Node would look for it as well.
    for (const name of ['HUTCH_API_URL', 'HUTCH_API_KEY', 'NODE_COMPILE_CACHE']) delete this.env[name];
    this.#places = placesOf({ env: this.env, uid: process.getuid?.() ?? 0 });
  }

  /** `prepared`: image and kernel are there already. */
  static async make(start: 'prepared' | 'empty' = 'prepared', env: NodeJS.ProcessEnv = {}): Promise<Place> {
    const home = await mkdtemp(join(tmpdir(), 'hutch-bench-'));
    await chmod(home, 0o711); // the sandboxes' users go through it
    const place = new Place(home, env);
    try {
      if (start === 'prepared') await place.#linkPrepared();
    } catch (error) {
      await rm(home, { recursive: true, force: true });
      throw error;
    }
    return place;
  }

  get hutch(): Hutch {
    interruption.signal.throwIfAborted();
    if (this.#hutch === null) throw new Error('the daemon of the bench does not run');
    return this.#hutch;
  }

  get dataDir(): string {
    return this.#places.dataDir;
  }

  get daemonPid(): number {
    const pid = this.#daemon?.pid;
    if (pid === undefined) throw new Error('the daemon of the bench does not run');
    return pid;
  }

  get socketPath(): string {
    return this.#places.socketPath;
  }

  /** Milliseconds until it was ready. `through` runs it under another program. */
  async startDaemon(through: Wrapped | null = null, flags: readonly string[] = []): Promise<number> {
    interruption.signal.throwIfAborted();
    const started = performance.now();
    const argv = [process.execPath, ...NODE_FLAGS, DAEMON, '--ready-fd', '3', ...flags];
    const [program = '', ...args] = through === null ? argv : [through.program, ...through.args, ...argv];
    const child = spawn(program, args, {
      env: { ...MALLOC_ENV, NODE_COMPILE_CACHE: join(ROOT, '.tools', 'compile-cache'), ...this.env }, // as a command gives it
      stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
      detached: true, // Ctrl-C is for the bench, which still needs it to delete what it has made
    });
    this.#daemon = child;
    let said = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      said = `${said}${chunk.toString()}`.slice(-2_000);
    });
    const ready = child.stdio[3];
    if (ready === null || ready === undefined || !('on' in ready)) throw new Error('no descriptor to hear that the daemon is ready');
    for await (const line of createInterface({ input: ready as NodeJS.ReadableStream })) {
      const message = JSON.parse(line) as { readonly ready: boolean; readonly error?: { readonly message: string } };
      if (!message.ready) {
        said = message.error?.message ?? said;
        break;
      }
      const tookMs = performance.now() - started;
      this.#hutch = Hutch.connect({
        url: `unix:${this.#places.socketPath}`,
        apiKey: await readOwnerKey(this.#places.ownerKeyPath),
        retryForMs: 0,
      });
      return tookMs;
    }
    throw new Error(`the daemon of the bench did not come up: ${said.trim()}`);
  }

  /** The sandboxes go on. */
  async stopDaemon(): Promise<void> {
    const daemon = this.#daemon;
    this.#daemon = null;
    this.#hutch?.[Symbol.dispose]();
    this.#hutch = null;
    if (daemon === null || daemon.exitCode !== null) return;
    const ended = new Promise((done) => daemon.once('exit', done));
    // The one that it runs under, if there is one, ends with it.
    process.kill(daemonBelow(daemon.pid ?? 0), 'SIGTERM');
    const late = setTimeout(() => daemon.kill('SIGKILL'), ENDED_MS);
    await ended;
    clearTimeout(late);
  }

  cli(argv: readonly string[]): Promise<{ code: number; stdout: string; stderr: string }> {
    return runProgram([CLI, ...argv], { ...this.env, HUTCH_NO_START: '1' });
  }

  async deleteAll(): Promise<void> {
    const hutch = this.#hutch;
    if (hutch === null) return;
    const all: string[] = [];
    for await (const { id } of hutch.list()) all.push(id);
    for (const ref of all) await hutch.api.call('sandbox.delete', { ref, force: true });
  }

  /** The machine processes of this place: pid of each VMM and of its shim. */
  machines(): readonly { readonly vmm: number; readonly shim: number }[] {
    return processes()
      .filter(({ name, cmdline }) => name.startsWith('qemu-system') && cmdline.includes(`${this.#places.dataDir}/sandboxes/`))
      .map(({ pid, parent }) => ({ vmm: pid, shim: parent }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.deleteAll();
    } finally {
      await this.stopDaemon();
      for (const { vmm } of this.machines()) process.kill(vmm, 'SIGKILL');
      await rm(this.home, { recursive: true, force: true });
    }
  }

  /** As the tests do: made once under .tools/data. The daemon finds them here and makes only the rest. */
  async #linkPrepared(): Promise<void> {
    const op = benchOperation({ onProgress: ({ step, detail }) => void process.stderr.write(`preparing: ${step} ${detail ?? ''}\n`) });
    const host = nodeHost();
    const paths = imagePaths(join(ROOT, '.tools', 'data'));
    const own = imagePaths(this.dataDir);
    const image = await prepareDefaultImage(op, host, paths);
    const kernel = await prepareKernel(op, host, paths);
    for (const [from, to] of [
      [dirname(image.path), own.images],
      [dirname(kernel.vmlinuxPath), own.kernels],
    ] as const) {
      await mustRun(['mkdir', '-p', to]);
      const linked = await runProgram(['cp', '-al', from, to]);
      if (linked.code !== 0) await mustRun(['cp', '-a', from, to]); // another file system
    }
  }
}

type Process = { readonly pid: number; readonly parent: number; readonly name: string; readonly cmdline: string };

/** Those that are gone while we look are left out. */
export function processes(): readonly Process[] {
  return readdirSync('/proc').flatMap((entry) => {
    const pid = Number(entry);
    if (!Number.isInteger(pid)) return [];
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      const [, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      const name = stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')'));
      return [{ pid, parent: Number(parent), name, cmdline: readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ') }];
    } catch {
      return [];
    }
  });
}

/** Itself, or the child of what it was started under. */
function daemonBelow(pid: number): number {
  const all = processes();
  if (all.find((each) => each.pid === pid)?.name !== 'strace') return pid;
  return all.find(({ parent }) => parent === pid)?.pid ?? pid;
}

type Ran = { code: number; stdout: string; stderr: string };

/** Is killed when the bench is interrupted. */
export async function runProgram(argv: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<Ran> {
  interruption.signal.throwIfAborted();
  const ran = await runAnyway(argv, env, interruption.signal);
  interruption.signal.throwIfAborted();
  return ran;
}

/** Also after an interruption: for what releases. */
export function runAnyway(argv: readonly string[], env: NodeJS.ProcessEnv = process.env, signal?: AbortSignal): Promise<Ran> {
  const [program = '', ...args] = argv;
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { env, stdio: ['ignore', 'pipe', 'pipe'], ...(signal === undefined ? {} : { signal }) });
    let [stdout, stderr] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => {
      stdout += chunk.toString();
    });
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    child.on('error', reject);
    child.on('close', (code) => resolve({ code: code ?? 255, stdout, stderr }));
  });
}

/** Fails with what it said. */
export async function mustRun(argv: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<string> {
  const { code, stdout, stderr } = await runProgram(argv, env);
  if (code !== 0) throw new Error(`${argv.join(' ')} ended with ${code}: ${stderr.trim() || stdout.trim()}`);
  return stdout;
}

/** One exec through the SDK, which must end with 0. */
export async function execOk(sandbox: Sandbox, argv: readonly string[]): Promise<string> {
  interruption.signal.throwIfAborted();
  const { exitCode, stdout, stderr } = await sandbox.exec(argv);
  if (exitCode !== 0) throw new Error(`${argv.join(' ')} ended with ${exitCode} in the sandbox: ${stderr}`);
  return stdout;
}
