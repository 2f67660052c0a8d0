// How many sandboxes start at once. A start is processor work from its first moment to its last; fifty at once on two
// processors all take fifty times as long, and most of them longer than an agent may take to answer.
import { availableParallelism } from 'node:os';
import type { Operation } from '../host/operation.ts';
import { waitFor } from './operations.ts';

const PER_PROCESSOR = 2;
/** Who takes longer than this is waiting for something itself, and must not keep others waiting. */
const HELD_MS = 30_000;

export class StartGate {
  readonly #heldMs: number;
  readonly #waiting: (() => void)[] = [];
  #free: number;
  #inside = 0;
  #leftAtMs = Number.NEGATIVE_INFINITY;

  constructor(places: number = Math.max(4, PER_PROCESSOR * availableParallelism()), heldMs: number = HELD_MS) {
    this.#free = places;
    this.#heldMs = heldMs;
  }

  /** How long nobody has been starting anything, in milliseconds. */
  get idleMs(): number {
    return this.#inside > 0 || this.#waiting.length > 0 ? 0 : performance.now() - this.#leftAtMs;
  }

  /** Waits for a place, in the order of asking. Dispose it when the start is over. */
  async enter(op: Operation): Promise<Disposable> {
    if (this.#free > 0) {
      this.#free -= 1;
      return this.#place();
    }
    op.progress({ step: 'waiting for other sandboxes to start' });
    const { promise: called, resolve: call } = Promise.withResolvers<void>();
    this.#waiting.push(call);
    try {
      await waitFor(op, called, 'the start of other sandboxes');
    } catch (error) {
      const index = this.#waiting.indexOf(call);
      if (index === -1)
        this.#leave(); // called in the same moment
      else this.#waiting.splice(index, 1);
      throw error;
    }
    return this.#place();
  }

  #place(): Disposable {
    let held = true;
    let left = false;
    this.#inside += 1;
    const leave = (): void => {
      if (!held) return;
      held = false;
      clearTimeout(late);
      this.#leave();
    };
    const late = setTimeout(leave, this.#heldMs);
    late.unref();
    return {
      [Symbol.dispose]: () => {
        if (left) return;
        left = true;
        this.#inside -= 1;
        this.#leftAtMs = performance.now();
        leave();
      },
    };
  }

  /** The place goes to the next in line. */
  #leave(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free += 1;
    else next();
  }
}
