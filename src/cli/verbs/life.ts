// The verbs that change a sandbox's state, each for several sandboxes at once. As with docker they
// print what was named.
import { HutchError } from '../../domain/errors.ts';
import type { Output } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { forEachRef } from '../many.ts';
import { json } from '../output.ts';
import { durationMs } from '../spec.ts';

const GRACE = { minMs: 0, maxMs: 3_600_000 };
const echo = { text: (_: unknown, ref: string) => `${ref}\n` };

export async function start(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (ref) => change(context, 'sandbox.start', { ref }), echo);
}

export async function stop(context: Context, args: Args): Promise<number> {
  if (args.has('force') && args.value('timeout') !== undefined) throw usage('--force and --timeout exclude each other');
  const grace = graceOf(args);
  const force = args.has('force') ? { force: true } : {};
  return await forEachRef(context, args.positionals, (ref) => change(context, 'sandbox.stop', { ref, ...grace, ...force }), echo);
}

export async function restart(context: Context, args: Args): Promise<number> {
  const grace = graceOf(args);
  return await forEachRef(context, args.positionals, (ref) => change(context, 'sandbox.restart', { ref, ...grace }), echo);
}

export async function pause(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (ref) => change(context, 'sandbox.pause', { ref }), echo);
}

export async function resume(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (ref) => change(context, 'sandbox.resume', { ref }), echo);
}

export async function suspend(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (ref) => change(context, 'sandbox.suspend', { ref }), echo);
}

export async function rename(context: Context, args: Args): Promise<number> {
  const [ref = '', name = ''] = args.positionals;
  const sandbox = await change(context, 'sandbox.rename', { ref, name });
  await context.io.out(context.json ? json(sandbox) : `${sandbox.name}\n`);
  return 0;
}

export async function rm(context: Context, args: Args): Promise<number> {
  const force = args.has('force');
  const remove = async (ref: string): Promise<Output<'sandbox.delete'> | null> => {
    try {
      return await change(context, 'sandbox.delete', { ref, ...(force ? { force: true } : {}) });
    } catch (error) {
      if (force && error instanceof HutchError && error.code === 'not_found') return null;
      throw error;
    }
  };
  return await forEachRef(context, args.positionals, remove, echo);
}

export async function wait(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (ref) => ask(context, 'sandbox.wait', { ref }), {
    text: ({ exitCode }) => `${exitCode ?? 0}\n`,
  });
}

function graceOf(args: Args): { graceMs?: number } {
  const timeout = args.value('timeout');
  return timeout === undefined ? {} : { graceMs: durationMs('timeout', timeout, GRACE) };
}
