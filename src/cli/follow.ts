// Streams that go on: a lost connection is taken up again where it broke off, by cursor.
import { setTimeout as sleep } from 'node:timers/promises';
import { ConnectionError } from '../sdk/errors.ts';
import type { Output } from '../services/verbs.ts';
import type { Context } from './context.ts';

type Event = Output<'event.list'>;

export type Resumable<T> = {
  /** Opens the stream from a cursor on, null for its beginning. */
  readonly open: (cursor: number | null) => AsyncIterable<T>;
  /** Where a stream goes on that has given this. */
  readonly cursorAfter: (item: T) => number;
  readonly from: number | null;
  /** Whether it ends by itself: then its end is the end. */
  readonly ends: boolean;
};

/** A connection that held this long is a new beginning for the bound on retries. */
export const STEADY_MS = 1_000;
/** How long a stream that was lost is tried again. */
export const FOLLOW_FOR_MS = 60_000;

export async function* resumed<T>(context: Context, stream: Resumable<T>): AsyncGenerator<T, void, undefined> {
  let cursor = stream.from;
  let attempt = 0;
  let lostSince = performance.now();
  for (;;) {
    const openedAt = performance.now();
    let lost: unknown;
    try {
      for await (const item of stream.open(cursor)) {
        yield item;
        cursor = stream.cursorAfter(item);
      }
      if (stream.ends) return;
      lost = new ConnectionError('the connection to the daemon was lost', { sent: true });
    } catch (error) {
      if (!(error instanceof ConnectionError)) throw error;
      lost = error;
    }
    if (performance.now() - openedAt > STEADY_MS) {
      attempt = 0;
      lostSince = performance.now();
    }
    attempt += 1;
    await context.client.beforeRetry(lost, attempt, lostSince, context.interrupts.signal, FOLLOW_FOR_MS);
  }
}

/** One signal per burst of events, from now on, until interrupted. */
export async function* followEvents(context: Context, { settleMs }: { readonly settleMs: number }): AsyncGenerator<void, void, undefined> {
  const { signal } = context.interrupts;
  const events = resumed<Event>(context, {
    open: (cursor) => context.client.lines('event.list', { follow: true, ...(cursor === null ? {} : { cursor }) }, { signal }),
    cursorAfter: ({ cursor }) => cursor,
    from: null,
    ends: false,
  });
  let pending = false;
  let failure: { readonly error: unknown } | null = null;
  let wake: () => void = () => {};
  void (async () => {
    for await (const _ of events) {
      pending = true;
      wake();
    }
  })().catch((error: unknown) => {
    failure = { error };
    wake();
  });
  for (;;) {
    if (failure !== null) throw (failure as { error: unknown }).error;
    if (!pending) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
      continue;
    }
    await sleep(settleMs);
    pending = false;
    yield;
  }
}
