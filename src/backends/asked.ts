// What several operations want to know of this machine, and one of them finds out for all.
import { HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';
import { asLongAs } from './wait.ts';

/** Asked once: an answer is kept, a failure is asked again. Whoever waits is not cancelled with the one that asks, but asks instead. */
export class Asked<T> {
  #answer: Promise<T> | undefined;

  async get(op: Operation, find: (op: Operation) => Promise<T>): Promise<T> {
    return await joined(
      op,
      'wait for what another operation finds out',
      () => this.#answer,
      () => this.#ask(op, find),
    );
  }

  #ask(op: Operation, find: (op: Operation) => Promise<T>): Promise<T> {
    const asking = find(op).catch((error: unknown) => {
      if (this.#answer === asking) this.#answer = undefined;
      throw error;
    });
    this.#answer = asking;
    return asking;
  }

  /** Known from elsewhere. */
  set(answer: T): void {
    this.#answer = Promise.resolve(answer);
  }

  forget(): void {
    this.#answer = undefined;
  }
}

/**
 * What others are at already, as long as our own operation lasts; where nobody is, or whoever was has gone away, `begin`. Any other failure is
 * ours too. Nothing happens between the look at `others` and `begin`.
 */
export async function joined<T>(op: Operation, what: string, others: () => Promise<T> | undefined, begin: () => Promise<T>): Promise<T> {
  for (let now = others(); now !== undefined; now = others()) {
    try {
      return await asLongAs(op, what, now);
    } catch (error) {
      if (op.signal.aborted || !(error instanceof HutchError) || error.code !== 'cancelled') throw error;
    }
  }
  return await begin();
}
