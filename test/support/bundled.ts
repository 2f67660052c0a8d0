// Before the tests: the CLI, and each daemon that they start hundreds of times, are bundled once, as users start theirs. From its
// sources a daemon's start takes twice the processor time. Outside of vitest (HUTCH_TEST_DAEMONS unset) it is started from those.
import { mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { build } from 'esbuild';
import { lateModules, OF_DAEMON } from '../../scripts/late-modules.ts';

const ROOT = join(import.meta.dirname, '../..');
/** As deep as the sources are: they look for what lies beside them. */
const DIR = join(ROOT, 'dist.tests/daemons');
const ENTRIES = ['src/daemon/main.ts', 'test/support/faulty-daemon.ts', 'test/faults/real-daemon.ts', 'test/conformance/daemon.ts'];

const nameOf = (entry: string): string => entry.replace(/\.ts$/, '').replaceAll('/', '-');

/** What to start in place of a daemon's source. */
export function bundled(entry: string): string {
  const dir = process.env['HUTCH_TEST_DAEMONS'];
  const path = relative(ROOT, entry);
  return dir === undefined || !ENTRIES.includes(path) ? entry : join(dir, `${nameOf(path)}.mjs`);
}

/** The CLI in one piece, as users start it. */
export const bundledCli = (): string => join(DIR, 'hutch.cjs');

/** Called by vitest, once a run. Each file is replaced in one step: another run in this checkout may be starting them. */
export async function setup(): Promise<void> {
  mkdirSync(DIR, { recursive: true });
  const fresh = mkdtempSync(join(ROOT, 'dist.tests/new-'));
  try {
    const common = { absWorkingDir: ROOT, outdir: fresh, bundle: true, platform: 'node', target: 'node24', logLevel: 'error' } as const;
    await build({
      ...common,
      entryPoints: {
        'store-worker': 'src/store/worker.ts',
        ...Object.fromEntries(ENTRIES.map((entry) => [nameOf(entry), entry])),
      },
      format: 'esm',
      plugins: [lateModules(OF_DAEMON)],
      outExtension: { '.js': '.mjs' },
      external: ['bufferutil', 'utf-8-validate', 'cpu-features', './crypto/build/Release/sshcrypto.node'],
      banner: {
        js: `import { createRequire as __createRequire } from 'node:module'; const require = __createRequire(import.meta.url), __dirname = import.meta.dirname;`,
      },
    });
    await build({
      ...common,
      entryPoints: { hutch: 'src/cli/main.ts' },
      format: 'cjs',
      minify: true,
      outExtension: { '.js': '.cjs' },
      external: ['bufferutil', 'utf-8-validate'],
      define: { 'import.meta.url': '__ourUrl' },
      banner: { js: "const __ourUrl = require('node:url').pathToFileURL(__filename).href;" },
    });
    for (const name of readdirSync(fresh)) renameSync(join(fresh, name), join(DIR, name));
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
  process.env['HUTCH_TEST_DAEMONS'] = DIR;
}
