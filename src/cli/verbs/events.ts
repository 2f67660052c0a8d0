// hutch events: what happened, one line each; with -f also what happens, over lost connections.
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import type { Context } from '../context.ts';
import { resumed } from '../follow.ts';
import { clock, json, safe } from '../output.ts';
import { wholeNumber } from '../spec.ts';

type Event = Output<'event.list'>;

const LIMIT_MAX = 100_000;

export async function run(context: Context, args: Args): Promise<number> {
  const follow = args.has('follow');
  const sandbox = args.value('sandbox');
  const limit = args.value('limit');
  const cursor = args.value('cursor');
  const input = {
    ...(follow ? { follow: true } : {}),
    ...(sandbox === undefined ? {} : { sandbox }),
    ...(limit === undefined ? {} : { limit: wholeNumber('limit', limit, 1, LIMIT_MAX) }),
  };
  const events = resumed<Event>(context, {
    open: (from) =>
      context.client.lines('event.list', { ...input, ...(from === null ? {} : { cursor: from }) }, { signal: context.interrupts.signal }),
    cursorAfter: (event) => event.cursor,
    from: cursor === undefined ? null : wholeNumber('cursor', cursor, 0, Number.MAX_SAFE_INTEGER),
    ends: !follow,
  });
  for await (const event of events) await context.io.out(context.json ? json(event) : `${eventRow(event).map(safe).join('  ')}\n`);
  return 0;
}

export function eventRow(event: Event): string[] {
  const { atMs, type, sandboxName, sandboxId, actor, opId, detail } = event;
  const facts = Object.entries(detail).map(([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`);
  return [clock(atMs), type, sandboxName ?? sandboxId ?? '-', actor, opId ?? '-', facts.join(' ')];
}
