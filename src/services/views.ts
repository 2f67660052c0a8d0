// What the API shows: the schemas of everything that a verb answers, with units in the names.
// The CLI's `--json` prints exactly these. A contract: fields are only ever added.
import { z } from 'zod';
import { ERROR_CODES, type ErrorCode } from '../domain/errors.ts';
import { KERNEL_FROM } from '../domain/image.ts';
import { RULE_SOURCES } from '../domain/image-rules.ts';
import { BACKENDS, END_CAUSES, IDLE_ACTIONS, NETWORK_MODES, RESTART_POLICIES } from '../domain/sandbox.ts';
import { SNAPSHOT_CONTENTS, SNAPSHOT_KINDS } from '../domain/snapshot.ts';

const timeMs = z.int().describe('UTC, in milliseconds since 1970');

export const errorBody = z
  .object({
    code: z.enum(Object.keys(ERROR_CODES) as [ErrorCode, ...ErrorCode[]]),
    message: z.string(),
    hint: z.string().nullable(),
    retryable: z.boolean(),
    opId: z.string().nullable(),
  })
  .meta({ id: 'Error' });

export const publishedPort = z.object({ hostAddress: z.string(), hostPort: z.int(), guestPort: z.int() }).meta({ id: 'PublishedPort' });

export const mount = z
  .object({
    source: z.string().describe('the path of a directory, or the name of a volume'),
    volumeId: z.string().nullable().describe('null: a directory of this machine'),
    target: z.string(),
    readOnly: z.boolean(),
  })
  .meta({ id: 'Mount' });

export const volume = z
  .object({
    id: z.string(),
    projectId: z.string(),
    name: z.string(),
    sizeMiB: z.int(),
    fileSystem: z.enum(['ext4']),
    allocatedBytes: z.number().describe('what it takes of the disk'),
    createdAtMs: timeMs,
    guestWritten: z.boolean().describe('a virtual machine has written it: only virtual machines mount it from then on'),
    usedBy: z.array(z.object({ sandbox: z.string(), readOnly: z.boolean(), alive: z.boolean().describe('it may be using it now') })),
  })
  .meta({ id: 'Volume' });

export const shape = z
  .object({
    cpus: z.int(),
    memoryMiB: z.int(),
    diskMiB: z.int(),
    pids: z.int().exactOptional().describe('most processes and threads at once; absent: what the backend takes for enough'),
  })
  .meta({ id: 'Shape' });

export const ended = z
  .object({
    cause: z.enum(END_CAUSES),
    exitCode: z.int().nullable(),
    oomKilled: z.boolean(),
    actor: z.string(),
    atMs: timeMs,
  })
  .meta({ id: 'Ended' });

const imageConfig = z.object({
  entrypoint: z.array(z.string()),
  command: z.array(z.string()),
  env: z.record(z.string(), z.string()),
  workdir: z.string().nullable(),
  user: z.string().nullable(),
  stopSignal: z.string().describe('what every process gets when the sandbox is asked to stop'),
  exposedPorts: z.array(z.string()),
});

const imageRule = z.object({ from: z.enum(RULE_SOURCES), rule: z.string() });
const imageRules = z
  .object({ main: imageRule, env: imageRule, user: imageRule, workdir: imageRule, stopSignal: imageRule, exposedPorts: imageRule })
  .meta({ id: 'ImageRules' });

export const image = z
  .object({
    id: z.string(),
    name: z.string().nullable().describe('the oldest of its names'),
    names: z.array(z.string()),
    digest: z.string(),
    architecture: z.string(),
    sizeBytes: z.number().describe('of the file system that sandboxes boot'),
    createdAtMs: timeMs.describe('when it came to this machine'),
    config: imageConfig,
    usedBy: z.array(z.string()).describe('names of sandboxes, and of what was kept of some: `snapshot NAME`, `template NAME`'),
    registered: z
      .array(z.object({ role: z.enum(['rootfs', 'kernel', 'modules', 'initrd']), path: z.string() }))
      .describe('the user’s files that it is made of; empty: Hutch has it all'),
    kernelId: z.string().nullable().describe('what its virtual machines boot unless another kernel is asked for; null: the default'),
  })
  .meta({ id: 'Image' });

export const kernel = z
  .object({
    id: z.string(),
    digest: z.string(),
    version: z.string().describe('as uname -r shows it'),
    architecture: z.string(),
    sizeBytes: z.number().describe('of the kernel and the modules that guests load'),
    createdAtMs: timeMs.describe('when it came to this machine'),
    isDefault: z.boolean().describe('sandboxes that name none boot it'),
    by: z.enum(KERNEL_FROM).describe('who chose it; `snapshot`: it came with one'),
    packages: z.array(z.object({ name: z.string(), version: z.string() })).describe('empty: it came out of a file'),
    config: z
      .record(z.string(), z.enum(['builtin', 'module', 'no']))
      .describe('options of its configuration, without CONFIG_; of one that does not say it, only what guests need'),
    modules: z.array(z.string()).describe('what guests load, in this order'),
    usedBy: z.array(z.string()).describe('names of sandboxes, and of what was kept of some: `snapshot NAME`, `template NAME`'),
  })
  .meta({ id: 'Kernel' });

export const imageDetail = image.extend({
  layers: z.array(z.object({ digest: z.string(), sizeBytes: z.number(), isHere: z.boolean().describe('kept on this machine') })),
  labels: z.record(z.string(), z.string()),
  detail: z.record(z.string(), z.unknown()).describe('how it was made'),
});

export const snapshot = z
  .object({
    id: z.string(),
    projectId: z.string(),
    name: z.string().nullable(),
    kind: z.enum(SNAPSHOT_KINDS).describe('undo: kept before an exec, gone by itself; template: what sandboxes of one start from'),
    contents: z.enum(SNAPSHOT_CONTENTS),
    sandboxId: z.string().nullable().describe('of which it was taken; null: it came from elsewhere'),
    sandboxName: z.string().describe('as that was called then'),
    parentId: z.string().nullable().describe('what it was stored against'),
    backend: z.enum(BACKENDS),
    imageId: z.string(),
    kernelId: z.string().nullable(),
    shape,
    ownBytes: z.number().describe('stored for it alone'),
    apparentBytes: z.number().describe('what it would take without all that it shares'),
    createdAtMs: timeMs,
    usedBy: z.array(z.string()).describe('names of the sandboxes that were made from it'),
    before: z.string().nullable().describe('of one that is kept to undo an exec: its command, or the beginning of it'),
  })
  .meta({ id: 'Snapshot' });

export const template = z
  .object({
    id: z.string(),
    projectId: z.string(),
    name: z.string(),
    digest: z.string().describe('of what was written down: another one after each build'),
    state: z
      .enum(['ready', 'building', 'outdated'])
      .describe('building: the one before serves until then; outdated: it is built anew as soon as can be'),
    why: z.string().nullable().describe('of one that is outdated, or could not be built anew'),
    snapshotId: z.string().describe('what sandboxes start from'),
    imageId: z.string().describe('what its steps made'),
    kernelId: z.string().nullable(),
    backend: z.enum(BACKENDS),
    shape,
    network: z.string(),
    buildId: z.string().describe('whose log tells how it was made'),
    building: z.string().nullable().describe('the build that is under way'),
    warm: z.object({
      min: z.int(),
      max: z.int(),
      ready: z.int().describe('that wait now'),
      why: z.string().nullable().describe('why it is fewer'),
    }),
    ownBytes: z.number(),
    apparentBytes: z.number(),
    usedBy: z.array(z.string()).describe('names of the sandboxes that were made from it as it is now'),
    createdAtMs: timeMs,
    builtAtMs: timeMs,
  })
  .meta({ id: 'Template' });

export const diskUse = z.object({ count: z.int(), bytes: z.number(), reclaimableBytes: z.number() });

export const workspace = z
  .object({
    sourcePath: z.string(),
    repoRoot: z.string(),
    repoName: z.string(),
    guestPath: z.string(),
    mode: z.enum(['shallow_overlay', 'full_copy', 'metadata_only']),
    includesUntracked: z.boolean(),
    headCommit: z.string().nullable().describe('null: the repository has no commit'),
    branch: z.string().nullable().describe('null: HEAD is detached'),
    baseCommit: z.string().describe('a commit with exactly the files that were copied'),
    preparedAtMs: timeMs,
  })
  .meta({ id: 'Workspace' });

export const sandbox = z
  .object({
    id: z.string(),
    name: z.string(),
    projectId: z.string(),
    state: z.enum(['created', 'running', 'paused', 'suspended', 'stopped', 'error', 'deleted']),
    backend: z.enum(BACKENDS),
    imageId: z.string(),
    imageName: z.string().nullable(),
    imageConfig: imageConfig
      .nullable()
      .describe("what the image says: the sandbox's own env, workdir, user and command come before; null: the image is gone"),
    imageRules: imageRules.nullable().describe('whose word holds of what the image says, and by what rule; null: the image is gone'),
    kernelId: z.string().nullable(),
    shape,
    network: z.enum(['none', 'allow', 'allow-lan']),
    publish: z.array(publishedPort).describe('ports of this machine at which ports of the sandbox answer while it runs'),
    fileSync: z
      .array(
        z.object({ host: z.string(), guest: z.string(), mode: z.int().nullable().describe('null: 0600 of files, 0755 of directories') }),
      )
      .describe('files of the home of the daemon’s user that it was given when it started first'),
    mounts: z.array(mount).describe('directories of this machine and volumes that are seen inside'),
    devices: z.array(z.string()).describe('devices of this machine that are there inside'),
    env: z.record(z.string(), z.string()),
    secretNames: z.array(z.string()),
    labels: z.record(z.string(), z.string()),
    workdir: z.string().nullable(),
    user: z.string().nullable(),
    main: z.object({ argv: z.array(z.string()), tty: z.boolean(), stdin: z.enum(['open', 'null']) }).nullable(),
    workspace: workspace.nullable().describe('the git repository whose files were copied in last'),
    autoRemove: z.boolean(),
    timeoutMs: z.int().nullable(),
    restart: z.enum(RESTART_POLICIES).describe('whether it is started again when it has ended by itself, or with its host'),
    idleMs: z.int().nullable().describe('it is stopped when nobody has touched it for so long; 0: never; null: as configured'),
    idleAction: z.enum(IDLE_ACTIONS).describe('what then becomes of it; one that is suspended goes on with the next call or connection'),
    undo: z.int().describe('before each exec a snapshot is kept, so many of them; 0: none'),
    pending: z
      .object({
        cpus: z.int().optional(),
        memoryMiB: z.int().optional(),
        diskMiB: z.int().optional(),
        pids: z.int().optional(),
        network: z.enum(NETWORK_MODES).optional(),
      })
      .nullable()
      .describe('what it has from its next start on'),
    deadlineAtMs: timeMs.nullable(),
    createdAtMs: timeMs,
    changedAtMs: timeMs,
    startedAtMs: timeMs.nullable(),
    openComputeSinceMs: timeMs.nullable(),
    startCount: z.int(),
    generation: z.int(),
    ended: ended.nullable(),
    errorCause: z.string().nullable(),
    lastOpId: z.string(),
    /** The operation under way on it now, if any. */
    busyOpId: z.string().nullable(),
  })
  .meta({ id: 'Sandbox' });

export const operation = z
  .object({
    id: z.string(),
    verb: z.string(),
    targetId: z.string().nullable(),
    actor: z.string().describe('the id of a key, or daemon, host or guest'),
    actorName: z.string().nullable().describe('the name of the key'),
    state: z.enum(['running', 'done', 'failed', 'cancelled', 'interrupted']),
    step: z.string().nullable(),
    done: z.number().nullable(),
    total: z.number().nullable(),
    startedAtMs: timeMs,
    endedAtMs: timeMs.nullable(),
    error: errorBody.nullable(),
    traceparent: z.string().nullable(),
  })
  .meta({ id: 'Operation' });

export const build = z
  .object({
    id: z.string(),
    state: z.enum(['running', 'done', 'failed', 'cancelled']),
    names: z.array(z.string()).describe('that its image is given'),
    target: z.string().nullable().describe('the stage that was asked for'),
    backend: z.string().nullable().describe('that was asked for'),
    step: z.string().nullable().describe('what it does now'),
    stepsDone: z.int(),
    stepsTotal: z.int(),
    progressPercent: z.int(),
    error: errorBody.nullable(),
    logTail: z.array(z.string()).describe('of one that failed: the last lines of output'),
    image: z.object({ id: z.string(), digest: z.string(), sizeBytes: z.number() }).nullable(),
    template: z.string().nullable().describe('the template that is built'),
    snapshot: z.object({ id: z.string(), digest: z.string() }).nullable().describe('what sandboxes of that template start from'),
    createdAtMs: timeMs,
    endedAtMs: timeMs.nullable(),
    opId: z.string().nullable(),
  })
  .meta({ id: 'Build' });

export const buildLine = z
  .object({
    cursor: z.int().describe('from 1; a stream that broke off goes on after it'),
    atMs: timeMs,
    type: z.enum(['step', 'note', 'output']),
    stage: z.string(),
    text: z.string(),
    line: z.int().optional().describe('of a step: in the Dockerfile'),
    number: z.int().optional(),
    count: z.int().optional(),
    channel: z.enum(['stdout', 'stderr']).optional(),
  })
  .meta({ id: 'BuildLine' });

export const event = z
  .object({
    cursor: z.int(),
    atMs: timeMs,
    type: z.string(),
    sandboxId: z.string().nullable(),
    sandboxName: z.string().nullable(),
    opId: z.string().nullable(),
    actor: z.string().describe('the id of a key, or daemon, host or guest'),
    actorName: z.string().nullable().describe('the name of the key'),
    detail: z.record(z.string(), z.unknown()),
  })
  .meta({ id: 'Event' });

export const processExit = z
  .object({
    exitCode: z.int().describe('of the process; 128 + signal when a signal ended it'),
    signal: z.string().nullable(),
    oomKilled: z.boolean(),
    reason: z
      .enum(['exited', 'signalled', 'lifetime', 'not-started'])
      .describe('`not-started`: with exit code 126 or 127, and the error that says why'),
    stdoutBytes: z.int(),
    stderrBytes: z.int(),
    endedAtMs: timeMs,
    error: errorBody.nullable(),
  })
  .meta({ id: 'ProcessExit' });

export const fileEntry = z
  .object({
    path: z.string(),
    name: z.string(),
    type: z.enum(['file', 'dir', 'symlink', 'fifo', 'socket', 'char', 'block']),
    size: z.number(),
    mode: z.int(),
    uid: z.int(),
    gid: z.int(),
    user: z.string().nullable(),
    group: z.string().nullable(),
    mtimeMs: z.number(),
    target: z.string().nullable(),
  })
  .meta({ id: 'FileEntry' });

export const port = z
  .object({ protocol: z.enum(['tcp', 'udp']), address: z.string(), port: z.int(), pid: z.int().nullable(), process: z.string().nullable() })
  .meta({ id: 'Port' });

export const portChange = port
  .extend({ kind: z.enum(['listening', 'opened', 'closed']).describe('`listening`: was there when the watch began') })
  .meta({ id: 'PortChange' });

export const stats = z
  .object({
    sandboxId: z.string(),
    name: z.string(),
    takenAtMs: timeMs,
    sinceMs: timeMs.describe('what is counted is counted since then, its creation, over all its starts: no counter goes back'),
    uptimeMs: z.number().describe('of what runs now: since it was started, resumed or begun from memory last'),
    cpu: z.object({ usedUs: z.number(), count: z.int() }),
    memory: z.object({ totalBytes: z.number(), usedBytes: z.number(), availableBytes: z.number(), cacheBytes: z.number() }),
    disk: z.object({
      totalBytes: z.number(),
      usedBytes: z.number(),
      readBytes: z.number().nullable().describe('null where nobody counts'),
      writtenBytes: z.number().nullable(),
    }),
    network: z.object({ rxBytes: z.number(), txBytes: z.number() }),
    processes: z.int(),
    oomKills: z.int(),
    pressure: z
      .object({ cpuSomeUs: z.number(), memorySomeUs: z.number(), ioSomeUs: z.number() })
      .nullable()
      .describe('for how long some process has waited for each, as its kernel says; null where the kernel is shared or does not'),
    host: z.object({ pssBytes: z.number(), cpuUs: z.number(), diskAllocatedBytes: z.number() }).describe('what it takes of the host'),
  })
  .meta({ id: 'Stats' });

export const ledgerEntry = z
  .object({
    sequence: z.int(),
    id: z.string().describe('ULID'),
    kind: z.string(),
    reason: z.string().nullable(),
    sandboxId: z.string().nullable(),
    snapshotId: z.string().nullable(),
    sourceSnapshotId: z.string().nullable(),
    parentId: z.string().nullable(),
    projectId: z.string(),
    opId: z.string(),
    backend: z.string().nullable(),
    shape: z.object({ cpus: z.number().optional(), memoryBytes: z.number().optional(), storageBytes: z.number().optional() }),
    atMs: timeMs.describe('the billed instant'),
    emittedAtMs: timeMs.describe('when it was recorded'),
    monotonicMs: z.number(),
    bootId: z.string(),
    evidence: z.string().nullable(),
    previousHash: z.string(),
    hash: z.string(),
  })
  .meta({ id: 'LedgerEntry' });

export const key = z
  .object({
    id: z.string(),
    name: z.string(),
    projectId: z.string(),
    project: z.string().describe('its name'),
    createdAtMs: timeMs,
    revokedAtMs: timeMs.nullable(),
  })
  .meta({ id: 'Key' });

export const check = z
  .object({
    name: z.string(),
    status: z.enum(['ok', 'warning', 'missing']),
    detail: z.string(),
    /** The command that mends it. */
    fix: z.string().nullable(),
  })
  .meta({ id: 'Check' });

const changeWhen = z.enum(['live', 'next-start', 'no']);
const enforcement = z.enum(['enforced', 'host-process', 'no']);

export const backend = z
  .object({
    name: z.enum(BACKENDS),
    /** Null where it does not work on this machine. */
    can: z
      .object({
        isolation: z.enum(['vm', 'user-space-kernel', 'shared-kernel']),
        securityBoundary: z.boolean().describe('a shared kernel is none'),
        acceleration: z.enum(['kvm', 'tcg', 'none']),
        pause: z.boolean(),
        suspend: z.boolean(),
        fork: z.boolean(),
        snapshot: z.boolean().describe('kept under a name, to begin there again: with its memory where fork is claimed as well'),
        diskSnapshot: z.boolean().describe('its disk can be kept as an image'),
        hostDirectories: z.boolean().describe('directories of this machine can be mounted'),
        volumes: z.boolean().describe('named disks can be mounted'),
        devices: z.boolean().describe('devices of this machine can be used inside'),
        limits: z.object({ cpu: enforcement, memory: enforcement, disk: enforcement, processes: enforcement }),
        changes: z
          .object({ cpus: changeWhen, memory: changeWhen, disk: changeWhen, processes: changeWhen, network: changeWhen })
          .describe('when a change of a running sandbox takes effect'),
        networks: z.array(z.enum(['none', 'allow', 'allow-lan'])),
        notes: z.array(z.string()),
      })
      .nullable(),
    /** Why it does not work here, and what mends it. */
    why: z.string().nullable(),
    fix: z.string().nullable(),
  })
  .meta({ id: 'Backend' });

export const leak = z.object({ kind: z.string(), what: z.string() }).meta({ id: 'Leak' });

export const why = z
  .object({
    sandbox: sandbox.nullable(),
    operation: operation.nullable(),
    sentence: z.string().describe('the answer in one sentence'),
    events: z.array(event),
    operations: z.array(operation),
  })
  .meta({ id: 'Why' });
