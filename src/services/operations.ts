// The operations that are under way: each call of a verb gets an id, a deadline, a signal that
// `operation.cancel` can pull, a span, and, unless it only reads, a record in the store. The records
// of running ones are here; the store has them for after a restart.
import { createHash } from 'node:crypto';
import { type Span, SpanStatusCode } from '@opentelemetry/api';
import { HutchError } from '../domain/errors.ts';
import { newOpId, type OpId } from '../domain/ids.ts';
import type { OperationRecord, OperationState } from '../domain/records.ts';
import type { BorrowedFile, Host } from '../host/host.ts';
import { type Log, newOperation, type Operation, type Progress } from '../host/operation.ts';
import type { Store } from '../store/contract.ts';
import { type Call, type Caller, Repeated } from './call.ts';
import { Commits } from './commits.ts';
import { DEADLINES_MS, type DeadlineName } from './deadlines.ts';
import type { Tracer } from './tracing.ts';

export type Ask = {
  /** As in the verb table, or the daemon's own: `daemon.reconcile`. */
  readonly verb: DeadlineName;
  readonly caller: Caller;
  /** Whether it can change anything: then it is recorded. */
  readonly reads: boolean;
  /** With the SHA-256 of verb and input. */
  readonly idempotency?: { readonly key: string; readonly requestHash: string };
  readonly traceparent?: string;
  /** Aborts when the client has gone, where that ends the call. */
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
  /** Of a client that sees the files of this machine as we do: see `Call.lend`. */
  readonly onLend?: (file: BorrowedFile | null) => void;
  /** See `Call.clientDirectory`. */
  readonly clientDirectory?: string;
  /** The id that the client was told already. */
  readonly opId?: OpId;
  /** Called when the answer is that of an earlier call with the same Idempotency-Key. */
  readonly onRepeat?: (firstOpId: string) => void;
};

/** One call that is under way. */
export type Running = {
  record: OperationRecord;
  readonly reads: boolean;
  readonly abort: AbortController;
  /** Settles when the call has ended, never rejects. */
  readonly over: Promise<void>;
  /** By `operation.cancel`. */
  cancelled: boolean;
  outcome: { readonly value: unknown } | { readonly error: unknown } | null;
  /** What it works on is known. */
  readonly onTarget: (id: string) => void;
};

type TargetListener = (verb: DeadlineName, targetId: string, over: Promise<void>) => void;

export type OperationsDeps = {
  readonly store: Store;
  readonly host: Pick<Host, 'nowMs' | 'randomBytes'>;
  readonly log: (opId: OpId) => Log;
  readonly tracer: Tracer;
};

/** Progress beyond this rate is not passed on: a person cannot read faster. */
const PROGRESS_EVERY_MS = 100;

/** What takes longer is in the store while it runs, so that a killed daemon's next one can tell of it. A quick start does without. */
const RECORDED_AFTER_MS = 500;

export class Operations {
  readonly #deps: OperationsDeps;
  readonly #running = new Map<OpId, Running>();
  readonly #targeted = new Set<TargetListener>();
  #closing: HutchError | null = null;

  constructor(deps: OperationsDeps) {
    this.#deps = deps;
  }

  /** Carries out one call of a verb. @throws HutchError, always with the op id. */
  async run<T>(ask: Ask, work: (call: Call) => Promise<T>): Promise<T> {
    const { host } = this.#deps;
    const id = ask.opId ?? newOpId((count) => host.randomBytes(count));
    const abort = new AbortController();
    const over = Promise.withResolvers<void>();
    const span = this.#deps.tracer.start(id, ask.verb, ask.traceparent);
    const running: Running = {
      record: newRecord(id, ask, host.nowMs(), this.#deps.tracer.traceparentOf(span)),
      reads: ask.reads,
      abort,
      over: over.promise,
      cancelled: false,
      outcome: null,
      onTarget: (target) => {
        for (const listener of this.#targeted) listener(ask.verb, target, over.promise);
      },
    };
    const root = newOperation({
      id,
      actor: ask.caller.actor,
      verb: ask.verb,
      log: this.#deps.log(id),
      signal: ask.signal === undefined ? abort.signal : AbortSignal.any([abort.signal, ask.signal]),
      onProgress: throttled(host, (progress) => {
        running.record = { ...running.record, step: progress.step, done: progress.done ?? null, total: progress.total ?? null };
        ask.onProgress?.(progress);
      }),
    });
    this.#running.set(id, running);
    const commits = new Commits(this.#deps, root, running, ask);
    const isLong = setTimeout(() => commits.begin(), RECORDED_AFTER_MS);
    if (ask.reads) clearTimeout(isLong);
    try {
      if (this.#closing !== null && !ask.verb.startsWith('daemon.')) throw this.#closing;
      // Claimed before anything is done; a verb that commits first thing does so there.
      if (ask.idempotency !== undefined && !CLAIMS_ITSELF.has(ask.verb)) await commits.call(root).commit([]);
      const value = await this.#bounded(root, ask.verb, (op) => work(commits.call(op)));
      running.outcome = { value };
      this.#end(running, commits, span, 'done', null);
      return value;
    } catch (error) {
      if (error instanceof Repeated) {
        try {
          return await this.#repeat<T>(root, ask, error);
        } finally {
          this.#end(running, commits, span, null, null);
        }
      }
      const failure = withOpId(error, root);
      running.outcome = { error: failure };
      const isCancelled = abort.signal.aborted || failure.code === 'cancelled';
      // A client that leaves its command or its tunnel has what it wanted; the command goes on.
      const isLeft = isCancelled && !running.cancelled && ENDLESS.has(ask.verb) && this.#closing === null;
      if (isLeft) this.#end(running, commits, span, 'done', null);
      else this.#end(running, commits, span, isCancelled ? 'cancelled' : 'failed', failure);
      throw failure;
    } finally {
      clearTimeout(isLong);
      this.#running.delete(id);
      over.resolve();
    }
  }

  /** Told of each call when it is known what it works on; `over` settles with the call's end. */
  onTarget(listener: TargetListener): Disposable {
    this.#targeted.add(listener);
    return { [Symbol.dispose]: () => void this.#targeted.delete(listener) };
  }

  get isClosing(): boolean {
    return this.#closing !== null;
  }

  /** For what the daemon does in passing. */
  ownId(): OpId {
    return newOpId((count) => this.#deps.host.randomBytes(count));
  }

  /** What is under way now, newest first. Reads are not listed. */
  list(projectId: string): readonly OperationRecord[] {
    return [...this.#running.values()]
      .filter((running) => !running.reads && (running.record.projectId === null || running.record.projectId === projectId))
      .map((running) => running.record)
      .reverse();
  }

  /** Of all that is under way beside `self`, reads too. */
  verbsUnderWay(self: OpId): ReadonlySet<string> {
    return new Set([...this.#running.values()].filter(({ record }) => record.id !== self).map(({ record }) => record.verb));
  }

  get(id: string): OperationRecord | null {
    return this.#running.get(id as OpId)?.record ?? null;
  }

  /** Cancels what is under way and waits until it has cleaned up; null when nothing is. `by`: as people are told. */
  async cancel(op: Operation, id: string, by: string): Promise<OperationRecord | null> {
    const running = this.#running.get(id as OpId);
    if (running === undefined) return null;
    running.cancelled = true;
    running.abort.abort(new HutchError({ code: 'cancelled', message: `cancelled by ${by}`, opId: id }));
    await waitFor(op, running.over, `the end of ${id}`);
    return running.record;
  }

  /** The operation, other than `self`, that works on a sandbox now. */
  busyOn(targetId: string, self: OpId | null): OpId | null {
    for (const { record } of this.#running.values())
      if (record.targetId === targetId && record.id !== self && BUSY.has(record.verb)) return record.id;
    return null;
  }

  /** No more calls are taken; those under way get `graceMs`, then are aborted as if the daemon were unreachable. */
  async close(graceMs: number): Promise<void> {
    this.#closing = new HutchError({ code: 'unavailable', message: 'the daemon is shutting down', hint: 'try again in a moment' });
    for (const running of this.#running.values()) if (running.reads || ENDLESS.has(running.record.verb)) running.abort.abort(this.#closing);
    await this.#allOver(graceMs);
    for (const running of this.#running.values()) running.abort.abort(this.#closing);
    await this.#allOver(graceMs);
  }

  async #allOver(withinMs: number): Promise<void> {
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, withinMs);
    await Promise.race([Promise.all([...this.#running.values()].map((running) => running.over)), late]);
    clearTimeout(timer);
  }

  async #bounded<T>(root: Operation, verb: DeadlineName, work: (op: Operation) => Promise<T>): Promise<T> {
    const deadlineMs = DEADLINES_MS[verb];
    if (deadlineMs === null) return await work(root);
    using op = root.within(deadlineMs, verb);
    return await work(op);
  }

  async #repeat<T>(op: Operation, ask: Ask, repeated: Repeated): Promise<T> {
    ask.onRepeat?.(repeated.firstOpId);
    if (repeated.reply !== null && repeated.reply !== undefined) return repeated.reply as T;
    const first = this.#running.get(repeated.firstOpId as OpId);
    if (first === undefined)
      throw op.error('conflict', `this request was made before, as ${repeated.firstOpId}, and its reply is not kept`);
    await waitFor(op, first.over, `the end of ${repeated.firstOpId}`);
    const { outcome } = first;
    if (outcome === null) throw op.error('unavailable', `${repeated.firstOpId} was interrupted`);
    if ('error' in outcome) throw outcome.error;
    return outcome.value as T;
  }

  #end(running: Running, commits: Commits, span: Span, state: Exclude<OperationState, 'running'> | null, error: HutchError | null): void {
    const endedAtMs = this.#deps.host.nowMs();
    running.record = { ...running.record, state: state ?? 'done', endedAtMs, error: error?.toBody() ?? null };
    if (error !== null) span.setStatus({ code: SpanStatusCode.ERROR, message: error.message });
    this.#deps.tracer.end(running.record.id, span);
    // An answer given before is the first call's doing: of the second only what is in the store already is ended.
    if (!running.reads && (state !== null || commits.begun)) commits.end(state ?? 'done', endedAtMs, error);
  }
}

/** Verbs that hold a sandbox while they run: `busyOpId`. */
const BUSY: ReadonlySet<string> = new Set([
  'sandbox.create',
  'sandbox.start',
  'sandbox.stop',
  'sandbox.restart',
  'sandbox.pause',
  'sandbox.resume',
  'sandbox.suspend',
  'sandbox.restore',
  'sandbox.undo',
  'sandbox.rename',
  'main.begin',
  'sandbox.delete',
]);
/** Their first commit claims the Idempotency-Key, or they have a way of their own (`execId`). */
const CLAIMS_ITSELF: ReadonlySet<string> = new Set(['sandbox.create', 'sandbox.delete', 'exec.start']);
/** Not reads, yet bound to a client rather than to an end. */
const ENDLESS: ReadonlySet<string> = new Set(['exec.start', 'exec.attach', 'port.connect']);

/** SHA-256 over verb and input, for the store to tell whether a request is the same. */
export function requestHash(verb: string, input: unknown): string {
  return createHash('sha256')
    .update(`${verb}\n${canonical(input)}`)
    .digest('hex');
}

/** JSON with its keys in order. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_key, part: unknown) =>
    typeof part === 'object' && part !== null && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([left], [right]) => (left < right ? -1 : 1)))
      : part,
  );
}

/** Waits for a promise that belongs to somebody else, as long as the operation may. */
export async function waitFor<T>(op: Operation, promise: Promise<T>, what: string): Promise<T> {
  const aborted = Promise.withResolvers<never>();
  const onAbort = (): void => {
    const reason: unknown = op.signal.reason;
    aborted.reject(reason instanceof HutchError ? reason : op.error('cancelled', `cancelled while waiting for ${what}`));
  };
  if (op.signal.aborted) onAbort();
  op.signal.addEventListener('abort', onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    op.signal.removeEventListener('abort', onAbort);
  }
}

/** Every failure leaves as a HutchError with the op id; what is none is a bug, and says only that. */
export function withOpId(error: unknown, op: Operation): HutchError {
  if (!(error instanceof HutchError)) {
    const reason: unknown = op.signal.aborted ? op.signal.reason : undefined;
    if (error === reason && reason !== undefined) return op.error('cancelled', 'the operation was cancelled', { cause: error });
    op.log.error({ err: error }, 'a bug: an unexpected error reached the edge');
    return op.error('internal', 'something went wrong inside Hutch', { hint: `look for ${op.id} in: hutch daemon logs`, cause: error });
  }
  if (error.opId === op.id) return error;
  const { code, message, hint } = error;
  return op.error(code, message, { cause: error, ...(hint === null ? {} : { hint }) });
}

function newRecord(id: OpId, ask: Ask, startedAtMs: number, traceparent: string | null): OperationRecord {
  return {
    id,
    verb: ask.verb,
    projectId: ask.caller.projectId,
    targetId: null,
    actor: ask.caller.actor,
    state: 'running',
    step: null,
    done: null,
    total: null,
    startedAtMs,
    endedAtMs: null,
    error: null,
    traceparent,
  };
}

/** Passes on each new step, and within one step only so often, but always its end. */
function throttled(host: Pick<Host, 'nowMs'>, report: (progress: Progress) => void): (progress: Progress) => void {
  let step = '';
  let lastMs = Number.NEGATIVE_INFINITY;
  return (progress) => {
    const now = host.nowMs();
    const isNews = progress.step !== step || (progress.total !== undefined && progress.done === progress.total);
    if (!isNews && Math.abs(now - lastMs) < PROGRESS_EVERY_MS) return;
    step = progress.step;
    lastMs = now;
    report(progress);
  };
}
