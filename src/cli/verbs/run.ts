// hutch run: a sandbox, its main process on our own streams, and its exit code. Two round trips: the
// sandbox is made and started by one request, and its main process attached to by the next.

import { stat } from 'node:fs/promises';
import { HutchError } from '../../domain/errors.ts';
import { LOGIN_SHELL } from '../../domain/shells.ts';
import { type ProcessExit, RemoteProcess } from '../../sdk/process.ts';
import { preloadSockets } from '../../sdk/socket.ts';
import type { Output } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import { type Carried, carry } from '../carry.ts';
import { type Context, change } from '../context.ts';
import { exitOf } from '../exit-codes.ts';
import { outcome } from '../outcome.ts';
import { commandLine, json, safe } from '../output.ts';
import { createSpec, imageAsked } from '../spec.ts';
import { type Stdio, stdioOf } from '../stdio.ts';
import { parseDetachKeys } from '../terminal.ts';
import { RECONNECT_FOR_MS } from './exec.ts';

type Sandbox = Output<'sandbox.create'>;

/** The image that Hutch makes. */
const OWN_IMAGE = 'debian';
/** As a shell says that there is no such program, and that it is none. */
const NOT_RUN: readonly number[] = [126, 127];
/** After Ctrl-C: how long its processes may take to end. */
const STOP_GRACE_MS = 2_000;

export async function run(context: Context, args: Args): Promise<number> {
  const detach = args.has('detach');
  const stdio = detach ? detachedStdio(args) : stdioOf(context, args);
  const { source, words } = await sourceOf(args);
  if (source === null) refuseWorkspaceFlags(args);
  else if (args.has('dry-run')) return await (await import('./run-workspace.ts')).dryRun(context, args, source);
  const argv = commandOf(context, args, words, stdio);
  if (source !== null && argv === null) throw usage('hutch run DIR needs a command to run', 'like: hutch run . -- make test');
  const detachKeys = parseDetachKeys(args.value('detach-keys'));
  const spec = await createSpec(context, args);
  const loading = detach ? null : preloadSockets('once-idle');
  const main = {
    tty: stdio.tty,
    stdin: stdio.input === 'none' ? ('null' as const) : ('open' as const),
    ...(stdio.terminal === null ? {} : { terminal: stdio.terminal }),
    ...(detach ? {} : { attach: true }),
  };
  const sandbox =
    source === null
      ? await change(context, 'sandbox.create', { ...spec, main: { ...main, ...(argv === null ? {} : { argv }) } })
      : await (await import('./run-workspace.ts')).createWithWorkspace(context, args, source, spec, { ...main, argv: argv ?? [] });
  await loading;
  if (detach) {
    await context.io.out(context.json ? json(sandbox) : `${sandbox.id}\n`);
    return 0;
  }
  const code = await foreground(context, sandbox, stdio, detachKeys);
  if (NOT_RUN.includes(code) && !context.json) {
    const { entrypoint = [] } = sandbox.imageConfig ?? {};
    if (args.swallowed !== null) await context.io.err(behindCommand(args.swallowed, argv ?? []));
    else if (entrypoint.length > 0 && argv !== null) await context.io.err(inPlaceOf(entrypoint, argv));
    else if (source === null && !args.isPlainly) await context.io.err(await directoryMeant(args));
  }
  return code;
}

/** A word that was taken for a program, and may have been meant as the directory to copy in; empty where nothing says so. */
async function directoryMeant({ command: [word = '', ...rest] }: Args): Promise<string> {
  const isOne = (await stat(word).catch(() => null))?.isDirectory() === true;
  if (!isOne && !/^\.{0,2}\//.test(word)) return '';
  const how = `hutch run ${/^\.{0,2}\//.test(word) ? word : `./${word}`} -- ${commandLine(rest[0] === '--' ? rest.slice(1) : rest) || 'CMD'}`;
  return isOne
    ? `hint: ${safe(`${word} was taken for a program in the sandbox, and is a directory here: its git repository is copied in by: ${how}`)}\n`
    : `hint: ${safe(`${word} was taken for a program in the sandbox: there is no such directory here, whose git repository would be copied in`)}\n`;
}

function behindCommand(flag: string, [program = '']: readonly string[]): string {
  const how = `hutch run ${flag} … -- ${program}`;
  return `hint: ${safe(`${flag} went to ${program}, as all that stands behind it; flags of hutch run stand before: ${how}`)}\n`;
}

/** Arguments of an ENTRYPOINT, as `docker run` puts them behind it. */
function inPlaceOf(entrypoint: readonly string[], argv: readonly string[]): string {
  const how = commandLine([...entrypoint, ...argv]);
  return `hint: ${safe(`a command runs in place of the image’s ENTRYPOINT; behind it: hutch run … -- ${how}`)}\n`;
}

/** A directory and `--` before the command: whose git repository is copied in. Alone only one like `.`: `/etc` may be a mistake for a program. */
async function sourceOf({ command, isPlainly }: Args): Promise<{ readonly source: string | null; readonly words: readonly string[] }> {
  const [first = '', second] = command;
  if (!/^(?:\.{1,2}$|\.{0,2}\/)/.test(first)) return { source: null, words: command };
  // No program is called so.
  if (/^\.{1,2}$|\/$/.test(first) && second !== undefined && second !== '--')
    throw usage(
      `-- is missing between the directory ${first} and the command`,
      `like: hutch run ${first} -- ${commandLine(command.slice(1))}`,
    );
  if (second === undefined ? first.startsWith('/') : second !== '--') return { source: null, words: command };
  const info = await stat(first).catch(() => null);
  if (info?.isDirectory() === true) return { source: first, words: command.slice(2) };
  // `/usr/bin/env -- …` may well be a program in the sandbox; what is relative to where we are is not.
  if (second === '--' && first.startsWith('.') && !isPlainly)
    throw usage(
      `${info === null ? 'there is no directory' : 'no directory is'} ${first}: what stands before -- is the git repository to copy in`,
      `like: hutch run . -- make test; to run ${first} of the sandbox: hutch run -- ${first} …`,
    );
  return { source: null, words: command };
}

function refuseWorkspaceFlags(args: Args): void {
  for (const flag of ['mode', 'path'] as const) if (args.value(flag) !== undefined) throw withoutSource(flag);
  for (const flag of ['include-untracked', 'dry-run'] as const) if (args.has(flag)) throw withoutSource(flag);
}

function withoutSource(flag: string): HutchError {
  return usage(`--${flag} is about a git repository, and none is named`, 'like: hutch run . -- make test');
}

/** Null: what the image is made for. Our own image is made for nothing but a shell. */
function commandOf(context: Context, args: Args, words: readonly string[], stdio: Stdio): string[] | null {
  if (words.length > 0) return [...words];
  const image = imageAsked(context, args);
  if (image !== undefined && image !== OWN_IMAGE) return null;
  if (stdio.tty) return [...LOGIN_SHELL];
  throw usage('hutch run needs a command to run', 'like: hutch run --rm -- uname -a; for a shell: hutch run --rm -it');
}

/** With -d nobody types; what reads from its terminal waits for who attaches. */
function detachedStdio(args: Args): Stdio {
  const tty = args.has('tty');
  return { tty, input: args.has('interactive') ? 'data' : 'none', terminal: tty ? { cols: 80, rows: 24 } : null };
}

async function foreground(context: Context, sandbox: Sandbox, stdio: Stdio, detachKeys: Uint8Array): Promise<number> {
  const { client, io, interrupts } = context;
  const ref = sandbox.id;
  // Only with a timeout is it worth asking why it ended.
  const ended = sandbox.timeoutMs === null ? null : client.call('sandbox.wait', { ref }).catch(() => null);
  const stop = async () => void (await client.call('sandbox.stop', { ref, graceMs: STOP_GRACE_MS }));
  let carried: Carried;
  try {
    if (interrupts.signal.aborted) throw interrupts.signal.reason;
    await using process = await RemoteProcess.attach(client, {
      ref,
      execId: 'main',
      stdoutOffset: 0,
      stderrOffset: 0,
      input: stdio.input !== 'none',
      sharesInput: stdio.input === 'terminal',
      signal: interrupts.signal,
      reconnectForMs: RECONNECT_FOR_MS,
    });
    if (context.json) await io.out(json({ type: 'started', sandbox, ...process.info }));
    carried = await carry(context, process, { input: stdio.input, tty: stdio.tty, detachKeys, kill: stop });
  } catch (error) {
    // Interrupted between making and attaching: nobody will come for it.
    if (interrupts.signal.aborted) await stop().catch(() => {});
    else if (ended !== null && (await endedByTimeout(ended))) return exitOf('timedOut');
    await tellWhatIsLeft(context, sandbox);
    throw error;
  }
  if (carried.outcome === 'detached') {
    const then = sandbox.autoRemove ? '; it is deleted when its command ends (--rm)' : '';
    await io.err(`\r\ndetached${then}; go on with: hutch attach ${sandbox.name}\n`);
    return 0;
  }
  const exit: ProcessExit = carried.exit;
  const timedOut = ended !== null && (await endedByTimeout(ended));
  await (sandbox.autoRemove ? deleted(context, ref) : stopped(context, ref));
  if (context.json) await io.out(json({ type: 'exit', ...exit }));
  if (interrupts.exitCode !== null) await tellWhatIsLeft(context, sandbox);
  if (timedOut) {
    if (!context.json) await io.err(`error: sandbox ${sandbox.name} was stopped: its time was up\n`);
    return exitOf('timedOut');
  }
  return await outcome(context, exit);
}

async function endedByTimeout(ended: Promise<Output<'sandbox.wait'> | null>): Promise<boolean> {
  return (await ended)?.sandbox.ended?.cause === 'timeout';
}

/** As with docker: after `run` it does not run any more, so that it can be started, copied from or deleted. */
async function stopped({ client, interrupts }: Context, ref: string): Promise<void> {
  try {
    await client.call('sandbox.wait', { ref }, { signal: interrupts.signal });
  } catch (error) {
    if (!(error instanceof HutchError)) throw error; // the command's own code is what counts
  }
}

/** As with docker: after `run --rm` its name is free again. The daemon deletes it; this waits for that. */
async function deleted(context: Context, ref: string): Promise<void> {
  try {
    await context.client.call('sandbox.delete', { ref, force: true });
  } catch (error) {
    if (!(error instanceof HutchError && error.code === 'not_found')) throw error;
  }
}

async function tellWhatIsLeft(context: Context, sandbox: Sandbox): Promise<void> {
  if (context.json) return;
  const now = await context.client.call('sandbox.get', { ref: sandbox.id }).catch(() => null);
  if (now === null || now.state === 'deleted') return;
  await context.io.err(`left: sandbox ${now.name} is ${now.state}; delete it with: hutch rm -f ${now.name}\n`);
}
