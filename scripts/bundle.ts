// Bundles the sources: dist/cli.cjs (the CLI, in one piece and as CommonJS: it starts in two thirds of
// the time that a module takes, since what a verb does not use is neither loaded nor looked up),
// dist/hutch.cjs (which runs it, src/cli/start.ts), dist/hutchd.mjs (the daemon) and
// dist/store-worker.mjs. Everything is made in a directory of its own
// first and renamed last, each file in one step, so that a command which starts meanwhile is whole, old
// or new. dist/built has the time at which reading the sources began: a source that is newer makes
// ./hutch build again.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import type * as Esbuild from 'esbuild';
import { lateModules, OF_DAEMON } from './late-modules.ts';

const root = resolve(import.meta.dirname, '..');
const dist = join(root, 'dist');
const fresh = join(root, `dist.new.${process.pid}`);
const NODE_MAJOR = 24;

/** Where the libraries are: a developer's, else those that scripts/setup.sh fetched. */
const libraries = [join(root, 'node_modules'), join(root, '.tools', 'lib', 'node_modules')].filter((dir) =>
  existsSync(join(dir, 'esbuild')),
);
const [nearest] = libraries;
if (nearest === undefined) {
  console.error('error: esbuild is not installed; run ./hutch or ./dev, which install it');
  process.exit(1);
}
const { build }: typeof Esbuild = createRequire(join(nearest, 'package.json'))('esbuild');

const SOCKET_CRYPTO = 'src/cli/socket-crypto.ts';

/**
 * The WebSocket client asks for TLS, HTTPS, ciphers and compression when it is loaded. Over a unix socket it uses none
 * of the first two, nor the last, and they take as long to load as all the rest: each comes when a function of it is
 * called, or, of the last, which it does not take apart before, when something of it is looked at. Of ciphers it uses so
 * little that it has that from us.
 */
const lazyTls: Esbuild.Plugin = {
  name: 'lazy-tls',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^(?:https|tls|crypto|zlib)$/ }, ({ path, importer }) =>
      path === 'crypto' && /\/node_modules\/ws\//.test(importer) ? { path: join(root, SOCKET_CRYPTO) } : { path, namespace: 'lazy' },
    );
    onLoad({ filter: /^/, namespace: 'lazy' }, ({ path }) => {
      const found = `require('node:${path}')[name]`;
      return {
        contents: `module.exports = new Proxy({}, { get: (_, name) => ${path === 'zlib' ? found : `(...args) => ${found}(...args)`} });`,
      };
    });
  },
};

/** Of Node's modules those that most verbs have no use for. */
const OF_CLI = /^node:(?:fs\/promises|child_process|timers\/promises|readline\/promises|tty|os|crypto|http)$/;

const common = {
  bundle: true,
  platform: 'node',
  format: 'esm',
  target: `node${NODE_MAJOR}`,
  minify: true,
  legalComments: 'linked',
  charset: 'utf8',
  nodePaths: libraries,
  outdir: fresh,
  absWorkingDir: root,
  outExtension: { '.js': '.mjs' },
  // ws and ssh2 look for these and do without.
  external: ['bufferutil', 'utf-8-validate', 'cpu-features', './crypto/build/Release/sshcrypto.node'],
  // CommonJS packages ask for Node's modules by `require`, and where they lie, which a module does not have.
  banner: {
    js: `import { createRequire as __createRequire } from 'node:module'; const require = __createRequire(import.meta.url), __dirname = import.meta.dirname;`,
  },
  logLevel: 'warning',
} as const satisfies Esbuild.BuildOptions;

/** Left by a build that was killed. */
function isAbandoned(name: string): boolean {
  const pid = /^dist\.new\.(\d+)$/.exec(name)?.[1];
  return pid !== undefined && !existsSync(`/proc/${pid}`);
}

/** What V8 compiled of it is kept under that name. In the first line, so that what is said of the others stays true. */
function nameByContent(path: string): void {
  const content = readFileSync(path);
  if (content.some((byte) => byte > 0x7f)) {
    console.error(`error: ${path} has other characters than those of ASCII, which is how it is read`);
    throw new Error('not ASCII');
  }
  writeFileSync(path, `/*${createHash('sha256').update(content).digest('hex').slice(0, 16)}*/${content}`);
}

const startedAt = new Date();
for (const name of readdirSync(root)) if (isAbandoned(name)) rmSync(join(root, name), { recursive: true, force: true });
mkdirSync(fresh);
try {
  const commonJs = { ...common, format: 'cjs', outExtension: { '.js': '.cjs' } } as const satisfies Esbuild.BuildOptions;
  await build({ ...commonJs, entryPoints: { hutch: 'src/cli/start.ts' }, banner: {} });
  await build({
    ...commonJs,
    entryPoints: { cli: 'src/cli/main.ts' },
    plugins: [lazyTls, lateModules(OF_CLI)],
    charset: 'ascii', // one byte a character: read, and looked up in the cache of compiled code, in less time
    supported: { 'dynamic-import': false }, // Node's loader of modules takes a while to begin; `require` is there
    define: { 'import.meta.url': '__ourUrl' },
    // An expression that is a function, as src/cli/start.ts calls it.
    banner: {
      js: "(function (exports, require, module, __filename, __dirname, __keepCode) { const __ourUrl = require('node:url').pathToFileURL(__filename).href;",
    },
    footer: { js: '})' },
  });
  nameByContent(join(fresh, 'cli.cjs'));
  const entryPoints = { hutchd: 'src/daemon/main.ts', 'store-worker': 'src/store/worker.ts' };
  await build({ ...common, entryPoints, plugins: [lateModules(OF_DAEMON)] });
} catch {
  rmSync(fresh, { recursive: true, force: true });
  process.exit(1); // it has been said why
}
writeFileSync(join(fresh, 'built'), '');
utimesSync(join(fresh, 'built'), startedAt, startedAt);

mkdirSync(dist, { recursive: true });
const made = readdirSync(fresh);
// The stamp when all is there.
for (const name of made.toSorted((a, b) => Number(a === 'built') - Number(b === 'built'))) renameSync(join(fresh, name), join(dist, name));
rmSync(fresh, { recursive: true });
const kilobytes = (name: string) => Math.ceil(statSync(join(dist, name)).size / 1000);
const total = made.reduce((sum, name) => sum + kilobytes(name), 0);
console.log(`Built dist/ (CLI ${kilobytes('cli.cjs')} kB, daemon ${kilobytes('hutchd.mjs')} kB, ${total} kB in all).`);
