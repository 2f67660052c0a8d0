// When a call from one role of the daemon to another is made again, and how long that waits. Pure: time
// and randomness come in. Always true: what may have been done and cannot be repeated is never repeated;
// the waits double up to a cap, each with jitter, so that many callers do not come back at once; and no
// try begins after the time that there is.

export type RetryPolicy = {
  /** The longest first wait, in milliseconds; it doubles with each try. */
  readonly firstMs: number;
  readonly capMs: number;
  /** No try begins this long after the first. */
  readonly forMs: number;
};

export type FailedTry = {
  /** From 1. */
  readonly tries: number;
  /** Since the first began. */
  readonly elapsedMs: number;
  /** `no`: the connection was refused. `perhaps`: it was lost after the request had left. */
  readonly arrived: 'no' | 'perhaps';
  /** Whether the same again changes nothing more: by its verb, or by its Idempotency-Key. */
  readonly repeatable: boolean;
  /** In [0, 1). */
  readonly random: number;
};

/** How long to wait before the next try; null: there is none. */
export function nextTryInMs(policy: RetryPolicy, failed: FailedTry): number | null {
  if (failed.arrived === 'perhaps' && !failed.repeatable) return null;
  const ceiling = Math.min(policy.capMs, policy.firstMs * 2 ** Math.min(failed.tries - 1, 30));
  const waitMs = ceiling / 2 + (ceiling / 2) * failed.random;
  return failed.elapsedMs + waitMs < policy.forMs ? waitMs : null;
}
