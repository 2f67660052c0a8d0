// hutch quotas: what projects may have.
import { HutchError } from '../../domain/errors.ts';
import { tierName } from '../../domain/quota.ts';
import type { Input, Output } from '../../services/verbs.ts';
import { type Args, usage as usageError } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { json, roughSize, table } from '../output.ts';
import { sizeMiB, wholeNumber } from '../spec.ts';

type Quota = Output<'quota.set'>;
type SetBounds = NonNullable<Input<'quota.set'>['bounds']>;

const MIB = 2 ** 20;
const MIB_MAX = 2n ** 40n;
const COUNT_MAX = 1_000_000;
const COLUMNS = [
  ['sandboxes', 'SANDBOXES'],
  ['cpus', 'CPUS'],
  ['memoryMiB', 'MEMORY'],
  ['diskMiB', 'DISK'],
  ['imageMiB', 'IMAGES'],
  ['snapshotMiB', 'SNAPSHOTS'],
  ['builds', 'BUILDS'],
  ['buildsPerDay', 'PER DAY'],
  ['buildMinutes', 'MINUTES'],
] as const;
const FLAGS: Readonly<Record<(typeof COLUMNS)[number][0], string>> = {
  sandboxes: 'sandboxes',
  cpus: 'cpus',
  memoryMiB: 'memory',
  diskMiB: 'disk',
  imageMiB: 'images',
  snapshotMiB: 'snapshots',
  builds: 'builds',
  buildsPerDay: 'builds-per-day',
  buildMinutes: 'build-minutes',
};

export async function list(context: Context, _args: Args): Promise<number> {
  const answer = await ask(context, 'quota.list', {});
  await context.io.out(context.json ? json(answer) : quotaTable(answer.projects));
  return 0;
}

export async function set(context: Context, args: Args): Promise<number> {
  const tier = args.value('tier');
  if (tier !== undefined && tier !== 'none') checkName('--tier', tier);
  const bounds = boundsOf(args, 'tier');
  if (tier === undefined && Object.keys(bounds).length === 0) throw usageError('say what to set', 'see: hutch quotas set --help');
  const now = await change(context, 'quota.set', {
    project: args.first(),
    ...(tier === undefined ? {} : { tier: tier === 'none' ? null : tier }),
    bounds,
  });
  await context.io.out(context.json ? json(now) : quotaTable([now]));
  return 0;
}

export async function tiers(context: Context, _args: Args): Promise<number> {
  const answer = await ask(context, 'quota.tiers', {});
  await context.io.out(context.json ? json(answer) : tierTable(answer.tiers));
  return 0;
}

export async function tier(context: Context, args: Args): Promise<number> {
  const name = args.first();
  checkName('TIER', name);
  const bounds = boundsOf(args, 'none');
  if (args.has('rm')) {
    if (Object.keys(bounds).length > 0) throw usageError('--rm goes alone');
    const removed = await change(context, 'quota.removeTier', { tier: name });
    await context.io.out(context.json ? json(removed) : `${removed.name}\n`);
    return 0;
  }
  const now =
    Object.keys(bounds).length === 0 ? await known(context, name) : await change(context, 'quota.setTier', { tier: name, bounds });
  await context.io.out(context.json ? json(now) : tierTable([now]));
  return 0;
}

/** A name alone asks: a tier that nobody meant to make would have no bound at all. */
async function known(context: Context, name: string): Promise<Output<'quota.setTier'>> {
  const found = (await ask(context, 'quota.tiers', {})).tiers.find((tier) => tier.name === name);
  if (found !== undefined) return found;
  throw new HutchError({
    code: 'not_found',
    message: `there is no tier ${name}`,
    hint: `see what there is: hutch quotas tiers; to make it, give it bounds: hutch quotas tier ${name} --sandboxes 5`,
  });
}

function checkName(what: string, name: string): void {
  if (tierName(name)) return;
  throw usageError(`${what} must be capital letters, digits, _ and -, at most 32, not '${name}'`, 'see what there is: hutch quotas tiers');
}

/** `inherit` is the word for what the tier says. */
function boundsOf(args: Args, inherit: 'tier' | 'none'): SetBounds {
  const bounds: Record<string, number | null | 'inherit'> = {};
  for (const [name] of COLUMNS) {
    const flag = FLAGS[name];
    const text = args.value(flag);
    if (text === undefined) continue;
    if (text === 'none') bounds[name] = null;
    else if (text === inherit) bounds[name] = 'inherit';
    else bounds[name] = name.endsWith('MiB') ? sizeMiB(flag, text, { min: 0n, max: MIB_MAX }) : wholeNumber(flag, text, 0, COUNT_MAX);
  }
  return bounds;
}

function quotaTable(projects: readonly Quota[]): string {
  const rows = projects.map(({ project, tier: its, bounds, use }) => [
    project,
    its ?? '-',
    ...COLUMNS.map(([name]) => {
      const bound = bounds[name] ?? null;
      const used = amount(name, use[name] ?? 0);
      if (name === 'buildMinutes') return bound === null ? '-' : amount(name, bound);
      return bound === null ? used : `${used} of ${amount(name, bound)}`;
    }),
  ]);
  return table(['PROJECT', 'TIER', ...COLUMNS.map(([, head]) => head)], rows);
}

function tierTable(found: readonly Output<'quota.setTier'>[]): string {
  const rows = found.map(({ name, bounds }) => [
    name,
    ...COLUMNS.map(([column]) => {
      const bound = bounds[column] ?? null;
      return bound === null ? '-' : amount(column, bound);
    }),
  ]);
  return table(['TIER', ...COLUMNS.map(([, head]) => head)], rows);
}

function amount(name: string, value: number): string {
  return name.endsWith('MiB') ? roughSize(value * MIB) : String(value);
}
