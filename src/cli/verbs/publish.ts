// hutch ports add, rm: which ports of this machine answer for a sandbox that there is already.
import { hostSide, parsePublish } from '../../domain/published-port.ts';
import type { Input } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { json } from '../output.ts';

export async function add(context: Context, args: Args): Promise<number> {
  const [ref = '', ...texts] = args.positionals;
  for (const port of texts.flatMap(wanted)) {
    const published = await ask(context, 'port.publish', { ref, ...port });
    await context.io.out(context.json ? json(published) : `${hostSide(published)} -> ${published.guestPort}\n`);
  }
  return 0;
}

export async function remove(context: Context, args: Args): Promise<number> {
  const [ref = '', ...texts] = args.positionals;
  for (const port of texts.flatMap(meant)) {
    const answer = await ask(context, 'port.unpublish', { ref, ...port });
    if (context.json) await context.io.out(json(answer));
  }
  return 0;
}

function wanted(text: string) {
  const result = parsePublish(text);
  if (!result.ok) throw usage(result.message, result.hint);
  return result.value;
}

/** What stands there must match, and only that: `80` is all that lead to port 80 inside. */
function meant(text: string): readonly Omit<Input<'port.unpublish'>, 'ref'>[] {
  const hasAddress = /^(\[|[0-9.]+:[0-9-]*:)/.test(text);
  return wanted(text).map(({ hostAddress, hostPort, guestPort }) => ({
    guestPort,
    ...(hostPort === 0 ? {} : { hostPort }),
    ...(hasAddress ? { hostAddress } : {}),
  }));
}
