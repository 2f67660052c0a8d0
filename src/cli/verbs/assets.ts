// hutch assets: everything that sandboxes are made from, and what keeps it.
import type { Output } from '../../services/verbs.ts';
import { type Args, usage as usageError } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { forEachRef } from '../many.ts';
import { json, roughAge, roughSize, safe, table } from '../output.ts';
import { durationMs } from '../spec.ts';

type Asset = Output<'asset.get'>;

const YEAR_MS = 31_536_000_000;
/** Of what keeps an asset, in the list. */
const KEPT_BY_SHOWN_MAX = 3;

export async function list(context: Context, args: Args): Promise<number> {
  const kind = args.value('kind') as Asset['kind'] | undefined;
  const label = [...args.values('label')];
  const answer = await ask(context, 'asset.list', { ...(kind === undefined ? {} : { kind }), ...(label.length === 0 ? {} : { label }) });
  const rows = answer.assets.map(({ id, kind: its, name, sizeBytes, createdAtMs, lastUsedAtMs, references }) => [
    its,
    id,
    name === null ? '-' : safe(name),
    roughSize(sizeBytes),
    roughAge(Date.now() - createdAtMs),
    lastUsedAtMs === null ? '-' : roughAge(Date.now() - lastUsedAtMs),
    keptBy(references),
  ]);
  await context.io.out(context.json ? json(answer) : table(['KIND', 'ID', 'NAME', 'SIZE', 'HERE FOR', 'USED', 'KEPT BY'], rows));
  return 0;
}

function keptBy(references: Asset['references']): string {
  if (references.length === 0) return '-';
  const shown = references
    .slice(0, KEPT_BY_SHOWN_MAX)
    .map(({ kind, what }) => (kind === 'default' || kind === 'daemon' ? kind : `${kind} ${safe(what)}`));
  const more = references.length - shown.length;
  return `${shown.join(', ')}${more > 0 ? ` and ${more} more` : ''}`;
}

export async function inspect(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (asset) => ask(context, 'asset.get', { asset }), {
    text: (asset) => `${JSON.stringify(asset, null, 2)}\n`,
  });
}

export async function label(context: Context, args: Args): Promise<number> {
  const [asset = '', ...words] = args.positionals;
  const set: Record<string, string> = {};
  const remove: string[] = [];
  for (const word of words) {
    const at = word.indexOf('=');
    if (at > 0) set[word.slice(0, at)] = word.slice(at + 1);
    else if (at < 0 && word.endsWith('-') && word.length > 1) remove.push(word.slice(0, -1));
    else throw usageError(`'${word}' is no label`, 'write it like stage=test, or stage- to take it away');
  }
  const now = await change(context, 'asset.label', { asset, set, remove });
  const lines = Object.entries(now.labels).map(([key, value]) => `${safe(key)}=${safe(value)}\n`);
  await context.io.out(context.json ? json(now) : lines.join(''));
  return 0;
}

export async function acquire(context: Context, args: Args): Promise<number> {
  const [sandbox, holder] = [args.value('sandbox'), args.value('holder')];
  const lease = await change(context, 'asset.acquire', {
    asset: args.first(),
    ...ttl(args),
    ...(sandbox === undefined ? {} : { sandbox }),
    ...(holder === undefined ? {} : { holder }),
  });
  await context.io.out(context.json ? json(lease) : `${lease.id}\n`);
  return 0;
}

export async function renew(context: Context, args: Args): Promise<number> {
  const given = ttl(args);
  return await forEachRef(context, args.positionals, (lease) => change(context, 'asset.renew', { lease, ...given }), {
    text: ({ id }) => `${id}\n`,
  });
}

export async function release(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (lease) => change(context, 'asset.release', { lease }), {
    text: ({ id }) => `${id}\n`,
  });
}

export async function collect(context: Context, args: Args): Promise<number> {
  const unused = args.value('unused');
  const dryRun = args.has('dry-run');
  const answer = await change(context, 'asset.collect', {
    ...(unused === undefined ? {} : { unusedMs: durationMs('unused', unused, { minMs: 0, maxMs: YEAR_MS }) }),
    ...(dryRun ? { dryRun } : {}),
  });
  const lines = answer.removed.map(
    ({ kind, id, name, sizeBytes }) => `${kind}  ${id}  ${name === null ? '-' : safe(name)}  ${roughSize(sizeBytes)}\n`,
  );
  await context.io.out(
    context.json ? json(answer) : `${lines.join('')}${roughSize(answer.bytes)} ${dryRun ? 'would be freed' : 'freed'}\n`,
  );
  return 0;
}

function ttl(args: Args): { ttlMs?: number } {
  const text = args.value('ttl');
  return text === undefined ? {} : { ttlMs: durationMs('ttl', text, { minMs: 1_000, maxMs: YEAR_MS }) };
}
