// A run directory for one test's shim, and what must not be left of it.
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { nodeHost } from '../../src/host/node-host.ts';
import { type ShimStart, type ShimStarted, shimEnded, shimRef, signalShim, startShim } from '../../src/host/shim.ts';
import { testOperation } from '../support/operation.ts';

export const host = nodeHost();
export const SHIM = join(import.meta.dirname, '..', '..', 'prebuilt', process.arch === 'arm64' ? 'aarch64' : 'x86_64', 'hutch-shim');

export type Place = AsyncDisposable & {
  readonly dir: string;
  readonly logPath: string;
  start(argv: readonly string[], more?: Partial<ShimStart>): Promise<ShimStarted>;
  log(): Promise<string>;
};

/** Disposing it kills whatever still runs there and removes the directory. */
export async function newPlace(): Promise<Place> {
  const root = await fs.mkdtemp(join(tmpdir(), 'hutch-shim-'));
  await fs.chmod(root, 0o711);
  const dir = join(root, 'run');
  await fs.mkdir(dir, { mode: 0o711 });
  const logPath = join(root, 'log');
  const base = { dir, logPath, runAs: null, cgroups: [], also: [], awaitSockets: [] };
  return {
    dir,
    logPath,
    start: (argv, more) => startShim(testOperation(), host, SHIM, { ...base, argv, ...more }),
    log: () => fs.readFile(logPath, 'utf8'),
    async [Symbol.asyncDispose]() {
      using op = testOperation().releasing(10_000);
      const shim = await shimRef(op, host, dir);
      if (shim !== null) await host.kill(op, shim, 'SIGCONT'); // a test that failed may have left it stopped
      if (await signalShim(op, host, dir, 'SIGKILL')) await shimEnded(op, host, dir);
      await fs.rm(root, { recursive: true });
    },
  };
}

/** Pids of programs whose command line contains `marker`; with `shims`, of their shims too. */
export async function processesWith(marker: string, shims: 'shims' | 'no shims' = 'no shims'): Promise<readonly number[]> {
  const found: number[] = [];
  for (const name of await fs.readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const commandLine = await fs.readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => ''); // ended meanwhile
    if (!commandLine.includes(marker) || commandLine.startsWith(process.execPath)) continue;
    if (shims === 'shims' || !commandLine.startsWith(SHIM)) found.push(Number(name));
  }
  return found;
}
