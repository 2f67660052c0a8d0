// What is being read must not be removed meanwhile: whoever reads holds it, whoever removes it takes it for itself.

export class Held<K> {
  /** How many read it; −1 while it is being removed. */
  readonly #held = new Map<K, number>();

  /** Null: it is being removed. */
  read(key: K): Disposable | null {
    const readers = this.#held.get(key) ?? 0;
    if (readers < 0) return null;
    this.#held.set(key, readers + 1);
    return this.#release(key, (now) => now - 1);
  }

  /** Null: somebody reads it, or removes it already. */
  take(key: K): Disposable | null {
    if (this.#held.has(key)) return null;
    this.#held.set(key, -1);
    return this.#release(key, () => 0);
  }

  #release(key: K, after: (now: number) => number): Disposable {
    let isHeld = true;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        const left = after(this.#held.get(key) ?? 0);
        if (left === 0) this.#held.delete(key);
        else this.#held.set(key, left);
      },
    };
  }
}
