// Records and logs of builds: each has a directory of its own below `builds`, which tells of it when the daemon that built is gone.
import { join } from 'node:path';
import { type BuildId, isId, type OpId } from '../domain/ids.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { listOr } from '../images/layout.ts';
import type { Lending } from './build-lending.ts';
import type { BuildLog, LogLine } from './build-log.ts';
import { type BuildRecord, buildRecord } from './build-record.ts';
import type { Call } from './call.ts';
import { waitFor } from './operations.ts';
import { LOG_LINES_MAX } from './verbs/build.ts';
import type { Output } from './verbs.ts';

const RECORD_BYTES_MAX = 256 * 1024;
/** Of a log, at once: a reader may be slow, and there may be many. */
const LOG_PIECE_BYTES = 256 * 1024;
const SHORT_LOG_BYTES_MAX = 64 * 1024;
const BUILDS_KEPT = 200;

/** A build that is under way in this daemon. */
export type Running = { readonly log: BuildLog; readonly opId: OpId; readonly lending: Lending; record: BuildRecord };

/** The record of a build as it began, written when it is asked for, and once: what comes out of the cache is over without it. */
export class Beginning {
  readonly #write: () => Promise<void>;
  #writing: Promise<void> | null = null;

  constructor(write: () => Promise<void>) {
    this.#write = write;
  }

  readonly done = (): Promise<void> => {
    this.#writing ??= this.#write();
    return this.#writing;
  };

  /** It is not written from here on. */
  async over(): Promise<void> {
    this.#writing ??= Promise.resolve();
    await this.#writing.catch(() => {}); // whoever asked for it has heard
  }
}

export class BuildRecords {
  readonly running = new Map<BuildId, Running>();
  readonly #host: Host;
  readonly #root: string;
  /** Records of builds that are over, which nothing changes any more: read once. */
  readonly #ended = new Map<BuildId, BuildRecord>();

  constructor(host: Host, root: string) {
    this.#host = host;
    this.#root = root;
  }

  dirOf(id: BuildId): string {
    return join(this.#root, id);
  }

  logPath(id: BuildId): string {
    return join(this.dirOf(id), 'log.ndjson');
  }

  #recordPath(id: BuildId): string {
    return join(this.dirOf(id), 'build.json');
  }

  async write(op: Operation, record: BuildRecord): Promise<void> {
    await this.#host.writeFileAtomic(op, this.#recordPath(record.id), JSON.stringify(record), 0o600);
    if (record.state !== 'running') this.#ended.set(record.id, record);
  }

  async read(op: Operation, id: BuildId): Promise<BuildRecord | null> {
    const known = this.running.get(id)?.record ?? this.#ended.get(id);
    if (known !== undefined) return known;
    if ((await this.#host.stat(op, this.#recordPath(id))) === null) return null;
    const bytes = await this.#host.readFile(op, this.#recordPath(id), RECORD_BYTES_MAX);
    const parsed = buildRecord.safeParse(JSON.parse(Buffer.from(bytes).toString()));
    if (!parsed.success) return null;
    const record = parsed.data as BuildRecord;
    if (record.state !== 'running') this.#ended.set(id, record);
    return record;
  }

  async remove(op: Operation, id: BuildId): Promise<void> {
    await this.#host.remove(op, this.dirOf(id));
    this.#ended.delete(id);
  }

  /** Newest first. */
  async all(op: Operation): Promise<readonly BuildRecord[]> {
    const found: BuildRecord[] = [];
    for (const name of await listOr(op, this.#host, this.#root)) {
      if (!isId('bld', name)) continue;
      const record = await this.read(op, name).catch(
        (cause: unknown) => void op.log.warn({ build: name, cause }, 'the record of a build cannot be read'),
      );
      if (record != null) found.push(record);
    }
    return found.sort((a, b) => b.createdAtMs - a.createdAtMs);
  }

  /** By id, or a unique prefix of it. */
  async find({ op, caller }: Call, text: string): Promise<BuildRecord> {
    const whole = isId('bld', text) ? await this.read(op, text) : null;
    if (whole !== null && whole.projectId === caller.projectId) return whole;
    const own = (await this.all(op)).filter(({ projectId }) => projectId === caller.projectId);
    const fitting = own.filter(({ id }) => id.startsWith(text) || (text.length >= 3 && id.slice(3).startsWith(text)));
    const [only] = fitting;
    if (fitting.length === 1 && only !== undefined) return only;
    if (fitting.length > 1)
      throw op.error(
        'conflict',
        `several builds begin with ${text}: ${fitting
          .slice(0, 5)
          .map(({ id }) => id)
          .join(', ')}`,
      );
    throw op.error('not_found', `there is no build '${text.slice(0, 64)}'`, { hint: 'see: hutch image builds' });
  }

  /** Those after the line `after`, each once; `follow`: until the build is over, also of one that is under way. */
  async *lines(op: Operation, id: BuildId, after: number, follow: boolean): AsyncGenerator<LogLine> {
    let cursor = after;
    let offset = 0;
    let pieceBytes = LOG_PIECE_BYTES;
    for (;;) {
      const now = this.running.get(id);
      const news = now?.log.news;
      const isLast = !follow || now === undefined || now.log.isOver;
      const sizeBytes = (await this.#host.stat(op, this.logPath(id)))?.sizeBytes ?? 0;
      // What comes meanwhile is news.
      while (offset < sizeBytes) {
        const bytes = Buffer.from(await this.#host.readRange(op, this.logPath(id), offset, Math.min(pieceBytes, sizeBytes - offset)));
        const end = bytes.lastIndexOf(0x0a) + 1;
        if (end === 0) {
          if (bytes.byteLength < pieceBytes) break; // a line of which a part is written
          pieceBytes *= 2; // a longer one
          continue;
        }
        offset += end;
        for (const text of bytes.subarray(0, end).toString().split('\n')) {
          if (text === '') continue;
          const line = JSON.parse(text) as LogLine;
          if (line.cursor <= cursor) continue;
          cursor = line.cursor;
          yield line;
        }
      }
      if (isLast) return;
      await waitFor(op, news ?? Promise.resolve(), 'more of the log');
    }
  }

  /** The whole log of a build that is over; null: it is too long to go with an answer. */
  async shortLog(op: Operation, id: BuildId): Promise<readonly LogLine[] | null> {
    if (((await this.#host.stat(op, this.logPath(id)))?.sizeBytes ?? 0) > SHORT_LOG_BYTES_MAX) return null;
    const found: LogLine[] = [];
    for await (const line of this.lines(op, id, 0, false)) if (found.push(line) > LOG_LINES_MAX) return null;
    return found;
  }

  /** Of a daemon that ended before their first record: nobody has heard of them. */
  async forgetUnwritten(op: Operation): Promise<void> {
    for (const name of await listOr(op, this.#host, this.#root)) {
      if (!isId('bld', name) || this.running.has(name) || (await this.#host.stat(op, this.#recordPath(name))) !== null) continue;
      await this.remove(op, name);
    }
  }

  /** The oldest that are over. */
  async forgetOld(op: Operation): Promise<void> {
    if ((await listOr(op, this.#host, this.#root)).length <= BUILDS_KEPT) return;
    const over = (await this.all(op)).filter(({ state }) => state !== 'running');
    for (const { id } of over.slice(BUILDS_KEPT)) await this.remove(op, id);
  }
}

export function viewOfBuild(record: BuildRecord): Output<'build.get'> {
  const { stepsDone, stepsTotal, state } = record;
  const { projectId: _projectId, ...rest } = record;
  return {
    ...rest,
    names: [...record.names],
    logTail: [...record.logTail],
    progressPercent: state === 'done' ? 100 : stepsTotal === 0 ? 0 : Math.min(99, Math.floor((stepsDone * 100) / stepsTotal)),
  };
}
