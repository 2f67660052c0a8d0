// What a named snapshot is: a sandbox of one instant, kept. Snapshots form a graph by what each was stored against; a parent cannot
// vanish under its child. What is stored for one alone is billed for as long as it is kept.
import type { OpId, ProjectId, SandboxId, SnapshotId } from './ids.ts';
import type { LedgerDraft, LedgerKind, LedgerReason } from './ledger.ts';
import type { JsonObject } from './records.ts';
import type { SandboxSpec } from './sandbox.ts';

/** `undo`: kept before an exec, a bounded number, and gone by itself. `template`: what sandboxes of one start from, or did. */
export const SNAPSHOT_KINDS = ['kept', 'undo', 'template'] as const;
export type SnapshotKind = (typeof SNAPSHOT_KINDS)[number];

export const SNAPSHOT_CONTENTS = ['memory and disk', 'disk'] as const;
export type SnapshotContents = (typeof SNAPSHOT_CONTENTS)[number];

export type Snapshot = {
  readonly id: SnapshotId;
  readonly projectId: ProjectId;
  /** Unique in its project. */
  readonly name: string | null;
  readonly kind: SnapshotKind;
  readonly contents: SnapshotContents;
  /** Of which it was taken; null: it came from elsewhere. That may be deleted by now. */
  readonly sandboxId: SandboxId | null;
  /** As that was then. Values of secrets are not kept: `secretNames` is empty. */
  readonly spec: SandboxSpec;
  readonly parentId: SnapshotId | null;
  /** What it holds of the disk that counts for no older one: when that goes, it counts for this one. */
  readonly ownBytes: number;
  /** What it would take without all that it shares. */
  readonly apparentBytes: number;
  readonly createdAtMs: number;
  /** On what it can go on, as its backend says it. */
  readonly detail: JsonObject;
};

/** The command that one to undo was kept before; null: it is none of those. */
export function beforeOf({ detail }: Pick<Snapshot, 'detail'>): string | null {
  const { before } = detail;
  return typeof before === 'string' ? before : null;
}

/** Names of the secrets that its sandbox had: their values may be in its memory. */
export function secretsOf({ detail }: Pick<Snapshot, 'detail'>): readonly string[] {
  const { secretNames } = detail;
  return Array.isArray(secretNames) ? secretNames.filter((name) => typeof name === 'string') : [];
}

/** What of `detail` says nothing of a machine. */
export const NOT_MACHINE: readonly string[] = ['before', 'secretNames'];

/** Before it is known what of it is there already. */
export type NewSnapshot = Omit<Snapshot, 'ownBytes'>;

const ENDPOINTS = {
  created: ['snap.storage.start', null],
  removed: ['snap.storage.stop', 'snap-rm'],
  'recounted from': ['snap.storage.stop', 'recount'],
  'recounted to': ['snap.storage.start', 'recount'],
} as const satisfies Record<string, readonly [LedgerKind, LedgerReason | null]>;

/** An endpoint of an interval in which so much of it is stored. */
export function snapshotEntry(snapshot: Snapshot, what: keyof typeof ENDPOINTS, atMs: number, opId: OpId): LedgerDraft {
  const [kind, reason] = ENDPOINTS[what];
  return {
    kind,
    reason,
    atMs,
    projectId: snapshot.projectId,
    sandboxId: null,
    snapshotId: snapshot.id,
    sourceSnapshotId: null,
    parentId: null,
    backend: snapshot.spec.backend,
    shape: { storageBytes: snapshot.ownBytes },
    opId,
    evidence: null,
  };
}

/** Parents first, each followed by its children; what has no parent here is a root. With how deep each lies. */
export function byLineage<T extends Pick<Snapshot, 'id' | 'parentId' | 'createdAtMs'>>(
  snapshots: readonly T[],
): readonly { readonly snapshot: T; readonly depth: number }[] {
  const here = new Set<string>(snapshots.map(({ id }) => id));
  const children = new Map<string | null, T[]>();
  for (const snapshot of [...snapshots].sort((left, right) => left.createdAtMs - right.createdAtMs || (left.id < right.id ? -1 : 1))) {
    const parent = snapshot.parentId !== null && here.has(snapshot.parentId) ? snapshot.parentId : null;
    children.set(parent, [...(children.get(parent) ?? []), snapshot]);
  }
  const found: { snapshot: T; depth: number }[] = [];
  const left = (children.get(null) ?? []).map((snapshot) => ({ snapshot, depth: 0 })).reverse();
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    found.push(next);
    const { id } = next.snapshot;
    for (const snapshot of (children.get(id) ?? []).toReversed()) left.push({ snapshot, depth: next.depth + 1 });
  }
  return found;
}

/** Of what it stands on, what goes along. `needed`: what no registry has; `all`: an image of a registry too; `nothing`: neither image nor kernel. */
export const CARRIES = ['needed', 'all', 'nothing'] as const;
export type Carry = (typeof CARRIES)[number];
