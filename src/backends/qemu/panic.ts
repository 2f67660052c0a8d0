// Whether the guest's kernel panicked. A kernel that does resets its machine, and QEMU ends as it does when
// a guest turns itself off: only the guest's console tells the two apart. What stands there is the
// guest's word, about nobody's end but its own.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import type { Dead } from '../dead.ts';
import { bootLogPath } from './paths.ts';

/** A panic's registers and trace come after its line. */
const TAIL_BYTES = 64 * 1024;
const REASON_CHARS_MAX = 200;

const MARK = 'hutch: started at ';

/** Stands in the boot log where each start of the sandbox begins: a restored guest may say nothing more. */
export function startMark(nowMs: number): Uint8Array {
  return new TextEncoder().encode(`${MARK}${new Date(nowMs).toISOString()}\n`);
}

/** The same, with the panic that its console tells of. */
export async function withPanic(op: Operation, host: Host, plan: Pick<SandboxPlan, 'logDir'>, dead: Dead): Promise<Dead> {
  // Whoever was killed did not end by itself.
  if (dead.proof !== 'exit.json' || dead.signal !== null) return dead;
  const path = bootLogPath(plan);
  const info = await host.stat(op, path);
  if (info?.type !== 'file') return dead;
  const tail = await host.readRange(op, path, Math.max(0, info.sizeBytes - TAIL_BYTES), TAIL_BYTES);
  const panic = panicIn(new TextDecoder().decode(tail));
  return panic === null ? dead : { ...dead, panic };
}

/** What the kernel panicked of after the last start; null when it did not, or went on to an end in order. */
export function panicIn(console: string): string | null {
  const since = console.slice(console.lastIndexOf(MARK) + 1);
  const lines = since.split(/\r?\n/);
  const at = lines.findLastIndex((line) => PANIC.test(line));
  if (at < 0 || lines.slice(at).some((line) => IN_ORDER.test(line))) return null;
  const reason = PANIC.exec(lines[at] ?? '')?.[1] ?? '';
  return reason.replaceAll(/[^\x20-\x7e]/g, '').slice(0, REASON_CHARS_MAX);
}

const PANIC = /Kernel panic - not syncing: (.*)$/;
/** Said when a guest is turned off, or starts anew, by whoever may do so in it. */
const IN_ORDER = /^\[[ \d.]+\] reboot: /;
