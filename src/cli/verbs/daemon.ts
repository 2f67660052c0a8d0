// hutch daemon: starting it, ending it (sandboxes go on), and looking at it.
import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { HutchError } from '../../domain/errors.ts';
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { daemonAccess } from '../daemon.ts';
import { exitOf } from '../exit-codes.ts';
import { LastLines } from '../last-lines.ts';
import { clock, json, roughAge } from '../output.ts';
import { wholeNumber } from '../spec.ts';
import { daemonVersion } from './version.ts';

const STOP_MS = 60_000;
const POLL_MS = 20;
const FOLLOW_MS = 200;

export async function start(context: Context, args: Args): Promise<number> {
  const access = await localAccess(context);
  const { answers, startDaemon } = await import('../daemon-start.ts');
  if (!(await answers(access.address))) await startDaemon({ env: context.env, address: access.address, progress: context.progress });
  return await status(context, args);
}

export async function stop(context: Context, _args: Args): Promise<number> {
  const running = await daemonVersion(context);
  if (running === null) {
    await context.io.out(context.json ? json({}) : 'the daemon does not run\n');
    return 0;
  }
  await ask(context, 'daemon.stop', {});
  const deadline = performance.now() + STOP_MS;
  while (await isAlive(running.pid)) {
    if (performance.now() > deadline)
      throw new HutchError({
        code: 'deadline_exceeded',
        message: `the daemon (process ${running.pid}) did not end within ${STOP_MS / 1_000} s`,
        hint: 'see its log with: hutch daemon logs',
      });
    await sleep(POLL_MS);
  }
  await context.io.out(context.json ? json({}) : 'stopped; sandboxes go on running\n');
  return 0;
}

export async function status(context: Context, _args: Args): Promise<number> {
  const running = await daemonVersion(context);
  if (running === null) {
    if (context.json)
      throw new HutchError({ code: 'unavailable', message: 'the daemon does not run', hint: 'start it with: hutch daemon start' });
    await context.io.out('the daemon does not run; start it with: hutch daemon start\n');
    return exitOf('unavailable');
  }
  const since = `${clock(running.startedAtMs)}, ${roughAge(Date.now() - running.startedAtMs)} ago`;
  await context.io.out(context.json ? json(running) : `running: version ${running.version}, process ${running.pid}, since ${since}\n`);
  return 0;
}

export async function logs(context: Context, args: Args): Promise<number> {
  const { places } = await localAccess(context);
  const path = `${places.logDir}/hutchd.log`;
  const tail = args.value('tail');
  const last = tail === undefined ? null : new LastLines(wholeNumber('tail', tail, 0, 1_000_000));
  let offset = 0;
  const copy = async (take: (bytes: Uint8Array) => Promise<void> | void): Promise<void> => {
    const { size } = await stat(path);
    if (size < offset) offset = 0; // a new file took its place
    if (size === offset) return;
    for await (const chunk of createReadStream(path, { start: offset, end: size - 1 })) await take(chunk as Uint8Array);
    offset = size;
  };
  if (last === null) await copy((bytes) => context.io.out(bytes));
  else {
    await copy((bytes) => last.push({ channel: 'stdout', wallMs: 0, bytes, last: true }));
    for (const { bytes } of last.pieces()) await context.io.out(bytes);
  }
  while (args.has('follow')) {
    await sleep(FOLLOW_MS, undefined, { signal: context.interrupts.signal }).catch(() => {});
    if (context.interrupts.signal.aborted) throw context.interrupts.signal.reason;
    await copy((bytes) => context.io.out(bytes));
  }
  return 0;
}

async function localAccess(context: Context) {
  const access = await daemonAccess(context.env);
  if (!access.isLocal)
    throw new HutchError({
      code: 'failed_precondition',
      message: 'HUTCH_API_URL names a daemon that is not this machine’s own',
      hint: 'unset HUTCH_API_URL',
    });
  return access;
}

/** A zombie has ended: in a container nobody may ever ask how. */
async function isAlive(pid: number): Promise<boolean> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'latin1');
    return !stat.slice(stat.lastIndexOf(')')).startsWith(') Z');
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return false;
    throw error;
  }
}
