// Runs vitest under deadlines of its own. A test has a timeout, but not the loading of a file, nor the end of a worker
// in which something still holds on (a daemon that a failing file has started): there vitest waits for ever. A file
// of which nothing is heard for long is named, everything that it started is killed, and the other files are run.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import type { FileRan, VitestEvent } from './vitest-events.ts';

export type VitestRun = {
  /** Of the last vitest. */
  readonly code: number;
  readonly files: readonly FileRan[];
  /** Files while which ran an error happened outside of any test. */
  readonly astray: readonly string[];
  /** Files that did not come to an end, with what is known of that. */
  readonly hung: readonly { readonly file: string; readonly where: string }[];
};

export type Deadlines = {
  /** Longer than any test may take. */
  readonly silentMs: number;
  /** From the last test to the end of vitest's process. */
  readonly endMs: number;
};

const LOOK_EVERY_MS = 2_000;

export async function vitest(argv: readonly string[], env: NodeJS.ProcessEnv, deadlines: Deadlines): Promise<VitestRun> {
  const files: FileRan[] = [];
  const astray: string[] = [];
  const hung: { file: string; where: string }[] = [];
  for (let wanted = argv; ; ) {
    const run = await once(wanted, env, deadlines);
    files.push(...run.files);
    astray.push(...run.astray);
    hung.push(...run.hung);
    const done = new Set([...files.map(({ name }) => name), ...hung.map(({ file }) => file)]);
    const left = run.all.filter((file) => !done.has(file));
    if (run.hung.length === 0) hung.push(...left.map((file) => ({ file, where: `vitest ended with ${run.code} before it` })));
    if (run.hung.length === 0 || left.length === 0) return { code: run.code, files, astray, hung };
    wanted = [...left, ...argv.filter((word) => word.startsWith('-'))];
  }
}

type Once = VitestRun & { readonly all: readonly string[] };

async function once(argv: readonly string[], env: NodeJS.ProcessEnv, deadlines: Deadlines): Promise<Once> {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-vitest-'));
  const path = join(dir, 'events');
  const reporters = ['--reporter=default', `--reporter=${join(import.meta.dirname, 'vitest-events.ts')}`];
  // A group of its own: whatever its tests have started and left goes with it.
  const child = spawn(process.execPath, ['node_modules/.bin/vitest', 'run', ...reporters, ...argv], {
    env: { ...env, HUTCH_TEST_EVENTS: path },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  const signal = (name: NodeJS.Signals) => {
    try {
      process.kill(-(child.pid ?? 0), name);
    } catch {
      // All of it has ended.
    }
  };
  const pass = (name: NodeJS.Signals): void => {
    signal(name);
    process.exitCode = 130;
  };
  process.on('SIGINT', pass).on('SIGTERM', pass);
  let output = '';
  const take = (chunk: Buffer) => {
    output += chunk.toString('utf8');
    process.stdout.write(chunk);
  };
  child.stdout.on('data', take);
  child.stderr.on('data', take);
  const watch = new Watch(path, deadlines);
  // Not 'close': what a test has left may hold the pipe.
  const ended = new Promise<number>((done) => {
    child.on('error', () => done(127));
    child.on('exit', (code) => done(code ?? 1));
  });
  const timer = setInterval(() => {
    if (watch.look()) signal('SIGKILL');
  }, LOOK_EVERY_MS);
  try {
    const code = await ended;
    watch.look();
    const said = stripVTControlCharacters(output);
    const astray = [...said.matchAll(/^This error originated in "([^"]+)" test file/gm)].map(([, file = '']) => resolve(file));
    return { code, files: watch.files, astray: [...new Set(astray)], hung: watch.hung(said), all: watch.all };
  } finally {
    clearInterval(timer);
    signal('SIGKILL');
    child.stdout.destroy();
    child.stderr.destroy();
    process.off('SIGINT', pass).off('SIGTERM', pass);
    rmSync(dir, { recursive: true, force: true });
  }
}

/** What has been heard of each file, and since when nothing. */
class Watch {
  all: readonly string[] = [];
  readonly files: FileRan[] = [];
  readonly #path: string;
  readonly #deadlines: Deadlines;
  /** Files that are at something, and when they were heard of last. */
  readonly #heardMs = new Map<string, number>();
  #read = 0;
  #lastMs = performance.now();
  #silent: readonly string[] = [];
  #stuck = false;

  constructor(path: string, deadlines: Deadlines) {
    this.#path = path;
    this.#deadlines = deadlines;
  }

  /** Whether it is time to end it. */
  look(): boolean {
    const nowMs = performance.now();
    for (const event of this.#new()) {
      this.#lastMs = nowMs;
      if ('files' in event) this.all = event.files;
      else if ('at' in event) {
        // What is told late of a file that has ended is no sign that it goes on.
        if (!this.files.some(({ name }) => name === event.at)) this.#heardMs.set(event.at, nowMs);
      } else {
        this.files.push(event.ended);
        this.#heardMs.delete(event.ended.name);
      }
    }
    const { silentMs, endMs } = this.#deadlines;
    this.#silent = [...this.#heardMs].filter(([, atMs]) => nowMs - atMs > silentMs).map(([file]) => file);
    this.#stuck ||= this.all.length > 0 && this.files.length >= this.all.length && nowMs - this.#lastMs > endMs;
    return this.#stuck || this.#silent.length > 0 || (this.all.length === 0 && nowMs - this.#lastMs > silentMs);
  }

  hung(said: string): VitestRun['hung'] {
    const seconds = (ms: number): string => `${Math.round(ms / 1000)} s`;
    const silent = this.#silent.map((file) => ({ file, where: `nothing of it was heard for ${seconds(this.#deadlines.silentMs)}` }));
    if (!this.#stuck) return silent;
    const named = [...said.matchAll(/Timeout terminating \w+ worker for test files? (.+)\.$/gm)].flatMap(([, list = '']) =>
      list.split(', '),
    );
    const where = `its tests ended, but not its process within ${seconds(this.#deadlines.endMs)}: something that it started holds on`;
    return [...silent, ...(named.length === 0 ? ['vitest'] : named).map((file) => ({ file, where }))];
  }

  #new(): VitestEvent[] {
    if (!existsSync(this.#path)) return [];
    const text = readFileSync(this.#path, 'utf8');
    const end = text.lastIndexOf('\n') + 1;
    const lines = text.slice(this.#read, end).split('\n');
    this.#read = end;
    return lines.filter((line) => line !== '').map((line) => JSON.parse(line) as VitestEvent);
  }
}
