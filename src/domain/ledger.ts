// What is billed, and when. `ledgerEntries` is the one place that decides which endpoints a change of
// a sandbox puts into the ledger; the store seals what it returns (sequence, clock, hash) in the same
// transaction as the change. Always true:
//   1. A compute interval is open exactly while `openComputeSinceMs` is set. It is a sentinel, not a
//      comparison of times: a clock stepped back can neither hide nor invent an interval.
//   2. Entries of one change share one instant, but for a stop whose process died earlier: that one
//      carries the moment of death, so a crash is never billed until somebody noticed it.
//   3. Paused time is an overlay inside the open compute interval.
//   4. `failed` proves nothing and so emits nothing.
//   5. An interval has one shape: one that is changed while it runs, or between two runs, closes what is open and opens it anew.
import type { OpId, ProjectId, SandboxId, SnapshotId, VolumeId } from './ids.ts';
import {
  type BackendName,
  type Sandbox,
  type SandboxCreation,
  type SandboxEvent,
  type Shape,
  type SnapshotSource,
  type StartReason,
  type StopReason,
  sameSize,
} from './sandbox.ts';

/** Kinds that the Cocoon format has too. Their names are frozen: consumers key on them. */
export const COCOON_KINDS = [
  'vm.compute.start',
  'vm.compute.stop',
  'vm.storage.start',
  'vm.storage.stop',
  'snap.storage.start',
  'snap.storage.stop',
] as const;
/** All kinds. */
export const LEDGER_KINDS = [...COCOON_KINDS, 'vm.paused.start', 'vm.paused.stop', 'volume.storage.start', 'volume.storage.stop'] as const;
export type CocoonKind = (typeof COCOON_KINDS)[number];
export type LedgerKind = (typeof LEDGER_KINDS)[number];

/** The first nine are Cocoon's, frozen as the kinds are. */
export const LEDGER_REASONS = [
  'boot',
  'restart',
  'clone',
  'restore',
  'hibernate-wake',
  'stop-user',
  'stop-crash',
  'vm-rm',
  'snap-rm',
  'hibernate',
  'pause',
  'resume',
  'set',
  'volume-rm',
  'recount',
] as const;
export type LedgerReason = (typeof LEDGER_REASONS)[number];

/** What was in use. Members that mean nothing for a kind are absent. */
export type LedgerShape = { readonly cpus?: number; readonly memoryBytes?: number; readonly storageBytes?: number };

/** One endpoint of an interval, before the store has sealed it. */
export type LedgerDraft = {
  readonly kind: LedgerKind;
  readonly reason: LedgerReason | null;
  /** The billed instant. Per sandbox these never run backwards within a kind. */
  readonly atMs: number;
  readonly projectId: ProjectId;
  readonly sandboxId: SandboxId | null;
  readonly snapshotId: SnapshotId | null;
  readonly sourceSnapshotId: SnapshotId | null;
  readonly parentId: SandboxId | null;
  readonly backend: BackendName | null;
  readonly shape: LedgerShape;
  readonly opId: OpId;
  /** What proves it, where something had to be proven: `exit.json: signal SIGKILL`, `boot-id`, … */
  readonly evidence: string | null;
  /** In entries of volumes alone. */
  readonly volumeId?: VolumeId;
};

/** One entry as it stands in the ledger. */
export type LedgerEntry = LedgerDraft & {
  /** From 1, without gaps. */
  readonly sequence: number;
  /** A ULID, for consumers that must not count one entry twice. */
  readonly id: string;
  /** Wall clock when it was recorded; may be later than `atMs`, or earlier if the clock was stepped back. */
  readonly emittedAtMs: number;
  /** Since the boot `bootId`: true durations, whatever the wall clock did. */
  readonly monotonicMs: number;
  readonly bootId: string;
  /** `hash` of the entry before; 64 zeros for the first. */
  readonly previousHash: string;
  readonly hash: string;
};

/** What a change puts into the ledger, in order. `before` is null for a new sandbox. */
export function ledgerEntries(before: Sandbox | null, after: Sandbox, event: SandboxEvent | SandboxCreation): readonly LedgerDraft[] {
  const atMs = after.changedAtMs;
  if (before === null || event.type === 'created') {
    const source = event.type === 'created' ? event.source : undefined;
    return [draft(after, 'vm.storage.start', source === undefined ? 'boot' : 'clone', atMs, { source })];
  }
  switch (event.type) {
    case 'started': {
      const reason = startReason(before, event.reason);
      const { source, evidence } = event;
      const compute = draft(after, 'vm.compute.start', reason, atMs, { source, evidence });
      if (reason !== 'restore') return [compute];
      return [
        draft(before, 'vm.storage.stop', reason, atMs, { source }),
        draft(after, 'vm.storage.start', reason, atMs, { source }),
        compute,
      ].map((entry) => ({ ...entry, opId: event.opId }));
    }
    case 'paused':
      return [draft(after, 'vm.paused.start', 'pause', atMs, {})];
    case 'resumed':
      return [draft(after, 'vm.paused.stop', 'resume', atMs, {})];
    case 'suspended':
      return closing(before, after, 'hibernate', atMs, { evidence: event.evidence });
    case 'ended':
      return closing(before, after, event.reason, event.diedAtMs, { evidence: event.evidence, source: event.source });
    case 'deleted':
      return [
        ...(event.process === null ? [] : closing(before, after, event.process.reason, event.process.diedAtMs ?? atMs, event.process)),
        draft(after, 'vm.storage.stop', 'vm-rm', Math.min(atMs, Math.max(event.diedAtMs ?? atMs, before.createdAtMs)), {}),
      ];
    case 'changed': {
      if (sameSize(before.spec.shape, after.spec.shape)) return [];
      const isOpen = before.openComputeSinceMs !== null;
      return [
        ...(isOpen ? [draft(before, 'vm.compute.stop', 'set', atMs, {})] : []),
        draft(before, 'vm.storage.stop', 'set', atMs, {}),
        draft(after, 'vm.storage.start', 'set', atMs, {}),
        ...(isOpen ? [draft(after, 'vm.compute.start', 'set', atMs, {})] : []),
      ].map((entry) => ({ ...entry, opId: event.opId }));
    }
    case 'failed':
    case 'recovered':
    case 'renamed':
    case 'begun':
    case 'prepared':
      return [];
  }
}

/**
 * When a process died, as well as can be known: what the evidence says, else the last heartbeat of
 * the daemon, always between the last proof of life and now.
 */
export function deathTimeMs(
  sandbox: Sandbox,
  known: { readonly diedAtMs: number | null; readonly lastBeatMs: number | null; readonly nowMs: number },
): number {
  return clampToLife(sandbox, known.diedAtMs ?? known.lastBeatMs ?? known.nowMs, Math.max(known.nowMs, sandbox.changedAtMs));
}

type Extra = { readonly source?: SnapshotSource | undefined; readonly evidence?: string | undefined };

/** The stop of the open interval, if one is open, and before it that of the pause inside. */
function closing(before: Sandbox, after: Sandbox, reason: StopReason, diedAtMs: number, extra: Extra): readonly LedgerDraft[] {
  if (before.openComputeSinceMs === null) return [];
  const atMs = clampToLife(before, diedAtMs, after.changedAtMs);
  const compute = draft(after, 'vm.compute.stop', reason, atMs, extra);
  return before.openPauseSinceMs === null ? [compute] : [draft(after, 'vm.paused.stop', reason, atMs, {}), compute];
}

function clampToLife(sandbox: Sandbox, atMs: number, nowMs: number): number {
  return Math.min(nowMs, Math.max(atMs, sandbox.aliveAtMs ?? sandbox.openComputeSinceMs ?? atMs));
}

/** Callers need not know whether it is the first start. */
function startReason(before: Sandbox, reason: StartReason): StartReason {
  if (reason !== 'boot' && reason !== 'restart') return reason;
  return before.startCount === 0 ? 'boot' : 'restart';
}

function draft(sandbox: Sandbox, kind: LedgerKind, reason: LedgerReason, atMs: number, { source, evidence }: Extra): LedgerDraft {
  return {
    kind,
    reason,
    atMs,
    projectId: sandbox.projectId,
    sandboxId: sandbox.id,
    snapshotId: null,
    sourceSnapshotId: source?.snapshotId ?? null,
    parentId: source?.parentId ?? null,
    backend: sandbox.spec.backend,
    shape: ledgerShape(sandbox.spec.shape),
    opId: sandbox.lastOpId,
    evidence: evidence ?? null,
  };
}

function ledgerShape({ cpus, memoryMiB, diskMiB }: Shape): LedgerShape {
  return { cpus, memoryBytes: memoryMiB * MIB, storageBytes: diskMiB * MIB };
}

const MIB = 1_048_576;
