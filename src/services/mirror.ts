// Copies the main process's log out of the guest as it is written, and goes on where it was after a
// lost connection or a restart of the daemon. A guest that lies about its log only loses it.
import { HutchError } from '../domain/errors.ts';
import type { LogPiece } from '../guest/log-records.ts';
import type { Operation } from '../host/operation.ts';
import { MAIN } from './bring-up.ts';
import { encodeRecord, type MainLog } from './main-log.ts';
import { pause } from './pause.ts';
import type { Run } from './run.ts';

const RETRY_MS = 500;
/** Records of an earlier run are older than this before the run began: the guest's clock was set at its start. */
const CLOCK_SLACK_MS = 1_000;
/** The agent's own records are far smaller. */
const RECORD_BYTES_MAX = 1024 * 1024;
/** What is written to the file at once, at most. */
const BATCH_BYTES = 256 * 1024;

/** Which run it is, and when it began. */
export type Began = { readonly run: number; readonly atMs: number };

/** Resolves when the whole log is here, or as much of it as a guest that has died has said, or the run is over. */
export async function mirror(op: Operation, run: Run, log: MainLog, began: Began): Promise<void> {
  while (!op.signal.aborted) {
    try {
      return await copy(op, run, log, began);
    } catch (cause) {
      if (op.signal.aborted) return;
      if (cause instanceof HutchError && cause.code === 'not_found') return; // the guest keeps no log
      if (cause instanceof HutchError && cause.code === 'resource_exhausted') continue; // rotation was faster: go on behind the gap
      if (cause instanceof HutchError && cause.code === 'internal') {
        op.log.warn({ sandbox: run.id, cause }, 'the guest’s log cannot be read; no more of it is copied');
        return;
      }
      op.log.debug({ sandbox: run.id, cause }, 'copying of the main log was interrupted');
      if (run.mainEnd?.exit === null) return; // it never began
      if (run.death.aborted) return;
      await pause(op, RETRY_MS, run.death).catch(() => {}); // only the end of the run ends it early
    }
  }
}

async function copy(op: Operation, run: Run, log: MainLog, began: Began): Promise<void> {
  const agent = await run.link.agent(op);
  const known = log.agentEnd(began.run);
  if (known !== null) {
    const { pieces } = await agent.process.log(op, MAIN, { offset: known, follow: true });
    return await take(op, log, began.run, pieces, Number.NEGATIVE_INFINITY);
  }
  // A new run. The agent's log goes on where the last run ended, unless the guest lost its last writes:
  // then what stands there is the middle of something, and the records of this run are found by their time.
  const notBeforeMs = began.atMs - CLOCK_SLACK_MS;
  const expected = await agent.process.log(op, MAIN, { offset: log.lastAgentEnd, follow: true });
  if (expected.offset === log.lastAgentEnd) {
    const first = await firstOf(expected.pieces);
    if (first === null) return;
    if (first.writtenAtMs >= notBeforeMs) return await take(op, log, began.run, from(first, expected.pieces), notBeforeMs);
  }
  await expected.pieces.return(undefined);
  const { pieces } = await agent.process.log(op, MAIN, { offset: 0, follow: true });
  await take(op, log, began.run, pieces, notBeforeMs);
}

/** Null when the log is over; what cannot be read counts as older than anything. */
async function firstOf(pieces: AsyncGenerator<LogPiece, void, undefined>): Promise<LogPiece | null> {
  try {
    const first = await pieces.next();
    return first.done === true ? null : first.value;
  } catch (error) {
    if (error instanceof HutchError && error.code === 'internal')
      return { channel: 'stdout', writtenAtMs: 0, bytes: new Uint8Array(), nextOffset: null };
    throw error;
  }
}

async function* from(first: LogPiece, rest: AsyncGenerator<LogPiece, void, undefined>): AsyncGenerator<LogPiece, void, undefined> {
  yield first;
  yield* rest;
}

/** Appends the records that are not older than `notBeforeMs`, as many at once as have come meanwhile. */
async function take(
  op: Operation,
  log: MainLog,
  run: number,
  pieces: AsyncGenerator<LogPiece, void, undefined>,
  notBeforeMs: number,
): Promise<void> {
  const batch = new Batch(op, log, run);
  let record: LogPiece[] = [];
  let recordBytes = 0;
  for await (const piece of pieces) {
    record.push(piece);
    recordBytes += piece.bytes.byteLength;
    if (recordBytes > RECORD_BYTES_MAX) throw op.error('not_found', 'the guest keeps no log that can be copied: its records are too long');
    if (piece.nextOffset === null) continue;
    if (piece.writtenAtMs >= notBeforeMs) await batch.add(record, piece.nextOffset);
    record = [];
    recordBytes = 0;
  }
  await batch.flushed();
}

/** Writes while more is read, but never has more than two batches in hand. */
class Batch {
  readonly #op: Operation;
  readonly #log: MainLog;
  readonly #run: number;
  #records: Uint8Array[] = [];
  #bytes = 0;
  #from = 0;
  #counts = { stdout: 0, stderr: 0 };
  #writing: Promise<void> | null = null;
  #failure: unknown = null;

  constructor(op: Operation, log: MainLog, run: number) {
    this.#op = op;
    this.#log = log;
    this.#run = run;
  }

  async add(record: readonly LogPiece[], nextOffset: number): Promise<void> {
    const [first] = record;
    if (first === undefined) return;
    const bytes = encodeRecord(
      first.channel,
      first.writtenAtMs,
      record.length === 1 ? first.bytes : Buffer.concat(record.map((piece) => piece.bytes)),
    );
    const offset = nextOffset - bytes.byteLength;
    if (this.#bytes > 0 && this.#from + this.#bytes !== offset) await this.flushed(); // records between were left out
    if (this.#bytes === 0) this.#from = offset;
    this.#records.push(bytes);
    this.#bytes += bytes.byteLength;
    for (const piece of record) this.#counts[piece.channel] += piece.bytes.byteLength;
    this.#writing ??= this.#write();
    if (this.#bytes >= BATCH_BYTES) await this.#writing;
    if (this.#failure !== null) throw this.#failure;
  }

  async flushed(): Promise<void> {
    while (this.#writing !== null) await this.#writing;
    if (this.#failure !== null) throw this.#failure;
  }

  async #write(): Promise<void> {
    try {
      await new Promise(setImmediate); // whatever has come in this turn goes in one write
      while (this.#bytes > 0 && this.#failure === null) {
        const [records, offset, counts] = [Buffer.concat(this.#records), this.#from, this.#counts];
        this.#records = [];
        this.#bytes = 0;
        this.#counts = { stdout: 0, stderr: 0 };
        await this.#log.append(this.#op, this.#run, offset, records, counts);
      }
    } catch (error) {
      this.#failure = error;
    } finally {
      this.#writing = null;
    }
  }
}
