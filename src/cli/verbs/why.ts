// hutch why: the answer in a sentence, then what happened, who asked, and what ended it.
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { forEachRef } from '../many.ts';
import { clock, safe, table } from '../output.ts';
import { eventRow } from './events.ts';

export async function run(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (ref) => ask(context, 'why.get', { ref }), { text: whyText });
}

function whyText({ sentence, events, operations }: Output<'why.get'>): string {
  const happened = events.length === 0 ? '' : `\n${table(['TIME', 'EVENT', 'SANDBOX', 'BY', 'OPERATION', 'DETAIL'], events.map(eventRow))}`;
  const rows = operations.map(({ id, verb, state, actor, actorName, startedAtMs, endedAtMs, error }) => [
    id,
    verb,
    state,
    actorName ?? actor,
    clock(startedAtMs),
    endedAtMs === null ? '-' : `${endedAtMs - startedAtMs} ms`,
    error === null ? '' : error.message,
  ]);
  const asked = rows.length === 0 ? '' : `\n${table(['OPERATION', 'VERB', 'STATE', 'BY', 'BEGAN', 'TOOK', 'ERROR'], rows)}`;
  return `${safe(sentence)}\n${happened}${asked}`;
}
