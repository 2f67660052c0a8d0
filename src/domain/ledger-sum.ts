// What the ledger adds up to: how long each kind of thing was there, by its shape, for each project or each thing. Pure: entries in
// order go in, sums come out. Always true: an interval counts from its start to its stop, or to the end of what is asked for, and only
// the part of it that lies in that time; paused time lies inside of compute time.
import type { LedgerEntry, LedgerShape } from './ledger.ts';

export type SumBy = 'project' | 'sandbox';

/** What of an entry is summed. */
export type Summed = Pick<LedgerEntry, 'kind' | 'atMs' | 'projectId' | 'sandboxId' | 'snapshotId' | 'shape' | 'volumeId'>;

/** Of one project or thing, of one kind and shape. */
export type SumRow = {
  /** An id: of the project, or of the sandbox, snapshot or volume. */
  readonly key: string;
  /** As in the kinds of the ledger: `vm.compute`, `vm.paused`, `vm.storage`, `snap.storage`, `volume.storage`. */
  readonly what: string;
  readonly shape: LedgerShape;
  /** In all, of intervals that may lie side by side. */
  readonly ms: number;
  readonly intervals: number;
  /** Of them, those that had not ended at the end of the time. */
  readonly open: number;
};

export type SumTotals = {
  readonly computeSeconds: number;
  readonly pausedSeconds: number;
  /** Processors × seconds, of compute. */
  readonly cpuSeconds: number;
  /** Of compute. */
  readonly memoryGiBHours: number;
  /** Of sandboxes, snapshots and volumes. */
  readonly storageGiBHours: number;
};

type Open = { readonly atMs: number; readonly key: string; readonly what: string; readonly shape: LedgerShape };

const GIB_HOUR = 1024 ** 3 * 3_600_000;

export class LedgerSum {
  readonly #by: SumBy;
  readonly #sinceMs: number;
  readonly #untilMs: number;
  readonly #open = new Map<string, Open>();
  readonly #rows = new Map<string, SumRow>();

  constructor({ by, sinceMs, untilMs }: { readonly by: SumBy; readonly sinceMs: number; readonly untilMs: number }) {
    this.#by = by;
    this.#sinceMs = sinceMs;
    this.#untilMs = untilMs;
  }

  add(entry: Summed): void {
    const at = entry.kind.lastIndexOf('.');
    const what = entry.kind.slice(0, at);
    const thing = entry.sandboxId ?? entry.snapshotId ?? entry.volumeId ?? '';
    const name = `${what} ${thing}`;
    const before = this.#open.get(name);
    // Of two starts in a row, which the ledger does not have, the first ends with the second.
    if (before !== undefined) this.#count(before, entry.atMs, 'ended');
    this.#open.delete(name);
    if (entry.kind.slice(at + 1) !== 'start') return;
    const key = this.#by === 'project' ? entry.projectId : thing;
    this.#open.set(name, { atMs: entry.atMs, key, what, shape: shapeOf(what, entry.shape) });
  }

  /** After the last entry: what is still open ends with the time that was asked for. */
  end(): { readonly rows: readonly SumRow[]; readonly totals: SumTotals } {
    for (const open of this.#open.values()) this.#count(open, this.#untilMs, 'open');
    this.#open.clear();
    const rows = [...this.#rows.values()].sort((left, right) => compare(left.key, right.key) || compare(left.what, right.what));
    return { rows, totals: totalsOf(rows) };
  }

  #count({ atMs, key, what, shape }: Open, endMs: number, how: 'ended' | 'open'): void {
    const ms = Math.min(endMs, this.#untilMs) - Math.max(atMs, this.#sinceMs);
    // One that lies elsewhere; one of no length within the time is an interval all the same.
    if (ms < 0 || (ms === 0 && (endMs < this.#sinceMs || atMs >= this.#untilMs))) return;
    const name = JSON.stringify([key, what, shape]);
    const { ms: beforeMs, intervals, open } = this.#rows.get(name) ?? { ms: 0, intervals: 0, open: 0 };
    const isOpen = how === 'open' || endMs > this.#untilMs;
    this.#rows.set(name, { key, what, shape, ms: beforeMs + ms, intervals: intervals + 1, open: open + (isOpen ? 1 : 0) });
  }
}

/** What of a shape means something for that. */
function shapeOf(what: string, { cpus, memoryBytes, storageBytes }: LedgerShape): LedgerShape {
  if (what.endsWith('.storage')) return storageBytes === undefined ? {} : { storageBytes };
  return { ...(cpus === undefined ? {} : { cpus }), ...(memoryBytes === undefined ? {} : { memoryBytes }) };
}

function totalsOf(rows: readonly SumRow[]): SumTotals {
  const seconds = (what: string): number => rows.filter((row) => row.what === what).reduce((sum, { ms }) => sum + ms, 0) / 1_000;
  // Bytes × milliseconds pass 2^53 soon.
  const times = (part: 'cpus' | 'memoryBytes' | 'storageBytes', ofWhat: (what: string) => boolean): bigint =>
    rows
      .filter(({ what }) => ofWhat(what))
      .reduce((sum, { ms, shape }) => sum + BigInt(Math.round(1_000 * (shape[part] ?? 0))) * BigInt(Math.round(ms)), 0n);
  const isCompute = (what: string): boolean => what === 'vm.compute';
  const gibHours = (sum: bigint): number => Number(sum) / 1_000 / GIB_HOUR;
  return {
    computeSeconds: seconds('vm.compute'),
    pausedSeconds: seconds('vm.paused'),
    cpuSeconds: Number(times('cpus', isCompute)) / 1_000_000,
    memoryGiBHours: gibHours(times('memoryBytes', isCompute)),
    storageGiBHours: gibHours(times('storageBytes', (what) => what.endsWith('.storage'))),
  };
}

function compare(left: string, right: string): number {
  return left < right ? -1 : left > right ? 1 : 0;
}
