// The interface that every backend implements, and what it may assume. A backend knows nothing of
// the store, the API or other backends: the service passes in everything, records intents before and
// results after each call, and never calls two methods of one sandbox at once (but `stats` and the
// agent stream). Every method is safe to call again after a crash at any point of an earlier call.
import type { Duplex } from 'node:stream';
import type { ProjectId, SandboxId } from '../domain/ids.ts';
import type { Image } from '../domain/image.ts';
import type { Mount } from '../domain/mount.ts';
import type { BackendName, NetworkMode, Shape } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { Snapshots } from './snapshots.ts';

/** How far a limit holds on this machine. */
export type Enforcement = 'enforced' | 'host-process' | 'no';
/** When a change takes effect: while it runs, at its next start, or never. */
export type ChangeWhen = 'live' | 'next-start' | 'no';
export type Isolation = 'vm' | 'user-space-kernel' | 'shared-kernel';

/** How a note of a backend begins that says why it has no hardware virtualization. */
export const NO_KVM = 'no KVM: ';
/** How that note ends where nobody is helped by being let in. */
export const RUNS_NOTHING_AS_ROOT = 'no guest runs under it as root either';

/** What this backend can do on this machine, as data: listed by the API, tested both ways by the conformance suite. */
export type Capabilities = {
  readonly isolation: Isolation;
  /** A shared kernel is no security boundary. */
  readonly securityBoundary: boolean;
  readonly pause: boolean;
  readonly suspend: boolean;
  readonly fork: boolean;
  /** Kept under a name, to begin there again: with its memory where `fork` is claimed as well, else its disk. */
  readonly snapshot: boolean;
  /** Its disk as an image. */
  readonly diskSnapshot: boolean;
  /** Directories of this machine can be mounted: `SandboxPlan.mounts`. */
  readonly hostDirectories: boolean;
  /** Named disks can be mounted: `SandboxPlan.volumes`. */
  readonly volumes: boolean;
  /** Devices of this machine can be used: `SandboxPlan.devices`. */
  readonly devices: boolean;
  readonly limits: { readonly cpu: Enforcement; readonly memory: Enforcement; readonly disk: Enforcement; readonly processes: Enforcement };
  readonly changes: { readonly [K in 'cpus' | 'memory' | 'disk' | 'processes' | 'network']: ChangeWhen };
  /** Modes that work here; the reason for each that does not is in `notes`. */
  readonly networks: readonly NetworkMode[];
  /** For a VM: what runs guest code. */
  readonly acceleration: 'kvm' | 'tcg' | 'none';
  readonly notes: readonly string[];
};

/** The root file system of one image (squashfs), read-only and owned by the store. */
export type RootFiles = {
  readonly imagePath: string;
  readonly imageDigest: string;
  /** What is at `imagePath` was packed by this machine, whatever is in it: its kernel may read it. */
  readonly isPackedHere?: boolean;
};

/** What a virtual machine boots: the image, and a kernel with an initramfs that holds our agent. */
export type MachineFiles = RootFiles & {
  readonly kernelPath: string;
  readonly kernelDigest: string;
  readonly initramfsPath: string;
  readonly initramfsDigest: string;
};

/** What a sandbox is started from. */
export type BootFiles =
  | ({ readonly kind: 'machine' } & MachineFiles)
  /** For runtimes that bring the kernel. */
  | ({ readonly kind: 'root' } & RootFiles)
  /** An image that a Docker Engine holds, by its id there; only the backend `docker` runs it. */
  | { readonly kind: 'engine'; readonly reference: string; readonly imageDigest: string }
  /** Not known, and not needed: for what is only inspected, ended or removed. */
  | { readonly kind: 'gone' };

/** What of `BootFiles` a backend starts sandboxes from. */
export type BootNeed = 'machine' | 'root';

/** An image that a backend fetched by itself; `digest` names it in that backend's own store. */
export type FetchedImage = Pick<Image, 'digest' | 'architecture' | 'sizeBytes' | 'config' | 'detail'>;

/** The root file system of a sandbox, kept as an image: `reference` is how that backend's own programs call it. */
export type CommittedDisk = { readonly digest: string; readonly sizeBytes: number; readonly reference: string };

/** An ext4 in a file, and where it is seen inside. Nobody else uses it, or everybody reads it. */
export type VolumePlan = { readonly path: string; readonly target: string; readonly readOnly: boolean };

/** What a machine must have places for. */
export type Mounted = { readonly volumes: number; readonly directories: number };

/** All that a backend must know to make or start one sandbox. */
export type SandboxPlan = {
  readonly id: SandboxId;
  /** As it is called when it is made: its first host name. */
  readonly name: string;
  /** Whose it is, for labels; null where that does not matter any more. */
  readonly projectId: ProjectId | null;
  readonly shape: Shape;
  readonly network: NetworkMode;
  /** With the claim `hostDirectories`; absent: none. */
  readonly mounts?: readonly Omit<Mount, 'volumeId'>[];
  /** With the claim `volumes`; absent: none. */
  readonly volumes?: readonly VolumePlan[];
  /** With the claim `devices`; absent: none. */
  readonly devices?: readonly string[];
  readonly boot: BootFiles;
  /** Durable, private to this sandbox: its disk. Made and removed by the backend. */
  readonly dataDir: string;
  /** Gone after a reboot: sockets, pids. */
  readonly runDir: string;
  /** boot.log and vmm.log; kept when a start fails. */
  readonly logDir: string;
  /** The uid and gid that the VMM runs as; null: our own. */
  readonly runAs: { readonly uid: number; readonly gid: number } | null;
};

/** Proof about a process that the shim, or its absence, gives. */
export type ProcessEvidence =
  | { readonly alive: true; readonly pid: number; readonly startTicks: number }
  | {
      readonly alive: false;
      /**
       * `exit.json`: seen by the shim. `pid-gone`: no such process with that start time. `boot-id`: another boot.
       * `engine`: the container engine says so. `removed`: somebody else removed it, disk and all: the sandbox is lost.
       * `never-started`.
       */
      readonly proof: 'exit.json' | 'pid-gone' | 'boot-id' | 'engine' | 'removed' | 'never-started';
      readonly exitCode: number | null;
      readonly signal: string | null;
      readonly oomKilled: boolean;
      /** When it died, as well as is known: never later than the moment of proof. */
      readonly diedAtMs: number | null;
      /** What the guest's kernel panicked of, as its console says, where that ended it. */
      readonly panic?: string;
      /** Whoever is outside of it, and not Hutch, asked for this end, where that is known otherwise than by the exit code: in words. */
      readonly askedBy?: string;
    };

export type HostUse = { readonly pssBytes: number; readonly cpuUs: number; readonly diskAllocatedBytes: number };

/** What a sandbox uses, from the counters of its cgroup: where the kernel that its agent asks is the host's, or does not count. */
export type Usage = {
  readonly cpuUs: number;
  /** Null, as below where nothing else is said: the agent's own count is as good. */
  readonly memory: { readonly totalBytes: number; readonly usedBytes: number; readonly cacheBytes: number } | null;
  /** Null: nobody counts; what the agent sees is the whole host's. */
  readonly disk: { readonly readBytes: number; readonly writtenBytes: number } | null;
  readonly network: { readonly rxBytes: number; readonly txBytes: number } | null;
  readonly processes: number | null;
};

/** What the guest needs for its network; given to the agent's `configure`. Null when there is none, or when the runtime sets it up. */
export type GuestNetwork = {
  readonly mac: string;
  /** With prefix length. */
  readonly address: string;
  readonly gateway: string;
  readonly dns: readonly string[];
  readonly mtu: number;
};

export type GuestDirectory = { readonly target: string; readonly readOnly: boolean };

export type GuestVolume = { readonly device: string; readonly target: string; readonly readOnly: boolean };

export type Started = {
  readonly evidence: ProcessEvidence & { alive: true };
  readonly network: GuestNetwork | null;
  /** For the agent's `configure`; null where the runtime sets up the root itself. */
  readonly disk: { readonly device: string; readonly sizeBytes: number } | null;
  /** What its agent mounts; absent where the runtime does, or there is none. */
  readonly volumes?: readonly GuestVolume[];
  /** Likewise, directories of the host. */
  readonly directories?: readonly GuestDirectory[];
  /** What `prepare` makes was not there, and it did without. */
  readonly unprepared?: boolean;
  /** What each stage took, in order: for the trace and the bench. */
  readonly stagesMs: Readonly<Record<string, number>>;
};

export type OthersPause = {
  /** Whether it is paused now, by whomever. @throws HutchError when it does not run, or cannot be asked. */
  isPaused(op: Operation, plan: SandboxPlan): Promise<boolean>;
  /** Yields when that may have changed, the first time soon, for as long as the operation lasts. */
  hints(op: Operation, plan: SandboxPlan): AsyncIterable<void>;
};

export type Checkpoints = {
  /**
   * Whether `save` has written all of it, and nothing has run since: the daemon that asked may have died then. Waits for one that
   * goes on without that daemon.
   */
  isWhole?(op: Operation, dir: string): Promise<boolean>;
  /** After `beforeRunning`, of one that does not run: whether it never did, so that what was saved fits to its disk still. */
  isUnused?(op: Operation, plan: SandboxPlan): Promise<boolean>;
  /** Of one that runs since a `restore`: what that gave, once more. */
  again?(op: Operation, plan: SandboxPlan): Promise<Pick<Started, 'network' | 'disk'>>;
  /**
   * Writes what runs in it to `dir`, which must not be there yet, and ends its process. Behind a closed door (`closeDoor`)
   * its agent has let go. On failure the sandbox runs, and `dir` is gone.
   */
  save(op: Operation, plan: SandboxPlan, dir: string): Promise<ProcessEvidence & { readonly alive: false }>;
  /**
   * As `start`, from what `save` wrote. The private disk must be as it was then. `beforeRunning` is called at the last moment
   * at which nothing has happened yet: from there on the disk may be written, and what was saved does not fit to it any more.
   * @throws HutchError `failed_precondition` when what was saved is damaged, or is of another kind of machine.
   */
  restore(op: Operation, plan: SandboxPlan, dir: string, beforeRunning?: (op: Operation) => Promise<void>): Promise<Started>;
};

/**
 * Machines that are started before anybody asks for them, and become somebody's later: `create` and `start` make one, under an
 * id that no sandbox has yet, and its guest is configured twice. Absent where that is not offered.
 */
export type Ahead = {
  /**
   * Names all that a start would take now: what was started when the name was another is stale. Null: something of it is
   * not there. Never makes anything. `goes on`: a start from a snapshot, which is another matter.
   */
  stamp(op: Operation, plan: Pick<SandboxPlan, 'shape' | 'boot' | 'network'>, how: 'boots' | 'goes on'): Promise<string | null>;
  /** One that was started a while ago is about to get its link: what keeps it in its bounds stands still, or again. */
  admit(op: Operation, plan: SandboxPlan): Promise<void>;
};

/**
 * Where the private layer of a sandbox that runs can be read, by `hutch-agent --layer`: by a process in the guest (root there), or
 * by one on the host that `tool` begins. `upper` and `merged` are its arguments.
 */
export type LayerAccess =
  | { readonly where: 'guest'; readonly upper: string; readonly merged: string }
  | { readonly where: 'host'; readonly tool: readonly string[]; readonly upper: string; readonly merged: string };

/** `shown`: mount points in the sandbox at which the root's own directory of that name is seen, `/` among them. */
export type RootOnHost = { readonly path: string; readonly shown: readonly string[] };

export type Backend = {
  readonly name: BackendName;
  readonly needs: BootNeed;
  /** Who keeps `shape.pids`: where the kernel inside counts processes of its own, the agent tells it. */
  readonly processesBoundBy: 'agent' | 'backend';

  /** Never throws for a machine that cannot: says so. Cached per boot by the caller. */
  probe(
    op: Operation,
  ): Promise<{ readonly ok: true; readonly can: Capabilities } | { readonly ok: false; readonly why: string; readonly hint: string }>;

  /**
   * An image that this backend fetches by itself, such as `docker://alpine:3`; with progress. Absent where it has
   * no store of its own. @throws HutchError `not_found`, `permission_denied` when the registry wants a login.
   */
  fetchImage?(op: Operation, reference: string): Promise<FetchedImage>;

  /** What must exist before a sandbox of this shape starts quickly: a template, an unpacked image. Idempotent, with progress. */
  prepare(op: Operation, plan: Pick<SandboxPlan, 'shape' | 'boot'> & { readonly mounted?: Mounted }): Promise<void>;

  /**
   * Where an engine of others' runs them: it is there. Asked before what could not be finished without it is begun.
   * @throws HutchError `unavailable`.
   */
  awake?(op: Operation): Promise<void>;

  /**
   * Where an engine of others' carries the agent's stream: it answers. Asked when an agent is silent, of which that may be why.
   * @throws HutchError `unavailable`.
   */
  carries?(op: Operation, plan: SandboxPlan): Promise<void>;

  /**
   * The first start of a shape is as quick without `prepare` as `prepare` alone would be: then that is better done behind it. Where it is not,
   * absent.
   */
  readonly startsUnprepared?: boolean;

  /** Makes the private disk. On failure nothing is left. */
  create(op: Operation, plan: SandboxPlan): Promise<void>;

  /**
   * Starts the process and returns when its agent stream can be dialled; the guest is not configured
   * yet and has no network link. On failure the process is gone and only logs are left.
   */
  start(op: Operation, plan: SandboxPlan): Promise<Started>;

  /** After the agent is configured: lets the network in. */
  linkUp(op: Operation, plan: SandboxPlan): Promise<void>;

  readonly ahead?: Ahead;

  /** A new byte stream to the agent. One at a time: a new one ends the old. */
  dialAgent(op: Operation, plan: SandboxPlan): Promise<Duplex>;

  /**
   * Its disk as an image in this backend's own store, of one instant, whether it runs or not; it goes on. With the claim
   * `diskSnapshot`. On failure nothing is left.
   */
  commit?(op: Operation, plan: SandboxPlan): Promise<CommittedDisk>;
  /** An image that `commit` made goes; one that is gone is no error. */
  dropCommitted?(op: Operation, digest: string): Promise<void>;

  /** Of a sandbox that runs. What is built takes its layers from there; absent where nothing can be built. */
  layerAccess?(op: Operation, plan: SandboxPlan): Promise<LayerAccess>;

  /**
   * Where this host sees the root of one that runs, if it mounts and serves that itself; null where it does not. What others change
   * there, the sandbox knows the size of only when it is told.
   */
  rootOnHost?(op: Operation, plan: SandboxPlan): Promise<RootOnHost | null>;

  /** Where this host sees a descriptor of the agent's, if it does. */
  descriptorPath?(op: Operation, plan: SandboxPlan, descriptor: number): Promise<string | null>;

  pause(op: Operation, plan: SandboxPlan): Promise<void>;
  resume(op: Operation, plan: SandboxPlan): Promise<void>;

  /** Where others than us can pause what runs, such as whoever may use a container engine. */
  readonly othersPause?: OthersPause;

  /** SIGTERM to the process unless `now`, bounded wait, SIGKILL, bounded wait. Returns the proof of death. */
  kill(op: Operation, plan: SandboxPlan, how: 'gently' | 'now'): Promise<ProcessEvidence & { alive: false }>;

  /** Alive or proven dead, from the shim's files; works right after a restart of the daemon (adoption). */
  inspect(op: Operation, plan: SandboxPlan): Promise<ProcessEvidence>;

  /**
   * It has the plan's shape and network from now on, or is prepared for them to be so at its next start: what `changes` says can
   * be changed. Disks only grow. Again is as once. Absent where a start does all of it.
   */
  reshape?(op: Operation, plan: SandboxPlan, now: 'it runs' | 'it is stopped'): Promise<void>;

  /** Resolves when the process has ended; at once if it has. */
  ended(op: Operation, plan: SandboxPlan): Promise<ProcessEvidence & { alive: false }>;

  /**
   * Resolves with true when what carries the sandbox's network has ended while the sandbox goes on, also when that was
   * before the call; with false when that cannot happen any more. Absent where nothing of ours carries it.
   */
  networkLost?(op: Operation, plan: SandboxPlan): Promise<boolean>;

  /**
   * Where nothing can be written down while the agent is connected: nobody comes in any more until the next `dialAgent`. An agent
   * that is connected stays, and has to be asked to let go (`prepareCheckpoint`) before `checkpoints.save` and `snapshots.take`.
   */
  closeDoor?(op: Operation, plan: SandboxPlan): Promise<void>;

  /** Memory and processes written down and taken up again: what a suspend is built on. Absent where it cannot be done. */
  readonly checkpoints?: Checkpoints;

  /** What snapshots and forks are built on, with the claims `fork` (memory) and `diskSnapshot`. Absent where it cannot be done. */
  readonly snapshots?: Snapshots;

  /** Where its disk lies, for who wants to repair one; absent where that is not a file of ours. */
  diskPath?(plan: SandboxPlan): string;

  /** Removes everything under dataDir and runDir and whatever else `start` made. The process must be dead. */
  remove(op: Operation, plan: SandboxPlan): Promise<void>;

  /** What of a start is left after its process died: sockets, passt, cgroup, rules. Idempotent. */
  cleanUp(op: Operation, plan: SandboxPlan): Promise<void>;

  /** `own`: what `usage` said just before, for whom both are one question: an Engine answers it once a second. */
  stats(op: Operation, plan: SandboxPlan, own?: Usage | null): Promise<HostUse>;

  /** In place of what the agent counts, which in a shared kernel is the whole host's. Absent, or null, where the agent knows. */
  usage?(op: Operation, plan: SandboxPlan): Promise<Usage | null>;

  /** Removes templates that no start has used for so long; gives what was removed, with the bytes that it took. */
  prune?(
    op: Operation,
    unusedMs: number,
    how?: 'remove' | 'only-list',
  ): Promise<readonly { readonly template: string; readonly bytes: number }[]>;

  /** Root file systems that it has unpacked for itself, or given to its engine, by the digest that `RootFiles` has. */
  readonly roots?: {
    list(op: Operation): Promise<readonly { readonly digest: string; readonly sizeBytes: number }[]>;
    /** Of one on which no sandbox stands, running or not. False: it is in the making, or not there. */
    remove(op: Operation, digest: string): Promise<boolean>;
  };

  /** Removes files of Hutch's own that were kept for what is saved, and that nothing goes on with any more. Gives what went. */
  tidy?(op: Operation): Promise<readonly { readonly path: string; readonly bytes: number }[]>;

  /** A daemon begins: ends what one that was killed had running to try out this machine, or to make a template, and removes what is left of that. */
  endWork?(op: Operation): Promise<void>;

  /** The daemon ends, and no sandbox runs: takes away what they shared on this host. */
  end?(op: Operation): Promise<void>;

  /** Everything on this host that looks like this backend's and belongs to none of `known`. */
  leaks(op: Operation, known: ReadonlySet<SandboxId>): Promise<readonly { readonly kind: string; readonly what: string }[]>;
};

/** @throws HutchError `failed_precondition` for an image that no virtual machine can boot. */
export function machineFiles(op: Operation, boot: BootFiles): MachineFiles {
  if (boot.kind === 'machine') return boot;
  throw op.error('failed_precondition', bootRefusal(boot, 'virtual machines do not run images of a Docker Engine'));
}

/** @throws HutchError `failed_precondition` for an image whose root file system is not ours to read. */
export function rootFiles(op: Operation, boot: BootFiles): RootFiles {
  if (boot.kind === 'machine' || boot.kind === 'root') return boot;
  throw op.error('failed_precondition', bootRefusal(boot, 'images of a Docker Engine run in the backend docker only'));
}

function bootRefusal(boot: BootFiles, why: string): string {
  return boot.kind === 'engine' ? `${boot.reference}: ${why}` : 'what the sandbox was made from is gone';
}
