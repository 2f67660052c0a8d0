// The process that carries a sandbox's network has ended and the sandbox has not: nothing goes out of it any
// more, however well everything else works. It is on record, once for each start, so that `why` can say so.
import type { EventRecord } from '../domain/records.ts';
import type { Core } from './core.ts';
import { pause } from './pause.ts';
import type { Run } from './run.ts';

export const NETWORK_LOST = 'sandbox.network-lost';
const EVENTS_READ = 100;
/** A sandbox that ends takes its network along, often a moment before its own end is seen. */
const END_SEEN_MS = 2_000;

/** Until it happens, or cannot happen any more. */
export async function watchNetwork(core: Core, run: Run): Promise<void> {
  const { backend, plan, op } = run;
  if (plan.network === 'none' || backend.networkLost === undefined || !(await backend.networkLost(op, plan))) return;
  if (await endsNow(run)) return;
  const { store, host } = core.deps;
  // A daemon that comes later hears of it again.
  if (lossOf(await store.query('lastEvents', { sandboxId: run.id, limit: EVENTS_READ })) !== null) return;
  op.log.warn({ sandbox: run.id }, 'what carries the network of a sandbox has ended; the sandbox goes on without one');
  await store.commit(op, [{ change: 'addEvent', type: NETWORK_LOST, atMs: host.nowMs(), sandboxId: run.id }]);
}

/** Whether it is the sandbox that has ended, and its network with it. */
async function endsNow(run: Run): Promise<boolean> {
  const { backend, plan, op } = run;
  if (run.isOver) return true;
  return (await Promise.race([backend.ended(op, plan).then(() => true), pause(op, END_SEEN_MS).then(() => false)])) || run.isOver;
}

/** The loss since the last start; null: there was none. */
export function lossOf(events: readonly EventRecord[]): EventRecord | null {
  const lost = events.findLastIndex(({ type }) => type === NETWORK_LOST);
  return lost > events.findLastIndex(({ type }) => type === 'sandbox.started') ? (events[lost] ?? null) : null;
}
