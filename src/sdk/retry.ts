// How long to wait before trying again: doubling, capped, with full jitter, so that many clients of a
// daemon that comes back do not all come at once.
import { setTimeout as sleep } from 'node:timers/promises';
import { cancelled } from './errors.ts';

const FIRST_MS = 20;
const CAP_MS = 1_000;

/** The delay before try `attempt` (from 1), given a random number in [0, 1). */
export function backoffMs(attempt: number, random: number): number {
  const ceiling = Math.min(CAP_MS, FIRST_MS * 2 ** Math.min(attempt - 1, 10));
  return Math.round(ceiling / 2 + (ceiling / 2) * random);
}

/** Waits before try `attempt`. @throws HutchError `cancelled` when the signal aborts meanwhile. */
export async function backOff(attempt: number, signal: AbortSignal | undefined): Promise<void> {
  try {
    await sleep(backoffMs(attempt, Math.random()), undefined, signal === undefined ? {} : { signal });
  } catch (error) {
    if (signal?.aborted) throw cancelled(signal);
    throw error;
  }
}
