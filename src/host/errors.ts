// Turns what the system says into a HutchError, and gives every wait a way out: the one place that
// knows errno names and that decides what an aborted call does.
import { type ErrorCode, HutchError } from '../domain/errors.ts';
import type { Operation } from './operation.ts';

/** Once its signal has aborted, how long a call may still take to unwind by itself before it is given up. */
const UNWIND_MS = 1_000;

const CODE_OF_ERRNO: Readonly<Record<string, ErrorCode>> = {
  ENOENT: 'not_found',
  EEXIST: 'conflict',
  EACCES: 'permission_denied',
  EPERM: 'permission_denied',
  ENOSPC: 'resource_exhausted',
  EDQUOT: 'resource_exhausted',
  EMFILE: 'resource_exhausted',
  ENFILE: 'resource_exhausted',
  ECONNREFUSED: 'unavailable',
  ECONNRESET: 'unavailable',
  EADDRINUSE: 'conflict',
  EADDRNOTAVAIL: 'failed_precondition',
  ENOTFOUND: 'unavailable',
  EHOSTUNREACH: 'unavailable',
  ENETUNREACH: 'unavailable',
  ETIMEDOUT: 'unavailable',
  EPIPE: 'unavailable',
};

/** The errno name behind an error, through any number of HutchErrors: `ENOENT`; null where there is none. */
export function errnoOf(error: unknown): string | null {
  let at: unknown = error;
  for (let depth = 0; depth < 8 && at instanceof Error; depth += 1) {
    if ('code' in at && typeof at.code === 'string' && /^E[A-Z0-9]+$/.test(at.code)) return at.code;
    at = at.cause;
  }
  return null;
}

/** `cannot <what>: <reason>` with the code that the errno stands for. A HutchError stays as it is. */
export function systemError(op: Operation, what: string, error: unknown): HutchError {
  if (error instanceof HutchError) return error;
  const errno = errnoOf(error);
  const reason = error instanceof Error ? error.message : String(error);
  const code = errno === null ? undefined : CODE_OF_ERRNO[errno];
  return op.error(code ?? 'internal', `cannot ${what}: ${reason}`, { cause: error });
}

/** What an aborted operation throws: the signal's own HutchError (a deadline), else `cancelled`. */
export function abortError(op: Operation, what: string): HutchError {
  const reason: unknown = op.signal.reason;
  if (reason instanceof HutchError) return reason;
  return op.error('cancelled', `cancelled: ${what}`, { cause: reason });
}

export function throwIfAborted(op: Operation, what: string): void {
  if (op.signal.aborted) throw abortError(op, what);
}

/**
 * Runs one call to the system. When the signal aborts, the call gets `UNWIND_MS` to end by itself
 * (it has no half-done state then), after which it is given up; `late` releases what it still brings.
 */
export async function heed<T>(op: Operation, what: string, work: () => Promise<T>, late?: (value: T) => void): Promise<T> {
  throwIfAborted(op, what);
  const running = work();
  let givenUp = false;
  let giveUpTimer: NodeJS.Timeout | undefined;
  const { promise: gaveUp, reject } = Promise.withResolvers<never>();
  const onAbort = (): void => {
    giveUpTimer = setTimeout(() => {
      givenUp = true;
      reject(abortError(op, what));
    }, UNWIND_MS);
  };
  op.signal.addEventListener('abort', onAbort, { once: true });
  running.then(
    (value) => {
      if (givenUp) late?.(value);
    },
    () => {}, // reported by the race below, or given up
  );
  try {
    return await Promise.race([running, gaveUp]);
  } catch (error) {
    // What ended because of the signal has no errno of its own.
    const wasAborted = op.signal.aborted && !(error instanceof HutchError) && errnoOf(error) === null;
    throw wasAborted ? abortError(op, what) : systemError(op, what, error);
  } finally {
    op.signal.removeEventListener('abort', onAbort);
    clearTimeout(giveUpTimer);
  }
}
