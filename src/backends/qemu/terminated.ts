// Whether somebody on the host asked the VMM to end. QEMU ends in order on a signal, with the exit code of a guest that turns itself
// off: only what it says of it in its own log tells the two apart. Nothing there is the guest's word.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import type { Dead } from '../dead.ts';
import { vmmLogPath } from './paths.ts';

const TAIL_BYTES = 16 * 1024;
const PROGRAM_CHARS_MAX = 64;

/** As QEMU says it, under `-msg timestamp=on`. */
const TERMINATED = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z) \S+: terminating on signal (\d{1,2}) from pid (\d{1,10}) \((.*)\)$/;

type Ended = Dead & { readonly startedAtMs?: number };

/** The same, with the signal that ended it, where there was one. */
export async function withTermination(op: Operation, host: Host, plan: Pick<SandboxPlan, 'logDir'>, dead: Ended): Promise<Ended> {
  if (dead.proof !== 'exit.json' || dead.exitCode !== 0 || dead.startedAtMs === undefined) return dead;
  const path = vmmLogPath(plan);
  const info = await host.stat(op, path);
  if (info?.type !== 'file') return dead;
  const tail = await host.readRange(op, path, Math.max(0, info.sizeBytes - TAIL_BYTES), TAIL_BYTES);
  const askedBy = terminationIn(new TextDecoder().decode(tail), dead.startedAtMs);
  return askedBy === null ? dead : { ...dead, askedBy };
}

/** Which signal, and of whom; null where the log has none since then. */
export function terminationIn(log: string, sinceMs: number): string | null {
  for (const line of log.split('\n').toReversed()) {
    const [, at = '', signal, pid, program = ''] = TERMINATED.exec(line) ?? [];
    if (signal === undefined || !(Date.parse(at) >= sinceMs)) continue;
    return `signal ${signal} of pid ${pid} (${program.replaceAll(/[^\x20-\x7e]/g, '').slice(0, PROGRAM_CHARS_MAX)})`;
  }
  return null;
}
