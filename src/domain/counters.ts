// Counters that go on over the starts of a sandbox, and never back: what the kernels count begins anew with each machine,
// container or process, and may begin somewhere else where memory is taken up again. Pure.

/** Null: nobody counts it here. */
export type Counts<Name extends string = string> = Readonly<Record<Name, number | null>>;

/** What has to be kept from one look to the next. */
export type Kept<Name extends string = string> = {
  /** The start of the sandbox in which `last` was counted. */
  readonly run: number;
  /** As it was counted. */
  readonly last: Counts<Name>;
  /** What was counted before, in all: a total is this and what is counted now. */
  readonly before: Readonly<Record<Name, number>>;
};

/**
 * A look at what is counted in the run `run`; `totals` are what a user is told. A new run counts from nothing. Within one run a count
 * that is smaller than before goes on where it was: it is another one's, such as that of the process which took up the memory.
 */
export function countOn<Name extends string>(
  kept: Kept<Name> | null,
  run: number,
  now: Counts<Name>,
): { readonly kept: Kept<Name>; readonly totals: Counts<Name> } {
  const names = Object.keys(now) as Name[];
  const by = <T>(value: (name: Name) => T) => Object.fromEntries(names.map((name) => [name, value(name)])) as Record<Name, T>;
  const lastOf = (name: Name): number => kept?.last[name] ?? 0;
  const before = by((name) => {
    const sum = kept?.before[name] ?? 0;
    if (kept !== null && kept.run !== run) return sum + lastOf(name);
    return sum + Math.max(0, lastOf(name) - (now[name] ?? lastOf(name)));
  });
  // What cannot be counted for a moment is not forgotten.
  const last = by((name) => now[name] ?? (kept?.run === run ? lastOf(name) : 0));
  return { kept: { run, last, before }, totals: by((name) => (now[name] === null ? null : before[name] + now[name])) };
}

/** In that run memory was taken up that had counted before: what is counted now was told already. */
export function countFrom<Name extends string>(kept: Kept<Name> | null, run: number, now: Counts<Name>): Kept<Name> {
  const { kept: on } = countOn(kept, run, now);
  if (kept === null || kept.run === run) return on;
  const names = Object.keys(now) as Name[];
  return { ...on, before: Object.fromEntries(names.map((name) => [name, on.before[name] - (now[name] ?? 0)])) as Kept<Name>['before'] };
}
