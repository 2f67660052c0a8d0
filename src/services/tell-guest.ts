// A guest is told who it is, and what time it is.
import type { Agent, Configuration } from '../guest/agent.ts';
import type { Found } from '../guest/messages.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { setClockAgain } from './guest-clock.ts';
import type { Run } from './run.ts';

/**
 * What went wrong in the guest meanwhile is in the daemon's log. Its clock is right afterwards, however long this took.
 * What it has, where that was asked for.
 */
export async function tellGuest(op: Operation, host: Host, run: Run, agent: Agent, configuration: Configuration): Promise<Found | null> {
  const toldAtMs = host.monotonicMs();
  const { warnings, found } = await agent.configure(op, configuration);
  if (warnings.length > 0) op.log.warn({ sandbox: run.id, warnings }, 'the guest had warnings while it was configured');
  await setClockAgain(op, host, run, agent, host.monotonicMs() - toldAtMs);
  return found;
}
