// The verb table: each thing a client can ask is written here once. HTTP routes, OpenAPI, the SDK's
// routes, the CLI's `--json`, the exit-code page and the conformance list are derived from it.
//
// How a verb travels:
// - unary     JSON in, JSON out. With `Accept: application/x-ndjson` the answer is lines instead:
//             {"type":"progress",…}* and then {"type":"result","result":…} or {"type":"error","error":…}.
// - lines     NDJSON out, each line `output`; with `follow` it goes on. A cut stream resumes by cursor or offset.
// - socket    WebSocket: see docs/api.md for the messages (exec, attach, connect).
// - download  raw bytes out.   - upload   raw bytes in, JSON out.
// Input comes from the path's `{…}`, then the query (upload, GET, DELETE, socket) or the JSON body.
// Every answer has the header Hutch-Op-Id; a client may send Idempotency-Key and traceparent.
import { z } from 'zod';
import type { ErrorCode } from '../domain/errors.ts';
import { BACKENDS } from '../domain/sandbox.ts';
import * as view from './views.ts';

export const ENV_ENTRIES_MAX = 1_000;
export const ENV_VALUE_BYTES_MAX = 65_536;
export const ARGV_ENTRIES_MAX = 4_096;
export const ARGUMENT_BYTES_MAX = 65_536;
export const PATH_BYTES_MAX = 4_096;
export const LABELS_MAX = 64;
export const CPUS_MAX = 64;
export const MEMORY_MIB_MIN = 128;
export const MEMORY_MIB_MAX = 262_144;
export const DISK_MIB_MIN = 256;
export const DISK_MIB_MAX = 131_072;
export const TIMEOUT_MS_MIN = 1_000;
export const TIMEOUT_MS_MAX = 31_536_000_000;
export const PAGE_ITEMS_MAX = 1_000;

const ref = z.string().min(1).max(64).describe('an id, a name, or a unique prefix of one');
const envName = z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/, 'must be a letter or _, then letters, digits and _, at most 128');
const text = (max: number) =>
  z
    .string()
    .max(max)
    .refine((value) => !value.includes('\0'), 'must not contain a NUL byte');
const env = z
  .record(envName, text(ENV_VALUE_BYTES_MAX))
  .refine((map) => Object.keys(map).length <= ENV_ENTRIES_MAX, `at most ${ENV_ENTRIES_MAX} entries`);
const argv = z.array(text(ARGUMENT_BYTES_MAX)).min(1).max(ARGV_ENTRIES_MAX);
const path = text(PATH_BYTES_MAX).min(1);
const user = z.string().min(1).max(64).describe('name, uid, name:group or uid:gid');
const flag = z.union([z.boolean(), z.enum(['true', 'false']).transform((word) => word === 'true')]);
const count = z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const label = z
  .record(z.string().min(1).max(63), z.string().max(255))
  .refine((map) => Object.keys(map).length <= LABELS_MAX, `at most ${LABELS_MAX} labels`);
const terminal = z.strictObject({ cols: z.int().min(1).max(4_096), rows: z.int().min(1).max(4_096), term: z.string().max(64).optional() });

const createInput = z.strictObject({
  name: z.string().max(63).optional().describe('a DNS label; made up when absent'),
  image: z.string().max(512).optional(),
  cpus: z.int().min(1).max(CPUS_MAX).optional(),
  memoryMiB: z.int().min(MEMORY_MIB_MIN).max(MEMORY_MIB_MAX).optional(),
  diskMiB: z.int().min(DISK_MIB_MIN).max(DISK_MIB_MAX).optional(),
  env: env.optional(),
  secrets: env.optional().describe('environment variables whose values are never shown again'),
  labels: label.optional(),
  workdir: path.optional(),
  user: user.optional(),
  timeoutMs: z.int().min(TIMEOUT_MS_MIN).max(TIMEOUT_MS_MAX).optional().describe('stopped this long after each start'),
  network: z.enum(['none', 'allow', 'allow-lan']).optional(),
  backend: z.enum(BACKENDS).optional(),
  main: z
    .strictObject({
      argv: argv
        .optional()
        .describe("absent: what the image is made for, its ENTRYPOINT and CMD; given: runs as it is, without the image's entrypoint"),
      tty: z.boolean().default(false),
      terminal: terminal.optional(),
      stdin: z.enum(['open', 'null']).default('null'),
      attach: z.boolean().default(false).describe('whoever asks attaches to `main` next: nothing of its output is lost until then'),
    })
    .optional(),
  autoRemove: z.boolean().optional(),
  start: z.boolean().optional().describe('default true'),
});

const execInput = z.strictObject({
  argv,
  env: env.optional(),
  cwd: path.optional(),
  user: user.optional(),
  loginShell: z.boolean().optional(),
  terminal: terminal.optional().describe('a pty of this size; absent: pipes'),
  stdin: z.enum(['open', 'null']).default('null'),
  timeoutMs: z.int().min(1).max(TIMEOUT_MS_MAX).optional(),
  whenUnread: z.enum(['block', 'drop']).default('block'),
  tag: z.string().max(64).optional(),
});

type VerbKind = 'unary' | 'lines' | 'socket' | 'download' | 'upload';
export type Verb = {
  readonly kind: VerbKind;
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  readonly path: `/${string}`;
  readonly summary: string;
  readonly input: z.ZodObject;
  readonly output: z.ZodType;
  /** Beyond those that any verb may answer: invalid_argument, unauthenticated, unavailable, deadline_exceeded, cancelled, internal. */
  readonly errors: readonly ErrorCode[];
  /** Whether the same call again changes nothing more. */
  readonly idempotent: boolean;
  /** Whether it changes anything: a read never does, and never touches a lifetime. */
  readonly reads: boolean;
};

const target = z.strictObject({ ref });
const none = z.strictObject({});
const found = ['not_found', 'conflict'] as const;
const alive = [...found, 'failed_precondition'] as const;
const files = [...alive, 'permission_denied', 'resource_exhausted'] as const;
const fileTarget = target.extend({ path, user: user.optional() });

export const verbs = {
  'sandbox.create': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes',
    summary: 'Make a sandbox, and start it',
    input: createInput,
    output: view.sandbox,
    errors: ['not_found', 'conflict', 'resource_exhausted', 'failed_precondition'],
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
    summary: 'Let a paused one go on',
    input: target,
    output: view.sandbox,
    errors: alive,
    idempotent: true,
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
      tailBytes: count.optional(),
    }),
    output: z.any(),
    errors: found,
    idempotent: true,
    reads: true,
  },
  'exec.start': {
    kind: 'socket',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/exec',
    summary: 'Run a command in it',
    input: target.extend({
      execId: z
        .string()
        .regex(/^[A-Za-z0-9._-]{1,64}$/)
        .optional(),
    }),
    output: view.processExit,
    errors: alive,
    idempotent: false,
    reads: false,
  },
  'exec.attach': {
    kind: 'socket',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/execs/{execId}/attach',
    summary: 'Go on with a running command, from a byte offset; `main` is the main process',
    input: target.extend({
      execId: z.string().regex(/^[A-Za-z0-9._-]{1,64}$/),
      stdoutOffset: count.optional(),
      stderrOffset: count.optional(),
      fromNow: flag.optional().describe('output from now on; `started` says the offsets'),
      input: flag.optional(),
      inputOffset: count.optional(),
    }),
    output: view.processExit,
    errors: alive,
    idempotent: true,
    reads: false,
  },
  'exec.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/execs',
    summary: 'Commands in it',
    input: target,
    output: z.object({
      execs: z.array(
        z.object({
          execId: z.string(),
          pid: z.int(),
          argv: z.array(z.string()),
          tag: z.string().nullable(),
          running: z.boolean(),
          startedAtMs: z.int(),
          exit: view.processExit.nullable(),
        }),
      ),
    }),
    errors: alive,
    idempotent: true,
    reads: true,
  },
  'exec.signal': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/execs/{execId}/signal',
    summary: 'Send a signal to a command’s process group',
    input: target.extend({ execId: z.string().min(1).max(64), signal: z.string().regex(/^[A-Z0-9+]{1,12}$/) }),
    output: none,
    errors: alive,
    idempotent: false,
    reads: false,
  },
  'port.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/ports',
    summary: 'Ports on which it listens',
    input: target,
    output: z.object({ ports: z.array(view.port) }),
    errors: alive,
    idempotent: true,
    reads: true,
  },
  'port.connect': {
    kind: 'socket',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/connect',
    summary: 'A byte stream to a port or unix socket inside',
    input: target.extend({ port: count.min(1).max(65_535).optional(), host: z.string().max(255).optional(), unix: path.optional() }),
    output: z.any(),
    errors: alive,
    idempotent: false,
    reads: false,
  },
  'file.read': {
    kind: 'download',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/files',
    summary: 'Read a file',
    input: fileTarget.extend({ offset: count.optional(), length: count.optional() }),
    output: z.any(),
    errors: files,
    idempotent: true,
    reads: true,
  },
  'file.write': {
    kind: 'upload',
    method: 'PUT',
    path: '/v1/sandboxes/{ref}/files',
    summary: 'Write a file, whole and atomically, or from an offset in place',
    input: fileTarget.extend({
      mode: count.max(0o7777).optional(),
      mtimeMs: count.optional(),
      mkdirs: flag.optional(),
      at: count.optional(),
    }),
    output: view.fileEntry,
    errors: files,
    idempotent: true,
    reads: false,
  },
  'file.stat': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/files/stat',
    summary: 'Describe a file',
    input: fileTarget.extend({ follow: flag.optional() }),
    output: view.fileEntry,
    errors: files,
    idempotent: true,
    reads: true,
  },
  'file.list': {
    kind: 'lines',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/files/list',
    summary: 'List a directory',
    input: fileTarget.extend({ depth: count.min(1).max(64).optional() }),
    output: view.fileEntry,
    errors: files,
    idempotent: true,
    reads: true,
  },
  'file.mkdir': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/files/mkdir',
    summary: 'Make a directory',
    input: fileTarget.extend({ mode: z.int().min(0).max(0o7777).optional(), parents: z.boolean().optional() }),
    output: view.fileEntry,
    errors: files,
    idempotent: false,
    reads: false,
  },
  'file.rename': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/files/rename',
    summary: 'Rename a file',
    input: target.extend({ from: path, to: path, user: user.optional() }),
    output: view.fileEntry,
    errors: files,
    idempotent: false,
    reads: false,
  },
  'file.remove': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/sandboxes/{ref}/files',
    summary: 'Remove a file or directory',
    input: fileTarget.extend({ recursive: flag.optional() }),
    output: none,
    errors: files,
    idempotent: false,
    reads: false,
  },
  'file.chmod': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/files/chmod',
    summary: 'Change a file’s mode',
    input: fileTarget.extend({ mode: z.int().min(0).max(0o7777) }),
    output: view.fileEntry,
    errors: files,
    idempotent: true,
    reads: false,
  },
  'file.chown': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/files/chown',
    summary: 'Change a file’s owner',
    input: fileTarget.extend({ owner: user, follow: z.boolean().optional() }),
    output: view.fileEntry,
    errors: files,
    idempotent: true,
    reads: false,
  },
  'file.symlink': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/files/symlink',
    summary: 'Make a symbolic link',
    input: fileTarget.extend({ target: path }),
    output: view.fileEntry,
    errors: files,
    idempotent: false,
    reads: false,
  },
  'file.truncate': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/files/truncate',
    summary: 'Set a file’s size',
    input: fileTarget.extend({ size: z.int().min(0) }),
    output: view.fileEntry,
    errors: files,
    idempotent: true,
    reads: false,
  },
  'file.watch': {
    kind: 'lines',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/files/watch',
    summary: 'Follow changes below a directory',
    input: fileTarget.extend({ recursive: flag.optional() }),
    output: z.object({
      kind: z.enum(['create', 'write', 'remove', 'rename', 'chmod', 'overflow']),
      path: z.string().nullable(),
      to: z.string().nullable(),
    }),
    errors: files,
    idempotent: true,
    reads: true,
  },
  'archive.get': {
    kind: 'download',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/archive',
    summary: 'A path as a tar stream',
    input: fileTarget.extend({ dereference: flag.optional(), includeParent: flag.optional() }),
    output: z.any(),
    errors: files,
    idempotent: true,
    reads: true,
  },
  'archive.put': {
    kind: 'upload',
    method: 'PUT',
    path: '/v1/sandboxes/{ref}/archive',
    summary: 'Unpack a tar stream below a directory',
    input: fileTarget.extend({ preserveOwner: flag.optional(), mkdirs: flag.optional() }),
    output: z.object({ entries: z.int(), bytes: z.number() }),
    errors: files,
    idempotent: true,
    reads: false,
  },
  'event.list': {
    kind: 'lines',
    method: 'GET',
    path: '/v1/events',
    summary: 'What happened, from a cursor on',
    input: z.strictObject({
      cursor: count.optional(),
      follow: flag.optional(),
      sandbox: ref.optional(),
      limit: count.max(100_000).optional(),
    }),
    output: view.event,
    errors: found,
    idempotent: true,
    reads: true,
  },
  'operation.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/operations',
    summary: 'What is under way; with `all`, what was',
    input: z.strictObject({ all: flag.optional(), limit: count.max(PAGE_ITEMS_MAX).optional() }),
    output: z.object({ operations: z.array(view.operation) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'operation.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/operations/{opId}',
    summary: 'Show one operation',
    input: z.strictObject({ opId: z.string().max(64) }),
    output: view.operation,
    errors: ['not_found'],
    idempotent: true,
    reads: true,
  },
  'operation.cancel': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/operations/{opId}/cancel',
    summary: 'Cancel an operation; it cleans up',
    input: z.strictObject({ opId: z.string().max(64) }),
    output: view.operation,
    errors: ['not_found', 'failed_precondition'],
    idempotent: true,
    reads: false,
  },
  'why.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/why/{ref}',
    summary: 'Why a sandbox is in its state, or what an operation did',
    input: target,
    output: view.why,
    errors: found,
    idempotent: true,
    reads: true,
  },
  'ledger.list': {
    kind: 'lines',
    method: 'GET',
    path: '/v1/ledger',
    summary: 'The ledger, from a sequence number on',
    input: z.strictObject({
      cursor: count.optional(),
      follow: flag.optional(),
      limit: count.optional(),
      format: z.enum(['hutch', 'cocoon']).default('hutch'),
    }),
    output: z.any(),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'ledger.verify': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/ledger/verify',
    summary: 'Check sequence and hash chain',
    input: none,
    output: z.object({
      ok: z.boolean(),
      entries: z.int(),
      lastHash: z.string().nullable(),
      firstBreak: z.object({ sequence: z.int(), problem: z.string() }).nullable(),
    }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'key.create': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/keys',
    summary: 'Make an API key; its secret is shown once',
    input: z.strictObject({ name: z.string().min(1).max(63) }),
    output: view.key.extend({ secret: z.string() }),
    errors: ['conflict'],
    idempotent: false,
    reads: false,
  },
  'key.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/keys',
    summary: 'List API keys',
    input: none,
    output: z.object({ keys: z.array(view.key) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'key.revoke': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/keys/{ref}',
    summary: 'Revoke an API key',
    input: target,
    output: view.key,
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: true,
    reads: false,
  },
  'config.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/config',
    summary: 'The configuration, and where each value came from',
    input: none,
    output: z.object({ values: z.array(z.object({ key: z.string(), value: z.unknown(), source: z.string() })) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'backends.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/backends',
    summary: 'What runs sandboxes here, and what each can do on this machine',
    input: none,
    output: z.object({
      default: z.enum(BACKENDS).nullable().describe('what runs a sandbox that names none'),
      backends: z.array(view.backend),
    }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'doctor.check': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/doctor',
    summary: 'What this machine can do',
    input: none,
    output: z.object({ ok: z.boolean(), checks: z.array(view.check) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'doctor.leaks': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/doctor/leaks',
    summary: 'What lies under Hutch’s roots and belongs to nothing',
    input: none,
    output: z.object({ leaks: z.array(view.leak) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'daemon.version': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/version',
    summary: 'Versions of the daemon and its parts',
    input: none,
    output: z.object({
      version: z.string(),
      apiVersion: z.literal('v1'),
      pid: z.int(),
      startedAtMs: z.int(),
      schemaVersion: z.int(),
      agentDigest: z.string().nullable(),
      qemuVersion: z.string().nullable(),
    }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'daemon.stop': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/daemon/stop',
    summary: 'End the daemon; sandboxes go on',
    input: none,
    output: none,
    errors: [],
    idempotent: true,
    reads: false,
  },
} as const satisfies Record<string, Verb>;

export type VerbName = keyof typeof verbs;
export type Input<N extends VerbName> = z.input<(typeof verbs)[N]['input']>;
export type Parsed<N extends VerbName> = z.output<(typeof verbs)[N]['input']>;
export type Output<N extends VerbName> = z.output<(typeof verbs)[N]['output']>;

/** The first message on an `exec.start` socket. */
export const execRequest = execInput;
export type ExecRequest = z.input<typeof execInput>;
