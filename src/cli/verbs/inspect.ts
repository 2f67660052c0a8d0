// hutch inspect: the API's own view, indented for people.
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { forEachRef } from '../many.ts';

export async function run(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (ref) => ask(context, 'sandbox.get', { ref }), {
    text: (sandbox) => `${JSON.stringify(sandbox, null, 2)}\n`,
  });
}
