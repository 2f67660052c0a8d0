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
  const { signal } = context.interrupts;
  const show = async (event: Event): Promise<void> =>
    await context.io.out(context.json ? json(event) : `${eventRow(event).map(safe).join('  ')}\n`);
  const only = sandbox === undefined ? {} : { sandbox };
  const count = limit === undefined ? null : wholeNumber('limit', limit, 1, LIMIT_MAX);
  let from = cursor === undefined ? null : wholeNumber('cursor', cursor, 0, Number.MAX_SAFE_INTEGER);
  // From a place on, the first ones; otherwise, as in every log, the last ones.
  if (count !== null && from === null) {
    const last: Event[] = [];
    for await (const event of context.client.lines('event.list', only, { signal })) {
      last.push(event);
      if (last.length > count) last.shift();
    }
    for (const event of last) await show(event);
    if (!follow) return 0;
    from = last.at(-1)?.cursor ?? null;
  }
  const input = { ...(follow ? { follow: true } : {}), ...only, ...(count === null || follow ? {} : { limit: count }) };
  const events = resumed<Event>(context, {
    open: (from) => context.client.lines('event.list', { ...input, ...(from === null ? {} : { cursor: from }) }, { signal }),
    cursorAfter: (event) => event.cursor,
    from,
    ends: !follow,
  });
  for await (const event of events) await show(event);
  return 0;
}

export function eventRow(event: Event): string[] {
  const { atMs, type, sandboxName, sandboxId, actor, actorName, opId, detail } = event;
  // Who ended it is said by name already, where that is who asked.
  const said = Object.entries(detail).filter(([name, value]) => value !== null && value !== false && (name !== 'actor' || value !== actor));
  const facts = said.map(([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`);
  return [clock(atMs), type, sandboxName ?? sandboxId ?? '-', actorName ?? actor, opId ?? '-', facts.join(' ')];
}
