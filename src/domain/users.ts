// The users of this machine that sandboxes run as. Several data directories may have daemons on one
// machine, so each has a block of the range to itself.

/** Both ends included. */
export type UidRange = { readonly first: number; readonly last: number };

export const SANDBOX_UIDS: UidRange = { first: 900_000, last: 965_535 };
/** Users in a block: as many sandboxes can one data directory have, stopped ones included. */
export const BLOCK_UIDS = 2_048;

/** First users of all blocks, in order. */
export const BLOCKS: readonly number[] = Array.from(
  { length: (SANDBOX_UIDS.last - SANDBOX_UIDS.first + 1) / BLOCK_UIDS },
  (_, index) => SANDBOX_UIDS.first + index * BLOCK_UIDS,
);

export function blockOf(first: number): UidRange {
  return { first, last: first + BLOCK_UIDS - 1 };
}

export function isWithin({ first, last }: UidRange, uid: number): boolean {
  return uid >= first && uid <= last;
}
