// Programs, always by an argument vector and never through a shell. `run` waits for the end and
// leaves nothing of the program's process group; `spawnDetached` starts what outlives the daemon.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import { constants as osConstants } from 'node:os';
import type { Writable } from 'node:stream';
import { abortError, errnoOf, heed, systemError, throwIfAborted } from './errors.ts';
import type { ProcessRef, RunOptions, RunResult, SpawnOptions } from './host.ts';
import type { Operation } from './operation.ts';
import { startTicksOf } from './proc.ts';

const OUTPUT_BYTES_MAX = 1024 * 1024;
/** From SIGTERM to SIGKILL. */
const TERM_GRACE_MS = 2_000;
/** From SIGKILL to giving up. */
const KILL_GRACE_MS = 5_000;
/** After the program has ended: how long a process that it left behind may hold its output open. */
const DRAIN_MS = 2_000;

export type RunProgram = (op: Operation, argv: readonly string[], options?: RunOptions) => Promise<RunResult>;

export async function run(
  op: Operation,
  baseEnv: Readonly<Record<string, string>>,
  argv: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  const [program, ...args] = argv;
  if (program === undefined) throw op.error('internal', 'cannot run an empty command');
  const what = `run ${program}`;
  throwIfAborted(op, what);
  const place = placeOf(options, baseEnv);
  // A process group of its own, so that what the program started is ended with it.
  const child = await started(op, program, options.cwd, () =>
    spawn(program, args, { ...place, detached: true, stdio: ['pipe', 'pipe', 'pipe'] }),
  );
  const gaveUp = Promise.withResolvers<never>();
  const bytesMax = options.outputBytesMax ?? OUTPUT_BYTES_MAX;
  let failure: Error | undefined;
  const fail = (error: Error): void => {
    if (failure !== undefined) return;
    failure = error;
    endGroup(child, () => gaveUp.reject(error));
  };
  const collect = (stream: 'stdout' | 'stderr'): Uint8Array[] => {
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    child[stream].on('data', (chunk: Uint8Array) => {
      bytes += chunk.byteLength;
      if (bytes > bytesMax) return fail(op.error('resource_exhausted', `${program} wrote more than ${bytesMax} bytes to its ${stream}`));
      chunks.push(chunk);
      options.onOutput?.(chunk, stream);
    });
    return chunks;
  };
  const [stdout, stderr] = [collect('stdout'), collect('stderr')];
  // A program that does not read its input to the end is its own business: the exit code tells.
  child.stdin.on('error', () => {});
  if (options.input === undefined || options.input instanceof Uint8Array) child.stdin.end(options.input);
  else feed(child, options.input).catch((error: unknown) => fail(systemError(op, what, error)));

  const onAbort = (): void => fail(abortError(op, what));
  op.signal.addEventListener('abort', onAbort, { once: true });
  try {
    const exitCode = await Promise.race([endOf(child), gaveUp.promise]);
    if (failure !== undefined) throw failure;
    return { exitCode, stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr) };
  } catch (error) {
    throw systemError(op, what, error);
  } finally {
    op.signal.removeEventListener('abort', onAbort);
  }
}

/** Resolves once the program has ended and its output is read; 128 + the signal's number if one ended it. */
async function endOf(child: ChildProcess): Promise<number> {
  const closed = once(child, 'close'); // 'close', not 'exit': at 'exit' the pipes may still hold the last output
  const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
  const drained = setTimeout(() => {
    child.stdout?.destroy();
    child.stderr?.destroy();
  }, DRAIN_MS);
  await closed;
  clearTimeout(drained);
  return code ?? 128 + (signal === null ? 0 : osConstants.signals[signal]);
}

/** As fast as it reads. What it does not want to read any more is not asked for; a chunk's memory is free when the next is asked for. */
async function feed({ stdin }: ChildProcess, chunks: AsyncIterable<Uint8Array>): Promise<void> {
  if (stdin === null) return;
  for await (const chunk of chunks) {
    if (stdin.destroyed) return;
    await written(stdin, chunk);
  }
  stdin.end();
}

/** What goes wrong is told by the exit code. */
function written(stream: Writable, chunk: Uint8Array): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  stream.write(chunk, () => resolve());
  return promise;
}

/** TERM, then KILL, then `giveUp` for a program that not even that ends: one stuck in the kernel. */
function endGroup(child: ChildProcess, giveUp: () => void): void {
  if (child.exitCode !== null || child.signalCode !== null) return;
  signalGroup(child, 'SIGTERM');
  const force = setTimeout(() => signalGroup(child, 'SIGKILL'), TERM_GRACE_MS);
  const abandon = setTimeout(giveUp, TERM_GRACE_MS + KILL_GRACE_MS);
  child.once('exit', () => {
    clearTimeout(force);
    clearTimeout(abandon);
    signalGroup(child, 'SIGKILL'); // what is left of its group
  });
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, signal);
  } catch (error) {
    if (errnoOf(error) !== 'ESRCH' && errnoOf(error) !== 'EPERM') throw error;
  }
}

export async function spawnDetached(
  op: Operation,
  baseEnv: Readonly<Record<string, string>>,
  argv: readonly string[],
  options: SpawnOptions,
): Promise<ProcessRef> {
  const [program, ...args] = argv;
  if (program === undefined) throw op.error('internal', 'cannot start an empty command');
  await using log = await heed(
    op,
    `open ${options.logPath}`,
    () => fs.open(options.logPath, 'a', 0o600),
    (late) => void late.close(),
  );
  throwIfAborted(op, `start ${program}`);
  let startTicks: number | null = null;
  const child = await started(op, program, options.cwd, () => {
    const stdio = ['ignore', log.fd, log.fd] as const;
    const fresh = spawn(program, args, { ...placeOf(options, baseEnv), detached: true, stdio: [...stdio] });
    // At once, before the event loop can reap it: its start time is readable even if it has ended.
    if (fresh.pid !== undefined) startTicks = startTicksOf(fresh.pid);
    return fresh;
  });
  child.unref();
  if (child.pid === undefined || startTicks === null) throw op.error('internal', `cannot start ${program}: its process was not seen`);
  return { pid: child.pid, startTicks };
}

/** A child that has a pid, which it has only once its program is being executed. */
async function started<C extends ChildProcess>(op: Operation, program: string, cwd: string | undefined, begin: () => C): Promise<C> {
  try {
    const child = begin();
    if (child.pid !== undefined) return child;
    const [error] = await once(child, 'error');
    throw error;
  } catch (error) {
    throw programError(op, program, cwd, error);
  }
}

function placeOf(
  options: Pick<RunOptions, 'env' | 'cwd'>,
  baseEnv: Readonly<Record<string, string>>,
): { env: Record<string, string>; cwd?: string } {
  return { env: { ...baseEnv, ...options.env }, ...(options.cwd === undefined ? {} : { cwd: options.cwd }) };
}

function programError(op: Operation, program: string, cwd: string | undefined, error: unknown): Error {
  if (errnoOf(error) !== 'ENOENT') return systemError(op, `run ${program}`, error);
  const where = cwd === undefined ? '' : ` (or its directory ${cwd} does not exist)`;
  return op.error('not_found', `cannot run ${program}: it is not installed${where}`, { cause: error });
}
