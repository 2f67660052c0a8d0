// hutch snapshot: sandboxes of one instant, kept.
import type { Carry } from '../../domain/snapshot.ts';
import type { Output } from '../../services/verbs.ts';
import { fileToSend, keepReceived, refuseTerminal } from '../archive-file.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { forEachRef } from '../many.ts';
import { json, roughAge, roughSize, safe, table } from '../output.ts';
import { durationMs, sizeMiB, wholeNumber } from '../spec.ts';

/** In a column. */
const BEFORE_CHARS_MAX = 24;

type Listed = Output<'snapshot.list'>['snapshots'][number];

export async function create(context: Context, args: Args): Promise<number> {
  const ref = args.first();
  const name = args.value('name');
  const made = await change(context, 'snapshot.create', {
    ref,
    ...(name === undefined ? {} : { name }),
    ...(args.has('disk-only') ? { diskOnly: true } : {}),
    ...(args.has('scrub') ? { scrub: true } : {}),
  });
  await context.io.out(context.json ? json(made) : `${made.name ?? made.id}\n`);
  if (!context.json && made.stillMs > 0) await context.io.err(`${safe(ref)} stood still for ${Math.round(made.stillMs)} ms\n`);
  return 0;
}

export async function restore(context: Context, args: Args): Promise<number> {
  const [ref = '', snapshot = ''] = args.positionals;
  const [force, foreign] = [args.has('force'), args.has('foreign')];
  const sandbox = await change(context, 'sandbox.restore', { ref, snapshot, ...(force ? { force } : {}), ...(foreign ? { foreign } : {}) });
  await context.io.out(context.json ? json(sandbox) : `${sandbox.name}\n`);
  return 0;
}

export async function undo(context: Context, args: Args): Promise<number> {
  const undone = await change(context, 'sandbox.undo', { ref: args.first() });
  const { sandbox, before, takenAtMs, left } = undone;
  const command = before === null ? '' : `, before: ${safe(before)}`;
  const more = left === 0 ? 'no more is kept' : `${left} more can be undone`;
  await context.io.out(
    context.json ? json(undone) : `${sandbox.name} is as it was ${roughAge(Date.now() - takenAtMs)} ago${command} (${more})\n`,
  );
  return 0;
}

export async function list(context: Context, args: Args): Promise<number> {
  const sandbox = args.value('sandbox');
  const answer = await ask(context, 'snapshot.list', {
    ...(sandbox === undefined ? {} : { sandbox }),
    ...(args.has('all') ? { all: true } : {}),
  });
  if (context.json) await context.io.out(json(answer));
  else if (args.has('quiet')) await context.io.out(answer.snapshots.map(({ id }) => `${id}\n`).join(''));
  else await context.io.out(table(['NAME', 'ID', 'OF', 'CONTENTS', 'OWN', 'APPARENT', 'AGE', 'USED BY'], answer.snapshots.map(row)));
  return 0;
}

function row({ name, id, kind, before, sandboxName, contents, ownBytes, apparentBytes, createdAtMs, usedBy, depth }: Listed): string[] {
  const called = name === null ? (kind === 'undo' ? `(undo ${safe((before ?? '').slice(0, BEFORE_CHARS_MAX))})` : '-') : safe(name);
  return [
    `${'  '.repeat(Math.max(0, depth - 1))}${depth > 0 ? '└ ' : ''}${called}`,
    id,
    safe(sandboxName),
    contents,
    roughSize(ownBytes),
    roughSize(apparentBytes),
    roughAge(Date.now() - createdAtMs),
    usedBy.length === 0 ? '-' : usedBy.map(safe).join(', '),
  ];
}

export async function inspect(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (snapshot) => ask(context, 'snapshot.get', { snapshot }), {
    text: (snapshot) => `${JSON.stringify(snapshot, null, 2)}\n`,
  });
}

export async function verify(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (snapshot) => ask(context, 'snapshot.verify', { snapshot }), {
    text: (_, ref) => `${safe(ref)}: every file is as it was written\n`,
  });
}

const LETTERS = { added: 'A', removed: 'D', changed: 'M' } as const;

export async function diff(context: Context, args: Args): Promise<number> {
  const [snapshot = '', to = ''] = args.positionals;
  const answer = await ask(context, 'snapshot.diff', { snapshot, to });
  if (context.json) {
    await context.io.out(json(answer));
    return 0;
  }
  const { added, removed, changed } = answer.counts;
  const line = `${added} added, ${removed} removed, ${changed} changed\n`;
  if (args.has('stat')) {
    await context.io.out(line);
    return 0;
  }
  const lines = answer.changes.map(({ path, change, type, what }) => {
    const name = `${safe(path)}${type === 'directory' ? '/' : ''}`;
    return `${LETTERS[change]} ${name}${change === 'changed' ? ` (${what.join(', ')})` : ''}\n`;
  });
  await context.io.out(lines.join(''));
  await context.io.err(answer.left === 0 ? line : `${line}${answer.left} of them are not listed\n`);
  return 0;
}

export async function exportFile(context: Context, args: Args): Promise<number> {
  const output = args.value('output');
  const snapshot = args.first();
  const carry = carryOf(args);
  refuseTerminal(context, output, `hutch snapshot export -o FILE ${safe(snapshot)}`);
  await warn(context, snapshot, carry);
  context.progress.show({ step: 'export snapshot', detail: 'packing' });
  const { bytes, headers } = await context.client
    .download('snapshot.export', { snapshot, ...carry }, { signal: context.interrupts.signal })
    .finally(() => context.progress.clear());
  const total = Number(headers['content-length'] ?? Number.NaN);
  await keepReceived(context, bytes, output, { step: 'export snapshot', ...(Number.isNaN(total) ? {} : { total }) });
  return 0;
}

/** What goes along of what it stands on; by default what no registry has. */
function carryOf(args: Args): { readonly carry?: Carry } {
  const [all, none] = [args.has('with-image'), args.has('without-image')];
  if (all && none)
    throw usage('--with-image and --without-image exclude each other', 'hutch snapshot export --with-image -o ready.tar ready');
  return all ? { carry: 'all' } : none ? { carry: 'nothing' } : {};
}

/** Whoever has the file has what programs held in their memory; and it is of no use where its image cannot be. */
async function warn(context: Context, snapshot: string, { carry }: { readonly carry?: Carry }): Promise<void> {
  const { secretNames, imageTravels } = await ask(context, 'snapshot.get', { snapshot });
  await sayOfSecrets(context, secretNames);
  if (!imageTravels && carry === 'nothing' && !context.json)
    await context.io.err(`hutch: the image of ${safe(snapshot)} was made on this machine: where no such image is, it cannot be imported\n`);
}

async function sayOfSecrets(context: Context, secretNames: readonly string[]): Promise<void> {
  if (secretNames.length > 0 && !context.json)
    await context.io.err(`hutch: the memory of this snapshot may have the values of secrets: ${secretNames.map(safe).join(', ')}\n`);
}

export async function importFile(context: Context, args: Args): Promise<number> {
  const name = args.value('name');
  const source = await fileToSend(context, args.first(), { step: 'import snapshot', after: 'comparing with what was written' });
  const { signal } = context.interrupts;
  const answer = await context.client
    .upload('snapshot.import', name === undefined ? {} : { name }, source, { signal })
    .finally(() => context.progress.clear());
  return await arrived(context, answer);
}

export async function push(context: Context, args: Args): Promise<number> {
  const [snapshot = '', name = ''] = args.positionals;
  const carry = carryOf(args);
  await warn(context, snapshot, carry);
  const answer = await change(context, 'snapshot.push', { snapshot, name, ...carry });
  await context.io.out(context.json ? json(answer) : `${answer.digest}\n`);
  return 0;
}

export async function pull(context: Context, args: Args): Promise<number> {
  const as = args.value('name');
  return await arrived(context, await change(context, 'snapshot.pull', { name: args.first(), ...(as === undefined ? {} : { as }) }));
}

async function arrived(context: Context, answer: Output<'snapshot.import'>): Promise<number> {
  await context.io.out(context.json ? json(answer) : `${answer.name ?? answer.id}\n`);
  await sayOfSecrets(context, answer.secretNames);
  if (answer.misfit !== null && !context.json) await context.io.err(`hutch: it is here, but ${safe(answer.misfit)}\n`);
  return 0;
}

const YEAR_MS = 31_536_000_000;
const SIZE = { min: 0n, max: 1_073_741_824n }; // MiB: 1 PiB

export async function prune(context: Context, args: Args): Promise<number> {
  const [keep, older, size, sandbox] = (['keep', 'older-than', 'max-size', 'sandbox'] as const).map((name) => args.value(name));
  const dryRun = args.has('dry-run');
  if (keep === undefined && older === undefined && size === undefined)
    throw usage('say what is to stay: --keep, --older-than or --max-size', 'hutch snapshot prune --keep 5 --dry-run');
  const answer = await change(context, 'snapshot.prune', {
    ...(keep === undefined ? {} : { keep: wholeNumber('keep', keep, 0, 100_000) }),
    ...(older === undefined ? {} : { olderThanMs: older === '0' ? 0 : durationMs('older-than', older, { minMs: 0, maxMs: YEAR_MS }) }),
    ...(size === undefined ? {} : { bytesMax: sizeMiB('max-size', size, SIZE) * 1_048_576 }),
    ...(sandbox === undefined ? {} : { sandbox }),
    ...(dryRun ? { dryRun } : {}),
  });
  if (context.json) {
    await context.io.out(json(answer));
    return 0;
  }
  const rows = [
    ...answer.removed.map((one) => [dryRun ? 'would go' : 'removed', one] as const),
    ...answer.stayed.map((one) => ['stays', one] as const),
  ].map(([what, { id, name, sandboxName, ownBytes, why }]) => [
    ...[name === null ? '-' : safe(name), id, safe(sandboxName), roughSize(ownBytes), what, safe(why)],
  ]);
  await context.io.out(table(['NAME', 'ID', 'OF', 'OWN', 'WHAT', 'WHY'], rows));
  await context.io.err(`${dryRun ? 'would free' : 'freed'} ${roughSize(answer.bytes)}\n`);
  return 0;
}

export async function remove(context: Context, args: Args): Promise<number> {
  const cascade = args.has('cascade') ? { cascade: true } : {};
  return await forEachRef(context, args.positionals, (snapshot) => change(context, 'snapshot.remove', { snapshot, ...cascade }), {
    text: ({ removed }) => removed.map(({ id, name }) => `${name === null ? id : safe(name)}\n`).join(''),
  });
}
