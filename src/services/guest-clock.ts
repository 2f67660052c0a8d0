// The clock of a guest, which stands still whenever its machine does, and which it may have been told late: on a busy machine a
// message takes as long to a guest as everything else.
import { HutchError } from '../domain/errors.ts';
import type { Agent } from '../guest/agent.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Run } from './run.ts';

/** What a guest's clock may be late by, in milliseconds: half of what is promised. */
const WRONG_MS_MAX = 25;
/** On a machine that is so busy that none of these comes through in time, the last has to do. */
const TRIES = 8;
const TELL_MS = 5_000;

/**
 * Tells it what time it is, until that has come through quickly: the time is taken before it is sent, so a clock is late by no more than
 * the way there and back took. `toldMs`: how long it took to tell it already.
 */
async function setClock(op: Operation, host: Host, agent: Agent, toldMs: number = Number.POSITIVE_INFINITY): Promise<void> {
  let tookMs = toldMs;
  for (let nth = 0; nth < TRIES && tookMs > WRONG_MS_MAX; nth += 1) {
    const sinceMs = host.monotonicMs();
    await agent.setClock(op, host.nowMs());
    tookMs = host.monotonicMs() - sinceMs;
  }
  if (tookMs > WRONG_MS_MAX) op.log.debug({ tookMs }, 'a guest was told the time later than it should be');
}

/** Of one whose machine stood still and goes on. Never fails: a guest that does not answer has other troubles. */
export async function catchUp(op: Operation, host: Host, run: Run): Promise<void> {
  if (run.backend.needs !== 'machine') return; // its clock is this machine's
  try {
    using limited = op.within(TELL_MS, 'setting the clock of a sandbox');
    await setClock(limited, host, await run.link.agent(limited));
  } catch (cause) {
    if (isOfOlderAgent(cause) || run.isOver) return;
    op.log.warn({ sandbox: run.id, cause }, 'the clock of a sandbox that stood still is late');
  }
}

/** After it was configured, which told it the time already, and took so long. */
export async function setClockAgain(op: Operation, host: Host, run: Run, agent: Agent, toldMs: number): Promise<void> {
  if (run.backend.needs !== 'machine') return; // its clock is this machine's
  try {
    await setClock(op, host, agent, toldMs);
  } catch (error) {
    if (!isOfOlderAgent(error)) throw error;
  }
}

/** One in memory that an older release has saved: it knows no such method. */
function isOfOlderAgent(error: unknown): boolean {
  return error instanceof HutchError && error.code === 'unimplemented';
}
