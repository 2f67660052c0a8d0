// What the Engine says of a container, as proof that it is alive or dead.
import * as z from 'zod';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { ProcessEvidence } from '../backend.ts';
import type { Dead } from '../dead.ts';
import type { Container } from './container.ts';
import type { Engine } from './engine.ts';
import { lines } from './lines.ts';

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

const killEvent = z.object({ Actor: z.object({ Attributes: z.object({ signal: z.string().max(16).optional() }) }) });
/** The Engine notes who asked for a signal right after it was sent: the end itself may be noted before. */
const NOTED_MS = 300;
const ASK_MS = 5_000;

/**
 * The same, where the Engine remembers that somebody asked it to kill the container (`docker kill`, or a `docker stop` that was not
 * heeded). For one that nobody here has killed: it remembers those as well. What it does not remember is not known.
 */
export async function askedToEnd(op: Operation, engine: Engine, container: Container, dead: Dead): Promise<Dead> {
  const { StartedAt, FinishedAt } = container.State;
  const [sinceMs, endedMs] = [timeOf(StartedAt), timeOf(FinishedAt)];
  if (dead.proof !== 'engine' || dead.signal !== 'SIGKILL' || dead.oomKilled || sinceMs === null || endedMs === null) return dead;
  const filters = JSON.stringify({ type: ['container'], container: [container.Id], event: ['kill'] });
  const query = { filters, since: sinceMs / 1_000, until: (endedMs + NOTED_MS) / 1_000 };
  try {
    using limited = op.within(ASK_MS, 'what the Engine remembers');
    const answer = await engine.stream(limited, { method: 'GET', path: '/events', query });
    for await (const line of lines(limited, answer)) {
      const { signal } = killEvent.parse(JSON.parse(line)).Actor.Attributes;
      answer.destroy();
      return { ...dead, askedBy: `whoever uses the Engine (signal ${signal ?? 'KILL'})` };
    }
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    op.log.debug({ cause }, 'what the Docker Engine remembers of an end is not known');
  }
  return dead;
}

function gone(proof: 'removed' | 'never-started'): Dead {
  return { alive: false, proof, exitCode: null, signal: null, oomKilled: false, diedAtMs: null };
}

/** The Engine's zero time is the year 1. */
function timeOf(text: string): number | null {
  const ms = Date.parse(text);
  return Number.isNaN(ms) || ms <= 0 ? null : ms;
}
