// One VMM under its shim (src/host/shim.ts): starting it and ending it.
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { inspectShim, shimEnded, signalShim, startShim } from '../../host/shim.ts';
import type { ProcessEvidence } from '../backend.ts';
import type { Dead } from '../dead.ts';
import { KILL_FORCE_MS, KILL_GRACE_MS, type Owner } from './config.ts';

export type Alive = ProcessEvidence & { readonly alive: true };

export type VmmStart = {
  readonly runDir: string;
  readonly cwd: string;
  readonly logPath: string;
  /** Where the guest's console goes: bounded by the shim. */
  readonly consolePath: string;
  readonly runAs: Owner | null;
  /** Started beside the VMM, over a socket pair with it, and ended with it; null: nothing. */
  readonly beside: readonly string[] | null;
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
};

export type VmmStarted = {
  readonly evidence: Alive;
  /** Of the host's rules, where there is something beside the VMM that they are for; null: not known. */
  readonly rulesGeneration: number | null;
};

/** Starts the shim, which starts the rest; returns once the VMM's program runs. */
export async function startVmm(op: Operation, host: Host, shimPath: string, start: VmmStart): Promise<VmmStarted> {
  const { runDir, cwd, logPath, consolePath, runAs, beside, argv, env } = start;
  const { child, rulesGeneration } = await startShim(op, host, shimPath, {
    ...{ dir: runDir, cwd, logPath, consolePath, runAs, cgroups: [], argv, env },
    awaitSockets: [],
    ...(beside === null ? { also: [] } : { also: [beside], pair: 'shared' as const, rules: 'asked' as const }),
  });
  return { evidence: { alive: true, ...child }, rulesGeneration };
}

export function inspectVmm(op: Operation, host: Host, runDir: string): Promise<ProcessEvidence> {
  return inspectShim(op, host, runDir);
}

export function vmmEnded(op: Operation, host: Host, runDir: string): Promise<Dead> {
  return shimEnded(op, host, runDir);
}

/** SIGTERM unless `now`, a bounded wait, SIGKILL, a bounded wait. A stopped process hears only the last. */
export async function killVmm(op: Operation, host: Host, runDir: string, how: 'gently' | 'now'): Promise<Dead> {
  const before = await inspectShim(op, host, runDir);
  if (!before.alive) return await endWithin(op, host, runDir, KILL_FORCE_MS);
  if (how === 'gently') {
    try {
      using grace = op.within(KILL_GRACE_MS, 'the virtual machine to end');
      await signalShim(grace, host, runDir, 'SIGTERM');
      return await shimEnded(grace, host, runDir);
    } catch (error) {
      if (op.signal.aborted || !(error instanceof HutchError) || error.code !== 'deadline_exceeded') throw error;
    }
  }
  // Past the shim: it may itself be stopped.
  await host.kill(op, before, 'SIGKILL');
  return await endWithin(op, host, runDir, KILL_FORCE_MS);
}

async function endWithin(op: Operation, host: Host, runDir: string, ms: number): Promise<Dead> {
  using limited = op.within(ms, 'the virtual machine to be killed');
  return await shimEnded(limited, host, runDir);
}
