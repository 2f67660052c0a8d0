// What a sandbox does by itself, as far as that keeps it awake: processor time and traffic of its network, by the counters that `hutch stats` has. A
// machine that only waits takes some of both: there is a little that does not count.
import type { Operation } from '../host/operation.ts';
import type { Run } from './run.ts';

const ANSWER_MS = 10_000;
/** So often in a row one does not answer before that keeps it awake no more: a guest that hangs, not a busy machine. */
const SILENT_MAX = 3;
/** Measured under software emulation on a machine with ten times the load that it can bear: a guest that waits is at 2 %. */
const CPU_SHARE_MIN = 0.1;
/** What keeps addresses of a network known is less. */
const BYTES_PER_SECOND_MIN = 100;

type Counts = { readonly atMs: number; readonly cpuUs: number; readonly bytes: number };
/** `quiet`: it did nothing since the look before. */
type Look = { readonly counts: Counts | null; readonly atMs: number; readonly quiet: boolean; readonly silent: number };

/** Of one processor, and of both directions together. Pure. */
export function isBusy(before: Counts, now: Counts): boolean {
  const seconds = Math.max(now.atMs - before.atMs, 1) / 1_000;
  return now.cpuUs - before.cpuUs >= seconds * 1_000_000 * CPU_SHARE_MIN || now.bytes - before.bytes >= seconds * BYTES_PER_SECOND_MIN;
}

export class Activity {
  readonly #looks = new WeakMap<Run, Look>();
  readonly #looking = new WeakSet<Run>();
  readonly #monotonicMs: () => number;

  constructor(monotonicMs: () => number) {
    this.#monotonicMs = monotonicMs;
  }

  /** Somebody uses it: what it does meanwhile is theirs. */
  forget(run: Run): void {
    this.#looks.delete(run);
  }

  /** Whether it has done nothing within the last `everyMs`. Looks when it is time to; one that works is touched. */
  isQuiet(run: Run, everyMs: number): boolean {
    const last = this.#looks.get(run);
    if (last === undefined || this.#monotonicMs() - last.atMs >= everyMs) void this.#look(run, last ?? null);
    return last?.quiet ?? false;
  }

  async #look(run: Run, last: Look | null): Promise<void> {
    if (this.#looking.has(run)) return;
    this.#looking.add(run);
    try {
      const counts = await countsOf(run.op, run, this.#monotonicMs).catch(() => null);
      const before = last?.counts ?? null;
      const works = counts !== null && before !== null && isBusy(before, counts);
      if (works) run.touch();
      const silent = counts === null ? (last?.silent ?? 0) + 1 : 0;
      const quiet = counts === null ? silent >= SILENT_MAX : before !== null && !works;
      this.#looks.set(run, { counts: counts ?? before, atMs: this.#monotonicMs(), quiet, silent });
    } finally {
      this.#looking.delete(run);
    }
  }
}

async function countsOf(op: Operation, run: Run, monotonicMs: () => number): Promise<Counts> {
  using limited = op.within(ANSWER_MS, 'asking what a sandbox does');
  const agent = await run.link.agent(limited);
  // In a shared kernel the agent sees what the whole host does.
  const own = (await run.backend.usage?.(limited, run.plan)) ?? null;
  const { cpu, network } = await agent.metrics(limited);
  const { rxBytes, txBytes } = { ...network, ...own?.network };
  return { atMs: monotonicMs(), cpuUs: own?.cpuUs ?? cpu.userUs + cpu.systemUs, bytes: (rxBytes ?? 0) + (txBytes ?? 0) };
}
