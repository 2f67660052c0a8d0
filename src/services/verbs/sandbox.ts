// Sandboxes: made, listed, started, ended.
import { z } from 'zod';
import { FILE_SYNC_MAX, guestRefusal, hostRefusal } from '../../domain/file-sync.ts';
import { MOUNTS_MAX } from '../../domain/mount.ts';
import { PUBLISHED_PORTS_MAX } from '../../domain/published-port.ts';
import { BACKENDS, IDLE_ACTIONS, NETWORK_MODES, RESTART_POLICIES } from '../../domain/sandbox.ts';
import * as view from '../views.ts';
import {
  alive,
  argv,
  CPUS_MAX,
  count,
  DISK_MIB_MAX,
  DISK_MIB_MIN,
  env,
  flag,
  found,
  idle,
  LABELS_MAX,
  label,
  MEMORY_MIB_MAX,
  MEMORY_MIB_MIN,
  PAGE_ITEMS_MAX,
  PIDS_MAX,
  PIDS_MIN,
  path,
  ref,
  refuseTooLarge,
  TIMEOUT_MS_MAX,
  TIMEOUT_MS_MIN,
  target,
  terminal,
  undo,
  user,
  wantedPort,
} from './fields.ts';
import type { Verb } from './verb.ts';

const main = z.strictObject({
  argv: argv
    .optional()
    .describe("absent: what the image is made for, its ENTRYPOINT and CMD; given: runs as it is, without the image's entrypoint"),
  tty: z.boolean().default(false),
  terminal: terminal.optional(),
  stdin: z.enum(['open', 'null']).default('null'),
  attach: z.boolean().default(false).describe('whoever asks attaches to `main` next: nothing of its output is lost until then'),
});

const commit = z.string().regex(/^(?:[0-9a-f]{40}|[0-9a-f]{64})$/, 'must be the id of a commit');
const workspaceBounds = {
  sourcePath: path,
  repoRoot: path,
  repoName: z.string().min(1).max(255),
  guestPath: path,
  headCommit: commit.nullable(),
  branch: z.string().min(1).max(1024).nullable(),
  baseCommit: commit,
};

const DEVICES_MAX = 16;
/** Children of one fork. */
const FORKS_MAX = 64;

const createInput = z
  .strictObject({
    name: z.string().max(63).optional().describe('a DNS label; made up when absent'),
    image: z.string().max(512).optional(),
    kernel: z
      .string()
      .min(1)
      .max(128)
      .optional()
      .describe('an id, a digest, a version or a unique prefix; only where the backend boots one'),
    cpus: z.int().min(1).max(CPUS_MAX).optional(),
    memoryMiB: z.int().min(MEMORY_MIB_MIN).max(MEMORY_MIB_MAX).optional(),
    diskMiB: z.int().min(DISK_MIB_MIN).max(DISK_MIB_MAX).optional(),
    pids: z.int().min(PIDS_MIN).max(PIDS_MAX).optional().describe('most processes and threads at once, with the agent’s own'),
    env: env.optional(),
    secrets: env.optional().describe('environment variables whose values are never shown again'),
    labels: label.optional(),
    workdir: path.optional(),
    user: user.optional(),
    timeoutMs: z.int().min(TIMEOUT_MS_MIN).max(TIMEOUT_MS_MAX).optional().describe('stopped this long after each start'),
    restart: z.enum(RESTART_POLICIES).optional().describe('whether it is started again when it has ended by itself, or with its host'),
    idleMs: idle.optional().describe('stopped when nobody has touched it for so long; 0: never'),
    idleAction: z.enum(IDLE_ACTIONS).optional().describe('default stop; what is suspended goes on with the next call or connection'),
    undo: undo.optional().describe('before each exec a snapshot is kept for sandbox.undo, so many of them; 0: none'),
    network: z.enum(NETWORK_MODES).optional(),
    backend: z.enum(BACKENDS).optional(),
    publish: z
      .array(z.strictObject(wantedPort))
      .max(PUBLISHED_PORTS_MAX)
      .optional()
      .describe('TCP ports inside at which this machine answers, from each start on'),
    mounts: z
      .array(
        z.strictObject({
          source: path.describe('an absolute path of a directory of this machine, or a volume'),
          target: path,
          readOnly: z.boolean().default(false),
        }),
      )
      .max(MOUNTS_MAX)
      .optional()
      .describe('directories of this machine and volumes that are seen inside; which directories may be: volumes.allow'),
    devices: z
      .array(
        z
          .string()
          .max(256)
          .regex(/^\/dev\/[\w./-]+$/, 'must be a path below /dev, like /dev/fuse')
          .refine((path) => !path.includes('..'), 'must have no ..'),
      )
      .max(DEVICES_MAX)
      .optional()
      .describe('devices of this machine that are there inside, under the same names; which may be: devices.allow'),
    fileSync: z
      .array(
        z
          .strictObject({
            host: path.describe('in the home of the daemon’s user: absolute, or ~/…; a directory with all below'),
            guest: path.describe('in the home of the sandbox’s user'),
            mode: z.int().min(0).max(0o777).nullable().default(null).describe('null: 0600 of files, 0755 of directories'),
          })
          .superRefine(({ host, guest }, context) => {
            for (const [field, why] of [
              ['host', hostRefusal(host)],
              ['guest', guestRefusal(guest)],
            ] as const)
              if (why !== null) context.addIssue({ code: 'custom', message: why, path: [field] });
          }),
      )
      .max(FILE_SYNC_MAX)
      .optional()
      .describe('files of this machine that it gets when it first starts, beside those of the configuration'),
    main: main.optional(),
    autoRemove: z.boolean().optional(),
    start: z.boolean().optional().describe('default true'),
    template: ref.optional().describe('what it begins as: image, kernel, shape and backend are the template’s, and its memory goes on'),
    from: ref
      .optional()
      .describe(
        'a snapshot, or where none is called so a template: image, kernel, shape and backend are its own, and its memory goes on where it has one',
      ),
    force: z.boolean().optional().describe('with from: also where its memory was written down on another kind of machine'),
  })
  .superRefine(({ main, env = {}, secrets = {}, autoRemove, restart = 'no' }, context) => {
    if (autoRemove === true && restart !== 'no')
      context.addIssue({ code: 'custom', message: 'must be no for one that deletes itself (autoRemove)', path: ['restart'] });
    refuseTooLarge(context, main?.argv ?? [], { ...env, ...secrets }, ([field, which]) =>
      field === 'argv' ? ['main', field, which] : [which in secrets ? 'secrets' : field, which],
    );
  });

const CHANGEABLE = [
  'cpus',
  'memoryMiB',
  'diskMiB',
  'pids',
  'network',
  'timeoutMs',
  'labels',
  'restart',
  'idleMs',
  'idleAction',
  'undo',
] as const;

const setInput = target
  .extend({
    cpus: z.int().min(1).max(CPUS_MAX).optional(),
    memoryMiB: z.int().min(MEMORY_MIB_MIN).max(MEMORY_MIB_MAX).optional(),
    diskMiB: z.int().min(DISK_MIB_MIN).max(DISK_MIB_MAX).optional().describe('disks only grow'),
    pids: z.int().min(PIDS_MIN).max(PIDS_MAX).optional(),
    network: z.enum(NETWORK_MODES).optional(),
    timeoutMs: z
      .int()
      .min(TIMEOUT_MS_MIN)
      .max(TIMEOUT_MS_MAX)
      .nullable()
      .optional()
      .describe('of one that runs: from now on; then from each start on; null: none'),
    labels: z
      .record(z.string().min(1).max(63), z.string().max(255).nullable())
      .refine((map) => Object.keys(map).length <= LABELS_MAX, `at most ${LABELS_MAX} labels`)
      .optional()
      .describe('beside those that it has; null takes one away'),
    restart: z.enum(RESTART_POLICIES).optional(),
    idleMs: idle.nullable().optional().describe('null: as configured'),
    idleAction: z.enum(IDLE_ACTIONS).optional(),
    undo: undo.optional().describe('0: none, and what was kept goes'),
  })
  .refine((input) => CHANGEABLE.some((key) => input[key] !== undefined), `one of ${CHANGEABLE.join(', ')} must be given`);

export const sandboxVerbs = {
  'sandbox.create': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes',
    summary: 'Make a sandbox, and start it',
    input: createInput,
    output: view.sandbox,
    errors: ['not_found', 'conflict', 'resource_exhausted', 'failed_precondition', 'permission_denied'],
    idempotent: false,
    reads: false,
  },
  'sandbox.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/sandboxes',
    summary: 'List sandboxes, newest first',
    input: z.strictObject({
      state: z.string().max(200).optional().describe('comma-separated states; default: all but deleted'),
      label: z
        .union([z.string().max(400), z.array(z.string().max(400)).max(LABELS_MAX)])
        .optional()
        .describe('key or key=value; all must match'),
      limit: count.max(PAGE_ITEMS_MAX).optional(),
      cursor: z.string().max(200).optional(),
    }),
    output: z.object({ sandboxes: z.array(view.sandbox), nextCursor: z.string().nullable() }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'sandbox.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/sandboxes/{ref}',
    summary: 'Show one sandbox',
    input: target,
    output: view.sandbox,
    errors: found,
    idempotent: true,
    reads: true,
  },
  'sandbox.start': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/start',
    summary: 'Start it again; runs its main process',
    input: target,
    output: view.sandbox,
    errors: [...alive, 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'sandbox.stop': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/stop',
    summary: 'Ask its processes to end, then end them',
    input: target.extend({ graceMs: z.int().min(0).max(3_600_000).optional(), force: z.boolean().optional() }),
    output: view.sandbox,
    errors: alive,
    idempotent: true,
    reads: false,
  },
  'sandbox.restart': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/restart',
    summary: 'Stop and start',
    input: target.extend({ graceMs: z.int().min(0).max(3_600_000).optional() }),
    output: view.sandbox,
    errors: [...alive, 'resource_exhausted'],
    idempotent: false,
    reads: false,
  },
  'sandbox.pause': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/pause',
    summary: 'Freeze its processors; memory stays',
    input: target,
    output: view.sandbox,
    errors: alive,
    idempotent: true,
    reads: false,
  },
  'sandbox.resume': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/resume',
    summary: 'Let a paused or suspended one go on',
    input: target,
    output: view.sandbox,
    errors: [...alive, 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'sandbox.suspend': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/suspend',
    summary: 'Put its memory on the disk and end its process; it goes on where it was',
    input: target,
    output: view.sandbox,
    errors: [...alive, 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'sandbox.restore': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/restore',
    summary: 'Go back to a snapshot, in place: memory, processes and disk; all else stays its own',
    input: target.extend({
      snapshot: ref.describe('an id, a name, or a unique prefix of one'),
      foreign: z.boolean().optional().describe('also one of another sandbox: it replaces all that this one has'),
      force: z.boolean().optional().describe('also one whose memory was written down on another kind of machine'),
    }),
    output: view.sandbox,
    errors: [...alive, 'resource_exhausted'],
    idempotent: false,
    reads: false,
  },
  'sandbox.undo': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/undo',
    summary: 'Go back to before the last exec, of a sandbox that has undo; once more: to before the one before',
    input: target,
    output: z.object({
      sandbox: view.sandbox,
      snapshotId: z.string().describe('to which it went back; gone by now'),
      before: z.string().nullable().describe('the command that was undone, or the beginning of it'),
      takenAtMs: z.number(),
      left: z.int().describe('how many more can be undone'),
    }),
    errors: [...alive, 'resource_exhausted'],
    idempotent: false,
    reads: false,
  },
  'sandbox.fork': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/fork',
    summary: 'Make copies of a running or suspended one, with its memory, processes and disk; it stays as it is. Or of a snapshot',
    input: target.extend({
      count: z.int().min(1).max(FORKS_MAX).default(1),
      namePrefix: z.string().min(1).max(56).optional().describe('children are called PREFIX-1, PREFIX-2, …; default: its name and -fork'),
    }),
    output: z.object({
      parentId: z.string(),
      stillMs: z.number().describe('how long the parent stood still'),
      children: z.array(z.object({ index: z.int(), sandbox: view.sandbox })),
      failed: z.array(z.object({ index: z.int(), error: view.errorBody })),
    }),
    errors: [...alive, 'conflict', 'resource_exhausted'],
    idempotent: false,
    reads: false,
  },
  'sandbox.rename': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/rename',
    summary: 'Give it another name',
    input: target.extend({ name: z.string().min(1).max(63) }),
    output: view.sandbox,
    errors: found,
    idempotent: true,
    reads: false,
  },
  'sandbox.set': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/set',
    summary: 'Change its size, network, limits, labels and policies; what is absent stays',
    input: setInput,
    output: z.object({
      sandbox: view.sandbox,
      now: z.array(z.enum(CHANGEABLE)).describe('what is in force'),
      atNextStart: z.array(z.enum(CHANGEABLE)).describe('what is in force from its next start on, and kept as `pending` until then'),
    }),
    errors: [...alive, 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'main.begin': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/main',
    summary: 'Give a running sandbox without a main process one, and start it',
    input: target
      .extend({ main: main.extend({ argv }) })
      .superRefine(({ main: { argv: words } }, context) => refuseTooLarge(context, words, {}, ([, which]) => ['main', 'argv', which])),
    output: view.sandbox,
    errors: alive,
    idempotent: false,
    reads: false,
  },
  'workspace.put': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/workspace',
    summary: 'Record which git repository has been copied in',
    input: target.extend({ workspace: view.workspace.omit({ preparedAtMs: true }).extend(workspaceBounds).strict() }),
    output: view.sandbox,
    errors: alive,
    idempotent: true,
    reads: false,
  },
  'sandbox.delete': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/sandboxes/{ref}',
    summary: 'Delete it and its disk',
    input: target.extend({ force: flag.optional() }),
    output: view.sandbox,
    errors: alive,
    idempotent: true,
    reads: false,
  },
  'sandbox.wait': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/wait',
    summary: 'Wait until it does not run any more',
    input: target,
    output: z.object({ sandbox: view.sandbox, exitCode: z.int().nullable() }),
    errors: found,
    idempotent: true,
    reads: true,
  },
  'sandbox.stats': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/stats',
    summary: 'What it uses',
    input: target,
    output: view.stats,
    errors: alive,
    idempotent: true,
    reads: true,
  },
  'sandbox.logs': {
    kind: 'download',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/logs',
    summary: 'Its main process’s output (as records), or the boot or VMM log (as bytes)',
    input: target.extend({
      source: z.enum(['main', 'boot', 'vmm']).default('main'),
      follow: flag.optional(),
      offset: count.optional(),
      tailBytes: count.optional().describe('at least so many of the last bytes: the main process’s begin with a whole record'),
    }),
    output: z.any(),
    errors: found,
    idempotent: true,
    reads: true,
  },
} as const satisfies Record<string, Verb>;
