// hutch keys: API keys. A secret is shown once, when its key is made.
import type { Args } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { forEachRef } from '../many.ts';
import { clock, json, table } from '../output.ts';

export async function create(context: Context, args: Args): Promise<number> {
  const project = args.value('project');
  const key = await change(context, 'key.create', { name: args.first(), ...(project === undefined ? {} : { project }) });
  await context.io.out(context.json ? json(key) : `${key.secret}\n`);
  if (!context.json && context.io.isTerminal.stderr) await context.io.err('This is shown once; it is not kept anywhere.\n');
  return 0;
}

export async function list(context: Context, _args: Args): Promise<number> {
  const answer = await ask(context, 'key.list', {});
  const rows = answer.keys.map(({ id, name, project, createdAtMs, revokedAtMs }) => [
    id,
    name,
    project,
    clock(createdAtMs),
    revokedAtMs === null ? '-' : clock(revokedAtMs),
  ]);
  await context.io.out(context.json ? json(answer) : table(['ID', 'NAME', 'PROJECT', 'MADE', 'REVOKED'], rows));
  return 0;
}

export async function revoke(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (ref) => change(context, 'key.revoke', { ref }), { text: (_, ref) => `${ref}\n` });
}
