// What a verb has at hand: its output, the daemon, and how its user interrupts it.

import { HutchError } from '../domain/errors.ts';
import type { ApiClient, Progress, UnaryVerb } from '../sdk/client.ts';
import type { Input, Output } from '../services/verbs.ts';
import type { Interrupts } from './interrupts.ts';
import type { Io } from './io.ts';
import type { ProgressLine } from './progress.ts';
import type { Flag } from './verb.ts';

export type Context = {
  readonly io: Io;
  readonly json: boolean;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly interrupts: Interrupts;
  readonly progress: ProgressLine;
  /** The daemon; it is started when it does not run and a call needs it. */
  readonly client: ApiClient;
  /** Those of the verb, by which an error names what was typed. */
  readonly flags: readonly Flag[];
};

/** How long the daemon may take to clean up after a cancelled operation. */
const CANCEL_MS = 15_000;

/** A read: an interrupt just ends it. */
export async function ask<N extends UnaryVerb>(context: Context, verb: N, input: Input<N>): Promise<Output<N>> {
  return await context.client.call(verb, input, { signal: context.interrupts.signal });
}

/** A change, with its progress. An interrupt cancels the operation in the daemon and waits until that has cleaned up. */
export async function change<N extends UnaryVerb>(context: Context, verb: N, input: Input<N>): Promise<Output<N>> {
  const { client, interrupts, progress } = context;
  const connection = new AbortController();
  let opId: string | null = null;
  let limit: NodeJS.Timeout | undefined;
  // What nobody has taken yet, the client itself gives up. What somebody has, goes on until it is cancelled by its id, which
  // may still be on its way: a connection that is cut before would leave a thing behind that nobody knows of.
  const cancel = (): void => {
    // Too late is no error: the call itself says how it ended.
    if (opId !== null) client.call('operation.cancel', { opId }, { signal: connection.signal }).catch(() => {});
  };
  const onInterrupt = (): void => {
    limit = setTimeout(() => connection.abort(interrupts.signal.reason), CANCEL_MS);
    progress.show({ step: 'cancelling' });
    cancel();
  };
  interrupts.signal.addEventListener('abort', onInterrupt, { once: true });
  if (interrupts.signal.aborted) onInterrupt();
  try {
    return await client.call(verb, input, {
      signal: connection.signal,
      unsentSignal: interrupts.signal,
      onOpId: (id) => {
        opId = id;
        if (interrupts.signal.aborted) cancel();
      },
      onProgress: (step: Progress) => progress.show(step),
    });
  } catch (error) {
    if (error instanceof HutchError && error.code === 'cancelled' && error.opId === null && opId !== null) {
      throw new HutchError({
        code: 'cancelled',
        message: 'interrupted; the daemon goes on cleaning up',
        hint: `look at it with: hutch why ${opId}`,
        opId,
      });
    }
    // By us, for whoever typed Ctrl-C: not somebody else's doing.
    if (interrupts.signal.aborted && error instanceof HutchError && error.code === 'cancelled' && error.opId !== null)
      throw new HutchError({ code: 'cancelled', message: 'interrupted; what was begun is cleaned up', opId: error.opId, cause: error });
    throw error;
  } finally {
    clearTimeout(limit);
    interrupts.signal.removeEventListener('abort', onInterrupt);
    progress.clear();
  }
}
