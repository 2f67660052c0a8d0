// An Engine that is not there: what its silence means.
import { HutchError } from '../../domain/errors.ts';

/** The Engine did not answer, or not to the end: nothing is known of what it was asked. */
export function isAway(error: unknown): boolean {
  return error instanceof HutchError && (error.code === 'unavailable' || error.code === 'deadline_exceeded');
}

/** Without an Engine there is nothing of ours in it. */
export async function unlessAway<T, U>(asked: Promise<T>, otherwise: U): Promise<T | U> {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof HutchError && ['unavailable', 'permission_denied', 'failed_precondition'].includes(error.code)) return otherwise;
    throw error;
  }
}
