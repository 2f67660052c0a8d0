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
