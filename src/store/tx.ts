// What a change or query works with: the connection, who asks, and the clock as the daemon read it.
import type { OpId } from '../domain/ids.ts';
import type { CommitNews } from './contract.ts';
import type { Db } from './db.ts';

/** Read by the daemon's thread when it asked: the worker has no clock and no randomness of its own. */
export type Stamp = {
  readonly opId: OpId;
  readonly actor: string;
  readonly nowMs: number;
  readonly monotonicMs: number;
  readonly bootId: string;
  /** `STAMP_RANDOM_BYTES` of them, for the ids of ledger entries. */
  readonly random: Uint8Array;
};

export const STAMP_RANDOM_BYTES = 10;

export type Tx = {
  readonly db: Db;
  readonly stamp: Stamp;
  /** Ledger entries that this commit has appended so far. */
  entries: number;
  /** What listeners are told once it is committed; null: nothing new. */
  news: CommitNews | null;
};

export function newTx(db: Db, stamp: Stamp): Tx {
  return { db, stamp, entries: 0, news: null };
}
