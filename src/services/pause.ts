// Waiting for a moment, as long as the operation may.
import type { Operation } from '../host/operation.ts';
import { waitFor } from './operations.ts';

/** `wake` ends it early. */
export async function pause(op: Operation, ms: number, wake?: AbortSignal): Promise<void> {
  if (wake?.aborted === true) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  wake?.addEventListener('abort', () => resolve(), { once: true });
  try {
    await waitFor(op, promise, 'the next try');
  } finally {
    clearTimeout(timer);
  }
}
