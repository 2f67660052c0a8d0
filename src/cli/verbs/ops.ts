// hutch ops: what is under way, and ending it.
import type { Args } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { forEachRef } from '../many.ts';
import { json, roughAge, table } from '../output.ts';
import { wholeNumber } from '../spec.ts';

export async function list(context: Context, args: Args): Promise<number> {
  const limit = args.value('limit');
  const answer = await ask(context, 'operation.list', {
    ...(args.has('all') ? { all: true } : {}),
    ...(limit === undefined ? {} : { limit: wholeNumber('limit', limit, 1, 1_000) }),
  });
  const nowMs = Date.now();
  const rows = answer.operations.map(
    ({ id, verb, targetId, state, step, done, total, actor, actorName, startedAtMs, endedAtMs, error }) => [
      id,
      verb,
      targetId ?? '-',
      state,
      actorName ?? actor,
      roughAge((endedAtMs ?? nowMs) - startedAtMs),
      error?.message ??
        (step === null ? '' : `${step}${done === null || total === null ? '' : ` ${Math.floor((100 * done) / Math.max(total, 1))} %`}`),
    ],
  );
  await context.io.out(context.json ? json(answer) : table(['OPERATION', 'VERB', 'ON', 'STATE', 'BY', 'SINCE', 'STEP'], rows));
  return 0;
}

export async function cancel(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (opId) => change(context, 'operation.cancel', { opId }), {
    text: (_, opId) => `${opId}\n`,
  });
}
