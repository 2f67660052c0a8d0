// One thing asked of the daemon. It comes first in every call that touches the system, so that the
// op id, the deadline and the cancellation reach everything that the request causes.
import { type ErrorCode, HutchError } from '../domain/errors.ts';
import type { OpId } from '../domain/ids.ts';

/** The part of pino's logger that is used: facts as fields with units, then a fixed sentence. */
export type Log = {
  debug(facts: object, sentence: string): void;
  info(facts: object, sentence: string): void;
  warn(facts: object, sentence: string): void;
  error(facts: object, sentence: string): void;
};

/** Progress of a long step, for people: shown on a terminal, streamed as events to API clients. */
export type Progress = {
  readonly step: string;
  readonly detail?: string;
  /** Both absent where the size is not known. */
  readonly done?: number;
  readonly total?: number;
  readonly unit?: 'bytes' | 'items';
};

export type Operation = {
  readonly id: OpId;
  /** Who asked: `key…` for an API key, `daemon` for its own work. */
  readonly actor: string;
  /** The verb that was asked for, as in the verb table: `create`. Absent for the daemon's own work. */
  readonly verb?: string;
  readonly signal: AbortSignal;
  readonly log: Log;
  progress(progress: Progress): void;
  /** A HutchError that carries this op id. Throw what it returns. */
  error(code: ErrorCode, message: string, options?: { hint?: string; cause?: unknown }): HutchError;
  /**
   * The same operation with less time. Its signal aborts with `deadline_exceeded` naming `what`
   * after `ms` milliseconds, or with the parent's reason. Dispose it to stop the timer.
   */
  within(ms: number, what: string): Operation & Disposable;
  /**
   * The same operation, deaf to the caller's cancellation, with a deadline of its own: for releasing
   * what was acquired.
   */
  releasing(ms: number): Operation & Disposable;
};

export type OperationOptions = {
  readonly id: OpId;
  readonly actor: string;
  readonly verb?: string;
  readonly log: Log;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
};

export function newOperation(options: OperationOptions): Operation {
  const { id, actor, log } = options;
  const signal = options.signal ?? new AbortController().signal;
  return {
    id,
    actor,
    ...(options.verb === undefined ? {} : { verb: options.verb }),
    signal,
    log,
    progress: options.onProgress ?? (() => {}),
    error: (code, message, extra) =>
      new HutchError({ code, message, opId: id, ...(extra?.hint === undefined ? {} : { hint: extra.hint }), cause: extra?.cause }),
    within: (ms, what) => limited(options, signal, ms, what),
    releasing: (ms) => limited(options, undefined, ms, 'releasing resources'),
  };
}

function limited(options: OperationOptions, parent: AbortSignal | undefined, ms: number, what: string): Operation & Disposable {
  const own = new AbortController();
  const timer = setTimeout(
    () => own.abort(new HutchError({ code: 'deadline_exceeded', message: `${what} took longer than ${ms} ms`, opId: options.id })),
    ms,
  );
  const follow = () => own.abort(parent?.reason);
  if (parent?.aborted) follow();
  else parent?.addEventListener('abort', follow, { once: true });
  const op = newOperation({ ...options, signal: own.signal });
  return {
    ...op,
    [Symbol.dispose]() {
      clearTimeout(timer);
      parent?.removeEventListener('abort', follow);
    },
  };
}
