// What the Engine says of its own accord: that somebody has paused a container, or let it go on.
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { Engine } from './engine.ts';
import { waitAgain } from './wait.ts';

const RETRY_MS = { first: 100, most: 5_000 } as const;
/** What ends sooner is not worth the Engine's work; what was paused in the meantime is seen then. */
const BEFORE_MS = 300;

/**
 * Yields when the container may have been paused or let go on: once it is listened to, again after the Engine was
 * away, and at each of its events. What happened is not in it: by the time it is read something else may hold.
 */
export async function* pauseHints(op: Operation, engine: Engine, find: () => Promise<string>): AsyncGenerator<void, void, undefined> {
  await after(op, BEFORE_MS);
  const filters = JSON.stringify({ container: [await find()], event: ['pause', 'unpause'] });
  for (let waitMs: number = RETRY_MS.first; ; waitMs = Math.min(waitMs * 2, RETRY_MS.most)) {
    try {
      const events = await engine.stream(op, { method: 'GET', path: '/events', query: { filters } });
      yield;
      for await (const _ of events) {
        waitMs = RETRY_MS.first;
        yield;
      }
    } catch (error) {
      // A connection that is lost, or an Engine that is away, says nothing about the container.
      const isAway = !(error instanceof HutchError) || ['unavailable', 'deadline_exceeded', 'internal'].includes(error.code);
      if (op.signal.aborted || !isAway) throw error;
    }
    await after(op, waitMs);
  }
}

function after(op: Operation, ms: number): Promise<void> {
  return waitAgain(op, new Promise<void>((resolve) => setTimeout(resolve, ms).unref()));
}
