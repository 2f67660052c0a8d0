// Waiting for a moment, as long as the operation may.
import type { Operation } from '../host/operation.ts';
import { waitFor } from './operations.ts';

export async function pause(op: Operation, ms: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  try {
    await waitFor(op, promise, 'the next try');
  } finally {
    clearTimeout(timer);
  }
}
