// `hutch __complete KIND`: the words that the shells' completions ask for. Not for people; it never
// starts a daemon, and says nothing where it cannot say anything.
import { HutchError } from '../../domain/errors.ts';
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import type { Leaf } from '../verb.ts';

export const LEAF: Leaf = {
  name: '__complete',
  summary: '',
  examples: [],
  flags: [],
  positionals: [{ name: 'KIND', takes: 'one' }],
  load: async () => run,
};

async function run(context: Context, args: Args): Promise<number> {
  try {
    const words =
      args.first() === 'operation'
        ? (await ask(context, 'operation.list', {})).operations.map(({ id }) => id)
        : (await ask(context, 'sandbox.list', {})).sandboxes.map(({ name }) => name);
    await context.io.out(words.map((word) => `${word}\n`).join(''));
  } catch (error) {
    if (!(error instanceof HutchError)) throw error;
  }
  return 0;
}
