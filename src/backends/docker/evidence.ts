// What the Engine says of a container, as proof that it is alive or dead.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { ProcessEvidence } from '../backend.ts';
import type { Dead } from '../dead.ts';
import type { Container } from './container.ts';

/** Exit codes above this are 128 and a signal. */
const SIGNALLED = 128;
const SIGNALS: Readonly<Record<number, string>> = { 6: 'SIGABRT', 9: 'SIGKILL', 11: 'SIGSEGV', 15: 'SIGTERM' };

/** `made`: whether there was a container of this sandbox once. */
export async function evidenceOf(op: Operation, host: Host, container: Container | null, made: boolean): Promise<ProcessEvidence> {
  if (container === null) return gone(made ? 'removed' : 'never-started');
  const { Running, Pid, StartedAt, FinishedAt, ExitCode, OOMKilled, Status } = container.State;
  if (Running) {
    // The Engine of another machine has processes that are not here: their start time stands for them.
    const ref = await host.processRef(op, Pid);
    return { alive: true, pid: Pid, startTicks: ref?.startTicks ?? timeOf(StartedAt) ?? 0 };
  }
  if (Status === 'created') return gone('never-started');
  const signal = ExitCode > SIGNALLED ? (SIGNALS[ExitCode - SIGNALLED] ?? null) : null;
  return { alive: false, proof: 'engine', exitCode: ExitCode, signal, oomKilled: OOMKilled, diedAtMs: timeOf(FinishedAt) };
}

function gone(proof: 'removed' | 'never-started'): Dead {
  return { alive: false, proof, exitCode: null, signal: null, oomKilled: false, diedAtMs: null };
}

/** The Engine's zero time is the year 1. */
function timeOf(text: string): number | null {
  const ms = Date.parse(text);
  return Number.isNaN(ms) || ms <= 0 ? null : ms;
}
