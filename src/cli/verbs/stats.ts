// hutch stats: what sandboxes use; live on a terminal, else once.
import { setTimeout as sleep } from 'node:timers/promises';
import { HutchError } from '../../domain/errors.ts';
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { worstExit } from '../exit-codes.ts';
import { tell, toHutchError } from '../fail.ts';
import { json, roughSize, table } from '../output.ts';

type Stats = Output<'sandbox.stats'>;
type Sample = { readonly name: string; readonly stats: Stats };

const EVERY_MS = 1_000;
/** Between the two samples from which a single share of the CPU is made. */
const SHARE_MS = 250;

export async function run(context: Context, args: Args): Promise<number> {
  const once = args.has('no-stream') || (!context.json && !context.io.isTerminal.stdout);
  const codes: number[] = [];
  let before = new Map<string, Sample>();
  if (once && !context.json) {
    before = (await samples(context, args, [])).found;
    await sleep(SHARE_MS, undefined, { signal: context.interrupts.signal }).catch(() => {});
  }
  for (;;) {
    const { found, outcomes } = await samples(context, args, codes);
    for (const print of outcomes) await print();
    // Where there is nothing but errors, a table of nothing says no more.
    if (!context.json && (found.size > 0 || outcomes.length === 0)) {
      const clear = once ? '' : '\u001b[H\u001b[2J';
      await context.io.out(clear + statsTable(found, before));
    }
    if (once) return worstExit(codes);
    before = found;
    await sleep(EVERY_MS, undefined, { signal: context.interrupts.signal }).catch(() => {});
    if (context.interrupts.signal.aborted) throw context.interrupts.signal.reason;
  }
}

async function samples(
  context: Context,
  args: Args,
  codes: number[],
): Promise<{ found: Map<string, Sample>; outcomes: (() => Promise<void>)[] }> {
  const named = args.positionals.length > 0;
  const refs = named
    ? [...new Set(args.positionals)]
    : (await ask(context, 'sandbox.list', { state: 'running' })).sandboxes.map(({ name }) => name);
  const found = new Map<string, Sample>();
  const outcomes: (() => Promise<void>)[] = [];
  const settled = await Promise.allSettled(refs.map((ref) => ask(context, 'sandbox.stats', { ref })));
  for (const [at, outcome] of settled.entries()) {
    const ref = refs[at] ?? '';
    if (outcome.status === 'fulfilled') {
      found.set(ref, { name: ref, stats: outcome.value });
      if (context.json) outcomes.push(() => context.io.out(json(outcome.value)));
      continue;
    }
    const error = toHutchError(outcome.reason);
    // Of those that we found ourselves one may have ended since.
    if (!named && error instanceof HutchError && error.code !== 'unavailable') continue;
    outcomes.push(
      async () =>
        void codes.push(await tell(context.io, error, { json: context.json, passesExitCode: false, flags: context.flags, about: ref })),
    );
  }
  return { found, outcomes };
}

function statsTable(found: ReadonlyMap<string, Sample>, before: ReadonlyMap<string, Sample>): string {
  const rows = [...found.values()].map(({ name, stats }) => [
    name,
    cpuShare(stats, before.get(name)?.stats),
    `${roughSize(stats.memory.usedBytes)} / ${roughSize(stats.memory.totalBytes)}`,
    `${roughSize(stats.disk.usedBytes)} / ${roughSize(stats.disk.totalBytes)}`,
    `${roughSize(stats.network.rxBytes)} / ${roughSize(stats.network.txBytes)}`,
    String(stats.processes),
    roughSize(stats.host.pssBytes),
    roughSize(stats.host.diskAllocatedBytes),
  ]);
  return table(['NAME', 'CPU', 'MEMORY', 'DISK', 'NET RX / TX', 'PROCESSES', 'HOST MEMORY', 'HOST DISK'], rows);
}

function cpuShare(now: Stats, before: Stats | undefined): string {
  const tookMs = before === undefined ? 0 : now.takenAtMs - before.takenAtMs;
  if (before === undefined || tookMs <= 0) return '-';
  return `${(Math.max(0, now.cpu.usedUs - before.cpu.usedUs) / tookMs / 10).toFixed(1)} %`;
}
