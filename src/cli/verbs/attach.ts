// hutch attach: our streams on a command that runs already. As with docker: its output from now on (what
// was before is in its log; of an `exec`, which has none, what is kept), and whoever is attached may type.
import { HutchError } from '../../domain/errors.ts';
import { RemoteProcess } from '../../sdk/process.ts';
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import { carry } from '../carry.ts';
import { ask, type Context } from '../context.ts';
import { stdinKind } from '../io.ts';
import { outcome } from '../outcome.ts';
import { json } from '../output.ts';
import { parseDetachKeys, terminalSize } from '../terminal.ts';
import { RECONNECT_FOR_MS } from './exec.ts';

export async function run(context: Context, args: Args): Promise<number> {
  const { client, io, interrupts } = context;
  const ref = args.first();
  const execId = args.value('exec') ?? 'main';
  const detachKeys = parseDetachKeys(args.value('detach-keys'));
  const sandbox = await ask(context, 'sandbox.get', { ref });
  if (execId === 'main' && sandbox.main === null) {
    throw new HutchError({
      code: 'failed_precondition',
      message: `sandbox ${sandbox.name} has no main process`,
      hint: `open a shell with: hutch shell ${sandbox.name}`,
    });
  }
  if (sandbox.openComputeSinceMs === null) throw notRunning(sandbox);
  const kind = stdinKind();
  const tty = execId === 'main' && sandbox.main?.tty === true && kind === 'terminal';
  const takesInput = execId !== 'main' || sandbox.main?.stdin === 'open';
  const input = args.has('no-stdin') || !takesInput || kind === 'nothing' ? 'none' : kind;
  await using process = await RemoteProcess.attach(client, {
    ref: sandbox.id,
    execId,
    fromNow: execId === 'main',
    input: input === 'none' ? false : 'when-written',
    signal: interrupts.signal,
    reconnectForMs: RECONNECT_FOR_MS,
  });
  if (context.json) await io.out(json({ type: 'started', ...process.info }));
  // A program on a terminal draws itself again when the size changes.
  if (tty && context.io.isTerminal.stdout) process.resize({ ...terminalSize(), rows: terminalSize().rows + 1 });
  const kill = async () => void (await client.call('exec.signal', { ref: sandbox.id, execId, signal: 'KILL' }));
  const carried = await carry(context, process, { input, tty, detachKeys, kill });
  if (carried.outcome === 'detached') {
    const then = sandbox.autoRemove ? '; it is deleted when its command ends (--rm)' : '';
    await io.err(`\r\ndetached${then}; go on with: hutch attach ${execId === 'main' ? '' : `--exec ${execId} `}${sandbox.name}\n`);
    return 0;
  }
  if (context.json) await io.out(json({ type: 'exit', ...carried.exit }));
  return await outcome(context, carried.exit);
}

function notRunning({ name, state, ended }: Output<'sandbox.get'>): HutchError {
  const code = ended?.exitCode ?? null;
  return new HutchError({
    code: 'failed_precondition',
    message: `sandbox ${name} is ${state}${code === null ? '' : `; its main process ended with ${code}`}`,
    hint: `see what it wrote: hutch logs ${name}; run it again: hutch start ${name}`,
  });
}
