// A command whose sandbox ends under it: what its client is told. The exit that the guest saw is told with what
// ended it; one that nobody saw is not made up.
import type { z } from 'zod';
import type { ErrorBody, HutchError } from '../domain/errors.ts';
import type { Ended } from '../domain/sandbox.ts';
import { exitCode } from '../guest/exit-code.ts';
import type { Exit } from '../guest/messages.ts';
import type { Operation } from '../host/operation.ts';
import { Actors } from './actors.ts';
import { MAIN } from './bring-up.ts';
import type { Core } from './core.ts';
import { endingWords, endOf } from './ending.ts';
import type { Run } from './run.ts';
import type * as view from './views.ts';
import { endedOf, whoOf } from './why.ts';

/** More than come after the end of one. */
const EVENTS = 50;

type Command = { readonly run: Run; readonly name: string; readonly execId: string };

/** Null for a command that ended by itself, or in success: what came after it does not matter to it. */
export async function endedTogether(core: Core, op: Operation, { run, name, execId }: Command, exit: Exit): Promise<ErrorBody | null> {
  const ending = current(run);
  if (ending === null || exitCode(exit) === 0) return null;
  // Its own end is why the sandbox ends.
  if (execId === MAIN && ending.cause === 'exited') return null;
  const words = await wordsOf(core, run);
  const code = ending.cause === 'timeout' ? 'deadline_exceeded' : 'unavailable';
  return op.error(code, `the command was ended with sandbox ${name}: ${words}`, { hint: hintFor(run, name) }).toBody();
}

/** By SIGKILL, as a shell tells it. */
const KILLED = 137;

/**
 * The exit of a command whose stream broke off because its sandbox ran out of memory and ended as a whole; null: that is not why. That
 * it was killed is known then, if not by whom it was seen. `counts` are the bytes of its output that arrived.
 */
export async function endedOutOfMemory(
  core: Core,
  op: Operation,
  { run, name, execId }: Command,
  counts: { readonly stdout: number; readonly stderr: number },
): Promise<z.output<typeof view.processExit> | null> {
  if (!run.isOver || run.suspended !== null || run.restoredTo !== null) return null;
  const sandbox = await core.deps.store.query('sandbox', { id: run.id });
  const ended = (sandbox === null ? null : endOf(sandbox)) ?? (await lastEnd(core, run));
  if (ended?.oomKilled !== true || ended.cause !== 'crashed') return null;
  const isKept = sandbox !== null && sandbox.state === 'stopped' && !sandbox.spec.autoRemove;
  const what =
    execId === MAIN ? 'it was killed because its sandbox ran out of memory' : `it was killed with sandbox ${name}, which ran out of memory`;
  const error = op.error('failed_precondition', what, {
    hint: `give it more with --memory${isKept ? `: hutch set --memory SIZE ${name}, then hutch start ${name}` : ''}`,
  });
  return {
    exitCode: KILLED,
    signal: 'KILL',
    oomKilled: true,
    reason: 'signalled',
    stdoutBytes: counts.stdout,
    stderrBytes: counts.stderr,
    endedAtMs: ended.atMs,
    error: error.toBody(),
  };
}

/** Its stream broke off, and the sandbox's run is over. */
export async function cutOff(core: Core, op: Operation, { run, name, execId }: Command, cause: unknown): Promise<HutchError> {
  if (run.suspended !== null) {
    return op.error('unavailable', `sandbox ${name} was suspended; the command goes on when it is resumed`, {
      hint: `hutch resume ${name}, then hutch attach ${name} ${execId}`,
      cause,
    });
  }
  if (run.restoredTo !== null) {
    return op.error('unavailable', `sandbox ${name} went back to snapshot ${run.restoredTo}; the command is as it was then`, {
      hint: `one that ran then goes on: hutch attach ${name} ${execId}`,
      cause,
    });
  }
  const words = await wordsOf(core, run);
  const why = words === '' ? '' : `: ${words}`;
  return op.error('unavailable', `sandbox ${name} has ended${why}; how the command ended is not known`, {
    hint: hintFor(run, name),
    cause,
  });
}

/** Empty when there is no record of an end: the daemon lets go of what goes on. */
async function wordsOf(core: Core, run: Run): Promise<string> {
  const actors = new Actors(core.deps.store);
  const who = async (actor: string) => whoOf(await actors.names([actor]));
  const ending = current(run);
  if (ending?.removes === true && ending.cause === 'stopped') return `${(await who(ending.actor))(ending.actor)} removed it`;
  const sandbox = await core.deps.store.query('sandbox', { id: run.id });
  if (sandbox === null) return '';
  const { backend } = sandbox.spec;
  const ended = endOf(sandbox) ?? (ending === null ? await lastEnd(core, run) : { ...ending, exitCode: null, oomKilled: false });
  // The exit code that it has is the main process's: next to a command's own it would be taken for that.
  if (ended !== null) return endingWords(backend, { ...ended, exitCode: null }, '', await who(ended.actor));
  return sandbox.state === 'error' ? sandbox.cause : '';
}

/** Of one that is deleted already. */
async function lastEnd(core: Core, run: Run): Promise<Ended | null> {
  const events = await core.deps.store.query('lastEvents', { sandboxId: run.id, limit: EVENTS });
  const event = events.findLast(({ type }) => type === 'sandbox.ended');
  return event === undefined ? null : endedOf(event);
}

function hintFor(run: Run, name: string): string {
  return `see why: hutch why ${current(run)?.removes === true ? run.id : name}`;
}

function current(run: Run): Run['ending'] {
  return run.ending !== null && performance.now() < run.ending.untilMs ? run.ending : null;
}
