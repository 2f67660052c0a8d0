// hutch volume: named disks that outlive sandboxes.
import { MIB } from '../../domain/size.ts';
import type { Output } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { forEachRef } from '../many.ts';
import { json, roughAge, roughSize, safe, table } from '../output.ts';
import { sizeMiB } from '../spec.ts';

type Volume = Output<'volume.get'>;

/** The API's bounds, so that a value beyond them is told by its flag. */
const SIZE_MIB = { min: 16n, max: 131_072n };

export async function create(context: Context, args: Args): Promise<number> {
  const size = args.value('size');
  const made = await change(context, 'volume.create', {
    name: args.first(),
    ...(size === undefined ? {} : { sizeMiB: sizeMiB('size', size, SIZE_MIB) }),
  });
  await context.io.out(context.json ? json(made) : `${made.name}\n`);
  return 0;
}

export async function list(context: Context, args: Args): Promise<number> {
  const answer = await ask(context, 'volume.list', {});
  if (context.json) await context.io.out(json(answer));
  else if (args.has('quiet')) await context.io.out(answer.volumes.map(({ id }) => `${id}\n`).join(''));
  else await context.io.out(table(['NAME', 'ID', 'SIZE', 'TAKES', 'AGE', 'USED BY'], answer.volumes.map(row)));
  return 0;
}

function row({ name, id, sizeMiB: size, allocatedBytes, createdAtMs, usedBy }: Volume): string[] {
  const users = usedBy.map(({ sandbox, readOnly, alive }) => `${safe(sandbox)}${readOnly ? ':ro' : ''}${alive ? ' (now)' : ''}`);
  return [
    safe(name),
    id,
    roughSize(size * Number(MIB)),
    roughSize(allocatedBytes),
    roughAge(Date.now() - createdAtMs),
    users.length === 0 ? '-' : users.join(', '),
  ];
}

export async function inspect(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (volume) => ask(context, 'volume.get', { volume }), {
    text: (volume) => `${JSON.stringify(volume, null, 2)}\n`,
  });
}

export async function grow(context: Context, args: Args): Promise<number> {
  const size = args.value('size');
  if (size === undefined) throw usage('hutch volume grow needs --size', 'like: hutch volume grow --size 40G data');
  const grown = await change(context, 'volume.grow', { volume: args.first(), sizeMiB: sizeMiB('size', size, SIZE_MIB) });
  if (context.json) await context.io.out(json(grown));
  return 0;
}

export async function df(context: Context): Promise<number> {
  const answer = await ask(context, 'volume.list', {});
  const { volumes } = answer;
  const sum = (of: (volume: Volume) => number): number => volumes.reduce((total, volume) => total + of(volume), 0);
  const rows = volumes.map(({ name, sizeMiB: size, allocatedBytes, usedBy }) => [
    safe(name),
    roughSize(size * Number(MIB)),
    roughSize(allocatedBytes),
    usedBy.length === 0 ? roughSize(allocatedBytes) : '-',
  ]);
  const unused = sum(({ usedBy, allocatedBytes }) => (usedBy.length === 0 ? allocatedBytes : 0));
  const total = [
    'all',
    roughSize(sum(({ sizeMiB: size }) => size) * Number(MIB)),
    roughSize(sum(({ allocatedBytes }) => allocatedBytes)),
    roughSize(unused),
  ];
  await context.io.out(context.json ? json(answer) : table(['NAME', 'SIZE', 'TAKES', 'CAN GO'], [...rows, total]));
  return 0;
}

export async function remove(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (volume) => change(context, 'volume.remove', { volume }), {
    text: ({ name }) => `${safe(name)}\n`,
  });
}
