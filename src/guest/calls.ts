// The shapes that the agent's methods have in common: one question and one answer, a stream of
// content, a stream of events, an upload. Each parses what the agent says and bounds how long it waits.
import type { z } from 'zod';
import type { Operation } from '../host/operation.ts';
import type { AgentConnection } from './connection.ts';
import { decodeMessage, MessageError } from './messagepack.ts';
import { eventName } from './messages.ts';
import { CHANNEL } from './protocol.ts';
import type { AgentStream } from './stream.ts';
import { shared } from './wait.ts';

/** The agent answers a question within this time, unless its method says otherwise. */
export const CALL_MS = 30_000;

/** Reads what the agent said. @throws HutchError `internal` when it is not what was agreed. */
export function parse<Schema extends z.ZodType>(
  op: Operation,
  connection: AgentConnection,
  method: string,
  schema: Schema,
  payload: Uint8Array,
): z.output<Schema> {
  let value: unknown;
  try {
    value = decodeMessage(payload);
  } catch (cause) {
    if (!(cause instanceof MessageError)) throw cause;
    connection.violated(`answered ${method} with something that is no message: ${cause.message}`);
    throw op.error('unavailable', `the agent answered ${method} with something that is no message`, { cause });
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const where = issue === undefined || issue.path.length === 0 ? 'the answer' : issue.path.map(String).join('.').slice(0, 128);
  throw op.error(
    'internal',
    `the agent's answer to ${method} is not what was agreed: ${where}: ${issue?.message.slice(0, 256) ?? 'not understood'}`,
    {
      cause: parsed.error,
    },
  );
}

/** One question, one answer. */
export async function unary<Schema extends z.ZodType>(
  op: Operation,
  connection: AgentConnection,
  method: string,
  params: object | null,
  schema: Schema,
  ms: number = CALL_MS,
): Promise<z.output<Schema>> {
  using limited = op.within(ms, `the agent's answer to ${method}`);
  return parse(op, connection, method, schema, await connection.call(limited, method, params));
}

export type Opened<Reply> = { readonly stream: AgentStream; readonly reply: Reply };

/** Opens a stream and waits until the agent has accepted it; what comes then has no time limit but the operation's. */
export async function open<Schema extends z.ZodType>(
  op: Operation,
  connection: AgentConnection,
  method: string,
  params: object | null,
  schema: Schema,
  ms: number = CALL_MS,
): Promise<Opened<z.output<Schema>>> {
  using limited = op.within(ms, `the agent's answer to ${method}`);
  const { stream, reply } = await connection.open(limited, method, params);
  try {
    return { stream, reply: parse(op, connection, method, schema, reply) };
  } catch (error) {
    stream.cancel();
    throw error;
  }
}

/**
 * A generator that owns a stream. One that was never begun does not run its `finally`, so leaving it
 * gives the stream up here.
 */
export function owning<T, Result>(stream: AgentStream, items: AsyncGenerator<T, Result, undefined>): AsyncGenerator<T, Result, undefined> {
  const leave = (): void => stream.cancel(); // nothing, when it is over
  return {
    next: () => items.next(),
    return(value) {
      leave();
      return items.return(value);
    },
    throw(error) {
      leave();
      return items.throw(error);
    },
    [Symbol.asyncIterator]() {
      return this;
    },
    async [Symbol.asyncDispose]() {
      leave();
    },
  };
}

/** The bytes on one channel, up to the close, whose result is returned. Leaving the loop gives the stream up. */
export function content<Schema extends z.ZodType>(
  op: Operation,
  connection: AgentConnection,
  stream: AgentStream,
  channel: number,
  schema: Schema,
): AsyncGenerator<Uint8Array, z.output<Schema>, undefined> {
  return owning(stream, contentOf(op, connection, stream, channel, schema));
}

async function* contentOf<Schema extends z.ZodType>(
  op: Operation,
  connection: AgentConnection,
  stream: AgentStream,
  channel: number,
  schema: Schema,
): AsyncGenerator<Uint8Array, z.output<Schema>, undefined> {
  using _ = stream;
  for (;;) {
    const item = await stream.next(op);
    if (item.kind === 'close') return parse(op, connection, stream.method, schema, item.payload);
    if (item.kind === 'data' && item.channel === channel) yield item.bytes;
  }
}

/** The events of a stream that are in `schema`; others are ignored. Leaving the loop gives the stream up. */
export function events<Schema extends z.ZodType>(
  op: Operation,
  connection: AgentConnection,
  stream: AgentStream,
  names: readonly string[],
  schema: Schema,
): AsyncGenerator<z.output<Schema>, void, undefined> {
  return owning(stream, eventsOf(op, connection, stream, names, schema));
}

async function* eventsOf<Schema extends z.ZodType>(
  op: Operation,
  connection: AgentConnection,
  stream: AgentStream,
  names: readonly string[],
  schema: Schema,
): AsyncGenerator<z.output<Schema>, void, undefined> {
  using _ = stream;
  for (;;) {
    const item = await stream.next(op);
    if (item.kind === 'close') return;
    if (item.kind !== 'event') continue;
    const event = parseEvent(op, connection, stream.method, names, schema, item.payload);
    if (event !== null) yield event;
  }
}

/** Null for an event whose name is not among `names`: a newer agent may have more. */
export function parseEvent<Schema extends z.ZodType>(
  op: Operation,
  connection: AgentConnection,
  method: string,
  names: readonly string[],
  schema: Schema,
  payload: Uint8Array,
): z.output<Schema> | null {
  const { e } = parse(op, connection, method, eventName, payload);
  return names.includes(e) ? parse(op, connection, method, schema, payload) : null;
}

/** Waits for the close of a stream and gives its result; what comes before is taken and forgotten. */
export async function finished<Schema extends z.ZodType>(
  op: Operation,
  connection: AgentConnection,
  stream: AgentStream,
  schema: Schema,
): Promise<z.output<Schema>> {
  for (;;) {
    const item = await stream.next(op);
    if (item.kind === 'close') return parse(op, connection, stream.method, schema, item.payload);
  }
}

/**
 * Sends a source as the content of a stream and gives the result that the agent closes it with. When
 * the source fails the stream is given up; when the agent refuses, the source is no longer asked.
 */
export async function upload<Schema extends z.ZodType>(
  op: Operation,
  connection: AgentConnection,
  stream: AgentStream,
  source: AsyncIterable<Uint8Array>,
  schema: Schema,
): Promise<z.output<Schema>> {
  using _ = stream;
  const chunks = source[Symbol.asyncIterator]();
  let isOver = false;
  const closed = finished(op, connection, stream, schema).finally(() => {
    isOver = true;
  });
  closed.catch(() => {}); // it is awaited below, perhaps after the source has failed
  const sent = (async () => {
    for (;;) {
      // A source that waits for its own client must not keep this one waiting.
      const next = await shared(op, chunks.next());
      if (isOver) return;
      if (next.done === true) break;
      await stream.write(op, next.value);
    }
    stream.end();
  })();
  try {
    await Promise.race([closed, sent]);
    return await closed;
  } catch (error) {
    // The agent's own answer says more than a write that failed because of it.
    if (isOver) return await closed;
    throw error;
  } finally {
    sent.catch(() => {});
    if (chunks.return !== undefined) void Promise.resolve(chunks.return()).catch(() => {});
  }
}

/** The channel of a file's, an archive's or a socket's bytes. */
export const CONTENT: number = CHANNEL.content;
