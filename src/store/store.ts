// The daemon's side of the store: sends whole transactions to the worker that has the database and
// waits for their answers. It holds nothing but what is under way.
import { Worker } from 'node:worker_threads';
import { HutchError } from '../domain/errors.ts';
import { newId, type OpId, type ProjectId } from '../domain/ids.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { finishRestore } from './backup.ts';
import type {
  Change,
  ChangeResults,
  Claimed,
  CommitNews,
  Committer,
  Durability,
  QueryMap,
  QueryName,
  RequestClaim,
  Store,
} from './contract.ts';
import type { Answer, Ask } from './engine.ts';
import { damagedError, fromWire } from './failure.ts';
import { copyPath } from './open.ts';
import { SCHEMA_VERSION } from './schema.ts';
import { STAMP_RANDOM_BYTES, type Stamp } from './tx.ts';
import type { WorkerReady, WorkerStart } from './worker.ts';

/** A disk that takes longer than this for one commit is as good as gone. */
export const STORE_ANSWER_MS = 60_000;
/** Checking a large store after a power loss, and migrating it, takes its time. */
const STORE_OPEN_MS = 600_000;
const ASKS_WAITING_MAX = 10_000;
/** Rows live shortly: with V8's default the worker grows by 40 MiB and is no faster (measured). */
const YOUNG_MB = 8;

type StoreHost = Pick<
  Host,
  'stat' | 'readRange' | 'writeFileAtomic' | 'rename' | 'remove' | 'nowMs' | 'monotonicMs' | 'bootId' | 'randomBytes'
>;

export type StoreOptions = {
  /** The caller holds the lock of the directory that the file lies in. */
  readonly path: string;
  readonly host: StoreHost;
  /** Of the start: for cancelling the opening, and for its errors. */
  readonly op: Operation;
  readonly answerMs?: number;
};

/**
 * Opens the store, or makes it if there is none.
 * @throws HutchError `conflict` when another process has it open, `failed_precondition` when a newer
 * Hutch wrote it, `internal` when it is damaged: it is then left as it is.
 */
export async function openStore(options: StoreOptions): Promise<Store & AsyncDisposable> {
  const { path, host, op } = options;
  await finishRestore(op, host, path);
  const file = await host.stat(op, path);
  const isThere = file !== null;
  // Looked at before SQLite does, which would begin a new database in it.
  if (file?.sizeBytes === 0) throw damagedError(path, 'it is empty');
  if (!isThere) await makeStore(options);
  const mayMigrate = isThere && (await schemaOnDisk(options)) < SCHEMA_VERSION;
  // What a migration copies into: here, because the worker cannot make files of a mode.
  if (mayMigrate) await host.writeFileAtomic(op, copyPath(path), '', 0o600);
  const store = await start(options, path, 'as it is');
  if (mayMigrate) {
    if (store.migratedFrom === null) await host.remove(op, copyPath(path));
    else await host.rename(op, copyPath(path), `${path}.schema-${store.migratedFrom}`);
  }
  if (!isThere) store.lastClose = 'new';
  return store;
}

/** Made beside and renamed once it is whole: a file of that name is always a store. */
async function makeStore(options: StoreOptions): Promise<void> {
  const { path, host, op } = options;
  // A log without its store would be taken for a new one's.
  if ((await host.stat(op, `${path}-wal`)) !== null) throw damagedError(path, 'it is missing, but its log is there');
  const beside = `${path}.new`;
  await host.remove(op, `${beside}-wal`);
  await host.writeFileAtomic(op, beside, '', 0o600);
  const made = await start(options, beside, 'fresh');
  await made.close();
  await host.rename(op, beside, path);
}

/** `user_version` in the file's header (sqlite.org/fileformat.html); the log may have a newer one, never an older. */
async function schemaOnDisk({ path, host, op }: StoreOptions): Promise<number> {
  const header = await host.readRange(op, path, 60, 4);
  return header.byteLength < 4 ? SCHEMA_VERSION : new DataView(header.buffer, header.byteOffset, 4).getUint32(0);
}

async function start(options: StoreOptions, path: string, how: 'fresh' | 'as it is'): Promise<WorkerStore> {
  const { host, op } = options;
  op.signal.throwIfAborted();
  const workerData: WorkerStart = { path, fresh: how === 'fresh', projectId: newId('prj', host.randomBytes), nowMs: host.nowMs() };
  // One bundle in use, sources in development: the worker lies beside either way.
  const entry = new URL(import.meta.url.endsWith('.ts') ? './worker.ts' : './store-worker.mjs', import.meta.url);
  const worker = new Worker(entry, {
    workerData,
    execArgv: [],
    env: {},
    name: 'hutch-store',
    resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MB },
  });
  const ready = await firstMessage(worker, op, path);
  if (ready.ready) return new WorkerStore({ ...options, path }, worker, ready);
  await worker.terminate();
  throw fromWire(ready.error, op.id);
}

function firstMessage(worker: Worker, op: Operation, path: string): Promise<WorkerReady> {
  const { promise, resolve, reject } = Promise.withResolvers<WorkerReady>();
  const opening = op.within(STORE_OPEN_MS, `opening the store ${path}`);
  const give = (error: unknown) => {
    reject(error);
    void worker.terminate();
  };
  const cancelled = () => give(opening.signal.reason);
  worker.once('message', resolve);
  worker.once('error', give);
  opening.signal.addEventListener('abort', cancelled, { once: true });
  return promise.finally(() => {
    opening.signal.removeEventListener('abort', cancelled);
    worker.off('error', give);
    opening[Symbol.dispose]();
  });
}

type Waiting = {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
  readonly timer: NodeJS.Timeout;
  readonly opId: OpId | undefined;
};

class WorkerStore implements Store, AsyncDisposable {
  readonly path: string;
  readonly defaultProjectId: ProjectId;
  readonly schemaVersion: number;
  readonly migratedFrom: number | null;
  lastClose: Store['lastClose'];
  readonly #worker: Worker;
  readonly #host: StoreHost;
  readonly #answerMs: number;
  readonly #waiting = new Map<number, Waiting>();
  readonly #listeners = new Set<(news: CommitNews) => void>();
  #lastId = 0;
  #closing: Promise<void> | undefined;
  #ended = false;

  constructor({ path, host, answerMs = STORE_ANSWER_MS }: StoreOptions, worker: Worker, ready: WorkerReady & { ready: true }) {
    this.path = path;
    this.defaultProjectId = ready.defaultProjectId;
    this.schemaVersion = ready.schemaVersion;
    this.migratedFrom = ready.migratedFrom;
    this.lastClose = ready.lastClose;
    this.#host = host;
    this.#worker = worker;
    this.#answerMs = answerMs;
    worker.on('message', (answer: Answer) => this.#take(answer));
    worker.on('error', (error) => this.#failAll(error));
    worker.on('exit', () => this.#failAll(undefined));
  }

  async commit<const T extends readonly Change[]>(
    op: Committer,
    changes: T,
    durability: Durability = 'durable',
  ): Promise<ChangeResults<T>> {
    const stamp = this.#stamp(op);
    return (await this.#ask(op.id, (id) => ({ ask: 'commit', id, stamp, changes, durability, claim: null }))) as ChangeResults<T>;
  }

  async claim<const T extends readonly Change[]>(
    op: Committer,
    claim: RequestClaim,
    changes: T,
    durability: Durability = 'durable',
  ): Promise<Claimed<ChangeResults<T>>> {
    const stamp = this.#stamp(op);
    return (await this.#ask(op.id, (id) => ({ ask: 'commit', id, stamp, changes, durability, claim }))) as Claimed<ChangeResults<T>>;
  }

  async query<K extends QueryName>(name: K, args: QueryMap[K]['args']): Promise<QueryMap[K]['result']> {
    return (await this.#ask(undefined, (id) => ({ ask: 'query', id, name, args }))) as QueryMap[K]['result'];
  }

  async copyInto(op: Committer, path: string): Promise<void> {
    await this.#ask(op.id, (id) => ({ ask: 'backup', id, path }), 'copying');
  }

  onCommit(listener: (news: CommitNews) => void): () => void {
    const own = (news: CommitNews) => listener(news); // the same function twice is two listeners
    this.#listeners.add(own);
    return () => this.#listeners.delete(own);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    if (this.#ended) return;
    const ended = new Promise<void>((resolve) => this.#worker.once('exit', () => resolve()));
    try {
      await this.#ask(undefined, (id) => ({ ask: 'close', id }), 'closing');
      await ended;
    } finally {
      await this.#worker.terminate();
    }
  }

  #ask(opId: OpId | undefined, make: (id: number) => Ask, kind: 'usual' | 'copying' | 'closing' = 'usual'): Promise<unknown> {
    const last = kind === 'closing';
    if (this.#ended && this.#closing === undefined) return Promise.reject(this.#unavailable('has ended unexpectedly', opId));
    if (this.#closing !== undefined && !last) return Promise.reject(this.#unavailable('is closed', opId));
    if (this.#waiting.size >= ASKS_WAITING_MAX && !last) {
      const message = `the store ${this.path} has ${ASKS_WAITING_MAX} calls waiting`;
      return Promise.reject(new HutchError({ code: 'resource_exhausted', message, ...(opId === undefined ? {} : { opId }) }));
    }
    this.#lastId += 1;
    const id = this.#lastId;
    // First of all: what cannot be sent throws here, and then nothing waits for it.
    this.#worker.postMessage(make(id));
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    // Closing waits for all that was asked before it, and writes the log back.
    const longMs = { usual: 0, copying: STORE_OPEN_MS, closing: STORE_ANSWER_MS }[kind];
    const answerMs = Math.max(this.#answerMs, longMs);
    const giveUp = () => {
      this.#waiting.delete(id);
      reject(this.#unavailable(`has not answered for ${answerMs} ms; whether the change was made is not known`, opId));
    };
    this.#waiting.set(id, { resolve, reject, timer: setTimeout(giveUp, answerMs), opId });
    return promise;
  }

  #take(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id);
    if (waiting !== undefined) {
      this.#waiting.delete(answer.id);
      clearTimeout(waiting.timer);
      if (answer.ok) waiting.resolve(answer.value);
      else waiting.reject(fromWire(answer.error, waiting.opId));
    }
    if (answer.ok && answer.news !== null) for (const listener of this.#listeners) listener(answer.news);
  }

  /** The worker has ended: by `close`, or by a bug in it. */
  #failAll(error: Error | undefined): void {
    this.#ended = true;
    for (const { reject, timer, opId } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(this.#unavailable('has ended unexpectedly; whether the change was made is not known', opId, error));
    }
    this.#waiting.clear();
  }

  #unavailable(what: string, opId: OpId | undefined, cause?: Error): HutchError {
    return new HutchError({
      code: 'unavailable',
      message: `the store ${this.path} ${what}`,
      cause,
      ...(opId === undefined ? {} : { opId }),
    });
  }

  #stamp({ id, actor }: Committer): Stamp {
    const host = this.#host;
    return {
      opId: id,
      actor,
      nowMs: host.nowMs(),
      monotonicMs: host.monotonicMs(),
      bootId: host.bootId(),
      random: host.randomBytes(STAMP_RANDOM_BYTES),
    };
  }
}
