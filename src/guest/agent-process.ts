// Processes in the sandbox: started once per id, attached to as often as wanted. Output is numbered by
// byte offset, and the exit comes only after the last byte.
import type { Operation } from '../host/operation.ts';
import { CALL_MS, finished, open, owning, parse, parseEvent, unary } from './calls.ts';
import type { AgentConnection } from './connection.ts';
import { type LogPiece, LogRecordError, LogRecords } from './log-records.ts';
import {
  type Attached,
  attached,
  type Exit,
  exit,
  type GuestPath,
  logBegins,
  nothing,
  type ProcessInfo,
  processEvent,
  processes,
  type Started,
  started,
} from './messages.ts';
import { pathParam } from './paths.ts';
import { CHANNEL } from './protocol.ts';
import type { AgentStream } from './stream.ts';

export type Pty = { readonly cols: number; readonly rows: number; readonly term?: string };

export type ProcessSpec = {
  /** 1 to 64 of `[A-Za-z0-9._-]`; a start with an id that exists attaches to it. */
  readonly id: string;
  readonly argv: readonly GuestPath[];
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: GuestPath;
  readonly user?: string;
  readonly loginShell?: boolean;
  readonly pty?: Pty;
  readonly stdin: 'pipe' | 'null';
  /** What happens to output that no subscriber reads: the process waits, or the oldest is overwritten. */
  readonly whenUnread: 'block' | 'drop';
  readonly lifetimeMs?: number;
  readonly tag?: string;
  /** Keep the output in the rotated log as well. */
  readonly keepLog?: boolean;
};

export type AttachSpec = {
  readonly id: string;
  /** Where output begins; absent: with what is kept. */
  readonly stdoutOffset?: number;
  readonly stderrOffset?: number;
  /** Output begins with what is written next; no offsets then. */
  readonly fromNow?: boolean;
  /** Whether this stream is the one that input comes from. */
  readonly input: boolean;
};

export type OutputChannel = 'stdout' | 'stderr';

export type ProcessItem =
  | {
      readonly type: 'output';
      readonly channel: OutputChannel /** Of the first byte. */;
      readonly offset: number;
      readonly bytes: Uint8Array;
    }
  /** The process has closed this channel. */
  | { readonly type: 'end'; readonly channel: OutputChannel }
  /** Bytes that nobody will see: they were overwritten before they were read. */
  | { readonly type: 'dropped'; readonly channel: OutputChannel; readonly offset: number; readonly bytes: number }
  /** Another stream is where input comes from now. */
  | { readonly type: 'inputTaken' }
  /** The last item. */
  | { readonly type: 'exit'; readonly exit: Exit };

/** A subscription to one process. Giving it up does not end the process. */
export class ProcessStream implements Disposable {
  readonly id: string;
  readonly pid: number;
  readonly #connection: AgentConnection;
  readonly #stream: AgentStream;
  readonly #offset: Record<OutputChannel, number>;

  constructor(
    connection: AgentConnection,
    stream: AgentStream,
    id: string,
    pid: number,
    offset: { readonly stdout: number; readonly stderr: number },
  ) {
    this.id = id;
    this.pid = pid;
    this.#connection = connection;
    this.#stream = stream;
    this.#offset = { ...offset };
  }

  /** Output, in order per channel, up to the exit. To ask for the next says that the last one's bytes are done with. */
  async *items(op: Operation): AsyncGenerator<ProcessItem, void, undefined> {
    try {
      for (;;) {
        const item = await this.next(op);
        if (item === null) continue;
        yield item;
        if (item.type === 'exit') return;
      }
    } finally {
      this[Symbol.dispose]();
    }
  }

  /** Sends input; resolves when there is room for more: not while the process does not read. The bytes must not change afterwards. */
  write(op: Operation, bytes: Uint8Array): Promise<void> {
    return this.#stream.write(op, bytes);
  }

  /** Closes the input of the process after what has been written. */
  endInput(): void {
    this.#stream.end();
  }

  /** Input that the agent has surely accepted on this stream, in bytes. */
  get acceptedBytes(): number {
    return this.#stream.creditedBytes;
  }

  /** Called when `acceptedBytes` grows, and when the stream is over. */
  onAccepted(listener: () => void): void {
    this.#stream.onCredit(listener);
  }

  get isOver(): boolean {
    return this.#stream.isOver;
  }

  [Symbol.dispose](): void {
    this.#stream.cancel();
  }

  /** The next item; null for one that this release does not know. */
  async next(op: Operation): Promise<ProcessItem | null> {
    const item = await this.#stream.next(op);
    switch (item.kind) {
      case 'data': {
        const channel = outputChannel(item.channel);
        if (channel === null) return null;
        const offset = this.#offset[channel];
        this.#offset[channel] += item.bytes.byteLength;
        return { type: 'output', channel, offset, bytes: item.bytes };
      }
      case 'end': {
        const channel = outputChannel(item.channel);
        return channel === null ? null : { type: 'end', channel };
      }
      case 'event': {
        const event = parseEvent(op, this.#connection, this.#stream.method, ['dropped', 'inputTaken'], processEvent, item.payload);
        if (event === null) return null;
        if (event.e === 'inputTaken') return { type: 'inputTaken' };
        const channel = event.channel === CHANNEL.stdout ? 'stdout' : 'stderr';
        this.#offset[channel] = event.fromOffset + event.bytes;
        return { type: 'dropped', channel, offset: event.fromOffset, bytes: event.bytes };
      }
      case 'close':
        return { type: 'exit', exit: parse(op, this.#connection, this.#stream.method, exit, item.payload) };
    }
  }
}

function outputChannel(channel: number): OutputChannel | null {
  if (channel === CHANNEL.stdout) return 'stdout';
  return channel === CHANNEL.stderr ? 'stderr' : null;
}

export type AgentProcesses = {
  /**
   * Starts a process, or attaches to the one that has this id already (`existing`).
   * @throws HutchError `not_found` (program), `permission_denied` or another with the errno of `execve` as its cause.
   */
  start(op: Operation, spec: ProcessSpec): Promise<{ readonly process: ProcessStream; readonly started: Started }>;
  attach(op: Operation, spec: AttachSpec): Promise<{ readonly process: ProcessStream; readonly attached: Attached }>;
  /** Sends a signal by name (`TERM`) or number, to the whole process group or the process alone. */
  signal(op: Operation, id: string, signal: string | number, to: 'group' | 'process'): Promise<void>;
  resize(op: Operation, id: string, size: { readonly cols: number; readonly rows: number }): Promise<void>;
  closeInput(op: Operation, id: string): Promise<void>;
  list(op: Operation): Promise<readonly ProcessInfo[]>;
  /** Waits for the end; bounded by the operation alone. */
  wait(op: Operation, id: string): Promise<Exit>;
  /** The kept log, oldest first, from the first record at or after what is asked for. */
  log(
    op: Operation,
    id: string,
    from: LogFrom,
  ): Promise<{ readonly offset: number; readonly pieces: AsyncGenerator<LogPiece, void, undefined> }>;
};

export type LogFrom = { readonly offset?: number; readonly tailBytes?: number; readonly follow: boolean };

export function agentProcesses(connection: AgentConnection): AgentProcesses {
  return {
    async start(op, spec) {
      const params = { ...spec, argv: spec.argv.map(pathParam), cwd: spec.cwd === undefined ? undefined : pathParam(spec.cwd) };
      const { stream, reply } = await open(op, connection, 'process.start', params, started, START_MS);
      const offset = { stdout: reply.stdoutOffset, stderr: reply.stderrOffset };
      return { process: new ProcessStream(connection, stream, spec.id, reply.pid, offset), started: reply };
    },
    async attach(op, { fromNow, ...spec }) {
      // Beyond what there is means its end.
      const params = fromNow === true ? { ...spec, stdoutOffset: Number.MAX_SAFE_INTEGER, stderrOffset: Number.MAX_SAFE_INTEGER } : spec;
      const { stream, reply } = await open(op, connection, 'process.attach', params, attached);
      const offset = { stdout: reply.stdoutOffset, stderr: reply.stderrOffset };
      return { process: new ProcessStream(connection, stream, spec.id, reply.pid, offset), attached: reply };
    },
    signal: (op, id, signal, to) => unary(op, connection, 'process.signal', { id, signal, group: to === 'group' }, nothing),
    resize: (op, id, { cols, rows }) => unary(op, connection, 'process.resize', { id, cols, rows }, nothing),
    closeInput: (op, id) => unary(op, connection, 'process.closeInput', { id }, nothing),
    list: async (op) => (await unary(op, connection, 'process.list', null, processes)).processes,
    async wait(op, id) {
      const { stream } = await open(op, connection, 'process.wait', { id }, nothing);
      using _ = stream;
      return await finished(op, connection, stream, exit);
    },
    async log(op, id, from) {
      const { stream, reply } = await open(op, connection, 'process.log', { id, ...from }, logBegins);
      if (from.follow) connection.stands(stream);
      return { offset: reply.offset, pieces: owning(stream, logPieces(op, stream, reply.offset)) };
    },
  };
}

/** A program on a slow disk takes a while to be loaded. */
const START_MS = 2 * CALL_MS;

async function* logPieces(op: Operation, stream: AgentStream, offset: number): AsyncGenerator<LogPiece, void, undefined> {
  using _ = stream;
  const records = new LogRecords(offset);
  for (;;) {
    const item = await stream.next(op);
    if (item.kind === 'close') return;
    if (item.kind !== 'data') continue;
    try {
      yield* records.push(item.bytes);
    } catch (cause) {
      if (cause instanceof LogRecordError)
        throw op.error('internal', `the kept log of the sandbox cannot be read: ${cause.message}`, { cause });
      throw cause;
    }
  }
}
