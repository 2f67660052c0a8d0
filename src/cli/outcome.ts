// From how a command in a sandbox ended to our exit code.
import type { HutchError } from '../domain/errors.ts';
import { errorFromBody } from '../sdk/errors.ts';
import type { ProcessExit } from '../sdk/process.ts';
import type { Context } from './context.ts';
import { exitOf } from './exit-codes.ts';
import { safe } from './output.ts';

/** Its own code; 124 when its time was up. A command that could not be started says why. */
export async function outcome(context: Context, exit: ProcessExit): Promise<number> {
  const { io, interrupts } = context;
  if (interrupts.exitCode !== null) return interrupts.exitCode;
  if (exit.error !== null && exit.error !== undefined && !context.json) await say(context, errorFromBody(exit.error, {}));
  if (exit.reason === 'lifetime') {
    if (!context.json) await io.err('error: its time was up\n');
    return exitOf('timedOut');
  }
  if (exit.oomKilled && exit.error === null && !context.json)
    await io.err('error: it was killed because the sandbox ran out of memory\nhint: give it more with --memory\n');
  return exit.exitCode;
}

async function say({ io }: Context, error: HutchError): Promise<void> {
  await io.err(`error: ${safe(error.message)}${error.opId === null ? '' : ` (${error.opId})`}\n`);
  if (error.hint !== null) await io.err(`hint: ${safe(error.hint)}\n`);
}
