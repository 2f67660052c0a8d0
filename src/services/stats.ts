// What a sandbox uses. What is counted goes on over its starts: the totals lie in a file of the sandbox's, one line for each look,
// because a daemon that is killed must not take back what it has told.
import * as z from 'zod';
import { type Counts, countFrom, countOn, type Kept } from '../domain/counters.ts';
import type { SandboxId } from '../domain/ids.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { type Deps, placesOf } from './deps.ts';
import type { Run } from './run.ts';
import { reach } from './runs.ts';
import { atMost } from './take-down.ts';
import type { Output } from './verbs.ts';

type Stats = Output<'sandbox.stats'>;
type Counted = Pick<Sandbox, 'id' | 'spec' | 'startCount' | 'createdAtMs' | 'openComputeSinceMs' | 'state'>;

/** A file that has grown beyond this is begun anew with its last line. */
const FILE_BYTES_MAX = 256 * 1024;
/** An end does not wait longer for its last look; one that asks nobody hardly at all. */
const LAST_LOOK_MS = { asked: 5_000, forced: 500 } as const;

const COUNTERS = {
  cpuUsedUs: (stats: Stats) => stats.cpu.usedUs,
  diskReadBytes: (stats: Stats) => stats.disk.readBytes,
  diskWrittenBytes: (stats: Stats) => stats.disk.writtenBytes,
  networkRxBytes: (stats: Stats) => stats.network.rxBytes,
  networkTxBytes: (stats: Stats) => stats.network.txBytes,
  oomKills: (stats: Stats) => stats.oomKills,
  cpuSomeUs: (stats: Stats) => stats.pressure?.cpuSomeUs ?? null,
  memorySomeUs: (stats: Stats) => stats.pressure?.memorySomeUs ?? null,
  ioSomeUs: (stats: Stats) => stats.pressure?.ioSomeUs ?? null,
  hostCpuUs: (stats: Stats) => stats.host.cpuUs,
} as const;
type Name = keyof typeof COUNTERS;
const NAMES = Object.keys(COUNTERS) as readonly Name[];

const each = <T extends z.ZodType>(value: T) => z.object(Object.fromEntries(NAMES.map((name) => [name, value])) as Record<Name, T>);
const line = z.object({ run: z.int(), last: each(z.number().nullable()), before: each(z.number()) });

export class StatsReader {
  readonly #deps: Pick<Deps, 'host' | 'places'>;
  readonly #kept = new Map<SandboxId, Promise<Kept<Name> | null>>();

  constructor(deps: Pick<Deps, 'host' | 'places'>) {
    this.#deps = deps;
  }

  /** Of one that runs. @throws HutchError when it does not answer. */
  async read(op: Operation, run: Run, sandbox: Counted): Promise<Stats> {
    const now = await this.#look(op, run, sandbox);
    const counts = countsOf(now);
    return withTotals(now, await this.#keep(op, sandbox, (kept) => countOn(kept, sandbox.startCount, counts)));
  }

  /** Right after memory was taken up in a new run: what it had counted by then is not counted twice. */
  async goesOn(op: Operation, run: Run, sandbox: Counted): Promise<void> {
    await this.#within(op, sandbox, 'asked', async (late) => {
      const counts = countsOf(await this.#look(late, run, sandbox));
      await this.#keep(late, sandbox, (kept) => ({ kept: countFrom(kept, sandbox.startCount, counts), totals: counts }));
    });
  }

  /** One that runs is about to end, and stays: what it has done since the last look counts. */
  async last(op: Operation, run: Run, sandbox: Counted, how: keyof typeof LAST_LOOK_MS = 'asked'): Promise<void> {
    if (sandbox.state === 'running') await this.#within(op, sandbox, how, async (late) => void (await this.read(late, run, sandbox)));
  }

  /** Nobody asks for it any more. */
  forget(id: SandboxId): void {
    this.#kept.delete(id);
  }

  async #within(op: Operation, { id }: Counted, how: keyof typeof LAST_LOOK_MS, look: (late: Operation) => Promise<void>): Promise<void> {
    using late = op.releasing(LAST_LOOK_MS[how]);
    const looking = look(late).catch((cause: unknown) =>
      op.log.debug({ sandbox: id, cause }, 'what a sandbox has used since was not counted'),
    );
    await atMost(op, looking, LAST_LOOK_MS[how]);
  }

  async #look(op: Operation, run: Run, { id, spec, createdAtMs, openComputeSinceMs }: Counted): Promise<Stats> {
    const agent = await reach(op, spec.name, run);
    // In a shared kernel the agent sees what the whole host does. Before what it takes of the host, which is never less.
    const own = (await run.backend.usage?.(op, run.plan)) ?? null;
    const [metrics, host] = await Promise.all([agent.metrics(op), run.backend.stats(op, run.plan, own)]);
    const { takenAtMs, uptimeMs, cpu, memory, disk, network, processes, oomKills, pressure } = metrics;
    // The kernel of one that was warm, or goes on from memory, has run for longer than the sandbox has.
    const ownMs = openComputeSinceMs === null ? uptimeMs : Math.max(0, this.#deps.host.nowMs() - openComputeSinceMs);
    return {
      sandboxId: id,
      name: spec.name,
      takenAtMs,
      sinceMs: createdAtMs,
      uptimeMs: Math.min(uptimeMs, ownMs),
      cpu: own === null ? { usedUs: cpu.userUs + cpu.systemUs, count: cpu.count } : { usedUs: own.cpuUs, count: spec.shape.cpus },
      memory: own?.memory == null ? { ...memory } : { ...own.memory, availableBytes: own.memory.totalBytes - own.memory.usedBytes },
      disk: own === null ? { ...disk } : { ...disk, ...(own.disk ?? { readBytes: null, writtenBytes: null }) },
      network: { ...network, ...own?.network },
      processes: own?.processes ?? processes,
      oomKills,
      pressure: own === null ? (pressure ?? null) : null,
      host: { ...host },
    };
  }

  /** One look after the other: each goes on from what the one before has kept. On disk before anybody is told. */
  async #keep<T>(
    op: Operation,
    { id }: Counted,
    count: (kept: Kept<Name> | null) => { readonly kept: Kept<Name>; readonly totals: T },
  ): Promise<T> {
    const before = this.#kept.get(id) ?? this.#load(op, id);
    const counting = before.catch(() => null).then((kept) => count(kept));
    const saved = counting.then(async ({ kept }) => {
      await this.#save(op, id, kept);
      return kept;
    });
    // A look that could not be written down counts all the same.
    this.#kept.set(
      id,
      counting.then(({ kept }) => kept),
    );
    await saved;
    return (await counting).totals;
  }

  async #load(op: Operation, id: SandboxId): Promise<Kept<Name> | null> {
    const { host } = this.#deps;
    const path = this.#path(id);
    if ((await host.stat(op, path)) === null) return null;
    const text = new TextDecoder().decode(await host.readFile(op, path, 2 * FILE_BYTES_MAX));
    return readLast(text);
  }

  async #save(op: Operation, id: SandboxId, kept: Kept<Name>): Promise<void> {
    const { host, places } = this.#deps;
    const path = this.#path(id);
    const written = `${JSON.stringify(kept)}\n`;
    const size = (await host.stat(op, path))?.sizeBytes ?? 0;
    if (size > FILE_BYTES_MAX) return await host.writeFileAtomic(op, path, written, 0o600);
    // One that was deleted meanwhile must not come back.
    if (size === 0 && (await host.stat(op, placesOf(places, id).dir)) === null) return;
    await host.appendFile(op, path, new TextEncoder().encode(written));
  }

  #path(id: SandboxId): string {
    return `${placesOf(this.#deps.places, id).dir}/counters`;
  }
}

/** The last whole line: a write may have been cut short. */
function readLast(text: string): Kept<Name> | null {
  for (const one of text.split('\n').reverse()) {
    try {
      return line.parse(JSON.parse(one));
    } catch {
      // not whole: the one before it
    }
  }
  return null;
}

function countsOf(stats: Stats): Counts<Name> {
  return Object.fromEntries(NAMES.map((name) => [name, COUNTERS[name](stats)])) as Counts<Name>;
}

function withTotals(stats: Stats, totals: Counts<Name>): Stats {
  const of = (name: Name): number => totals[name] ?? 0;
  return {
    ...stats,
    cpu: { ...stats.cpu, usedUs: of('cpuUsedUs') },
    disk: { ...stats.disk, readBytes: totals.diskReadBytes, writtenBytes: totals.diskWrittenBytes },
    network: { rxBytes: of('networkRxBytes'), txBytes: of('networkTxBytes') },
    oomKills: of('oomKills'),
    pressure: stats.pressure === null ? null : { cpuSomeUs: of('cpuSomeUs'), memorySomeUs: of('memorySomeUs'), ioSomeUs: of('ioSomeUs') },
    host: { ...stats.host, cpuUs: of('hostCpuUs') },
  };
}
