// What dist/hutch.cjs is: runs the command line, dist/cli.cjs, with the code that V8 compiled of it when the same verb ran before.
// Node keeps what is compiled while a file is loaded; here the functions that a verb calls are kept with it, which saves a command
// a tenth of its processor time.
import { closeSync, existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { Script } from 'node:vm';
import { codePath, readCode, writeCode } from './code-cache.ts';

/** The bundle is an expression: this function. `keepCode` is called once, before V8's flags are changed: they are part of what is kept. */
type Bundle = (
  exports: unknown,
  require: NodeJS.Require,
  module: NodeJS.Module,
  filename: string,
  dirname: string,
  keepCode: () => void,
) => void;

const filename = join(__dirname, 'cli.cjs');
// One byte a character: the bundler writes nothing but ASCII.
const source = readFileSync(filename, 'latin1');
const dir = cacheDir();
const path = dir === null ? null : codePath(dir, source, process.argv[2]);
const code = path === null ? null : readCode(path);
const script = new Script(source, { filename, ...(code === null ? {} : { cachedData: code }) });
if (haveSourcesChanged()) buildAgain();
const isKept = path === null || (code !== null && script.cachedDataRejected === false);
const bundle = script.runInThisContext() as Bundle;
bundle(module.exports, require, module, filename, __dirname, isKept ? () => {} : keeper(path, dir ?? ''));

/**
 * Of a checkout `./hutch` looks for a source that is newer than the bundle, while this starts: what it found comes through a pipe,
 * the number of whose descriptor is in `HUTCH_SOURCES`.
 */
function haveSourcesChanged(): boolean {
  const fd = process.env['HUTCH_SOURCES'];
  if (fd !== '3') return false;
  delete process.env['HUTCH_SOURCES'];
  const found = readFileSync(Number(fd));
  closeSync(Number(fd));
  return found.length > 0;
}

/** In place of this process, and never back. */
function buildAgain(): void {
  const hutch = join(dirname(__dirname), 'hutch');
  process.execve?.('/bin/sh', ['sh', hutch, ...process.argv.slice(2)], { ...process.env, HUTCH_SOURCES: 'changed' });
}

/** Of a checkout or a release, and nowhere else is a directory made; for a daemon that we start, Node keeps its code there as well. */
function cacheDir(): string | null {
  const { env } = process;
  if (env['NODE_DISABLE_COMPILE_CACHE'] !== undefined) return null;
  const root = dirname(__dirname);
  const [tools, cache] = [join(root, '.tools'), join(root, 'cache')];
  const own = existsSync(tools) ? join(tools, 'compile-cache') : existsSync(cache) ? cache : undefined;
  if (own !== undefined) env['NODE_COMPILE_CACHE'] ??= own;
  return env['NODE_COMPILE_CACHE'] ?? null;
}

function keeper(path: string, dir: string): () => void {
  let isDone = false;
  const keep = (): void => {
    if (isDone) return;
    isDone = true;
    writeCode(path, dir, script.createCachedData());
  };
  // A verb that ended before it had to wait. One that failed has not called what it calls at other times.
  process.once('exit', (exitCode) => {
    if (exitCode === 0) keep();
  });
  return keep;
}
