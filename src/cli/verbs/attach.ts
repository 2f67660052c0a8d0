// hutch attach: our streams on a command that runs already. What was written before is in its log.
import { HutchError } from '../../domain/errors.ts';
import { RemoteProcess } from '../../sdk/process.ts';
import type { Args } from '../args.ts';
import { carry } from '../carry.ts';
import { ask, type Context } from '../context.ts';
import { stdinKind } from '../io.ts';
import { outcome } from '../outcome.ts';
import { json } from '../output.ts';
import { parseDetachKeys } from '../terminal.ts';
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
  const kind = stdinKind();
  const tty = execId === 'main' && sandbox.main?.tty === true && kind === 'terminal';
  const takesInput = execId !== 'main' || sandbox.main?.stdin === 'open';
  const input = args.has('no-stdin') || !takesInput || kind === 'nothing' ? 'none' : kind;
  await using process = await RemoteProcess.attach(client, {
    ref: sandbox.id,
    execId,
    input: input !== 'none',
    signal: interrupts.signal,
    reconnectForMs: RECONNECT_FOR_MS,
  });
  if (context.json) await io.out(json({ type: 'started', ...process.info }));
  const kill = async () => void (await client.call('exec.signal', { ref: sandbox.id, execId, signal: 'KILL' }));
  const carried = await carry(context, process, { input, tty, detachKeys, kill });
  if (carried.outcome === 'detached') {
    await io.err(`\r\ndetached; go on with: hutch attach ${sandbox.name}\n`);
    return 0;
  }
  if (context.json) await io.out(json({ type: 'exit', ...carried.exit }));
  return await outcome(context, carried.exit);
}
