// One process under its shim (docs/shim.md): starting it, asking whether it lives, waiting for its
// end, signalling it. All of it works from the shim's files and socket alone, so a daemon that has
// just started knows as much as the one that started the process.
//
// What is said of a dead process is always proven, and a start is proven not to have happened by
// taking its ticket: the shim runs nothing without it.
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { z } from 'zod';
import { HutchError } from '../domain/errors.ts';
import { abortError, heed } from './errors.ts';
import type { Host, ProcessRef } from './host.ts';
import type { Operation } from './operation.ts';

/** Both files are one line of a few hundred bytes. */
const RECORD_BYTES_MAX = 16 * 1024;
const LINE_BYTES_MAX = 16 * 1024;
const START_MS = 15_000;
/** For a failed start to be undone. */
const RELEASE_MS = 10_000;
/** After its process is gone: for the shim to write how it ended. */
const RECORD_MS = 5_000;
/** A process without a living shim has no event to wait for. */
const LOOK_EVERY_MS = 100;
/** A shim that is at work, but cannot be connected to or has just hung up, is asked again this often. */
const RETRY_MS = 5;
const CALLED_OFF = 'called-off';
const TICKET = /^start-[0-9a-f]{32}$/;

const pid = z.int().positive();
const ticks = z.int().nonnegative();
const timeMs = z.int();
const bootId = z.string().max(64);

const shimRecord = z.object({
  version: z.literal(1),
  shimPid: pid,
  shimStartTicks: ticks,
  pid,
  startTicks: ticks,
  bootId,
  startedAtMs: timeMs,
});
type ShimRecord = z.infer<typeof shimRecord>;

const exitRecord = z.object({
  version: z.literal(1),
  code: z.int().min(0).max(255).nullable(),
  signal: z.string().max(32).nullable(),
  endedAtMs: timeMs,
  monotonicMs: timeMs,
  bootId,
  startedAtMs: timeMs,
  coreDumped: z.boolean().optional(),
  oomKilled: z.boolean().optional(),
  /** The last signal that the shim was asked to send. */
  asked: z.string().max(32).nullable().optional(),
  /** Why the program was never run. */
  failed: z.string().max(4096).optional(),
  maxRssBytes: z.int().optional(),
  userUs: z.int().optional(),
  systemUs: z.int().optional(),
});

/** `rulesGeneration`: of this host's nftables rules, when it was asked for and the kernel told. */
const startReply = z.union([shimRecord.extend({ rulesGeneration: z.int().nonnegative().optional() }), z.object({ error: z.string() })]);

/** To a request over the socket. */
const answer = z.object({ ok: z.boolean(), rulesGeneration: z.int().nonnegative().optional() });
/** Said without being asked. */
const companionNews = z.object({ companion: z.int().nonnegative(), endedAtMs: timeMs });

export type ShimAlive = { readonly alive: true; readonly pid: number; readonly startTicks: number };
export type ShimDead = {
  readonly alive: false;
  /** `exit.json`: seen by the shim. `pid-gone`: no such process with that start time. `boot-id`: another boot. `never-started`. */
  readonly proof: 'exit.json' | 'pid-gone' | 'boot-id' | 'never-started';
  readonly exitCode: number | null;
  readonly signal: string | null;
  readonly oomKilled: boolean;
  readonly diedAtMs: number | null;
  /** When what has ended was started, by the clock of its own `diedAtMs`. */
  readonly startedAtMs?: number;
};
/** The same shape as a backend's ProcessEvidence. */
export type ShimEvidence = ShimAlive | ShimDead;

export type ShimStart = {
  /** Ours alone to write, and there: what lies in it is proof. */
  readonly dir: string;
  readonly logPath: string;
  /** Who the programs run as; null: our own. */
  readonly runAs: { readonly uid: number; readonly gid: number } | null;
  /** Directories in whose cgroup.procs the programs are put. */
  readonly cgroups: readonly string[];
  /** Started before the program and ended with it. */
  readonly also: readonly (readonly string[])[];
  /** Unix sockets of those that must be listened on before the program starts. */
  readonly awaitSockets: readonly string[];
  readonly argv: readonly string[];
  readonly cwd?: string;
  /** Added to the programs' environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** Where what the program writes to its fd 4 goes, bounded like the log. */
  readonly consolePath?: string;
  /** `shared`: the program and the first of `also` have a socket pair, each one end as its fd 3. */
  readonly pair?: 'shared';
  /** `given-up-by-itself`: the program may run one that has more rights than its user. */
  readonly privileges?: 'given-up-by-itself';
  /** `asked`: the start tells the generation of this host's nftables rules. */
  readonly rules?: 'asked';
};

export type ShimRefs = { readonly shim: ProcessRef; readonly child: ProcessRef };
export type ShimStarted = ShimRefs & {
  /** Counted up by the kernel at each change of the rules; null when it was not asked for, or cannot be told. */
  readonly rulesGeneration: number | null;
};

/**
 * Starts the program; returns once it has been executed. On failure nothing of it is left but
 * the log, and `exit.json` where the shim could write it.
 * @throws HutchError `unavailable` with the shim's sentence when it could not be started.
 */
export async function startShim(op: Operation, host: Host, shimPath: string, start: ShimStart): Promise<ShimStarted> {
  await forgetEarlier(op, host, start.dir);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await callOff(late, host, start.dir).catch((cause: unknown) =>
      op.log.warn({ dir: start.dir, cause }, 'a failed start may have left a process'),
    );
  });
  const ticket = `start-${Buffer.from(host.randomBytes(16)).toString('hex')}`;
  await host.appendFile(op, join(start.dir, ticket), new Uint8Array());
  using limited = op.within(START_MS, `starting ${start.argv[0] ?? 'a program'}`);
  const result = await host.run(limited, [shimPath, ...shimArgs(start, ticket)], { env: start.env ?? {} });
  const reply = startReply.safeParse(parseJson(result.stdout));
  if (!reply.success) {
    const said = new TextDecoder().decode(result.stderr).trim();
    throw op.error('internal', `the shim ended with ${result.exitCode} and did not say why: ${said}`, { cause: reply.error });
  }
  if ('error' in reply.data) throw op.error('unavailable', `cannot start the sandbox's process: ${reply.data.error}`);
  undo.move();
  return { ...refsOf(reply.data), rulesGeneration: reply.data.rulesGeneration ?? null };
}

/** What an earlier process proved is for its time: once a ticket is out, only the new one may be found. */
async function forgetEarlier(op: Operation, host: Host, dir: string): Promise<void> {
  const names = await namesIn(op, host, dir);
  if (!names.includes('shim.json')) return await host.remove(op, join(dir, 'exit.json'));
  if ((await inspectShim(op, host, dir)).alive) throw op.error('conflict', `a process runs already under the shim in ${dir}`);
  for (const name of ['shim.json', 'exit.json']) await host.remove(op, join(dir, name));
}

function shimArgs(start: ShimStart, ticket: string): readonly string[] {
  const { runAs, cwd, consolePath, pair, rules, privileges } = start;
  return [
    ...['--dir', start.dir, '--log', start.logPath, '--ticket', ticket],
    ...(runAs === null ? [] : ['--uid', `${runAs.uid}`, '--gid', `${runAs.gid}`]),
    ...(cwd === undefined ? [] : ['--cwd', cwd]),
    ...(consolePath === undefined ? [] : ['--console', consolePath]),
    ...(pair === undefined ? [] : ['--pair']),
    ...(rules === undefined ? [] : ['--rules']),
    ...(privileges === undefined ? [] : ['--new-privileges']),
    ...start.cgroups.flatMap((dir) => ['--cgroup', dir]),
    ...start.also.flatMap((argv) => ['--also', ...argv, ';']),
    ...start.awaitSockets.flatMap((path) => ['--await', path]),
    ...['--', ...start.argv],
  ];
}

/** Ends whatever a start that failed may have left running. */
async function callOff(op: Operation, host: Host, dir: string): Promise<void> {
  const now = await inspectShim(op, host, dir);
  if (!now.alive) return;
  await host.kill(op, now, 'SIGKILL');
  await shimEnded(op, host, dir);
}

/** Alive, or dead and by what proof. It calls off a start that has not happened yet. */
export async function inspectShim(op: Operation, host: Host, dir: string): Promise<ShimEvidence> {
  const shim = await readRecord(op, host, join(dir, 'shim.json'), shimRecord);
  if (shim !== null) return await evidenceOf(op, host, dir, shim);
  if (await takeTicket(op, host, dir)) return unseen('never-started');
  // A shim writes shim.json before it takes its ticket: what is not there now will never be.
  return await look(op, host, dir);
}

/** The same for who waits for an end: by the time it looks, the next start may have begun there, which is not its to call off. */
async function look(op: Operation, host: Host, dir: string): Promise<ShimEvidence> {
  return await evidenceOf(op, host, dir, await readRecord(op, host, join(dir, 'shim.json'), shimRecord));
}

async function evidenceOf(op: Operation, host: Host, dir: string, shim: ShimRecord | null): Promise<ShimEvidence> {
  const seen = await seenExit(op, host, dir); // after the beginning, as the end is written last
  if (seen !== null) return seen;
  if (shim === null) return unseen('never-started');
  if (shim.bootId !== host.bootId()) return unseen('boot-id');
  const { child } = refsOf(shim);
  if (await host.isAlive(op, child)) return { alive: true, ...child };
  // Between the two looks the shim may have written the end.
  return (await seenExit(op, host, dir)) ?? unseen('pid-gone');
}

/** True: it was there and is ours now, so no shim will run anything with it. By rename, which only one can do. */
async function takeTicket(op: Operation, host: Host, dir: string): Promise<boolean> {
  const ticket = (await namesIn(op, host, dir)).find((name) => TICKET.test(name));
  if (ticket === undefined) return false;
  try {
    await host.rename(op, join(dir, ticket), join(dir, CALLED_OFF));
  } catch (error) {
    if (isCode(error, 'not_found')) return false;
    throw error;
  }
  await host.remove(op, join(dir, CALLED_OFF));
  return true;
}

async function namesIn(op: Operation, host: Host, dir: string): Promise<readonly string[]> {
  try {
    return await host.list(op, dir);
  } catch (error) {
    if (isCode(error, 'not_found')) return [];
    throw error;
  }
}

async function seenExit(op: Operation, host: Host, dir: string): Promise<ShimDead | null> {
  const exit = await readRecord(op, host, join(dir, 'exit.json'), exitRecord);
  if (exit === null) return null;
  return {
    alive: false,
    proof: 'exit.json',
    exitCode: exit.code,
    signal: exit.signal,
    oomKilled: exit.oomKilled ?? false,
    diedAtMs: exit.endedAtMs,
    startedAtMs: exit.startedAtMs,
  };
}

function unseen(proof: 'pid-gone' | 'boot-id' | 'never-started'): ShimDead {
  return { alive: false, proof, exitCode: null, signal: null, oomKilled: false, diedAtMs: null };
}

/**
 * Resolves when the process has ended: with the shim's record, as soon as all that it started is gone
 * too; without, when the shim is gone and the process is proven dead.
 */
export async function shimEnded(op: Operation, host: Host, dir: string): Promise<ShimDead> {
  for (;;) {
    const heard = await hearUntilTheEnd(op, host, join(dir, 'shim.sock'));
    const now = await look(op, host, dir);
    if (!now.alive) return await recorded(op, host, dir, now);
    // It lives and its shim hung up, turned us away or is dead: the kernel is about to end it, or it is stuck.
    await pause(op, heard === 'hung up' ? RETRY_MS : LOOK_EVERY_MS);
  }
}

/** The process is gone, but while its shim lives it may be about to write how. */
async function recorded(op: Operation, host: Host, dir: string, seen: ShimDead): Promise<ShimDead> {
  if (seen.proof !== 'pid-gone') return seen;
  const shim = await shimRef(op, host, dir);
  if (shim === null) return seen;
  for (let waitedMs = 0; waitedMs < RECORD_MS && (await host.isAlive(op, shim)); waitedMs += RETRY_MS) {
    const exit = await seenExit(op, host, dir);
    if (exit !== null) return exit;
    await pause(op, RETRY_MS);
  }
  return (await seenExit(op, host, dir)) ?? seen;
}

/** The shim's own process, for measuring it; null when there is none of this boot. */
export async function shimRef(op: Operation, host: Host, dir: string): Promise<ProcessRef | null> {
  const shim = await readRecord(op, host, join(dir, 'shim.json'), shimRecord);
  return shim === null || shim.bootId !== host.bootId() ? null : refsOf(shim).shim;
}

/**
 * Sends a signal to the process through its shim, or directly where the shim does not answer.
 * False: there is no such process any more.
 */
export async function signalShim(
  op: Operation,
  host: Host,
  dir: string,
  signal: 'SIGTERM' | 'SIGKILL' | 'SIGSTOP' | 'SIGCONT',
): Promise<boolean> {
  if ((await askShim(op, host, join(dir, 'shim.sock'), { signal: signal.slice('SIG'.length) }))?.ok === true) return true;
  const now = await inspectShim(op, host, dir);
  return now.alive && (await host.kill(op, now, signal));
}

/** The generation of this host's nftables rules now, as `ShimStarted` has it of the start; null: it cannot be told. */
export async function rulesGeneration(op: Operation, host: Host, dir: string): Promise<number | null> {
  return (await askShim(op, host, join(dir, 'shim.sock'), { rules: 'asked' }))?.rulesGeneration ?? null;
}

/** What the shim says to a request; null when it does not answer. */
async function askShim(
  op: Operation,
  host: Host,
  path: string,
  request: { readonly signal: string } | { readonly rules: 'asked' },
): Promise<z.infer<typeof answer> | null> {
  const stream = await connect(op, host, path);
  if (stream === null) return null;
  try {
    stream.write(`${JSON.stringify(request)}\n`);
    for await (const text of lines(op, stream)) {
      const said = answer.safeParse(parseJson(text));
      if (said.success) return said.data; // what is none is the greeting, or news
    }
    return null;
  } finally {
    stream.destroy();
  }
}

/**
 * Resolves when a program that was started beside the main one has ended while that goes on, with its place in `also`;
 * null: nobody tells any more, as the main program has ended or its shim has.
 */
export async function companionEnded(op: Operation, host: Host, dir: string): Promise<{ companion: number; endedAtMs: number } | null> {
  const stream = await connect(op, host, join(dir, 'shim.sock'));
  if (stream === null) return null;
  try {
    for await (const text of lines(op, stream)) {
      const told = companionNews.safeParse(parseJson(text));
      if (told.success) return told.data;
    }
    return null;
  } finally {
    stream.destroy();
  }
}

async function hearUntilTheEnd(op: Operation, host: Host, path: string): Promise<'hung up' | 'nobody'> {
  const stream = await connect(op, host, path);
  if (stream === null) return 'nobody';
  try {
    for await (const _ of lines(op, stream)) {
      // The record is read from its file: what counts is that the shim has hung up.
    }
    return 'hung up';
  } finally {
    stream.destroy();
  }
}

async function connect(op: Operation, host: Host, path: string): Promise<Duplex | null> {
  try {
    return await host.connectUnix(op, path);
  } catch (error) {
    if (isCode(error, 'not_found') || isCode(error, 'unavailable')) return null;
    throw error;
  }
}

/** Lines until the other side hangs up, however it does. */
async function* lines(op: Operation, stream: Duplex): AsyncGenerator<string> {
  const onAbort = (): void => void stream.destroy(abortError(op, 'listen to the shim'));
  op.signal.addEventListener('abort', onAbort, { once: true });
  if (op.signal.aborted) onAbort();
  let pending = '';
  try {
    for await (const chunk of stream) {
      pending += new TextDecoder().decode(chunk);
      if (pending.length > LINE_BYTES_MAX) throw op.error('internal', 'the shim said a line without an end');
      const complete = pending.split('\n');
      pending = complete.pop() ?? '';
      yield* complete;
    }
  } catch (error) {
    if (op.signal.aborted) throw abortError(op, 'listen to the shim');
    if (error instanceof HutchError) throw error;
    op.log.debug({ cause: error }, 'the shim hung up'); // reset or closed: the files tell what happened
  } finally {
    op.signal.removeEventListener('abort', onAbort);
  }
}

function refsOf(shim: ShimRecord): ShimRefs {
  return {
    shim: { pid: shim.shimPid, startTicks: shim.shimStartTicks },
    child: { pid: shim.pid, startTicks: shim.startTicks },
  };
}

async function readRecord<T>(op: Operation, host: Host, path: string, schema: z.ZodType<T>): Promise<T | null> {
  let bytes: Uint8Array;
  try {
    bytes = await host.readFile(op, path, RECORD_BYTES_MAX);
  } catch (error) {
    if (isCode(error, 'not_found')) return null;
    throw error;
  }
  const parsed = schema.safeParse(parseJson(bytes));
  if (!parsed.success) throw op.error('internal', `${path} is not what a shim writes`, { cause: parsed.error });
  return parsed.data;
}

/** Undefined where it is no JSON: no schema takes that. */
function parseJson(text: Uint8Array | string): unknown {
  try {
    return JSON.parse(typeof text === 'string' ? text : new TextDecoder().decode(text));
  } catch {
    return undefined;
  }
}

function isCode(error: unknown, code: HutchError['code']): boolean {
  return error instanceof HutchError && error.code === code;
}

function pause(op: Operation, ms: number): Promise<void> {
  return heed(op, 'wait for the shim', () => new Promise((resolve) => setTimeout(resolve, ms)));
}
