// hutch ledger: the record of what is billed.
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { exitOf } from '../exit-codes.ts';
import { resumed } from '../follow.ts';
import { clock, json, safe } from '../output.ts';
import { wholeNumber } from '../spec.ts';

type Entry = {
  readonly sequence: number;
  readonly kind: string;
  readonly reason: string | null;
  readonly sandboxId: string | null;
  readonly snapshotId: string | null;
  readonly volumeId?: string;
  readonly atMs: number;
  readonly opId: string;
};

const TAIL_DEFAULT = 20;

export async function tail(context: Context, args: Args): Promise<number> {
  const { signal } = context.interrupts;
  const limit = wholeNumber('limit', args.value('limit') ?? String(TAIL_DEFAULT), 0, 1_000_000);
  const { entries } = await ask(context, 'ledger.verify', {});
  const from = Math.max(0, entries - limit);
  const follow = args.has('follow');
  const stream = resumed<Entry>(context, {
    open: (cursor) =>
      context.client.lines(
        'ledger.list',
        { ...(follow ? { follow: true } : {}), ...(cursor === null ? {} : { cursor }) },
        { signal },
      ) as AsyncIterable<Entry>,
    cursorAfter: ({ sequence }) => sequence,
    from,
    ends: !follow,
  });
  for await (const entry of stream) await context.io.out(context.json ? json(entry) : line(entry));
  return 0;
}

/** Always lines of JSON: it is meant for other programs. */
export async function exportAll(context: Context, args: Args): Promise<number> {
  const format = args.value('format') === 'cocoon' ? 'cocoon' : 'hutch';
  const cursor = args.value('cursor');
  const input = { format, ...(cursor === undefined ? {} : { cursor: wholeNumber('cursor', cursor, 0, Number.MAX_SAFE_INTEGER) }) } as const;
  // A stream that breaks off is an error: a part of a bill is no bill.
  for await (const entry of context.client.lines('ledger.list', input, { signal: context.interrupts.signal }))
    await context.io.out(json(entry));
  return 0;
}

export async function verify(context: Context, _args: Args): Promise<number> {
  const found = await ask(context, 'ledger.verify', {});
  if (context.json) await context.io.out(json(found));
  else if (found.firstBreak === null) await context.io.out(`${found.entries} entries, unbroken\n`);
  else await context.io.out(`broken at entry ${found.firstBreak.sequence} of ${found.entries}: ${safe(found.firstBreak.problem)}\n`);
  return found.ok ? 0 : exitOf('failed');
}

function line({ sequence, kind, reason, sandboxId, snapshotId, volumeId, atMs, opId }: Entry): string {
  const whose = sandboxId ?? snapshotId ?? volumeId ?? '-';
  return `${sequence}  ${clock(atMs)}  ${kind}  ${reason ?? '-'}  ${whose}  ${opId}\n`;
}
