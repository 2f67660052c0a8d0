// How often a registry is asked again, and how long it is waited for. What fails for a while only is
// tried again after a pause; what gets on does not count as failing.
import { setTimeout as sleep } from 'node:timers/promises';
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import { retryAfterOf } from './answers.ts';

/** Milliseconds, and how often something is tried. */
export type Patience = {
  readonly idleMs: number;
  readonly tries: number;
  /** Doubled from try to try. */
  readonly pauseMs: number;
  /** The longest that a registry may make us wait at one time. */
  readonly retryAfterMsMax: number;
  /** A download that brings less than `slowBytes` in this time is given up, and tried again. */
  readonly slowMs: number;
  readonly slowBytes: number;
};
export const PATIENCE: Patience = {
  idleMs: 30_000,
  tries: 5,
  pauseMs: 500,
  retryAfterMsMax: 60_000,
  slowMs: 60_000,
  slowBytes: 64 * 1024,
};

export type Retried = Pick<Patience, 'tries' | 'pauseMs' | 'retryAfterMsMax'>;

/** `gotOn`: whether the try that failed brought something. */
export async function retrying<T>(
  op: Operation,
  { tries, pauseMs, retryAfterMsMax }: Retried,
  what: string,
  work: () => Promise<T>,
  gotOn: () => boolean = () => false,
): Promise<T> {
  for (let failed = 0; ; ) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof HutchError) || error.code !== 'unavailable' || op.signal.aborted) throw error;
      failed = gotOn() ? 1 : failed + 1;
      if (failed >= tries) throw error;
      const waitMs = retryAfterOf(error) ?? pauseMs * 2 ** (failed - 1);
      if (waitMs > retryAfterMsMax) throw error;
      op.log.info({ what, waitMs, cause: error.message }, 'a registry is asked again');
      await sleep(waitMs, undefined, { signal: op.signal }).catch(() => op.signal.throwIfAborted());
    }
  }
}
