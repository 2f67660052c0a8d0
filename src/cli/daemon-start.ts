// Starts the daemon in a session of its own and waits until it says that it is ready. Two commands may
// do so at once: the second daemon finds the data directory locked and ends, and both use the first.
import { spawn } from 'node:child_process';
import { connect } from 'node:net';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Environment } from '../config/places.ts';
import { HutchError } from '../domain/errors.ts';
import type { Address } from '../sdk/address.ts';
import { errorFromBody } from '../sdk/errors.ts';
import type { ProgressLine } from './progress.ts';

const READY_MS = 60_000;
/** So often one is started that ends without a word. */
const STARTS_MAX = 3;
const POLL_MS = 20;
/** After our daemon has ended, another one that was starting may still come up. */
const OTHER_READY_MS = 30_000;
const READY_FD = 3;
const READY_LINE_CHARS_MAX = 65_536;

/** What keeps the daemon small: its forks copy its memory's tables, and a buffer that is freed goes back (measured: 40 to 90 MiB less). */
export const NODE_FLAGS = ['--max-semi-space-size=1'] as const;
export const MALLOC_ENV = { MALLOC_ARENA_MAX: '2', MALLOC_MMAP_THRESHOLD_: '131072', MALLOC_TRIM_THRESHOLD_: '131072' } as const;

export type DaemonStart = { readonly env: Environment; readonly address: Address; readonly progress: ProgressLine };

/** The program that the daemon is: beside the bundle, or among the sources. */
export function daemonEntry(env: Environment): string {
  const fromSource = import.meta.url.endsWith('.ts');
  // A test's daemon, or a developer's.
  return env['HUTCH_DEV_DAEMON'] ?? fileURLToPath(new URL(fromSource ? '../daemon/main.ts' : './hutchd.mjs', import.meta.url));
}

/** @throws HutchError: the daemon's own when it says why it does not start, else `unavailable`. */
export async function startDaemon({ env, address, progress }: DaemonStart): Promise<void> {
  progress.show({ step: 'starting the daemon' });
  const entry = daemonEntry(env);
  const word = await firstWord(() => launch(entry, env));
  progress.clear();
  if (word.ready) return;
  const deadline = performance.now() + OTHER_READY_MS;
  while (!(await answers(address))) {
    // Only where another daemon was in its place is there one worth waiting for.
    if (!word.another || performance.now() > deadline) throw word.error ?? silent();
    await sleep(POLL_MS);
  }
}

/** Of the first that has one: who ends without a word was killed, perhaps. */
async function firstWord(start: () => Promise<string>): Promise<ReadyWord> {
  const deadline = performance.now() + READY_MS;
  for (let starts = 1; ; starts += 1) {
    const word = readyWord(await start());
    if (word.ready || word.error !== null || starts === STARTS_MAX || performance.now() > deadline) return word;
  }
}

/** What a new daemon says first. */
async function launch(entry: string, env: Environment): Promise<string> {
  const child = spawn(process.execPath, [...NODE_FLAGS, entry, '--ready-fd', String(READY_FD)], {
    detached: true,
    stdio: ['ignore', 'ignore', 'ignore', 'pipe'],
    cwd: '/',
    env: { ...MALLOC_ENV, ...env },
  });
  child.on('error', () => {}); // told by the pipe's end
  const said = await firstLine(child.stdio[READY_FD] as Readable, READY_MS);
  child.unref();
  return said;
}

/** Its first line, or what there is of it when the pipe ends or time is up. */
async function firstLine(pipe: Readable, withinMs: number): Promise<string> {
  let text = '';
  const timer = setTimeout(() => pipe.destroy(), withinMs);
  try {
    for await (const chunk of pipe) {
      text += String(chunk);
      if (text.includes('\n') || text.length > READY_LINE_CHARS_MAX) break;
    }
  } catch {
    return text; // destroyed: time is up
  } finally {
    clearTimeout(timer);
  }
  return text;
}

type ReadyWord = { readonly ready: boolean; readonly another: boolean; readonly error: HutchError | null };

function readyWord(line: string): ReadyWord {
  try {
    const said = JSON.parse(line) as { readonly ready?: unknown; readonly another?: unknown; readonly error?: unknown };
    if (said.ready === true) return { ready: true, another: false, error: null };
    return { ready: false, another: said.another === true, error: errorFromBody(said.error, {}) };
  } catch (error) {
    if (error instanceof SyntaxError) return { ready: false, another: false, error: null };
    throw error;
  }
}

function silent(): HutchError {
  return new HutchError({
    code: 'unavailable',
    message: 'the daemon ended without a word, or did not come up in time',
    hint: 'see its log with: hutch daemon logs; or what this machine lacks with: hutch doctor',
  });
}

export async function answers(address: Address): Promise<boolean> {
  return await new Promise((resolve) => {
    const socket = connect(address.type === 'unix' ? { path: address.path } : { host: address.host, port: address.port });
    socket.on('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}
