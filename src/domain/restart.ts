// Which ends are followed by another start, and how soon.
import type { Sandbox } from './sandbox.ts';

const FIRST_MS = 250;
const LONGEST_MS = 60_000;
/** A run of at least so long was no failure to start: the next wait is short again. */
export const LASTED_MS = 10_000;

/**
 * Whether it is to be started by itself. What somebody stopped, and what its own limits stopped, stays as it is; a host that went
 * down is a failure, and so is an Engine that was stopped under it.
 */
export function wantsRestart(sandbox: Sandbox): sandbox is Sandbox & { readonly state: 'stopped' } {
  const { restart = 'no', held } = sandbox.spec;
  if (sandbox.state !== 'stopped' || restart === 'no' || held === true) return false;
  const { cause, exitCode } = sandbox.ended;
  if (cause === 'stopped' || cause === 'timeout' || cause === 'idle') return false;
  if (restart === 'always' || cause === 'crashed' || cause === 'host-stopped' || cause === 'host-reboot') return true;
  return cause === 'exited' && exitCode !== 0;
}

/** Twice as long each time. `failures`: how often in a row it has not lasted. */
export function restartDelayMs(failures: number): number {
  return Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(failures, 20));
}
