// What the store can be asked: every change and every query, with what goes in and comes out. Types
// only: the daemon's thread sends them, the store's worker answers them.
//
// A commit is a list of changes that happen together or not at all. If one of them is refused, none
// has happened and the commit rejects with a HutchError that names it.
import type { ErrorBody } from '../domain/errors.ts';
import type { Holding } from '../domain/holding.ts';
import type {
  BuildId,
  ImageId,
  KernelId,
  KeyId,
  LeaseId,
  OpId,
  ProjectId,
  SandboxId,
  SnapshotId,
  TemplateId,
  VolumeId,
} from '../domain/ids.ts';
import type { Image, Kernel, NamedImage } from '../domain/image.ts';
import type { LedgerEntry } from '../domain/ledger.ts';
import type { PublishedPort } from '../domain/published-port.ts';
import type { Bounds, ProjectQuota, Tier } from '../domain/quota.ts';
import type {
  ApiKey,
  EventRecord,
  Heartbeat,
  Intent,
  JsonObject,
  Lease,
  OperationRecord,
  OperationState,
  Project,
  RequestRecord,
} from '../domain/records.ts';
import type { Sandbox, SandboxEvent, SandboxSpec, SandboxState, SnapshotSource } from '../domain/sandbox.ts';
import type { NewSnapshot, Snapshot, SnapshotKind } from '../domain/snapshot.ts';
import type { Template, Warmth } from '../domain/template.ts';
import type { UidRange } from '../domain/users.ts';
import type { Volume, VolumeUser } from '../domain/volume.ts';

/** The most rows that one query answers; ask again with the cursor. */
export const PAGE_ROWS_MAX = 1_000;
/** An Idempotency-Key means the same request for this long. */
export const REQUEST_LIFETIME_MS = 24 * 60 * 60 * 1_000;

export type ChangeMap = {
  /**
   * Its disk exists: the row, its `created` event and `vm.storage.start`. `conflict` when the name is taken or reserved,
   * `resource_exhausted` when a quota of the project would be passed.
   */
  createSandbox: {
    args: {
      readonly id: SandboxId;
      readonly projectId: ProjectId;
      readonly spec: SandboxSpec;
      readonly atMs: number;
      readonly source?: SnapshotSource;
    };
    result: Sandbox;
  };
  /**
   * The one way in which a sandbox changes: row, ledger entries and event together.
   * `failed_precondition` when `transition` refuses it or the generation is another; `not_found`;
   * `conflict` when a new name is taken.
   */
  applyEvent: {
    args: {
      readonly sandboxId: SandboxId;
      readonly event: SandboxEvent;
      readonly expectGeneration?: number;
      /** Facts for `why`, beside those that the event carries. */
      readonly detail?: JsonObject;
    };
    result: Sandbox;
  };
  /** Something that happened and changed no state. Its result is the cursor. */
  addEvent: {
    args: {
      readonly type: string;
      readonly atMs: number;
      readonly projectId?: ProjectId;
      readonly sandboxId?: SandboxId;
      readonly detail?: JsonObject;
    };
    result: number;
  };

  /** The op id is that of the commit, as is the actor. */
  beginOperation: {
    args: {
      readonly verb: string;
      readonly startedAtMs: number;
      readonly projectId?: ProjectId;
      readonly targetId?: string;
      readonly traceparent?: string;
    };
    result: OperationRecord;
  };
  updateOperation: {
    args: {
      readonly id: OpId;
      readonly targetId?: string;
      readonly step?: string;
      readonly done?: number | null;
      readonly total?: number | null;
    };
    result: OperationRecord;
  };
  /** Ends it once: what has ended stays as it is. */
  endOperation: {
    args: { readonly id: OpId; readonly state: Exclude<OperationState, 'running'>; readonly endedAtMs: number; readonly error?: ErrorBody };
    result: OperationRecord;
  };
  /** At the start of the daemon: whatever still runs on paper was interrupted. */
  interruptOperations: { args: { readonly endedAtMs: number }; result: readonly OperationRecord[] };

  /**
   * `conflict` when the name is taken or reserved; of kind `create` with a `shape`, `resource_exhausted` when a quota of the
   * project would be passed: what it is about counts from now on.
   */
  addIntent: {
    args: {
      readonly kind: string;
      readonly projectId: ProjectId;
      readonly sandboxId?: SandboxId;
      readonly reserveName?: string;
      readonly atMs: number;
      readonly detail?: JsonObject;
    };
    result: Intent;
  };
  updateIntent: { args: { readonly id: number; readonly detail: JsonObject }; result: Intent };
  /** Idempotent. Frees the reserved name: put it before `createSandbox` in the same commit. */
  finishIntent: { args: { readonly id: number }; result: null };

  /**
   * A uid of these that no other sandbox has; the same one when asked again, unless it is none of these.
   * `resource_exhausted` when all are taken.
   */
  allocateUid: { args: { readonly sandboxId: SandboxId; readonly uids: UidRange }; result: number };
  releaseUid: { args: { readonly sandboxId: SandboxId }; result: null };

  /** `conflict`, naming the owner, when another sandbox has one of them, running or not. */
  reservePorts: { args: { readonly sandboxId: SandboxId; readonly ports: readonly PublishedPort[] }; result: null };
  /** Idempotent. Without `ports` all that it has. */
  releasePorts: { args: { readonly sandboxId: SandboxId; readonly ports?: readonly PublishedPort[] }; result: null };

  /** The reply that a repeated request gets. */
  finishRequest: { args: { readonly apiKeyId: KeyId; readonly key: string; readonly reply: unknown }; result: null };
  /** Forgets the first call, because it changed nothing: the next one starts anew. */
  releaseRequest: { args: { readonly apiKeyId: KeyId; readonly key: string }; result: null };

  /** `resource_exhausted` when it passes the quota of the project whose key asks. A new digest takes the name away from the image that had it. The same digest again changes nothing but the name. */
  putImage: { args: { readonly image: Image }; result: NamedImage };
  /** One more name, taken from the image that had it. */
  nameImage: { args: { readonly id: ImageId; readonly name: string; readonly atMs: number }; result: NamedImage };
  /** Idempotent; another image's name stays that image's, and its last name an image loses only by being removed. */
  unnameImage: { args: { readonly id: ImageId; readonly name: string }; result: NamedImage };
  /** Replaces its detail: how it is made has changed, and what it is has not. */
  describeImage: { args: { readonly id: ImageId; readonly detail: JsonObject }; result: NamedImage };
  /** With its names. `failed_precondition`, naming them, while sandboxes that are not deleted use it or are made of it. */
  removeImage: { args: { readonly id: ImageId }; result: null };
  putKernel: { args: { readonly kernel: Kernel }; result: Kernel };
  /** `failed_precondition` for the default, while sandboxes that are not deleted boot it or are made of it, and while an image brings it, naming them. */
  removeKernel: { args: { readonly id: KernelId }; result: null };
  /** What sandboxes boot that name none; null: the one that Hutch chose. */
  setDefaultKernel: { args: { readonly id: KernelId | null }; result: null };

  /** `conflict` when there is one of that name. */
  createProject: { args: { readonly id: ProjectId; readonly name: string; readonly atMs: number }; result: Project };
  /** `conflict` when a key that is not revoked has that name in the project. */
  createKey: {
    args: { readonly id: KeyId; readonly projectId: ProjectId; readonly name: string; readonly sha256: string; readonly atMs: number };
    result: ApiKey;
  };
  touchKey: { args: { readonly id: KeyId; readonly atMs: number }; result: null };
  /** Idempotent: keeps the first time. */
  revokeKey: { args: { readonly id: KeyId; readonly atMs: number }; result: ApiKey };

  /** `not_found` for what is no image or kernel on record, or no sandbox. */
  acquireLease: { args: { readonly lease: Lease }; result: Lease };
  /** `not_found` for one that is over. */
  renewLease: { args: { readonly id: LeaseId; readonly atMs: number; readonly expiresAtMs: number }; result: Lease };
  releaseLease: { args: { readonly id: LeaseId }; result: null };
  /** Null takes a label away. Its result is all labels. */
  labelAsset: {
    args: { readonly id: string; readonly labels: Readonly<Record<string, string | null>> };
    result: Readonly<Record<string, string>>;
  };

  /**
   * All of it is on the disk: the row, its event and `snap.storage.start` with what of `holdings` counts for no other; its sandbox
   * stands on it from now on. `conflict` when the name is taken; `resource_exhausted` when the quota of its project would be passed. Rather than that, those of `mayGo` that are
   * kept to undo are removed, in that order, as few as make room, and none where all would not.
   */
  createSnapshot: {
    args: { readonly snapshot: NewSnapshot; readonly holdings: readonly Holding[]; readonly mayGo?: readonly SnapshotId[] };
    result: Snapshot;
  };
  /** What they hold of the disk, as it was found there. Where another sum counts for one than is on record, the ledger has it from now on. */
  settleHoldings: {
    args: { readonly of: readonly { readonly id: SnapshotId; readonly holdings: readonly Holding[] }[]; readonly atMs: number };
    result: null;
  };
  /**
   * What this transaction removed, deepest first, with `snap.storage.stop`; nothing when it was gone. What others hold of it counts
   * for them from then on, and the ledger says so. `failed_precondition`, naming them, while snapshots or sandboxes were made from it; with `cascade` the snapshots go too.
   */
  removeSnapshot: { args: { readonly id: SnapshotId; readonly cascade: boolean; readonly atMs: number }; result: readonly Snapshot[] };

  /** Its snapshot is on record, as by an earlier change of the same commit. The one of that name moves to it. */
  putTemplate: { args: { readonly template: Template }; result: Template };
  /** `failed_precondition` unless it is there, on that snapshot. */
  requireTemplate: { args: { readonly id: TemplateId; readonly snapshotId: SnapshotId }; result: null };
  warmTemplate: { args: { readonly id: TemplateId; readonly warm: Warmth; readonly atMs: number }; result: Template };
  /** `failed_precondition`, naming them, while snapshots or sandboxes were made from it, unless `force`. `removed`: snapshots. */
  removeTemplate: {
    args: { readonly id: TemplateId; readonly force: boolean; readonly atMs: number };
    result: { readonly template: Template; readonly removed: readonly Snapshot[] };
  };

  /** Its file is on the disk. `conflict` when the name is taken. */
  createVolume: { args: { readonly volume: Volume }; result: Volume };
  /** `failed_precondition`, naming them, while sandboxes mount it; `not_found`. */
  removeVolume: { args: { readonly id: VolumeId; readonly atMs: number }; result: Volume };
  growVolume: { args: { readonly id: VolumeId; readonly sizeMiB: number; readonly atMs: number }; result: Volume };
  markGuestWritten: { args: { readonly id: VolumeId }; result: null };

  /** `resource_exhausted` when a quota of builds would be passed. */
  beginBuild: { args: { readonly id: BuildId; readonly projectId: ProjectId; readonly atMs: number }; result: null };
  /** `never-began`: it does not count for its day. Of one that is not there nothing. */
  endBuild: { args: { readonly id: BuildId; readonly atMs: number; readonly how: 'ended' | 'never-began' }; result: null };
  /** Those that a daemon before left open. */
  endAllBuilds: { args: { readonly atMs: number }; result: null };
  /** What all projects of that tier may have from now on; made when it is not there. */
  setTier: { args: { readonly name: string; readonly bounds: Bounds }; result: null };
  /** `failed_precondition`, naming them, while projects have it; `not_found`. */
  removeTier: { args: { readonly name: string }; result: null };
  /** `not_found` for a tier that there is not. */
  setQuota: { args: { readonly projectId: ProjectId; readonly tier: string | null; readonly own: Bounds }; result: null };

  setSetting: { args: { readonly key: string; readonly value: unknown }; result: null };
  beat: { args: Record<never, never>; result: Heartbeat };

  /** Drops at most `PAGE_ROWS_MAX` rows of each that ended before; call again while `dropped` is that many. The ledger is never pruned. */
  prune: {
    args: {
      readonly eventsBeforeMs: number;
      readonly operationsBeforeMs: number;
      readonly tombstonesBeforeMs: number;
      readonly nowMs: number;
    };
    result: { readonly dropped: number; readonly more: boolean };
  };
};

export type ChangeName = keyof ChangeMap;
export type Change = { [K in ChangeName]: { readonly change: K } & ChangeMap[K]['args'] }[ChangeName];
export type ChangeResult<C> = C extends { readonly change: infer K extends ChangeName } ? ChangeMap[K]['result'] : never;
export type ChangeResults<T extends readonly Change[]> = { readonly [I in keyof T]: ChangeResult<T[I]> };

export type SandboxFilter = {
  readonly projectId?: ProjectId;
  /** Default: all but `deleted`. */
  readonly states?: readonly SandboxState[];
  /** All must match; a null value: the label exists. */
  readonly labels?: readonly { readonly key: string; readonly value: string | null }[];
};

/** What an image or a kernel cannot be removed for: a sandbox that is not deleted, or what was kept of one. */
export type AssetUser = { readonly kind: 'sandbox' | 'snapshot' | 'template'; readonly name: string };

export type QueryMap = {
  sandbox: { args: { readonly id: SandboxId }; result: Sandbox | null };
  /** Newest first. `limit` ≤ PAGE_ROWS_MAX, which is the default; a page of large ones has fewer. The last has no `nextCursor`. */
  sandboxes: {
    args: SandboxFilter & { readonly limit?: number; readonly cursor?: string | null };
    result: { readonly sandboxes: readonly Sandbox[]; readonly nextCursor: string | null };
  };
  countSandboxes: { args: SandboxFilter; result: number };
  /** What the reference may mean, tombstones by exact id only: for `resolveReference`. */
  sandboxCandidates: { args: { readonly projectId: ProjectId; readonly text: string }; result: readonly Sandbox[] };
  /** The deleted sandbox that had this name last, or whose shortened id it is. */
  lastDeleted: { args: { readonly projectId: ProjectId; readonly text: string }; result: Sandbox | null };
  /** Every sandbox that a process may still belong to: its compute interval is open. Oldest first. */
  openSandboxes: { args: Record<never, never>; result: readonly Sandbox[] };
  /** Ids of all sandboxes that are not deleted: for leak checks. */
  liveSandboxIds: { args: Record<never, never>; result: readonly SandboxId[] };

  operation: { args: { readonly id: OpId }; result: OperationRecord | null };
  /** Newest first. */
  operations: {
    args: { readonly projectId?: ProjectId; readonly state?: OperationState; readonly targetId?: string; readonly limit?: number };
    result: readonly OperationRecord[];
  };
  operationCandidates: { args: { readonly text: string }; result: readonly OperationRecord[] };

  /** Oldest first, after `after` (default: from the beginning). */
  events: {
    args: {
      readonly projectId?: ProjectId;
      readonly sandboxId?: SandboxId;
      readonly opId?: OpId;
      readonly after?: number;
      readonly limit?: number;
    };
    result: readonly EventRecord[];
  };
  /** The newest `limit`, oldest first. */
  lastEvents: {
    args: { readonly projectId?: ProjectId; readonly sandboxId?: SandboxId; readonly limit: number };
    result: readonly EventRecord[];
  };

  intents: { args: { readonly sandboxId?: SandboxId }; result: readonly Intent[] };
  uid: { args: { readonly sandboxId: SandboxId }; result: number | null };
  uids: { args: Record<never, never>; result: readonly { readonly uid: number; readonly sandboxId: SandboxId }[] };
  publishedPorts: { args: Record<never, never>; result: readonly (PublishedPort & { readonly sandboxId: SandboxId })[] };
  /** Requests without a reply yet: the start of the daemon decides about each. */
  openRequests: { args: Record<never, never>; result: readonly RequestRecord[] };

  image: { args: { readonly id: ImageId }; result: NamedImage | null };
  /** Newest first. */
  images: { args: Record<never, never>; result: readonly NamedImage[] };
  kernel: { args: { readonly id: KernelId }; result: Kernel | null };
  kernels: { args: Record<never, never>; result: readonly Kernel[] };
  defaultKernel: { args: Record<never, never>; result: KernelId | null };
  /** Names of the sandboxes that are not deleted, by the kernel that they boot. */
  kernelUsers: { args: Record<never, never>; result: readonly (AssetUser & { readonly id: KernelId })[] };
  /** Kernels that images bring, with a name of each such image. */
  kernelImages: { args: Record<never, never>; result: readonly { readonly id: KernelId; readonly image: string }[] };

  projects: { args: Record<never, never>; result: readonly Project[] };
  /** All projects that pulled, imported or built it. */
  imageProjects: { args: { readonly imageId: ImageId }; result: readonly ProjectId[] };
  /** Revoked ones too: the caller says so. */
  keyByHash: { args: { readonly sha256: string }; result: ApiKey | null };
  keys: { args: { readonly projectId?: ProjectId }; result: readonly ApiKey[] };

  imageUsers: { args: Record<never, never>; result: readonly (AssetUser & { readonly id: ImageId })[] };
  /** Those that hold. */
  leases: { args: { readonly atMs: number }; result: readonly Lease[] };
  /** By asset. */
  assetLabels: { args: Record<never, never>; result: Readonly<Record<string, Readonly<Record<string, string>>>> };
  /** When a sandbox last had it, for as long as its tombstone is kept. */
  assetUses: { args: Record<never, never>; result: readonly { readonly id: string; readonly atMs: number }[] };

  snapshot: { args: { readonly id: SnapshotId }; result: Snapshot | null };
  /** Newest first. */
  snapshots: {
    args: { readonly projectId?: ProjectId; readonly sandboxId?: SandboxId; readonly kind?: SnapshotKind };
    result: readonly Snapshot[];
  };
  /** Names of the sandboxes that are not deleted, by the snapshot that they were made from. */
  snapshotUsers: { args: Record<never, never>; result: readonly { readonly id: SnapshotId; readonly sandbox: string }[] };
  template: { args: { readonly id: TemplateId }; result: Template | null };
  /** By name. */
  templates: { args: { readonly projectId?: ProjectId }; result: readonly Template[] };
  volume: { args: { readonly id: VolumeId }; result: Volume | null };
  /** By name. */
  volumes: { args: { readonly projectId?: ProjectId }; result: readonly Volume[] };
  volumeUsers: { args: { readonly id?: VolumeId }; result: readonly VolumeUser[] };
  snapshotHoldings: { args: { readonly id: SnapshotId }; result: readonly Holding[] };
  /** The last one that was taken of a sandbox, or that it went on with. */
  snapshotHead: { args: { readonly sandboxId: SandboxId }; result: Snapshot | null };

  /** Of every project, what it may have and what it uses. */
  /** `atMs`: now, of which the last 24 hours count. */
  quotas: { args: { readonly atMs: number }; result: readonly ProjectQuota[] };
  /** What holds for one project. */
  quotaBounds: { args: { readonly projectId: ProjectId }; result: ProjectQuota['bounds'] };
  /** Throws `resource_exhausted` where a snapshot of that size would pass the quota of its project. `atMs`: now. */
  snapshotRoom: { args: { readonly projectId: ProjectId; readonly bytes: number; readonly atMs: number }; result: null };
  tiers: { args: Record<never, never>; result: readonly Tier[] };

  setting: { args: { readonly key: string }; result: unknown };
  /**
   * The last heartbeat of one boot, or of the newest one that is not `otherThan`: until then at least,
   * what ran in it is known to have lived. Without either: the newest.
   */
  heartbeat: { args: { readonly bootId?: string; readonly otherThan?: string }; result: Heartbeat | null };

  /** In order, after sequence `after`. */
  ledger: { args: { readonly after: number; readonly limit?: number; readonly sandboxId?: SandboxId }; result: readonly LedgerEntry[] };
  ledgerHead: { args: Record<never, never>; result: { readonly sequence: number; readonly hash: string } };
  /** Checks one page of the chain; the whole is `verifyLedger` in src/metering. */
  checkLedger: { args: { readonly from: LedgerPosition; readonly limit?: number }; result: LedgerCheck };

  health: {
    args: Record<never, never>;
    result: { readonly schemaVersion: number; readonly pageCount: number; readonly sizeBytes: number };
  };
};

export type LedgerPosition = { readonly sequence: number; readonly hash: string };
/** `at`: the last entry that is whole and in its place. */
export type LedgerCheck = { readonly at: LedgerPosition } & (
  | { readonly state: 'more' | 'whole' }
  | { readonly state: 'broken'; readonly sequence: number; readonly problem: string }
);

export type QueryName = keyof QueryMap;

/** Whether power loss may undo it. A killed daemon undoes neither. */
export type Durability = 'durable' | 'relaxed';

/** Who commits: an `Operation`, or the part of it that is written down. */
export type Committer = { readonly id: OpId; readonly actor: string };

export type RequestClaim = {
  readonly apiKeyId: KeyId;
  readonly key: string;
  /** SHA-256 of verb and body. */
  readonly requestHash: string;
  readonly targetId?: string;
};

export type Claimed<R> =
  /** First use: the changes are committed; finish or release it later. */
  | { readonly outcome: 'claimed'; readonly results: R }
  /** The first call is still under way. Nothing was changed. */
  | { readonly outcome: 'running'; readonly request: RequestRecord }
  /** Give this reply again. Nothing was changed. */
  | { readonly outcome: 'done'; readonly request: RequestRecord };

/**
 * One whole transaction a call. Commits are carried out in the order in which they were made; a query
 * sees every commit that had resolved when it was asked. Nothing here hears cancellation: once asked, a commit is
 * carried to its end, since the record must not depend on a client's patience. An answer that takes
 * longer than `STORE_ANSWER_MS` is `unavailable`.
 */
export type Store = {
  readonly path: string;
  readonly defaultProjectId: ProjectId;
  readonly schemaVersion: number;
  /** How the last daemon left it; after `unclean` the store was checked. */
  readonly lastClose: 'new' | 'clean' | 'unclean';
  commit<const T extends readonly Change[]>(op: Committer, changes: T, durability?: Durability): Promise<ChangeResults<T>>;
  /** `conflict` when the key was used for another request. */
  claim<const T extends readonly Change[]>(
    op: Committer,
    claim: RequestClaim,
    changes: T,
    durability?: Durability,
  ): Promise<Claimed<ChangeResults<T>>>;
  query<K extends QueryName>(name: K, args: QueryMap[K]['args']): Promise<QueryMap[K]['result']>;
  /** Called after each commit that added events or ledger entries. Returns what ends it. */
  onCommit(listener: (news: CommitNews) => void): () => void;
  /** Copies all that was committed into a file that is there, empty. Commits wait meanwhile. */
  copyInto(op: Committer, path: string): Promise<void>;
  /** Waits for what was asked, then checkpoints and closes. */
  close(): Promise<void>;
};

export type CommitNews = { readonly lastEventCursor: number; readonly lastLedgerSequence: number };
