// A machine of its own for an installation, in a temporary directory: a home, a data directory, and checkouts that are built,
// whose daemon is the real one over the reference backend. Node is a script of two lines, so that a release is small.
import { spawn, spawnSync } from 'node:child_process';
import { appendFileSync, chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type BuildOptions, build } from 'esbuild';
import { outcomeOf, type Result } from '../cli/world.ts';

const ROOT = join(import.meta.dirname, '../..');
const RUN_MS = 240_000;

const BUNDLE = {
  bundle: true,
  platform: 'node',
  target: 'node24',
  external: ['bufferutil', 'utf-8-validate', 'cpu-features', './crypto/build/Release/sshcrypto.node', 'vitest'],
  logLevel: 'error',
} satisfies BuildOptions;

export class Machine implements AsyncDisposable {
  readonly dir: string;
  readonly home: string;
  readonly data: string;
  /** A checkout that is built. */
  readonly checkout: string;
  readonly env: Readonly<Record<string, string>>;

  private constructor(dir: string) {
    this.dir = dir;
    this.home = join(dir, 'home');
    this.data = join(dir, 'h');
    this.checkout = join(dir, 'checkout');
    this.env = {
      PATH: `${join(this.home, '.local/bin')}:${process.env['PATH'] ?? ''}`,
      HOME: this.home,
      HUTCH_HOME: this.data,
      HUTCH_DAEMON_LISTEN: 'off',
      HUTCH_SANDBOX_WARM: '0',
      NODE_COMPILE_CACHE: join(dir, 'compile-cache'),
    };
  }

  static async make(): Promise<Machine> {
    const machine = new Machine(mkdtempSync(join(tmpdir(), 'hutch-system-')));
    const { dir, home, data, checkout } = machine;
    chmodSync(dir, 0o711);
    for (const made of [home, data, join(checkout, '.tools')]) mkdirSync(made, { recursive: true });
    const outdir = join(checkout, 'dist');
    await build({
      ...BUNDLE,
      outdir,
      format: 'cjs',
      entryPoints: { hutch: join(ROOT, 'src/cli/main.ts') },
      outExtension: { '.js': '.cjs' },
      define: { 'import.meta.url': '__ourUrl' },
      banner: { js: "const __ourUrl = require('node:url').pathToFileURL(__filename).href;" },
    });
    await build({
      ...BUNDLE,
      outdir,
      format: 'esm',
      entryPoints: { hutchd: join(ROOT, 'test/support/faulty-daemon.ts'), 'store-worker': join(ROOT, 'src/store/worker.ts') },
      outExtension: { '.js': '.mjs' },
      define: { 'import.meta.dirname': JSON.stringify(join(ROOT, 'test/support')) },
      banner: {
        js: "import { createRequire as __createRequire } from 'node:module'; const require = __createRequire(import.meta.url), __dirname = import.meta.dirname;",
      },
    });
    cpSync(join(ROOT, 'packaging'), join(checkout, 'packaging'), { recursive: true });
    const node = join(checkout, '.tools/node');
    writeFileSync(node, `#!/bin/sh\nexec ${process.execPath} "$@"\n`, { mode: 0o755 });
    writeFileSync(join(checkout, '.tools/node-path'), `${node}\n`);
    return machine;
  }

  /** Another checkout, which differs from the first by what `change` does to it. */
  newer(name: string, change: (dir: string) => void = (dir) => appendFileSync(join(dir, 'dist/hutchd.mjs'), `// ${name}\n`)): string {
    const dir = join(this.dir, name);
    cpSync(this.checkout, dir, { recursive: true });
    writeFileSync(join(dir, '.tools/node-path'), `${join(dir, '.tools/node')}\n`);
    change(dir);
    return dir;
  }

  /** The command of a checkout, as ./hutch would run it. */
  async run(
    args: readonly string[],
    { env = {}, from = this.checkout }: { env?: Record<string, string>; from?: string } = {},
  ): Promise<Result> {
    return await this.program(process.execPath, [join(from, 'dist/hutch.cjs'), ...args], env);
  }

  /** The installed command. */
  async hutch(...args: readonly string[]): Promise<Result> {
    return await this.program(join(this.home, '.local/bin/hutch'), args);
  }

  /** The installed command; fails unless it ends with 0. */
  async ok(...args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.hutch(...args);
    if (code !== 0) throw new Error(`hutch ${args.join(' ')} ended with ${code}: ${stderr}${stdout}`);
    return stdout.trimEnd();
  }

  async json<T>(...args: readonly string[]): Promise<T> {
    return JSON.parse(await this.ok(...args, '--json')) as T;
  }

  async program(path: string, args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Result> {
    const child = spawn(path, args, { env: { ...this.env, ...env }, cwd: this.dir });
    child.stdin.on('error', () => {});
    child.stdin.end();
    return await outcomeOf(child, args, RUN_MS);
  }

  /** Every path below, with its kind, mode and content, but for what the daemon keeps. */
  listing(dir: string = this.home): string {
    return spawnSync(
      'sh',
      ['-c', `cd '${dir}' && find . -printf '%y %m %p %l\\n' | sort && find . -type f -exec sha256sum {} + | sort -k 2`],
      { encoding: 'utf8' },
    ).stdout;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const command = ['daemon', 'stop'];
    const ids = (await this.run(['ls', '-q'], { env: { HUTCH_NO_START: '1' } })).stdout.split('\n').filter((id) => id !== '');
    if (ids.length > 0) await this.run(['rm', '-f', ...ids], { env: { HUTCH_NO_START: '1' } });
    await this.run(command);
    const lock = join(this.data, 'data/hutch.lock');
    const pid = existsSync(lock) ? Number(readFileSync(lock, 'utf8')) : 0;
    // One that does not hear us, of a test that failed.
    if (pid > 0 && existsSync(`/proc/${pid}`) && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(this.dir))
      process.kill(pid, 'SIGKILL');
    rmSync(this.dir, { recursive: true, force: true });
  }
}
