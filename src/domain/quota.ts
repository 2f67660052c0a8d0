// What a project may have: bounds by name, each with its unit. A tier is a named set of them that the operator edits; a
// project has a tier, bounds of its own that come before, both or neither. A bound that nobody set is none.

import type { ProjectId } from './ids.ts';

export const QUOTAS = {
  sandboxes: { unit: '', about: 'sandboxes at once, running or not' },
  cpus: { unit: '', about: 'virtual CPUs of all of them together' },
  memoryMiB: { unit: 'MiB', about: 'memory of all of them together' },
  diskMiB: { unit: 'MiB', about: 'disks of all of them together, and volumes' },
  imageMiB: { unit: 'MiB', about: 'images that it pulled, imported or built' },
  snapshotMiB: { unit: 'MiB', about: 'what is stored for its snapshots alone, those kept to undo and of templates included' },
  builds: { unit: '', about: 'builds at once, waiting or not' },
  buildsPerDay: { unit: '', about: 'builds that began within 24 hours' },
  buildMinutes: { unit: 'minutes', about: 'minutes that each build may take' },
} as const satisfies Readonly<Record<string, { readonly unit: string; readonly about: string }>>;

export type QuotaName = keyof typeof QUOTAS;
export const QUOTA_NAMES = Object.keys(QUOTAS) as readonly QuotaName[];

/** Null: no bound, whatever the tier says. */
export type Bounds = { readonly [N in QuotaName]?: number | null | undefined };
export type Use = { readonly [N in QuotaName]: number };

export type Tier = { readonly name: string; readonly bounds: Bounds };

export type ProjectQuota = {
  readonly projectId: ProjectId;
  readonly project: string;
  readonly tier: string | null;
  /** The project's own, which come before the tier's. */
  readonly own: Bounds;
  /** What holds. */
  readonly bounds: { readonly [N in QuotaName]: number | null };
  readonly use: Use;
};

export const NO_USE: Use = {
  sandboxes: 0,
  cpus: 0,
  memoryMiB: 0,
  diskMiB: 0,
  imageMiB: 0,
  snapshotMiB: 0,
  builds: 0,
  buildsPerDay: 0,
  buildMinutes: 0,
};

/** What holds of a project's own bounds and its tier's. */
export function effective(own: Bounds, tier: Bounds | null): ProjectQuota['bounds'] {
  const bound = (name: QuotaName): number | null => {
    const said = own[name];
    return said === undefined ? (tier?.[name] ?? null) : said;
  };
  return {
    sandboxes: bound('sandboxes'),
    cpus: bound('cpus'),
    memoryMiB: bound('memoryMiB'),
    diskMiB: bound('diskMiB'),
    imageMiB: bound('imageMiB'),
    snapshotMiB: bound('snapshotMiB'),
    builds: bound('builds'),
    buildsPerDay: bound('buildsPerDay'),
    buildMinutes: bound('buildMinutes'),
  };
}

/** A size that nobody asked for is no larger than its project's bound, if one of that size can be at all. */
export function withinBound(sizeMiB: number, bound: number | null, leastMiB: number): number {
  return bound === null || bound < leastMiB ? sizeMiB : Math.min(sizeMiB, bound);
}

/** The first bound that would be passed; null: there is room. What is not wanted more of may be past its bound already. */
export function passed(bounds: ProjectQuota['bounds'], use: Use, wanted: Partial<Use>): QuotaName | null {
  const isPassed = (name: QuotaName): boolean => {
    const bound = bounds[name];
    const more = wanted[name] ?? 0;
    return bound !== null && more > 0 && use[name] + more > bound;
  };
  return QUOTA_NAMES.find(isPassed) ?? null;
}

export function tierName(text: string): boolean {
  return /^[A-Z][A-Z0-9_-]{0,31}$/.test(text);
}
