// Work that several callers want at once and that is to be done once: the download of a layer, the
// making of an image. It goes on as long as one of them still waits, and its progress is told to all.
import { HutchError } from '../domain/errors.ts';
import { newOperation, type Operation, type Progress } from '../host/operation.ts';

type Running<T> = {
  readonly result: Promise<T>;
  readonly abort: AbortController;
  readonly waiting: Set<Operation>;
};

export class Shared<T> {
  readonly #running = new Map<string, Running<T>>();

  /** Begins the work, or joins that which is under way under the same key. */
  async join(op: Operation, key: string, work: (op: Operation) => Promise<T>): Promise<T> {
    op.signal.throwIfAborted();
    let running = this.#running.get(key);
    if (running === undefined || running.abort.signal.aborted) running = this.#begin(op, key, work);
    running.waiting.add(op);
    const { promise: left, reject } = Promise.withResolvers<never>();
    const onAbort = (): void => {
      const reason: unknown = op.signal.reason;
      reject(reason instanceof HutchError ? reason : op.error('cancelled', 'cancelled'));
    };
    op.signal.addEventListener('abort', onAbort, { once: true });
    try {
      return await Promise.race([running.result, left]);
    } finally {
      op.signal.removeEventListener('abort', onAbort);
      running.waiting.delete(op);
      if (running.waiting.size === 0) {
        running.abort.abort();
        // Whoever is the last to leave waits until it has cleaned up.
        await running.result.catch(() => {});
      }
    }
  }

  /** What is under way. */
  has(key: string): boolean {
    return this.#running.has(key);
  }

  #begin(op: Operation, key: string, work: (op: Operation) => Promise<T>): Running<T> {
    const abort = new AbortController();
    const waiting = new Set<Operation>();
    const own = newOperation({
      id: op.id,
      actor: op.actor,
      ...(op.verb === undefined ? {} : { verb: op.verb }),
      log: op.log,
      signal: abort.signal,
      onProgress: (progress: Progress) => {
        for (const each of waiting) each.progress(progress);
      },
    });
    const result = (async () => await work(own))();
    const running = { result, abort, waiting };
    this.#running.set(key, running);
    const over = (): void => {
      if (this.#running.get(key) === running) this.#running.delete(key);
    };
    result.then(over, over);
    return running;
  }
}
