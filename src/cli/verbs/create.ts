// hutch create: a sandbox that runs until it is stopped, or until its command has ended.
import type { Args } from '../args.ts';
import { type Context, change } from '../context.ts';
import { json } from '../output.ts';
import { createSpec } from '../spec.ts';

export async function run(context: Context, args: Args): Promise<number> {
  const spec = await createSpec(context, args);
  const tty = args.has('tty');
  const stdin = args.has('interactive') ? ('open' as const) : ('null' as const);
  const main =
    args.command.length === 0
      ? {}
      : { main: { argv: [...args.command], tty, stdin, ...(tty ? { terminal: { cols: 80, rows: 24 } } : {}) } };
  const sandbox = await change(context, 'sandbox.create', { ...spec, ...main, ...(args.has('no-start') ? { start: false } : {}) });
  await context.io.out(context.json ? json(sandbox) : `${sandbox.id}\n`);
  return 0;
}
