// Reading the ledger from the store: page by page, on to its end or for as long as it grows, and
// checking its chain. Nothing here holds more than one page.
import type { ProjectId, SandboxId } from '../domain/ids.ts';
import type { LedgerEntry } from '../domain/ledger.ts';
import type { LedgerPosition, Store } from '../store/contract.ts';

/** Entries that are read at once. */
export const LEDGER_PAGE_ENTRIES = 500;

export type LedgerRange = {
  /** A cursor: the sequence of the last entry that was seen; 0 begins at the beginning. */
  readonly after: number;
  readonly limit?: number;
  readonly sandboxId?: SandboxId;
  /** Entries of others are passed over, and are not counted. */
  readonly projectId?: ProjectId;
  /** Goes on when the end is reached, until the signal aborts. */
  readonly follow?: boolean;
  readonly signal: AbortSignal;
};

/** Entries in order, each once. With `follow` it ends by throwing the signal's reason. */
export async function* readLedger(store: Pick<Store, 'query' | 'onCommit'>, range: LedgerRange): AsyncGenerator<LedgerEntry> {
  const { signal, sandboxId, projectId, follow = false } = range;
  let { after } = range;
  let left = range.limit ?? Number.POSITIVE_INFINITY;
  let news = Promise.withResolvers<void>();
  const wake = () => news.resolve();
  // Listened to before anything is read: what is committed between the two must not be missed.
  const unlisten = follow ? store.onCommit(wake) : () => {};
  signal.addEventListener('abort', wake);
  try {
    while (left > 0) {
      signal.throwIfAborted();
      news = Promise.withResolvers();
      const limit = projectId === undefined ? Math.min(left, LEDGER_PAGE_ENTRIES) : LEDGER_PAGE_ENTRIES;
      const page = await store.query('ledger', { after, limit, ...(sandboxId === undefined ? {} : { sandboxId }) });
      for (const entry of page) {
        signal.throwIfAborted();
        after = entry.sequence;
        if (projectId !== undefined && entry.projectId !== projectId) continue;
        yield entry;
        left -= 1;
        if (left <= 0) return;
      }
      if (page.length === limit) continue;
      if (!follow) return;
      if (!signal.aborted) await news.promise;
    }
  } finally {
    unlisten();
    signal.removeEventListener('abort', wake);
  }
}

export type LedgerVerdict = {
  readonly ok: boolean;
  /** Entries that are whole and in order, from the first on. */
  readonly entries: number;
  /** Of the last of them; null when there is none. */
  readonly lastHash: string | null;
  readonly firstBreak: { readonly sequence: number; readonly problem: string } | null;
};

const BEGINNING: LedgerPosition = { sequence: 0, hash: '0'.repeat(64) };

/** Checks sequence and chain from the first entry to the last. */
export async function verifyLedger(store: Pick<Store, 'query'>, signal: AbortSignal): Promise<LedgerVerdict> {
  let at = BEGINNING;
  for (;;) {
    signal.throwIfAborted();
    const check = await store.query('checkLedger', { from: at });
    at = check.at;
    if (check.state === 'more') continue;
    const firstBreak = check.state === 'broken' ? { sequence: check.sequence, problem: check.problem } : null;
    return { ok: firstBreak === null, entries: at.sequence, lastHash: at.sequence === 0 ? null : at.hash, firstBreak };
  }
}
