// hutch config show: each value of the daemon's configuration, and where it came from.
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { json, table } from '../output.ts';

export async function show(context: Context, _args: Args): Promise<number> {
  const answer = await ask(context, 'config.get', {});
  const rows = answer.values.map(({ key, value, source }) => [key, typeof value === 'string' ? value : JSON.stringify(value), source]);
  await context.io.out(context.json ? json(answer) : table(['KEY', 'VALUE', 'FROM'], rows));
  return 0;
}
