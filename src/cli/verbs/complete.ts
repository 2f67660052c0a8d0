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
    const words = await wordsOf(context, args.first());
    await context.io.out(words.map((word) => `${word}\n`).join(''));
  } catch (error) {
    if (!(error instanceof HutchError)) throw error;
  }
  return 0;
}

async function wordsOf(context: Context, kind: string): Promise<readonly string[]> {
  switch (kind) {
    case 'operation':
      return (await ask(context, 'operation.list', {})).operations.map(({ id }) => id);
    case 'snapshot':
      return (await ask(context, 'snapshot.list', {})).snapshots.map(({ id, name }) => name ?? id);
    case 'template':
      return (await ask(context, 'template.list', {})).templates.map(({ name }) => name);
    case 'key':
      return (await ask(context, 'key.list', {})).keys.filter(({ revokedAtMs }) => revokedAtMs === null).map(({ name }) => name);
    case 'image':
      return (await ask(context, 'image.list', {})).images.flatMap(({ id, names }) => (names.length === 0 ? [id] : names));
    default:
      return (await ask(context, 'sandbox.list', {})).sandboxes.map(({ name }) => name);
  }
}
