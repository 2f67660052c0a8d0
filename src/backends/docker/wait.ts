// Waiting for what goes on without us.
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';

/** The outcome of work that others wait for too: this operation's end is not its end. */
export async function waitAgain<T>(op: Operation, work: Promise<T>): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const onAbort = (): void => {
    const reason: unknown = op.signal.reason;
    reject(reason instanceof HutchError ? reason : op.error('cancelled', 'the operation was cancelled', { cause: reason }));
  };
  if (op.signal.aborted) onAbort();
  else op.signal.addEventListener('abort', onAbort, { once: true });
  try {
    return await Promise.race([work, promise]);
  } finally {
    op.signal.removeEventListener('abort', onAbort);
  }
}
