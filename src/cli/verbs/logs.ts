// hutch logs: what the main process wrote (each stream on ours), or the console's or VMM's log.

import { ConnectionError } from '../../sdk/errors.ts';
import { type LogPiece, LogRecordReader } from '../../sdk/log-records.ts';
import { type Args, usage } from '../args.ts';
import type { Context } from '../context.ts';
import { FOLLOW_FOR_MS, STEADY_MS } from '../follow.ts';
import { LastLines } from '../last-lines.ts';
import { json, roughSize } from '../output.ts';
import { wholeNumber } from '../spec.ts';

type Source = 'main' | 'boot' | 'vmm';

const LINES_MAX = 1_000_000;
/** The header that says where in the log the answer begins. */
const OFFSET_HEADER = 'hutch-log-offset';

export async function run(context: Context, args: Args): Promise<number> {
  if (args.has('boot') && args.has('vmm')) throw usage('--boot and --vmm exclude each other');
  const source: Source = args.has('boot') ? 'boot' : args.has('vmm') ? 'vmm' : 'main';
  if (source !== 'main' && args.has('timestamps')) throw usage('--timestamps is for the main process’s log');
  const tail = args.value('tail');
  const lines = tail === undefined || tail === 'all' ? null : wholeNumber('tail', tail, 0, LINES_MAX);
  const writer = new LogWriter(context, source, args.has('timestamps'));
  const ref = args.first();
  let offset: number | null = null;
  if (lines !== null) {
    const last = new LastLines(lines);
    const keep = { write: async (piece: LogPiece) => last.push(piece), dropped: async () => {} };
    offset = await readOn(context, { ref, source, follow: false, offset: null }, keep);
    for (const piece of last.pieces()) await writer.write(piece);
    if (!args.has('follow')) {
      await writer.end();
      return 0;
    }
  }
  await readOn(context, { ref, source, follow: args.has('follow'), offset }, writer);
  await writer.end();
  return 0;
}

type Wanted = { readonly ref: string; readonly source: Source; readonly follow: boolean; readonly offset: number | null };

/**
 * A stream that breaks off goes on at the last whole record. The daemon breaks it off, too, where the log was rotated
 * before it was read: then it goes on at what there is, and says how much there was between.
 */
async function readOn(context: Context, wanted: Wanted, to: Pick<LogWriter, 'write' | 'dropped'>): Promise<number> {
  let { offset } = wanted;
  let since = performance.now();
  for (let attempt = 1; ; attempt += 1) {
    const openedAt = performance.now();
    try {
      const onReached = async (reached: number, how: 'begins' | 'read'): Promise<void> => {
        if (how === 'begins' && offset !== null && reached > offset) await to.dropped(reached - offset);
        offset = reached;
      };
      return await read(context, { ...wanted, offset }, (piece) => to.write(piece), onReached);
    } catch (error) {
      if (!(error instanceof ConnectionError)) throw error;
      if (performance.now() - openedAt > STEADY_MS) {
        since = performance.now();
        attempt = 1;
      }
      await context.client.beforeRetry(error, attempt, since, context.interrupts.signal, FOLLOW_FOR_MS);
    }
  }
}

/**
 * Reads to the end; the result is the offset reached. Pieces of a record that was cut off are given when it is whole.
 * `onReached` hears first where the answer begins, then how far whole pieces were taken.
 */
async function read(
  context: Context,
  { ref, source, follow: goOn, offset }: Wanted,
  take: (piece: LogPiece) => Promise<void>,
  onReached: (offset: number, how: 'begins' | 'read') => Promise<void>,
): Promise<number> {
  const { bytes, headers } = await context.client.download(
    'sandbox.logs',
    { ref, source, ...(goOn ? { follow: true } : {}), ...(offset === null ? {} : { offset }) },
    { signal: context.interrupts.signal },
  );
  const begins = Number(headers[OFFSET_HEADER] ?? offset ?? 0);
  await onReached(begins, 'begins');
  const reader = source === 'main' ? new LogRecordReader() : null;
  let at = begins;
  let held: LogPiece[] = [];
  for await (const chunk of bytes) {
    at += chunk.byteLength;
    if (reader === null) {
      await take({ channel: 'stdout', wallMs: 0, bytes: chunk, last: true });
      await onReached(at, 'read');
      continue;
    }
    for (const piece of reader.push(chunk)) {
      held.push(piece);
      if (!piece.last) continue;
      for (const one of held) await take(one);
      held = [];
      await onReached(begins + reader.wholeBytes, 'read');
    }
  }
  return at;
}

class LogWriter {
  readonly #context: Context;
  readonly #source: Source;
  readonly #timestamps: boolean;
  readonly #atLineStart = { stdout: true, stderr: true };

  constructor(context: Context, source: Source, timestamps: boolean) {
    this.#context = context;
    this.#source = source;
    this.#timestamps = timestamps;
  }

  async write({ channel, wallMs, bytes }: LogPiece): Promise<void> {
    const { io } = this.#context;
    if (this.#context.json) {
      const base64 = Buffer.from(bytes).toString('base64');
      return await io.out(json(this.#source === 'main' ? { channel, atMs: wallMs, base64 } : { channel: this.#source, base64 }));
    }
    const content = this.#timestamps ? this.#stamped(channel, wallMs, bytes) : bytes;
    if (channel === 'stdout') await io.out(content);
    else await io.err(content);
  }

  /** Never silently: the daemon keeps the last of a log. */
  async dropped(bytes: number): Promise<void> {
    const { io } = this.#context;
    if (this.#context.json) await io.out(json({ type: 'dropped', bytes }));
    else await io.err(`hutch: ${roughSize(bytes)} of the log were dropped before they were read: only the last of it is kept\n`);
  }

  async end(): Promise<void> {
    await this.#context.io.flushed();
  }

  #stamped(channel: 'stdout' | 'stderr', wallMs: number, bytes: Uint8Array): Uint8Array {
    const stamp = Buffer.from(`${new Date(wallMs).toISOString()} `);
    const parts: Uint8Array[] = [];
    for (let from = 0; from < bytes.byteLength; ) {
      const end = bytes.indexOf(10, from) + 1 || bytes.byteLength;
      if (this.#atLineStart[channel]) parts.push(stamp);
      parts.push(bytes.subarray(from, end));
      this.#atLineStart[channel] = bytes[end - 1] === 10;
      from = end;
    }
    return Buffer.concat(parts);
  }
}
