// How often a registry is asked again, and how long it is waited for. What fails for a while only is
// tried again after a pause; what gets on does not count as failing.
import { setTimeout as sleep } from 'node:timers/promises';
import { HutchError } from '../../domain/errors.ts';
import type { Host, HttpAnswer } from '../../host/host.ts';
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
  /** An answer that brings less than `slowBytes` in this time, or whose head takes longer, is given up, and asked for again. */
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

/** A longer pause is told to whoever waits. */
const TOLD_MS = 2_000;

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
      if (waitMs >= TOLD_MS) op.progress({ step: 'registry', detail: `${error.message}; asked again in ${Math.ceil(waitMs / 1_000)} s` });
      await sleep(waitMs, undefined, { signal: op.signal }).catch(() => op.signal.throwIfAborted());
    }
  }
}

/** The same answer, given up where it comes too slowly: a server that sends a byte now and then would hold us for ever. */
export function hurried(
  op: Operation,
  host: Host,
  answer: HttpAnswer,
  from: string,
  pace: Pick<Patience, 'slowMs' | 'slowBytes'>,
): HttpAnswer {
  return {
    status: answer.status,
    headers: answer.headers,
    body: {
      async *[Symbol.asyncIterator]() {
        let since = host.monotonicMs();
        let bytes = 0;
        for await (const chunk of answer.body) {
          bytes += chunk.byteLength;
          const tookMs = host.monotonicMs() - since;
          if (tookMs >= pace.slowMs) {
            if (bytes < pace.slowBytes)
              throw op.error('unavailable', `what ${from} sends comes too slowly: ${bytes} bytes in ${Math.round(tookMs / 1000)} seconds`);
            since = host.monotonicMs();
            bytes = 0;
          }
          yield chunk;
        }
      },
    },
    [Symbol.dispose]: () => answer[Symbol.dispose](),
  };
}
