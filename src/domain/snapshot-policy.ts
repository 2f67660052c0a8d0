// Which snapshots a policy lets go, and why: the pure part of `hutch snapshot prune`. What something stands on stays whatever the
// policy says, and says so.
import { HeldTogether, type Holding } from './holding.ts';
import type { SandboxId, SnapshotId } from './ids.ts';
import type { Snapshot } from './snapshot.ts';

const TOO_MUCH = 'together they take too much';

export type SnapshotPolicy = {
  /** Of each sandbox the newest so many. */
  readonly keep?: number | undefined;
  readonly olderThanMs?: number | undefined;
  /** What all together may take, what several hold once: the oldest go first. */
  readonly bytesMax?: number | undefined;
};

export type PolicySnapshot = Pick<Snapshot, 'id' | 'name' | 'sandboxId' | 'parentId' | 'createdAtMs'> & {
  readonly holdings: readonly Holding[];
  readonly spec: { readonly name: string };
};

export type Verdict<T> = { readonly snapshot: T; readonly why: string };

/** `going`: in an order in which they can be removed one by one. `staying`: what the policy would let go, and why it cannot. */
export function judgeSnapshots<T extends PolicySnapshot>(
  snapshots: readonly T[],
  /** What else stands on it: of it nothing is known here. */
  othersOn: (id: SnapshotId) => readonly string[],
  policy: SnapshotPolicy,
  nowMs: number,
): { readonly going: readonly Verdict<T>[]; readonly staying: readonly Verdict<T>[] } {
  const newestFirst = [...snapshots].sort((left, right) => right.createdAtMs - left.createdAtMs || (left.id < right.id ? 1 : -1));
  const wanted = reasons(newestFirst, policy, nowMs);
  const going = new Map<SnapshotId, Verdict<T>>();
  const holders = ({ id }: T): readonly string[] => [
    ...snapshots.filter((child) => child.parentId === id && !going.has(child.id)).map(({ name, id: own }) => `snapshot ${name ?? own}`),
    ...othersOn(id),
  ];
  // A child is never older than its parent, so one pass would do, were clocks never stepped back.
  for (let before = -1; before !== going.size; ) {
    before = going.size;
    for (const snapshot of newestFirst) {
      const why = wanted.get(snapshot.id);
      if (why !== undefined && !going.has(snapshot.id) && holders(snapshot).length === 0) going.set(snapshot.id, { snapshot, why });
    }
  }
  const { bytesMax = Number.POSITIVE_INFINITY } = policy;
  const left = new HeldTogether(snapshots.filter(({ id }) => !going.has(id)).map(({ holdings }) => holdings));
  while (left.bytes > bytesMax) {
    const oldest = newestFirst.findLast((snapshot) => !going.has(snapshot.id) && holders(snapshot).length === 0);
    if (oldest === undefined) {
      // What is left is held, each of it: that is why it is too much still.
      for (const { id } of newestFirst) if (!wanted.has(id)) wanted.set(id, TOO_MUCH);
      break;
    }
    left.letGo(oldest.holdings);
    going.set(oldest.id, { snapshot: oldest, why: `${TOO_MUCH}, and it is the oldest on which nothing stands` });
  }
  const staying = newestFirst
    .filter(({ id }) => wanted.has(id) && !going.has(id))
    .map((snapshot) => {
      const held = holders(snapshot);
      return { snapshot, why: `${wanted.get(snapshot.id)}, but ${held.join(', ')} ${held.length === 1 ? 'stands' : 'stand'} on it` };
    });
  return { going: [...going.values()], staying };
}

function reasons(newestFirst: readonly PolicySnapshot[], { keep, olderThanMs }: SnapshotPolicy, nowMs: number): Map<SnapshotId, string> {
  const found = new Map<SnapshotId, string>();
  const counts = new Map<SandboxId | null, number>();
  for (const { id, sandboxId, spec, createdAtMs } of newestFirst) {
    const nth = (counts.get(sandboxId) ?? 0) + 1;
    counts.set(sandboxId, nth);
    if (keep !== undefined && nth > keep) found.set(id, `${keep} of ${spec.name} ${keep === 1 ? 'is' : 'are'} newer`);
    else if (olderThanMs !== undefined && nowMs - createdAtMs > olderThanMs) found.set(id, 'it is older than it may be');
  }
  return found;
}
