// What is written down about work and people: operations, events, projects, keys, intents, and the
// requests that must not be done twice.
import type { ErrorBody } from './errors.ts';
import type { KeyId, LeaseId, OpId, ProjectId, SandboxId } from './ids.ts';

export type JsonObject = Readonly<Record<string, unknown>>;

export const OPERATION_STATES = ['running', 'done', 'failed', 'cancelled', 'interrupted'] as const;
/** `interrupted`: the daemon ended while it ran. */
export type OperationState = (typeof OPERATION_STATES)[number];

/** One thing asked of the daemon; kept for `why`. */
export type OperationRecord = {
  readonly id: OpId;
  readonly verb: string;
  readonly projectId: ProjectId | null;
  /** What it works on, once that is known. */
  readonly targetId: string | null;
  readonly actor: string;
  readonly state: OperationState;
  readonly step: string | null;
  readonly done: number | null;
  readonly total: number | null;
  readonly startedAtMs: number;
  readonly endedAtMs: number | null;
  readonly error: ErrorBody | null;
  readonly traceparent: string | null;
};

/** One thing that happened. Cursors only grow; old events are dropped by age. */
export type EventRecord = {
  readonly cursor: number;
  readonly atMs: number;
  readonly type: string;
  readonly projectId: ProjectId | null;
  readonly sandboxId: SandboxId | null;
  /** As it was called then. */
  readonly sandboxName: string | null;
  readonly opId: OpId | null;
  readonly actor: string;
  readonly detail: JsonObject;
};

export type Project = { readonly id: ProjectId; readonly name: string; readonly createdAtMs: number };

/** The key itself is nowhere: only its SHA-256. */
export type ApiKey = {
  readonly id: KeyId;
  readonly projectId: ProjectId;
  readonly name: string;
  readonly createdAtMs: number;
  readonly lastUsedAtMs: number | null;
  readonly revokedAtMs: number | null;
};

/** A side effect that is about to happen, written down first: the next start finishes or undoes it. */
export type Intent = {
  readonly id: number;
  readonly kind: string;
  readonly projectId: ProjectId;
  readonly sandboxId: SandboxId | null;
  /** A name that nobody else may take meanwhile. */
  readonly reservedName: string | null;
  readonly opId: OpId;
  readonly createdAtMs: number;
  readonly detail: JsonObject;
};

/** One use of an Idempotency-Key. `reply` is null while the first call is under way. */
export type RequestRecord = {
  readonly apiKeyId: KeyId;
  readonly key: string;
  readonly requestHash: string;
  readonly opId: OpId;
  /** What the first call works on, so that a second one can join it. */
  readonly targetId: string | null;
  readonly createdAtMs: number;
  readonly reply: unknown;
};

/** The last moment at which the daemon is known to have been alive, and in which boot. */
export type Heartbeat = { readonly bootId: string; readonly atMs: number; readonly monotonicMs: number };

/** Keeps a kernel or an image from being removed. */
export type Lease = {
  readonly id: LeaseId;
  readonly assetId: string;
  /** Who wanted it, for people. */
  readonly holder: string;
  /** Whose it is: it holds as long as that is not deleted. */
  readonly sandboxId: SandboxId | null;
  readonly createdAtMs: number;
  readonly expiresAtMs: number;
};
