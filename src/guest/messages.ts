// What the agent says, as schemas: every answer and every event is parsed here before anybody uses
// it. The guest is hostile, so each field has a bound; a newer agent is welcome, so unknown fields are
// ignored. Counts and texts are bounded once more by the frame (64 KiB) and by MessagePack's limits.
import { z } from 'zod';

const TEXT_CHARS_MAX = 4_096;
const LIST_ENTRIES_MAX = 4_096;

const text = z.string().max(TEXT_CHARS_MAX);

/** Absent and nil are the same: null. */
function maybe<T extends z.ZodType>(schema: T) {
  return schema.nullish().transform((value) => value ?? null);
}

/** A number that is never negative. What is too large for a number (a sparse file of 8 EiB) is its largest. */
const whole = z
  .union([z.number().min(0).transform(Math.trunc), z.bigint().min(0n)])
  .transform((value) =>
    typeof value === 'number' && value <= Number.MAX_SAFE_INTEGER ? value : Math.min(Number(value), Number.MAX_SAFE_INTEGER),
  );

/** Milliseconds since 1970, negative before; within what a Date can hold. */
const DATE_MS_MAX = 8.64e15;
const timeMs = z
  .union([z.number(), z.bigint()])
  .transform((value) => Math.trunc(Math.max(-DATE_MS_MAX, Math.min(DATE_MS_MAX, Number(value)))));

const inode = z.union([z.int().min(0), z.bigint().min(0n)]).transform(BigInt);
const processNumber = z
  .int()
  .min(0)
  .max(2 ** 31 - 1);
const userNumber = z
  .int()
  .min(0)
  .max(2 ** 32 - 1);
const port = z.int().min(1).max(65_535);

/** A path or a name: bytes where it is not valid UTF-8. */
export type GuestPath = string | Uint8Array;
const path = z.union([z.string().min(1), z.instanceof(Uint8Array).refine((bytes) => bytes.byteLength > 0, 'must not be empty')]);

const processId = z.string().regex(/^[A-Za-z0-9._-]{1,64}$/);

/** The result of methods that have none. */
export const nothing = z.unknown().transform(() => undefined);

// The agent itself

export const hello = z.object({
  agentVersion: text,
  features: z.array(z.string().max(64)).max(256),
  bootId: text,
  pid: processNumber,
  isInit: z.boolean(),
  kernel: text,
  uptimeMs: whole,
  configured: z.boolean(),
  /** Of the last `configure`; null before it. */
  generation: maybe(text),
});
export type Hello = z.output<typeof hello>;

/** What a machine that goes on from memory has, by its own programs' view: its boot id (null: it shows none), host keys, hooks. */
const found = z.object({ bootId: maybe(text), hostKeys: z.boolean(), hooks: z.boolean() });
export type Found = z.output<typeof found>;

/** `found`: null where it was not asked for, and from an agent of an older release. */
export const configured = z.object({ tookMs: whole, warnings: z.array(text).max(64), found: maybe(found) });
export type Configured = z.output<typeof configured>;

export const clock = z.object({ clockMs: timeMs });

export const metrics = z.object({
  takenAtMs: timeMs,
  uptimeMs: whole,
  cpu: z.object({ userUs: whole, systemUs: whole, idleUs: whole, stealUs: whole, count: z.int().min(0).max(65_536) }),
  memory: z.object({ totalBytes: whole, availableBytes: whole, usedBytes: whole, cacheBytes: whole }),
  disk: z.object({ totalBytes: whole, usedBytes: whole, readBytes: whole, writtenBytes: whole }),
  network: z.object({ rxBytes: whole, txBytes: whole }),
  processes: whole,
  oomKills: whole,
  pressure: maybe(z.object({ cpuSomeUs: whole, memorySomeUs: whole, ioSomeUs: whole })),
});
export type Metrics = z.output<typeof metrics>;

// Processes

const signalName = z.string().regex(/^[A-Z0-9+-]{1,16}$/);

export const exit = z.object({
  /** What the program returned; null when a signal ended it. */
  code: maybe(z.int().min(0).max(255)),
  /** `TERM`, `KILL`; null when it returned. */
  signal: maybe(z.union([signalName, z.int().min(1).max(64).transform(String)])),
  coreDumped: z.boolean(),
  oomKilled: z.boolean(),
  endedAtMs: timeMs,
  stdoutBytes: whole,
  stderrBytes: whole,
  reason: z.enum(['exited', 'signalled', 'lifetime']),
});
export type Exit = z.output<typeof exit>;

export const started = z.object({
  pid: processNumber,
  startedAtMs: timeMs,
  /** A process of this id was there already: nothing was started. */
  existing: z.boolean(),
  /** As in `attached`; 0 for a process that has just begun. */
  stdoutOffset: whole.nullish().transform((value) => value ?? 0),
  stderrOffset: whole.nullish().transform((value) => value ?? 0),
  inputOffset: whole.nullish().transform((value) => value ?? 0),
});
export type Started = z.output<typeof started>;

export const attached = z.object({
  pid: processNumber,
  /** Where output begins: more than was asked for when older bytes are gone. */
  stdoutOffset: whole,
  stderrOffset: whole,
  /** Bytes of input that the agent has accepted since the process began. */
  inputOffset: whole,
  running: z.boolean(),
});
export type Attached = z.output<typeof attached>;

export const processes = z.object({
  processes: z
    .array(
      z.object({
        id: processId,
        pid: processNumber,
        // An empty argument is legal, unlike an empty path.
        argv: z.array(z.union([z.string(), z.instanceof(Uint8Array)])).max(LIST_ENTRIES_MAX),
        tag: maybe(text),
        startedAtMs: timeMs,
        running: z.boolean(),
        exit: maybe(exit),
        pty: z.boolean(),
        inputOffset: whole,
      }),
    )
    .max(LIST_ENTRIES_MAX),
});
export type ProcessInfo = z.output<typeof processes>['processes'][number];

export const warmed = z.object({ files: whole, bytes: whole, tookMs: whole });
export type Warmed = z.output<typeof warmed>;

export const logBegins = z.object({ offset: whole });

// Files

export const entry = z.object({
  path,
  name: z.union([z.string(), z.instanceof(Uint8Array)]),
  type: z.enum(['file', 'dir', 'symlink', 'fifo', 'socket', 'char', 'block']),
  /** Bytes. */
  size: whole,
  mode: z.int().min(0).max(0o177_777),
  uid: userNumber,
  gid: userNumber,
  user: maybe(text),
  group: maybe(text),
  mtimeMs: timeMs,
  /** Of a symbolic link. */
  target: maybe(z.union([z.string(), z.instanceof(Uint8Array)])),
  inode,
  nlink: whole,
});
export type Entry = z.output<typeof entry>;

/** `lent`: the agent's descriptor of the file, where it was asked for and the file is large enough. */
export const lentEntry = entry.extend({ lent: maybe(whole) });
export const lentFile = z.object({ lent: maybe(whole) }).nullish();

export const bytesMoved = z.object({ bytes: whole });
export const tarDone = z.object({ entries: whole, bytes: whole });
export type TarDone = z.output<typeof tarDone>;

// Ports

const portInfo = z.object({
  protocol: z.enum(['tcp', 'udp']),
  address: z.string().max(64),
  port,
  pid: maybe(processNumber),
  process: maybe(text),
});
export type PortInfo = z.output<typeof portInfo>;
export const ports = z.object({ ports: z.array(portInfo).max(LIST_ENTRIES_MAX) });

export const listening = z.object({ port });

// Events. Each method has its own; the name is in `e`, and names that it does not know are ignored.

function event<Name extends string, Shape extends z.ZodRawShape>(name: Name, shape: Shape) {
  return z.object({ e: z.literal(name), ...shape });
}

export const agentEvent = z.discriminatedUnion('e', [
  event('oom', { victimPid: processNumber, victimName: text, processId: maybe(processId), totalKills: whole }),
  event('mainExited', exit.shape),
  event('diskError', { message: text }),
]);
export type AgentEvent = z.output<typeof agentEvent>;

const channel = z.union([z.literal(1), z.literal(2)]);
export const processEvent = z.discriminatedUnion('e', [
  event('dropped', { channel, fromOffset: whole, bytes: whole }),
  event('inputTaken', {}),
]);

export const entriesEvent = event('entries', { entries: z.array(entry).max(256) });

export const changeEvent = z.discriminatedUnion('e', [
  event('change', { kind: z.enum(['create', 'write', 'remove', 'rename', 'chmod']), path, to: maybe(path) }),
  event('overflow', {}),
]);
export type FileChange = z.output<typeof changeEvent>;

export const portEvent = z.discriminatedUnion('e', [event('opened', portInfo.shape), event('closed', portInfo.shape)]);
export type PortEvent = z.output<typeof portEvent>;

export const arrivedEvent = event('arrived', { id: whole, address: z.string().max(64), port: z.int().min(0).max(65_535) });
export type Arrived = z.output<typeof arrivedEvent>;

/** The name of any event. */
export const eventName = z.object({ e: z.string().max(64) });
