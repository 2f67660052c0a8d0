// The log of one sandbox's main process on the host: what the agent keeps in the guest, copied out as
// it is written, so that it is there when the guest is not. Bounded and rotated.
//
// Always true: everything about the log stands in the names and sizes of its parts, so that a daemon
// that was killed at any point goes on where the whole records end. A part begins with a whole record
// and belongs to one run. Its name has, in this order: the run, the offset of its first byte in this
// log and in the agent's, and how much of stdout and of stderr the run had written before it.
import { HutchError } from '../domain/errors.ts';
import { type LogPiece, LogRecordError, LogRecords } from '../guest/log-records.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { waitFor } from './operations.ts';

export const MAIN_LOG_BYTES_MAX = 10 * 1024 * 1024;
export const MAIN_LOG_FILES = 3;
/** Many short runs make many small parts. */
const PARTS_MAX = 64;
const READ_BYTES = 256 * 1024;

type Part = {
  path: string;
  readonly run: number;
  readonly from: number;
  readonly agentFrom: number;
  readonly stdout: number;
  readonly stderr: number;
  /** Of its whole records. */
  size: number;
};

export type Counts = { readonly stdout: number; readonly stderr: number };

const NAME = /^main\.(\d+)\.(\d+)\.(\d+)\.(\d+)\.(\d+)$/;

export class MainLog {
  readonly #host: Host;
  #dir: string;
  readonly #parts: Part[];
  readonly #waiting = new Set<() => void>();
  /** Of the last run, up to the end of the log. */
  #counts: Counts = { stdout: 0, stderr: 0 };

  private constructor(host: Host, dir: string, parts: Part[]) {
    this.#host = host;
    this.#dir = dir;
    this.#parts = parts;
  }

  static async open(op: Operation, host: Host, dir: string): Promise<MainLog> {
    const parts: Part[] = [];
    const names = (await host.stat(op, dir)) === null ? [] : await host.list(op, dir);
    for (const name of names) {
      const numbers = NAME.exec(name)?.slice(1).map(Number);
      if (numbers === undefined) continue;
      const [run = 0, from = 0, agentFrom = 0, stdout = 0, stderr = 0] = numbers;
      const path = `${dir}/${name}`;
      parts.push({ path, run, from, agentFrom, stdout, stderr, size: (await host.stat(op, path))?.sizeBytes ?? 0 });
    }
    parts.sort((left, right) => left.from - right.from || left.run - right.run);
    const log = new MainLog(host, dir, parts);
    await log.#mend(op);
    return log;
  }

  get end(): number {
    const last = this.#parts.at(-1);
    return last === undefined ? 0 : last.from + last.size;
  }

  get start(): number {
    return this.#parts[0]?.from ?? 0;
  }

  /** The agent's offset up to which the log of `run` was copied; null when nothing of that run was. */
  agentEnd(run: number): number | null {
    const last = this.#parts.at(-1);
    return last === undefined || last.run !== run ? null : last.agentFrom + last.size;
  }

  /** What the agent's log had reached when anything was last copied from it. */
  get lastAgentEnd(): number {
    const last = this.#parts.at(-1);
    return last === undefined ? 0 : last.agentFrom + last.size;
  }

  /** Whole records of `run`, which stand at `agentOffset` in the agent's log; `counts` are the bytes in them. */
  async append(op: Operation, run: number, agentOffset: number, records: Uint8Array, counts: Counts): Promise<void> {
    let last = this.#parts.at(-1);
    if (last?.run !== run) this.#counts = { stdout: 0, stderr: 0 };
    if (last === undefined || last.run !== run || last.size >= MAIN_LOG_BYTES_MAX || last.agentFrom + last.size !== agentOffset) {
      last = await this.#begin(op, run, agentOffset);
    }
    await this.#host.appendFile(op, last.path, records);
    last.size += records.byteLength;
    this.#counts = { stdout: this.#counts.stdout + counts.stdout, stderr: this.#counts.stderr + counts.stderr };
    this.#tell();
  }

  /** A word of ours, as if the main process had said it on stderr. */
  async note(op: Operation, run: number, text: string): Promise<void> {
    const bytes = new TextEncoder().encode(text);
    const record = encodeRecord('stderr', this.#host.nowMs(), bytes);
    await this.append(op, run, this.agentEnd(run) ?? this.lastAgentEnd, record, { stdout: 0, stderr: bytes.byteLength });
  }

  /** Offset of the record in which the last `bytes` begin: at least so many, as a record is given whole. */
  async tail(op: Operation, bytes: number): Promise<number> {
    const wanted = Math.max(this.end - bytes, this.start);
    for (const part of [...this.#parts]) {
      if (wanted <= part.from) return part.from;
      if (wanted >= part.from + part.size) continue;
      let start = part.from;
      for await (const { nextOffset } of this.#pieces(op, part)) {
        if (nextOffset === null) continue;
        if (nextOffset > wanted) return start;
        start = nextOffset;
      }
    }
    return this.end;
  }

  /**
   * Bytes from `offset` on, which is not before `start`, up to what there is now; gives the offset that was reached.
   * @throws HutchError `resource_exhausted` when what comes next was dropped before it was read.
   */
  async *read(op: Operation, offset: number): AsyncGenerator<Uint8Array, number, undefined> {
    let at = offset;
    for (;;) {
      const part = this.#parts.find((candidate) => at < candidate.from + candidate.size);
      if (part === undefined) return at;
      if (part.from > at) throw op.error('resource_exhausted', `the log was rotated before it was read: ${part.from - at} bytes are gone`);
      const before = at;
      for await (const chunk of this.#chunks(op, part, at - part.from)) {
        yield chunk;
        at += chunk.byteLength;
      }
      // Gone although nothing dropped it: so is the sandbox.
      if (at === before && this.#parts.includes(part)) return at;
    }
  }

  /** Its files lie elsewhere now. */
  moved(dir: string): void {
    this.#dir = dir;
    for (const part of this.#parts) part.path = `${dir}/${part.path.slice(part.path.lastIndexOf('/') + 1)}`;
  }

  /** Resolves when the log has grown beyond `offset`, or `stop` settles. */
  async more(op: Operation, offset: number, stop: Promise<void>): Promise<void> {
    if (this.end > offset) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.add(resolve);
    try {
      await waitFor(op, Promise.race([promise, stop]), 'more of the log');
    } finally {
      this.#waiting.delete(resolve);
    }
  }

  /** The parts of the last run, for replaying its output by channel. */
  lastRun(): { readonly run: number; readonly from: number; readonly stdout: number; readonly stderr: number } | null {
    const last = this.#parts.at(-1);
    const first = this.#parts.find((part) => part.run === last?.run);
    return first === undefined ? null : { run: first.run, from: first.from, stdout: first.stdout, stderr: first.stderr };
  }

  /** What the last run has written in all. */
  get counts(): Counts {
    return this.#counts;
  }

  async #begin(op: Operation, run: number, agentFrom: number): Promise<Part> {
    const from = this.end;
    const { stdout, stderr } = this.#counts;
    const path = `${this.#dir}/main.${run}.${from}.${agentFrom}.${stdout}.${stderr}`;
    await this.#host.makeDir(op, this.#dir, 0o711);
    await this.#host.truncate(op, path, 0);
    const part: Part = { path, run, from, agentFrom, stdout, stderr, size: 0 };
    this.#parts.push(part);
    await this.#dropOldest(op);
    return part;
  }

  async #dropOldest(op: Operation): Promise<void> {
    const total = () => this.#parts.reduce((sum, part) => sum + part.size, 0);
    while (this.#parts.length > 1 && (total() > MAIN_LOG_BYTES_MAX * MAIN_LOG_FILES || this.#parts.length > PARTS_MAX)) {
      const oldest = this.#parts.shift();
      if (oldest !== undefined) await this.#host.remove(op, oldest.path);
    }
  }

  /** After a restart: what the last run has written; a record that was cut is cut off. */
  async #mend(op: Operation): Promise<void> {
    const last = this.#parts.at(-1);
    if (last === undefined) return;
    const counts = { stdout: last.stdout, stderr: last.stderr };
    const pending = { stdout: 0, stderr: 0 };
    let whole = last.from;
    try {
      for await (const { channel, bytes, nextOffset } of this.#pieces(op, last)) {
        pending[channel] += bytes.byteLength;
        if (nextOffset === null) continue;
        whole = nextOffset;
        for (const name of ['stdout', 'stderr'] as const) counts[name] += pending[name];
        pending.stdout = 0;
        pending.stderr = 0;
      }
    } catch (cause) {
      if (!(cause instanceof LogRecordError)) throw cause;
      op.log.warn({ path: last.path, cause }, 'a log part is damaged; what cannot be read is cut off');
    }
    this.#counts = counts;
    if (whole === last.from + last.size) return;
    await this.#host.truncate(op, last.path, whole - last.from);
    last.size = whole - last.from;
  }

  async *#pieces(op: Operation, part: Part): AsyncGenerator<LogPiece, void, undefined> {
    const records = new LogRecords(part.from);
    for await (const chunk of this.#chunks(op, part, 0)) yield* records.push(chunk);
  }

  async *#chunks(op: Operation, part: Part, offset: number): AsyncGenerator<Uint8Array, void, undefined> {
    for (let at = offset; at < part.size; ) {
      const chunk = await this.#host.readRange(op, part.path, at, Math.min(READ_BYTES, part.size - at)).catch((error: unknown) => {
        if (error instanceof HutchError && error.code === 'not_found') return null;
        throw error;
      });
      if (chunk === null || chunk.byteLength === 0) return; // dropped or cut meanwhile
      yield chunk;
      at += chunk.byteLength;
    }
  }

  #tell(): void {
    for (const wake of [...this.#waiting]) wake();
    this.#waiting.clear();
  }
}

const HEADER_BYTES = 13;

export function encodeRecord(channel: 'stdout' | 'stderr', wallMs: number, bytes: Uint8Array): Uint8Array {
  const record = Buffer.allocUnsafe(HEADER_BYTES + bytes.byteLength);
  record.writeUInt8(channel === 'stdout' ? 1 : 2, 0);
  record.writeBigUInt64LE(BigInt(Math.trunc(wallMs)), 1);
  record.writeUInt32LE(bytes.byteLength, 9);
  record.set(bytes, HEADER_BYTES);
  return record;
}
