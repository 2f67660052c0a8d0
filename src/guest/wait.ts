// Waiting for something that comes by callback, while hearing the operation.
import { setMaxListeners } from 'node:events';
import { HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';

/** Why the operation was aborted, as the error that its caller gets. */
export function reasonOf(op: Operation): HutchError {
  const reason: unknown = op.signal.reason;
  return reason instanceof HutchError ? reason : op.error('cancelled', 'the operation was cancelled', { cause: reason });
}

/**
 * Waits for `resolve` or `reject` to be called, or for the operation to be aborted; then `abandoned`
 * is called, once, so that nobody answers a wait that is over.
 */
export function heard<T>(
  op: Operation,
  begin: (resolve: (value: T) => void, reject: (error: unknown) => void) => void,
  abandoned: () => void,
): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const onAbort = () => {
      op.signal.removeEventListener('abort', onAbort);
      abandoned();
      reject(reasonOf(op));
    };
    if (op.signal.aborted) return onAbort();
    setMaxListeners(0, op.signal); // as many waits as an operation has
    op.signal.addEventListener('abort', onAbort);
    begin(
      (value) => {
        op.signal.removeEventListener('abort', onAbort);
        resolve(value);
      },
      (error) => {
        op.signal.removeEventListener('abort', onAbort);
        reject(error);
      },
    );
  });
}

/** Waits for a promise that belongs to several callers; it goes on without this one. */
export function shared<T>(op: Operation, promise: Promise<T>): Promise<T> {
  return heard<T>(
    op,
    (resolve, reject) => void promise.then(resolve, reject),
    () => {},
  );
}

/** Waits for a time. */
export function delay(op: Operation, ms: number): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  return heard<void>(
    op,
    (resolve) => {
      timer = setTimeout(resolve, ms);
    },
    () => clearTimeout(timer),
  );
}
