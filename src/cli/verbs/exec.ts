// hutch exec: a command in a sandbox, on our own streams.
import { type ProcessOptions, RemoteProcess } from '../../sdk/process.ts';
import type { ExecRequest } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import { carry } from '../carry.ts';
import { ask, type Context } from '../context.ts';
import { checkFits } from '../limits.ts';
import { outcome } from '../outcome.ts';
import { json } from '../output.ts';
import { durationMs, environment } from '../spec.ts';
import { type Stdio, stdioOf } from '../stdio.ts';
import { parseDetachKeys } from '../terminal.ts';

const YEAR_MS = 31_536_000_000;
/** A command may be out of our reach for as long as a daemon takes to come back. */
export const RECONNECT_FOR_MS = 60_000;

export async function run(context: Context, args: Args): Promise<number> {
  const ref = args.first();
  const stdio = stdioOf(context, args);
  const detach = args.has('detach');
  if (detach && args.has('interactive')) throw usage('-d and -i exclude each other');
  const timeout = args.value('timeout');
  const env = await environment(context, args);
  checkFits(args.command, env);
  const request: ExecRequest = {
    argv: [...args.command],
    stdin: stdio.input === 'none' || detach ? 'null' : 'open',
    ...(stdio.terminal === null ? {} : { terminal: stdio.terminal }),
    ...(Object.keys(env).length === 0 ? {} : { env }),
    ...one(args, 'workdir', 'cwd'),
    ...one(args, 'user', 'user'),
    ...(timeout === undefined ? {} : { timeoutMs: durationMs('timeout', timeout, { minMs: 1, maxMs: YEAR_MS }) }),
  };
  if (args.has('auto-prepare')) await autoPrepare(context, ref);
  return await carryExec(context, ref, request, stdio, { detachKeys: parseDetachKeys(args.value('detach-keys')), detach });
}

/** Where the repository has moved on, the sandbox gets what is new before the command runs. */
async function autoPrepare(context: Context, ref: string): Promise<void> {
  const [{ Sandbox }, { hasMoved, prepareWorkspace }, { progressOf, tell }] = await Promise.all([
    import('../../sdk/sandbox.ts'),
    import('../../sdk/workspace/prepare.ts'),
    import('./workspace.ts'),
  ]);
  const sandbox = new Sandbox(context.client, await ask(context, 'sandbox.get', { ref }), async () => {});
  const { workspace } = sandbox.info;
  const { signal } = context.interrupts;
  if (workspace === null)
    throw usage(`no repository was copied into sandbox ${sandbox.name}`, `copy one with: hutch workspace prepare ${sandbox.name}`);
  if (!(await hasMoved(workspace, signal))) return;
  await tell(context, await prepareWorkspace(sandbox, workspace.sourcePath, { signal, onProgress: progressOf(context) }));
}

function one(args: Args, flag: string, member: 'cwd' | 'user'): Partial<ExecRequest> {
  const value = args.value(flag);
  return value === undefined ? {} : { [member]: value };
}

export async function carryExec(
  context: Context,
  ref: string,
  request: ExecRequest,
  stdio: Stdio,
  options: { readonly detachKeys: Uint8Array; readonly detach: boolean },
): Promise<number> {
  const { client, io, interrupts } = context;
  const starting: ProcessOptions = {
    ref,
    signal: interrupts.signal,
    reconnectForMs: RECONNECT_FOR_MS,
    sharesInput: stdio.input === 'terminal',
  };
  await using process = await RemoteProcess.start(client, request, starting);
  if (context.json) await io.out(json({ type: 'started', ...process.info }));
  if (options.detach) {
    if (!context.json) await io.out(`${process.execId}\n`);
    return 0;
  }
  const kill = async () => void (await client.call('exec.signal', { ref, execId: process.execId, signal: 'KILL' }));
  const carried = await carry(context, process, { input: stdio.input, tty: stdio.tty, detachKeys: options.detachKeys, kill });
  if (carried.outcome === 'detached') {
    await io.err(`\r\ndetached; go on with: hutch attach --exec ${process.execId} ${ref}\n`);
    return 0;
  }
  if (context.json) await io.out(json({ type: 'exit', ...carried.exit }));
  return await outcome(context, carried.exit);
}
