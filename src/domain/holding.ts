// What a snapshot holds of the disk: files, and layers of an engine. Several snapshots may hold one of them, which is there once: it
// counts for one of them alone, the oldest.

/** Whoever holds the same has the same `what`, and only they. */
export type Holding = { readonly what: string; readonly bytes: number };

/** Under whatever names it lies. */
export function fileHolding({ inode, allocatedBytes }: { readonly inode: bigint; readonly allocatedBytes: number }): Holding {
  return { what: `file:${inode}`, bytes: allocatedBytes };
}

export function sameHoldings(left: readonly Holding[], right: readonly Holding[]): boolean {
  const bytesOf = new Map(left.map(({ what, bytes }) => [what, bytes]));
  return left.length === right.length && right.every(({ what, bytes }) => bytesOf.get(what) === bytes);
}

export function sumOfHoldings(holdings: readonly Holding[]): number {
  return holdings.reduce((sum, { bytes }) => sum + bytes, 0);
}

/** What several hold together, as some of them let go. */
export class HeldTogether {
  readonly #holders = new Map<string, number>();
  #bytes = 0;

  constructor(of: readonly (readonly Holding[])[]) {
    for (const holdings of of) {
      for (const { what, bytes } of holdings) {
        const holders = this.#holders.get(what) ?? 0;
        if (holders === 0) this.#bytes += bytes;
        this.#holders.set(what, holders + 1);
      }
    }
  }

  /** What is held once is there once. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Of one of them, once. */
  letGo(holdings: readonly Holding[]): void {
    for (const { what, bytes } of holdings) {
      const holders = (this.#holders.get(what) ?? 0) - 1;
      if (holders === 0) this.#bytes -= bytes;
      this.#holders.set(what, holders);
    }
  }
}
