// Carries out what the daemon asks, a batch at a time. Commits that wait together share one
// transaction, and so one sync of the disk; each has a savepoint of its own, so one that is refused
// takes nobody with it. If the disk fails under the shared one, each is tried again alone.

import { HutchError } from '../domain/errors.ts';
import type { Change, CommitNews, Durability, QueryName, RequestClaim } from './contract.ts';
import type { Db } from './db.ts';
import { isDiskFailure, storeError, toWire, type WireError } from './failure.ts';
import { CHANGES, QUERIES } from './handlers.ts';
import { meta, setMeta } from './open.ts';
import { claimRequest } from './requests.ts';
import { newTx, type Stamp, type Tx } from './tx.ts';

export type CommitAsk = {
  readonly ask: 'commit';
  readonly id: number;
  readonly stamp: Stamp;
  readonly changes: readonly Change[];
  readonly durability: Durability;
  readonly claim: RequestClaim | null;
};
export type QueryAsk = { readonly ask: 'query'; readonly id: number; readonly name: QueryName; readonly args: unknown };
/** A copy of the whole store into a file that is there, empty. */
export type BackupAsk = { readonly ask: 'backup'; readonly id: number; readonly path: string };
export type CloseAsk = { readonly ask: 'close'; readonly id: number };
export type Ask = CommitAsk | QueryAsk | BackupAsk | CloseAsk;

export type Answer =
  | { readonly id: number; readonly ok: true; readonly value: unknown; readonly news: CommitNews | null }
  | { readonly id: number; readonly ok: false; readonly error: WireError };

/** More than this would let the first of a batch wait too long for its answer. */
const GROUP_COMMITS_MAX = 64;

export function answerBatch(db: Db, asks: readonly (CommitAsk | QueryAsk)[], say: (answer: Answer) => void): void {
  // Queries first: they need not wait for the disk, and see every commit that was answered before.
  for (const ask of asks) if (ask.ask === 'query') say(answerQuery(db, ask));
  const commits = asks.filter((ask) => ask.ask === 'commit');
  for (let from = 0; from < commits.length; from += GROUP_COMMITS_MAX) {
    for (const answer of commitGroup(db, commits.slice(from, from + GROUP_COMMITS_MAX))) say(answer);
  }
}

function answerQuery(db: Db, { id, name, args }: QueryAsk): Answer {
  try {
    const query = QUERIES[name] as (db: Db, args: unknown) => unknown;
    return { id, ok: true, value: query(db, args), news: null };
  } catch (error) {
    return failure(db, id, error);
  }
}

function commitGroup(db: Db, group: readonly CommitAsk[]): readonly Answer[] {
  const durability = group.some((ask) => ask.durability === 'durable') ? 'durable' : 'relaxed';
  try {
    return db.transaction(durability, () => group.map((ask) => commitOne(db, ask)));
  } catch (error) {
    if (group.length > 1) return group.flatMap((ask) => commitGroup(db, [ask]));
    const surely = !isDiskFailure(error) || writeOver(db);
    return group.map(({ id }) => failure(db, id, surely ? error : uncertain(db, error)));
  }
}

/** How often that was necessary. */
const WRITTEN_OVER = 'written-over';

/**
 * When the sync of a commit fails, its frames may lie whole in the log, and the next start would take
 * them for committed. The next commit is written in their place: so one is made at once.
 */
function writeOver(db: Db): boolean {
  try {
    // Another value each time: SQLite writes nothing for a row that stays as it is.
    db.transaction('relaxed', () => setMeta(db, WRITTEN_OVER, String(Number(meta(db, WRITTEN_OVER) ?? 0) + 1)));
    return true;
  } catch {
    return false; // the disk is gone: the caller says that nothing is known
  }
}

function uncertain(db: Db, cause: unknown): HutchError {
  return new HutchError({
    code: 'unavailable',
    message: `the disk failed under the store ${db.path}; whether the change was made is known only after the next start of the daemon`,
    hint: 'look at the kernel log: dmesg',
    cause,
  });
}

/** Throws only when the transaction around it is gone, or nothing can be said of it. */
function commitOne(db: Db, ask: CommitAsk): Answer {
  try {
    return db.savepoint(() => {
      const tx = newTx(db, ask.stamp);
      const value = ask.claim === null ? applyAll(tx, ask.changes) : applyClaimed(tx, ask.claim, ask.changes);
      return { id: ask.id, ok: true, value, news: tx.news };
    });
  } catch (error) {
    if (!db.inTransaction) throw error;
    return failure(db, ask.id, error);
  }
}

function applyClaimed(tx: Tx, claim: RequestClaim, changes: readonly Change[]): unknown {
  return claimRequest(tx, claim) ?? { outcome: 'claimed', results: applyAll(tx, changes) };
}

function applyAll(tx: Tx, changes: readonly Change[]): readonly unknown[] {
  return changes.map((change) => {
    const apply = CHANGES[change.change] as (tx: Tx, args: Change) => unknown;
    return apply(tx, change);
  });
}

function failure(db: Db, id: number, error: unknown): Answer {
  return { id, ok: false, error: toWire(storeError(error, db.path)) };
}
