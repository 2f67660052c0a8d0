// What a sandbox is and every way in which it may change. `transition` is the only function that
// changes a state; each state carries exactly what exists in it.
//
// Beside the state stands `openComputeSinceMs`, the sentinel that is billed: set by what starts the
// process, null again only once the process is *proven* dead. `failed` does not prove that, so an
// `error` sandbox may still have it set: an open interval is the safe side.
//
// Times within one sandbox never run backwards: an event whose clock was stepped back counts as
// simultaneous with the last change, so that intervals cannot overlap or be negative.
import type { FileSync } from './file-sync.ts';
import type { ImageId, KernelId, OpId, ProjectId, SandboxId, SnapshotId } from './ids.ts';
import type { Mount } from './mount.ts';

/** What a record may name. */
export const BACKENDS = ['qemu', 'gvisor', 'docker', 'firecracker', 'cloud-hypervisor'] as const;
export type BackendName = (typeof BACKENDS)[number];

/** Those that this release has: what is offered to whoever chooses one. */
export const BACKENDS_HERE = ['qemu', 'gvisor', 'docker'] as const satisfies readonly BackendName[];

export type Shape = {
  readonly cpus: number;
  readonly memoryMiB: number;
  readonly diskMiB: number;
  /** Most processes and threads at once; absent: what the backend takes for enough. */
  readonly pids?: number;
};

/** `allow` reaches the internet, `allow-lan` private ranges too, `none` nothing. The host itself never. */
export const NETWORK_MODES = ['none', 'allow', 'allow-lan'] as const;
export type NetworkMode = (typeof NETWORK_MODES)[number];

/** Whether it is started again when it has ended by itself, or with its host. */
export const RESTART_POLICIES = ['no', 'on-failure', 'always'] as const;
export type RestartPolicy = (typeof RESTART_POLICIES)[number];

/** What becomes of one that nobody has touched for as long as it may be left alone. */
export const IDLE_ACTIONS = ['stop', 'suspend'] as const;
export type IdleAction = (typeof IDLE_ACTIONS)[number];

/** The command a sandbox was made for. Secret values are not here: they lie in a file of the sandbox's own. */
export type MainProcess = {
  readonly argv: readonly string[];
  readonly tty: boolean;
  /** Whether the process reads from an attached client; otherwise its stdin is /dev/null. */
  readonly stdin: 'open' | 'null';
};

/** What of a git repository was copied into the sandbox. Told by the client that did it: the daemon never sees the repository. */
export type Workspace = {
  /** Directory and repository on the client's machine. */
  readonly sourcePath: string;
  readonly repoRoot: string;
  readonly repoName: string;
  /** Where its files lie in the sandbox. */
  readonly guestPath: string;
  readonly mode: 'shallow_overlay' | 'full_copy' | 'metadata_only';
  readonly includesUntracked: boolean;
  /** Null: the repository has no commit yet. */
  readonly headCommit: string | null;
  /** Null: HEAD is detached. */
  readonly branch: string | null;
  /** A commit with exactly the files that were copied: `headCommit` itself, or a child of it that has what was not committed. */
  readonly baseCommit: string;
  readonly preparedAtMs: number;
};

/** What was asked for while it could not take effect: so it is from its next start on. */
export type Pending = Partial<Shape> & { readonly network?: NetworkMode };

/** What was asked for: fixed at creation, but for the name, what `changed` changes, and what a running sandbox is given later. */
export type SandboxSpec = {
  readonly name: string;
  readonly backend: BackendName;
  readonly imageId: ImageId;
  readonly kernelId: KernelId | null;
  readonly shape: Shape;
  readonly network: NetworkMode;
  readonly env: Readonly<Record<string, string>>;
  /** Names of the secrets; each is an environment variable of every process in the sandbox. */
  readonly secretNames: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
  readonly workdir: string | null;
  readonly user: string | null;
  readonly main: MainProcess | null;
  /** Delete the sandbox once its main process has ended. */
  readonly autoRemove: boolean;
  /** The sandbox is stopped this long after each start; null: it has no limit. */
  readonly timeoutMs: number | null;
  /** Absent: none. */
  readonly mounts?: readonly Mount[];
  /** Paths of devices of this machine; absent: none. */
  readonly devices?: readonly string[];
  /** Files of its owner's that it got, or gets with its first start; absent: none. */
  readonly fileSync?: readonly FileSync[];
  readonly workspace?: Workspace;
  /** Absent: `no`. */
  readonly restart?: RestartPolicy;
  /** It is stopped when nobody has touched it for so long; 0: never; absent: as configured. */
  readonly idleMs?: number;
  /** Absent: `stop`. What is suspended so goes on with the next call or connection. */
  readonly idleAction?: IdleAction;
  /** Before each exec a snapshot is kept, so many of them; absent: none. */
  readonly undo?: number;
  readonly pending?: Pending;
  /** Somebody stopped it before it was started again by itself: it waits for somebody to start it. */
  readonly held?: true;
};

/** What may be changed later. Null: as if it had never been asked for. */
export type SpecChange = Partial<Pick<SandboxSpec, 'shape' | 'network' | 'labels' | 'timeoutMs' | 'restart' | 'idleAction' | 'undo'>> & {
  readonly idleMs?: number | null;
  readonly pending?: Pending | null;
  readonly held?: true;
};

export type SnapshotSource = { readonly snapshotId: SnapshotId; readonly parentId: SandboxId | null };

/** Why a sandbox runs. */
export type StartReason = 'boot' | 'restart' | 'clone' | 'restore' | 'hibernate-wake';
/** Why its compute interval closed. */
export type StopReason = 'stop-user' | 'stop-crash' | 'restore' | 'hibernate';
/** Why it is not running: what a person asks for first. */
export const END_CAUSES = [
  'exited', // the main process ended
  'stopped', // somebody asked
  'timeout', // its time was up
  'idle', // nobody had touched it for as long as it may be left alone
  'crashed', // the VMM or runtime ended by itself
  'guest-shutdown', // the guest powered itself off
  'host-stopped', // somebody on the host asked what it runs in to end, and not us: `docker stop`, an Engine that is stopped
  'host-reboot', // the host is not the one it ran on any more
] as const;
export type EndCause = (typeof END_CAUSES)[number];

export type Ended = {
  readonly cause: EndCause;
  /** Of the main process: 0 to 255; null when there was none, or it was not seen to end. */
  readonly exitCode: number | null;
  readonly oomKilled: boolean;
  /** Who or what did it: `key…`, `daemon`, `guest`, `host`. */
  readonly actor: string;
  readonly atMs: number;
};

type Fixed = {
  readonly id: SandboxId;
  readonly projectId: ProjectId;
  readonly spec: SandboxSpec;
  readonly createdAtMs: number;
  readonly changedAtMs: number;
  /** Grows by one with each transition. */
  readonly generation: number;
  readonly startCount: number;
  readonly openComputeSinceMs: number | null;
  readonly openPauseSinceMs: number | null;
  /** The last change that proves the process alive (start, pause, resume): it cannot have died before. Null with `openComputeSinceMs`. */
  readonly aliveAtMs: number | null;
  /** The operation that made the last change. */
  readonly lastOpId: OpId;
};

export type Sandbox = Fixed &
  (
    | { readonly state: 'created' }
    | { readonly state: 'running'; readonly sinceMs: number; readonly deadlineAtMs: number | null }
    | { readonly state: 'paused'; readonly sinceMs: number; readonly deadlineAtMs: number | null }
    | { readonly state: 'suspended'; readonly snapshotId: SnapshotId; readonly sinceMs: number }
    | { readonly state: 'stopped'; readonly ended: Ended }
    /** `snapshotId`: the memory on disk of one that was suspended. */
    | { readonly state: 'error'; readonly cause: string; readonly ended: Ended | null; readonly snapshotId: SnapshotId | null }
    | { readonly state: 'deleted'; readonly deletedAtMs: number }
  );

export type SandboxState = Sandbox['state'];

/** What all events carry. The time comes in with the event: this module has no clock. */
type Stamp = { readonly atMs: number; readonly opId: OpId };

/** How a sandbox begins: its disk exists. With a source it is a clone. */
export type SandboxCreation = Stamp & { readonly type: 'created'; readonly source?: SnapshotSource };

export type SandboxEvent = Stamp &
  (
    | {
        readonly type: 'started';
        readonly reason: StartReason;
        readonly deadlineAtMs: number | null;
        readonly source?: SnapshotSource;
        /** What a restore brought along, where it differs from the spec. */
        readonly shape?: Shape;
        readonly evidence?: string;
      }
    | { readonly type: 'paused' }
    | { readonly type: 'resumed' }
    /** Memory and disk are durable and the process is proven dead. */
    | { readonly type: 'suspended'; readonly snapshotId: SnapshotId; readonly evidence?: string }
    /** The process is proven dead at `diedAtMs` (≤ atMs), with the evidence that proves it. */
    | {
        readonly type: 'ended';
        readonly reason: StopReason;
        readonly ended: Ended;
        readonly diedAtMs: number;
        readonly evidence: string;
        readonly source?: SnapshotSource;
      }
    /** Something is wrong and nothing is proven: the compute interval stays open. */
    | { readonly type: 'failed'; readonly cause: string }
    /** What `failed` doubted turned out to be alive and well: back to running, or paused if it was. Nothing is billed anew. */
    | { readonly type: 'recovered'; readonly deadlineAtMs: number | null }
    | { readonly type: 'renamed'; readonly name: string }
    /** A new shape of one that runs is in force already. `deadlineAtMs`: of one that runs. */
    | { readonly type: 'changed'; readonly change: SpecChange; readonly deadlineAtMs?: number | null }
    /** It had no main process, and has one now. */
    | { readonly type: 'begun'; readonly main: MainProcess }
    | { readonly type: 'prepared'; readonly workspace: Workspace }
    /**
     * Everything the sandbox had on the host is gone. `process` says what proved its process dead, where one was open; `diedAtMs` when the
     * process died that was ended for it: its storage is billed until then as well.
     */
    | { readonly type: 'deleted'; readonly process: ProcessEnd | null; readonly diedAtMs?: number }
  );

/** `diedAtMs` absent: at the moment of the event, as when this very operation killed it. */
export type ProcessEnd = { readonly reason: 'stop-user' | 'stop-crash'; readonly evidence: string; readonly diedAtMs?: number };

export type IllegalTransition = { readonly illegal: SandboxEvent['type']; readonly from: SandboxState };

/** Every legal edge on one screen. The docs' diagram and the property tests are made from it. */
export const ACCEPTS = {
  created: ['started', 'failed', 'renamed', 'changed', 'deleted'],
  running: ['paused', 'suspended', 'ended', 'failed', 'renamed', 'changed', 'begun', 'prepared', 'deleted'],
  paused: ['resumed', 'suspended', 'ended', 'failed', 'renamed', 'changed', 'deleted'],
  suspended: ['started', 'ended', 'failed', 'renamed', 'changed', 'deleted'],
  stopped: ['started', 'failed', 'renamed', 'changed', 'deleted'],
  error: ['started', 'ended', 'failed', 'recovered', 'renamed', 'changed', 'deleted'],
  deleted: [],
} as const satisfies Record<SandboxState, readonly SandboxEvent['type'][]>;

export type NewSandbox = {
  readonly id: SandboxId;
  readonly projectId: ProjectId;
  readonly spec: SandboxSpec;
  readonly atMs: number;
  readonly opId: OpId;
};

/** The only way in which a sandbox begins. */
export function newSandbox({ id, projectId, spec, atMs, opId }: NewSandbox): Sandbox {
  return {
    id,
    projectId,
    spec,
    createdAtMs: atMs,
    changedAtMs: atMs,
    generation: 1,
    startCount: 0,
    openComputeSinceMs: null,
    openPauseSinceMs: null,
    aliveAtMs: null,
    lastOpId: opId,
    state: 'created',
  };
}

/**
 * Applies one event. A refusal is a value; the store makes it a `failed_precondition`.
 * `started` refuses while a compute interval is open (the caller must first record the death of the
 * old process with `ended`), and `deleted` refuses to forget an open one without proof.
 */
export function transition(sandbox: Sandbox, event: SandboxEvent): Sandbox | IllegalTransition {
  const accepts: readonly SandboxEvent['type'][] = ACCEPTS[sandbox.state];
  const illegal: IllegalTransition = { illegal: event.type, from: sandbox.state };
  if (!accepts.includes(event.type)) return illegal;
  const fixed = fixedOf(sandbox, event);
  const atMs = fixed.changedAtMs;
  switch (event.type) {
    case 'started':
      if (sandbox.openComputeSinceMs !== null || !mayStartBy(sandbox, event.reason)) return illegal;
      return {
        ...fixed,
        spec: startedSpec(sandbox.spec, event.shape),
        state: 'running',
        sinceMs: atMs,
        deadlineAtMs: event.deadlineAtMs,
        // What wakes up goes on with the start that it had.
        startCount: sandbox.startCount + (event.reason === 'hibernate-wake' ? 0 : 1),
        openComputeSinceMs: atMs,
        openPauseSinceMs: null,
        aliveAtMs: atMs,
      };
    case 'paused':
      return { ...fixed, state: 'paused', sinceMs: atMs, deadlineAtMs: deadlineOf(sandbox), openPauseSinceMs: atMs, aliveAtMs: atMs };
    case 'resumed':
      return { ...fixed, state: 'running', sinceMs: atMs, deadlineAtMs: deadlineOf(sandbox), openPauseSinceMs: null, aliveAtMs: atMs };
    case 'suspended':
      return { ...fixed, ...CLOSED, state: 'suspended', snapshotId: event.snapshotId, sinceMs: atMs };
    case 'ended':
      return { ...fixed, ...CLOSED, state: 'stopped', ended: event.ended };
    case 'failed':
      return { ...fixed, state: 'error', cause: event.cause, ended: endedOf(sandbox), snapshotId: snapshotOf(sandbox) };
    case 'recovered': {
      if (sandbox.openComputeSinceMs === null) return illegal;
      const state = sandbox.openPauseSinceMs === null ? 'running' : 'paused';
      return { ...fixed, state, sinceMs: atMs, deadlineAtMs: event.deadlineAtMs, aliveAtMs: atMs };
    }
    case 'renamed':
      return { ...sandbox, ...fixed, spec: { ...sandbox.spec, name: event.name } };
    case 'changed': {
      const isReshaped = event.change.shape !== undefined && !sameShape(event.change.shape, sandbox.spec.shape);
      if (isReshaped && !mayReshape(sandbox)) return illegal;
      const isAwake = sandbox.state === 'running' || sandbox.state === 'paused';
      return {
        ...sandbox,
        ...fixed,
        spec: changedSpec(sandbox.spec, event.change),
        // Its process has just taken the new shape, so it lives.
        ...(isReshaped && isAwake ? { aliveAtMs: atMs } : {}),
        ...(isAwake && event.deadlineAtMs !== undefined ? { deadlineAtMs: event.deadlineAtMs } : {}),
      };
    }
    case 'begun':
      if (sandbox.spec.main !== null) return illegal;
      return { ...sandbox, ...fixed, spec: { ...sandbox.spec, main: event.main } };
    case 'prepared':
      return { ...sandbox, ...fixed, spec: { ...sandbox.spec, workspace: event.workspace } };
    case 'deleted':
      if (sandbox.openComputeSinceMs !== null && event.process === null) return illegal;
      return { ...fixed, ...CLOSED, state: 'deleted', deletedAtMs: atMs };
    default:
      return unreachable(event);
  }
}

/** Why a transition was refused, for people. */
export function illegalSentence(sandbox: Sandbox, { illegal, from }: IllegalTransition): string {
  const what = `sandbox ${sandbox.spec.name} (${sandbox.id}) is ${from === 'error' ? 'in error' : from}`;
  if (illegal === 'started' && sandbox.openComputeSinceMs !== null)
    return `${what} and its process is not proven dead; it cannot be started`;
  if (illegal === 'changed' && from !== 'deleted') return `${what}; its shape can be changed only when it is started again`;
  if (illegal === 'begun' && sandbox.spec.main !== null) return `${what} and has a main process; it cannot be given another`;
  if (illegal === 'deleted' && from !== 'deleted') return `${what} and its process is not proven dead; it cannot be deleted`;
  return `${what}; it cannot be ${illegal}`;
}

/** What is billed: processes are not. */
export function sameSize(left: Shape, right: Shape): boolean {
  return left.cpus === right.cpus && left.memoryMiB === right.memoryMiB && left.diskMiB === right.diskMiB;
}

export function sameShape(left: Shape, right: Shape): boolean {
  return sameSize(left, right) && left.pids === right.pids;
}

/** What its next start makes of it. */
export function withPending(spec: SandboxSpec): SandboxSpec {
  const { pending, ...rest } = spec;
  if (pending === undefined) return spec;
  const { network = spec.network, ...shape } = pending;
  return { ...rest, shape: { ...spec.shape, ...shape }, network };
}

/** Saved memory has its shape, and so has a process that stands still or is in doubt. */
function mayReshape(sandbox: Sandbox): boolean {
  return sandbox.state === 'running' || (sandbox.openComputeSinceMs === null && sandbox.state !== 'suspended');
}

function startedSpec({ held: _, ...spec }: SandboxSpec, shape: Shape | undefined): SandboxSpec {
  return shape === undefined ? spec : { ...spec, shape };
}

function changedSpec(spec: SandboxSpec, { idleMs, pending, ...plain }: SpecChange): SandboxSpec {
  const { idleMs: idleBefore, pending: pendingBefore, ...rest } = spec;
  const idle = idleMs === undefined ? idleBefore : idleMs;
  const waiting = pending === undefined ? pendingBefore : pending;
  return {
    ...rest,
    ...plain,
    ...(idle === undefined || idle === null ? {} : { idleMs: idle }),
    ...(waiting === undefined || waiting === null || Object.keys(waiting).length === 0 ? {} : { pending: waiting }),
  };
}

const CLOSED = { openComputeSinceMs: null, openPauseSinceMs: null, aliveAtMs: null } as const;

/** A clone starts as one only the first time, and only what has its memory on disk can wake. */
function mayStartBy(sandbox: Sandbox, reason: StartReason): boolean {
  if (reason === 'clone') return sandbox.startCount === 0;
  if (reason === 'hibernate-wake') return snapshotOf(sandbox) !== null;
  return true;
}

function fixedOf(sandbox: Sandbox, event: SandboxEvent): Fixed {
  const { id, projectId, spec, createdAtMs, changedAtMs, generation, startCount, openComputeSinceMs, openPauseSinceMs, aliveAtMs } =
    sandbox;
  return {
    id,
    projectId,
    spec,
    createdAtMs,
    changedAtMs: Math.max(changedAtMs, event.atMs),
    generation: generation + 1,
    startCount,
    openComputeSinceMs,
    openPauseSinceMs,
    aliveAtMs,
    lastOpId: event.opId,
  };
}

function deadlineOf(sandbox: Sandbox): number | null {
  return sandbox.state === 'running' || sandbox.state === 'paused' ? sandbox.deadlineAtMs : null;
}

function endedOf(sandbox: Sandbox): Ended | null {
  return sandbox.state === 'stopped' || sandbox.state === 'error' ? sandbox.ended : null;
}

function snapshotOf(sandbox: Sandbox): SnapshotId | null {
  return sandbox.state === 'suspended' || sandbox.state === 'error' ? sandbox.snapshotId : null;
}

function unreachable(event: never): never {
  throw new Error(`unhandled sandbox event ${JSON.stringify(event)}`);
}
