// A client of QEMU's machine protocol over one unix socket. The VMM at the other end may have been
// taken over by its guest, so what it says is bounded and parsed, and every wait has the operation's
// signal: a silent, flooding or lying VMM costs the daemon nothing but that operation.

import type { Duplex } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';
import { z } from 'zod';
import { HutchError } from '../../domain/errors.ts';
import { abortError } from '../../host/errors.ts';
import type { Operation } from '../../host/operation.ts';

/** Longest line that is accepted; QEMU's longest answer that we ask for has some hundred bytes. */
export const QMP_LINE_CHARS_MAX = 256 * 1024;
/** Events that are kept for a `waitFor` that comes later; older ones are forgotten. */
export const QMP_EVENTS_MAX = 64;

const greeting = z.object({
  QMP: z.object({ version: z.object({ qemu: z.object({ major: z.int(), minor: z.int(), micro: z.int() }) }) }),
});
const event = z.object({ event: z.string().max(128), data: z.record(z.string(), z.unknown()).optional() });
const reply = z.object({ id: z.int(), return: z.json() });
const failure = z.object({ id: z.int(), error: z.object({ class: z.string().max(128), desc: z.string().max(4096) }) });

const message = z.union([event, reply, failure, greeting]);

export type QmpEvent = { readonly name: string; readonly data: Readonly<Record<string, unknown>> };

export type Qmp = AsyncDisposable & {
  readonly version: string;
  /** Sends one command and gives its result, which the caller parses. @throws HutchError `unavailable` with QEMU's own words when it refuses. */
  execute(op: Operation, command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown>;
  /** The first event, from the connection's start on and not yet taken, of which `wanted` is true. */
  waitFor(op: Operation, what: string, wanted: (event: QmpEvent) => boolean): Promise<QmpEvent>;
};

type Waiter = { readonly settle: (value: unknown) => void; readonly fail: (error: Error) => void };

/** Greets and leaves the negotiation mode. Owns `stream` from here on, also when it throws. */
export async function openQmp(op: Operation, stream: Duplex): Promise<Qmp> {
  await using undo = new AsyncDisposableStack();
  const connection = undo.use(new QmpConnection(stream));
  await connection.greeted(op);
  await connection.execute(op, 'qmp_capabilities');
  undo.move();
  return connection;
}

class QmpConnection implements Qmp {
  version = 'unknown';
  readonly #stream: Duplex;
  readonly #decoder = new StringDecoder('utf8');
  readonly #replies = new Map<number, Waiter>();
  readonly #watchers = new Set<{ readonly wanted: (event: QmpEvent) => boolean; readonly waiter: Waiter }>();
  #greeting: Waiter | undefined;
  #events: QmpEvent[] = [];
  #partial = '';
  #lastId = 0;
  #lost: Error | undefined;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.on('data', (chunk: Buffer) => this.#read(chunk));
    stream.on('error', (cause) => this.#lose('its control socket failed', cause));
    stream.on('close', () => this.#lose('it closed its control socket'));
  }

  greeted(op: Operation): Promise<void> {
    return this.#wait<void>(op, 'QMP greeting', (waiter) => {
      this.#greeting = waiter;
      return () => {
        this.#greeting = undefined;
      };
    });
  }

  execute(op: Operation, command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    this.#lastId += 1;
    const id = this.#lastId;
    return this.#wait<unknown>(op, `QMP command ${command}`, (waiter) => {
      this.#replies.set(id, waiter);
      this.#stream.write(`${JSON.stringify({ execute: command, arguments: args ?? {}, id })}\n`);
      return () => this.#replies.delete(id);
    });
  }

  async waitFor(op: Operation, what: string, wanted: (event: QmpEvent) => boolean): Promise<QmpEvent> {
    const at = this.#events.findIndex(wanted);
    const [kept] = at < 0 ? [] : this.#events.splice(at, 1);
    if (kept !== undefined) return kept;
    return await this.#wait<QmpEvent>(op, what, (waiter) => {
      const watcher = { wanted, waiter };
      this.#watchers.add(watcher);
      return () => this.#watchers.delete(watcher);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stream.destroy();
  }

  /** Every wait ends with an answer, with the loss of the connection, or with the operation's signal. */
  async #wait<T>(op: Operation, what: string, begin: (waiter: Waiter) => () => void): Promise<T> {
    if (this.#lost !== undefined) throw this.#fault(op, what, this.#lost);
    if (op.signal.aborted) throw abortError(op, what);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const onAbort = (): void => reject(abortError(op, what));
    op.signal.addEventListener('abort', onAbort, { once: true });
    const forget = begin({ settle: (value) => resolve(value as T), fail: reject });
    try {
      return await promise;
    } catch (error) {
      throw this.#fault(op, what, error);
    } finally {
      forget();
      op.signal.removeEventListener('abort', onAbort);
    }
  }

  #fault(op: Operation, what: string, error: unknown): Error {
    if (error instanceof HutchError) return error;
    return op.error('unavailable', `QEMU did not answer (${what}): ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }

  #lose(why: string, cause?: unknown): void {
    if (this.#lost !== undefined) return;
    const lost = new Error(why, { cause });
    this.#lost = lost;
    this.#stream.destroy();
    this.#greeting?.fail(lost);
    for (const waiter of this.#replies.values()) waiter.fail(lost);
    for (const { waiter } of this.#watchers) waiter.fail(lost);
  }

  #read(chunk: Buffer): void {
    if (this.#lost !== undefined) return;
    const lines = (this.#partial + this.#decoder.write(chunk)).split('\n');
    this.#partial = lines.pop() ?? '';
    for (const line of lines) {
      if (line.length > QMP_LINE_CHARS_MAX) this.#lose(`it sent a line longer than ${QMP_LINE_CHARS_MAX} characters`);
      else if (line.trim() !== '') this.#take(line);
    }
    if (this.#partial.length > QMP_LINE_CHARS_MAX) this.#lose(`it sent a line longer than ${QMP_LINE_CHARS_MAX} characters`);
  }

  #take(line: string): void {
    let json: unknown;
    try {
      json = JSON.parse(line);
    } catch (cause) {
      this.#lose('it sent what is no JSON', cause);
      return;
    }
    const parsed = message.safeParse(json);
    if (!parsed.success) {
      this.#lose('it sent a message of no known kind', parsed.error);
      return;
    }
    const { data } = parsed;
    if ('event' in data) this.#tell({ name: data.event, data: data.data ?? {} });
    else if ('error' in data) this.#replies.get(data.id)?.fail(new Error(`it refused: ${data.error.desc}`));
    else if ('QMP' in data) this.#greet(data.QMP.version.qemu);
    else this.#replies.get(data.id)?.settle(data.return);
  }

  #greet({ major, minor, micro }: { major: number; minor: number; micro: number }): void {
    this.version = `${major}.${minor}.${micro}`;
    this.#greeting?.settle(undefined);
  }

  #tell(told: QmpEvent): void {
    for (const { wanted, waiter } of this.#watchers) {
      if (!wanted(told)) continue;
      waiter.settle(told);
      return;
    }
    this.#events.push(told);
    if (this.#events.length > QMP_EVENTS_MAX) this.#events.shift();
  }
}
