// Waits that hear the operation's signal.
import { abortError } from '../host/errors.ts';
import type { Operation } from '../host/operation.ts';

/** As `promise`, but no longer than the operation; what `promise` does later is not heard any more. */
export async function asLongAs<T>(op: Operation, what: string, promise: Promise<T>): Promise<T> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = (): void => reject(abortError(op, what));
  op.signal.addEventListener('abort', onAbort, { once: true });
  promise.catch(() => {}); // heard by the race, or too late
  try {
    if (op.signal.aborted) onAbort();
    return await Promise.race([promise, aborted]);
  } finally {
    op.signal.removeEventListener('abort', onAbort);
  }
}

/** For what has no event. */
export async function pause(op: Operation, ms: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  try {
    await asLongAs(op, 'wait', promise);
  } finally {
    clearTimeout(timer);
  }
}

/** As Promise.all, but it waits for the others when one fails: what still runs could make what is being removed. */
export async function allOf<T extends readonly unknown[]>(work: readonly [...{ [K in keyof T]: Promise<T[K]> }]): Promise<T> {
  await Promise.allSettled(work);
  return (await Promise.all(work)) as unknown as T;
}
