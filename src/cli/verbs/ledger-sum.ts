// hutch ledger sum: what the ledger adds up to. The entries come as `ledger export` has them; nothing is kept but what is open.
import { LedgerSum, type Summed, type SumRow } from '../../domain/ledger-sum.ts';
import { type Args, usage } from '../args.ts';
import type { Context } from '../context.ts';
import { json, roughSize, table } from '../output.ts';
import { durationMs } from '../spec.ts';

const AGO_MS = { minMs: 0, maxMs: 100 * 365 * 86_400_000 };
const HEAD = ['WHOSE', 'WHAT', 'SHAPE', 'SECONDS', 'TIMES', 'OPEN'];

export async function sum(context: Context, args: Args): Promise<number> {
  const nowMs = Date.now();
  const by = args.value('by') === 'sandbox' ? 'sandbox' : 'project';
  const sinceMs = momentOf('since', args.value('since'), nowMs) ?? 0;
  const untilMs = momentOf('until', args.value('until'), nowMs) ?? nowMs;
  if (untilMs < sinceMs) throw usage('--until lies before --since');
  const adding = new LedgerSum({ by, sinceMs, untilMs });
  // A stream that breaks off is an error: a part of a bill is no bill.
  for await (const entry of context.client.lines('ledger.list', { format: 'hutch' }, { signal: context.interrupts.signal }))
    adding.add(entry as Summed);
  const { rows, totals } = adding.end();
  if (context.json) {
    await context.io.out(json({ by, sinceMs, untilMs, rows, totals }));
    return 0;
  }
  await context.io.out(table(HEAD, rows.map(cells)));
  const { computeSeconds, pausedSeconds, cpuSeconds, memoryGiBHours, storageGiBHours } = totals;
  await context.io.out(
    `\nin all: ${digits(computeSeconds)} s of compute (${digits(pausedSeconds)} s of them paused), ${digits(cpuSeconds)} processor seconds, ` +
      `${digits(memoryGiBHours)} GiB hours of memory, ${digits(storageGiBHours)} GiB hours of disk\n`,
  );
  return 0;
}

function cells({ key, what, shape, ms, intervals, open }: SumRow): readonly string[] {
  const { cpus, memoryBytes, storageBytes } = shape;
  const parts = [
    ...(cpus === undefined ? [] : [`${cpus} cpu`]),
    ...[memoryBytes, storageBytes].flatMap((bytes) => (bytes === undefined ? [] : [roughSize(bytes)])),
  ];
  return [key, what, parts.join(', ') || '-', digits(ms / 1_000), String(intervals), String(open)];
}

function digits(value: number): string {
  return value.toFixed(3);
}

/** A date, a date and time, or how long ago. Null: nothing was said. */
function momentOf(flag: string, text: string | undefined, nowMs: number): number | null {
  if (text === undefined) return null;
  if (!/^\d{4}-/.test(text)) return nowMs - durationMs(flag, text, AGO_MS);
  const atMs = Date.parse(/T\d\d:\d\d(?::\d\d(?:\.\d+)?)?$/.test(text) ? `${text}Z` : text);
  if (!Number.isNaN(atMs)) return atMs;
  throw usage(`--${flag}: '${text}' is no date`, 'like 2026-11-01, 2026-11-01T12:00:00Z, or 24h for a day ago');
}
