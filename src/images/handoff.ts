// Bytes that one gives and another takes, a piece at a time. Nothing is copied: whoever gives waits until the piece is used up, and then
// its memory is free again. Once nobody takes any more, what is given is let go of.

export class Handoff implements AsyncIterable<Uint8Array> {
  #next = Promise.withResolvers<Uint8Array | null>();
  #used = Promise.withResolvers<void>();
  #isOver = false;

  constructor() {
    this.#next.promise.catch(() => {}); // heard by whoever takes
  }

  /** Resolves when the next one is asked for, or nobody takes any more. */
  async give(piece: Uint8Array): Promise<void> {
    if (this.#isOver) return;
    this.#used = Promise.withResolvers();
    this.#next.resolve(piece);
    await this.#used.promise;
  }

  /** Nothing more comes: that was all, or `failure` is what whoever takes hears. */
  end(failure: Error | null = null): void {
    if (failure === null) this.#next.resolve(null);
    else this.#next.reject(failure);
  }

  /** Nobody takes any more. */
  close(): void {
    this.#isOver = true;
    this.#used.resolve();
  }

  /** For one. A piece is valid until the next is asked for. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      for (let piece = await this.#next.promise; piece !== null; piece = await this.#next.promise) {
        this.#next = Promise.withResolvers();
        this.#next.promise.catch(() => {}); // heard by whoever takes
        yield piece;
        this.#used.resolve();
      }
    } finally {
      this.close();
    }
  }
}
