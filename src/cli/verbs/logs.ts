// hutch logs: what the main process wrote (each stream on ours), or the console's or VMM's log.

import { ConnectionError } from '../../sdk/errors.ts';
import { type LogPiece, LogRecordReader } from '../../sdk/log-records.ts';
import { type Args, usage } from '../args.ts';
import type { Context } from '../context.ts';
import { FOLLOW_FOR_MS, STEADY_MS } from '../follow.ts';
import { LastLines } from '../last-lines.ts';
import { json } from '../output.ts';
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
    offset = await read(context, { ref, source, follow: false, offset: null }, async (piece) => last.push(piece));
    for (const piece of last.pieces()) await writer.write(piece);
    if (!args.has('follow')) {
      await writer.end();
      return 0;
    }
  }
  await follow(context, { ref, source, follow: args.has('follow'), offset }, (piece) => writer.write(piece));
  await writer.end();
  return 0;
}

type Wanted = { readonly ref: string; readonly source: Source; readonly follow: boolean; readonly offset: number | null };

/** A stream that breaks off goes on at the last whole record. */
async function follow(context: Context, wanted: Wanted, take: (piece: LogPiece) => Promise<void>): Promise<void> {
  let { offset } = wanted;
  let since = performance.now();
  for (let attempt = 1; ; attempt += 1) {
    const openedAt = performance.now();
    try {
      return void (await read(context, { ...wanted, offset }, take, (reached) => {
        offset = reached;
      }));
    } catch (error) {
      if (!(error instanceof ConnectionError) || !wanted.follow) throw error;
      if (performance.now() - openedAt > STEADY_MS) {
        since = performance.now();
        attempt = 1;
      }
      await context.client.beforeRetry(error, attempt, since, context.interrupts.signal, FOLLOW_FOR_MS);
    }
  }
}

/** Reads to the end; the result is the offset reached. Pieces of a record that was cut off are given when it is whole. */
async function read(
  context: Context,
  { ref, source, follow: goOn, offset }: Wanted,
  take: (piece: LogPiece) => Promise<void>,
  onReached: (offset: number) => void = () => {},
): Promise<number> {
  const { bytes, headers } = await context.client.download(
    'sandbox.logs',
    { ref, source, ...(goOn ? { follow: true } : {}), ...(offset === null ? {} : { offset }) },
    { signal: context.interrupts.signal },
  );
  const begins = Number(headers[OFFSET_HEADER] ?? offset ?? 0);
  const reader = source === 'main' ? new LogRecordReader() : null;
  let at = begins;
  let held: LogPiece[] = [];
  for await (const chunk of bytes) {
    if (reader === null) await take({ channel: 'stdout', wallMs: 0, bytes: chunk, last: true });
    else {
      for (const piece of reader.push(chunk)) {
        held.push(piece);
        if (!piece.last) continue;
        for (const one of held) await take(one);
        held = [];
      }
    }
    at += chunk.byteLength;
    if (reader === null || reader.atBoundary) onReached(at);
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
