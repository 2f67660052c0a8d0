// hutch template: recipes in, snapshots with a tag out, from which sandboxes start.
import { readFile } from 'node:fs/promises';
import { parseWarmth, shownWarmth, WARM_MAX } from '../../domain/template.ts';
import type { Output } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { forEachRef } from '../many.ts';
import { json, roughAge, roughSize, safe, table } from '../output.ts';
import { readTemplateFile } from '../template-file.ts';
import { textOf } from '../text.ts';
import { follow, progressOf, stdin } from './build.ts';

type Template = Output<'template.set'>;

export async function build(context: Context, args: Args): Promise<number> {
  const file = args.first();
  const bytes =
    file === '-'
      ? await stdin()
      : await readFile(file).catch(() => Promise.reject(usage(`${file} cannot be read`, 'a TOML file: docs/templates.md')));
  const name = args.value('name');
  const recipe = readTemplateFile(textOf(bytes, file), file === '-' ? 'stdin' : file, name === undefined ? {} : { name });
  const begun = await change(context, 'template.build', {
    ...recipe,
    ...(args.has('scrub') ? { scrub: true } : {}),
    ...(args.has('no-cache') ? { noCache: true } : {}),
  });
  return await follow(context, begun, progressOf(context, args), ({ template, snapshot }) => `${template}@${snapshot?.digest}`);
}

export async function list(context: Context, args: Args): Promise<number> {
  const answer = await ask(context, 'template.list', {});
  if (context.json) await context.io.out(json(answer));
  else if (args.has('quiet')) await context.io.out(answer.templates.map(({ id }) => `${id}\n`).join(''));
  else
    await context.io.out(table(['NAME', 'ID', 'STATE', 'DIGEST', 'BACKEND', 'WARM', 'OWN', 'BUILT', 'USED BY'], answer.templates.map(row)));
  return 0;
}

function row({ name, id, state, digest, backend, warm, ownBytes, builtAtMs, usedBy }: Template): string[] {
  return [
    ...[safe(name), id, state, digest.slice('sha256:'.length, 19), backend],
    warm.max === 0 && warm.ready === 0 ? '-' : `${warm.ready} of ${shownWarmth(warm)}`,
    ...[roughSize(ownBytes), `${roughAge(Date.now() - builtAtMs)} ago`, usedBy.length === 0 ? '-' : usedBy.map(safe).join(', ')],
  ];
}

export async function inspect(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (template) => ask(context, 'template.get', { template }), {
    text: (template) => `${JSON.stringify(template, null, 2)}\n`,
  });
}

export async function set(context: Context, args: Args): Promise<number> {
  const text = args.value('warm');
  if (text === undefined) throw usage('hutch template set needs --warm', 'like: hutch template set --warm 2..8 web; none: --warm 0');
  const warm = parseWarmth(text);
  if (warm === null) throw usage(`--warm: '${text}' is neither a number nor two, like 4..16`);
  if (warm.min > warm.max) throw usage(`--warm: ${warm.min} is more than ${warm.max}`, 'the smaller number comes first');
  if (warm.max > WARM_MAX) throw usage(`--warm: at most ${WARM_MAX} are kept ready, not ${warm.max}`);
  return await forEachRef(context, args.positionals, (template) => change(context, 'template.set', { template, warm }), {
    text: ({ name }) => `${safe(name)}\n`,
  });
}

export async function remove(context: Context, args: Args): Promise<number> {
  const force = args.has('force') ? { force: true } : {};
  return await forEachRef(context, args.positionals, (template) => change(context, 'template.remove', { template, ...force }), {
    text: ({ name }) => `${safe(name)}\n`,
  });
}
