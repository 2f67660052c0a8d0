// How many builds are under way at once in this daemon, and who is next. Always true: each slot is free, or held by one build; who gives
// up while it waits holds none, and none is kept for it.
import type { Operation } from '../host/operation.ts';
import { waitFor } from './operations.ts';

export class BuildTurns {
  #free: number;
  /** In the order in which they asked. */
  readonly #waiting = new Set<() => void>();

  constructor(atOnce: number) {
    this.#free = atOnce;
  }

  /** Whether one that begins now waits. */
  get areTaken(): boolean {
    return this.#free === 0;
  }

  /** Until it is disposed. @throws HutchError when its operation ends while it waits. */
  async take(op: Operation): Promise<Disposable> {
    if (this.#free > 0) this.#free -= 1;
    else await this.#wait(op);
    return { [Symbol.dispose]: () => this.#give() };
  }

  async #wait(op: Operation): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.add(resolve);
    try {
      await waitFor(op, promise, 'builds before it');
    } catch (error) {
      // Given to it at that very moment, and nobody else will give it back.
      if (!this.#waiting.delete(resolve)) this.#give();
      throw error;
    }
  }

  #give(): void {
    const [next] = this.#waiting;
    if (next === undefined) {
      this.#free += 1;
      return;
    }
    this.#waiting.delete(next);
    next();
  }
}
