// Measures a candidate against a baseline in the same run, in turn (A B A B …), after a warm-up, and
// prints medians, spread, n and the ratio. It never judges by an absolute time where there is a
// baseline: these figures belong to one machine on one day, the ratio travels.
export type Figures = { readonly median: number; readonly p10: number; readonly p90: number; readonly p99: number; readonly n: number };
export type Unit = 'ms' | 'MiB/s' | 'MiB' | 'MB' | 's' | '%';

export type Row = {
  readonly what: string;
  readonly unit: Unit;
  /** Which figure is meant: shown, and compared. */
  readonly by: 'median' | 'p99';
  readonly candidate: Figures;
  /** Null where the row has no baseline. */
  readonly baseline: (Figures & { readonly name: string }) | null;
  /** Candidate to baseline; of medians pair by pair. Null without a baseline. */
  readonly ratio: number | null;
  /** What is aimed at, in words. */
  readonly target: string;
  readonly met: boolean | null;
  /** Runs of the same thing lay more than a factor of two apart. */
  readonly noisy: boolean;
  /** What bounds it, and what was seen beside it. */
  readonly note: string;
};

const NOISY_SPREAD = 2;

export function figures(samples: readonly number[]): Figures {
  if (samples.length === 0) throw new Error('no samples');
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
  return { median: median(sorted), p10: at(0.1), p90: at(0.9), p99: at(0.99), n: sorted.length };
}

function median(sorted: readonly number[]): number {
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? 0)) / 2;
}

/** Milliseconds that one call takes. */
export async function timed(run: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await run();
  return performance.now() - started;
}

/** Whether the target is met; null: not judged. */
export type Meets = (ratio: number, candidate: Figures, baseline: Figures) => boolean | null;

export type Judged = {
  readonly what: string;
  readonly unit: Unit;
  readonly by?: Row['by'];
  readonly baselineName: string;
  readonly target: string;
  readonly meets: Meets;
  readonly note: string;
};

/** Samples of the same index were taken one after the other. */
export function judge(wanted: Judged, base: readonly number[], ours: readonly number[]): Row {
  const { what, unit, by = 'median', baselineName, target, note } = wanted;
  const candidate = figures(ours);
  const baseline = figures(base);
  const paired = () => figures(ours.map((sample, i) => sample / (base[i] ?? Number.NaN))).median;
  const ratio = by === 'median' && base.length === ours.length ? paired() : candidate[by] / baseline[by];
  return {
    ...{ what, unit, by, candidate, ratio, target, note },
    baseline: { ...baseline, name: baselineName },
    met: wanted.meets(ratio, candidate, baseline),
    noisy: isNoisy(baseline) || isNoisy(candidate),
  };
}

export type Sampled = {
  /** Each returns one sample. */
  readonly baseline: () => Promise<number>;
  readonly candidate: () => Promise<number>;
  readonly runs: number;
  readonly warmUps?: number;
};

export async function samples({ baseline, candidate, runs, warmUps = 1 }: Sampled): Promise<{ base: number[]; ours: number[] }> {
  for (let i = 0; i < warmUps; i += 1) {
    await baseline();
    await candidate();
  }
  const base: number[] = [];
  const ours: number[] = [];
  for (let i = 0; i < runs; i += 1) {
    base.push(await baseline());
    ours.push(await candidate());
  }
  return { base, ours };
}

export async function pair(wanted: Judged & Sampled): Promise<Row> {
  const { base, ours } = await samples(wanted);
  return judge(wanted, base, ours);
}

export type Alone = Omit<Judged, 'baselineName' | 'meets'> & { readonly met: boolean | null };

export function alone(row: Alone, taken: readonly number[]): Row {
  const { what, unit, by = 'median', target, met, note } = row;
  const candidate = figures(taken);
  return { ...{ what, unit, by, candidate, target, met, note }, baseline: null, ratio: null, noisy: isNoisy(candidate) };
}

function isNoisy({ p10, p90 }: Figures): boolean {
  return p10 > 0 && p90 > NOISY_SPREAD * p10;
}

export const short = (value: number): string => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

/** One Markdown table row: what docs/benchmarks.md holds and a terminal shows alike. */
export function line(row: Row): string {
  const show = (f: Figures) => (f.n === 1 ? short(f.median) : `${short(f[row.by])} (${short(f.p10)}–${short(f.p90)})`);
  const verdict = row.met === null ? '–' : row.met ? 'yes' : 'no';
  const base = row.baseline === null ? '–' : `${row.baseline.name}: ${show(row.baseline)}`;
  const noise = row.noisy ? ' (noisy)' : '';
  const ratio = row.ratio === null ? '–' : `${short(row.ratio)}×`;
  return `| ${row.what} | ${show(row.candidate)} ${row.unit}, n = ${row.candidate.n}${noise} | ${base} | ${ratio} | ${row.target} | ${verdict} |`;
}

export const HEADER =
  '| what | Hutch: median (p10–p90) | baseline in the same run | ratio | target | met |\n| --- | --- | --- | --- | --- | --- |';
