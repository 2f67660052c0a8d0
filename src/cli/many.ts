// Several references in one command: each is tried, in the order in which it was first seen; a bad one
// fails alone, and the worst outcome is the exit code. With --json one line each, errors in their place.
import type { Context } from './context.ts';
import { worstExit } from './exit-codes.ts';
import { tell, toHutchError } from './fail.ts';
import { json } from './output.ts';

/** Calls under way at one time. */
const AT_ONCE_MAX = 8;

/** How a result looks; null is one of which there is nothing to say. */
export type Shown<T> = { readonly text: (result: T, ref: string) => string };

export async function forEachRef<T>(
  context: Context,
  refs: readonly string[],
  work: (ref: string) => Promise<T>,
  shown: Shown<T>,
): Promise<number> {
  const { io, interrupts } = context;
  const unique = [...new Set(refs)];
  const outcomes = new Map<string, Promise<{ result: T } | { error: unknown }>>();
  const begin = (ref: string): void => {
    const outcome = work(ref).then(
      (result) => ({ result }),
      (error: unknown) => ({ error }),
    );
    outcomes.set(ref, outcome);
  };
  for (const ref of unique.slice(0, AT_ONCE_MAX)) begin(ref);
  const codes: number[] = [];
  for (const [at, ref] of unique.entries()) {
    const outcome = await outcomes.get(ref);
    if (outcome === undefined) break;
    const next = unique[at + AT_ONCE_MAX];
    if (next !== undefined && !interrupts.signal.aborted) begin(next);
    context.progress.clear();
    if ('result' in outcome) {
      codes.push(0);
      if (outcome.result !== null) await io.out(context.json ? json(outcome.result) : shown.text(outcome.result, ref));
    } else
      codes.push(
        await tell(io, toHutchError(outcome.error), {
          json: context.json,
          passesExitCode: false,
          flags: context.flags,
          ...(unique.length > 1 ? { about: ref } : {}),
        }),
      );
  }
  return worstExit(codes);
}
