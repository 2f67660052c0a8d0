// The runtime of one sandbox under its shim (src/host/shim.ts): ending it, and the proof of its end.
// The runtime ends by a code of its own when the kernel kills what it runs,
// so whether memory ran out is asked of the cgroup, which is there until `cleanUp`.
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { inspectShim, shimEnded, signalShim } from '../../host/shim.ts';
import type { ProcessEvidence, SandboxPlan } from '../backend.ts';
import type { Dead } from '../dead.ts';
import type { Cgroups } from './cgroup.ts';
import { KILL_FORCE_MS, KILL_GRACE_MS } from './config.ts';

const COMMAND_BYTES_MAX = 64 * 1024;

type Ended = Pick<SandboxPlan, 'id' | 'runDir'>;

export class Processes {
  readonly #host: Host;
  readonly #cgroups: Cgroups;

  constructor(host: Host, cgroups: Cgroups) {
    this.#host = host;
    this.#cgroups = cgroups;
  }

  async inspect(op: Operation, plan: Ended): Promise<ProcessEvidence> {
    const now = await inspectShim(op, this.#host, plan.runDir);
    return now.alive ? now : await this.#explained(op, plan, now);
  }

  async ended(op: Operation, plan: Ended): Promise<Dead> {
    return await this.#explained(op, plan, await shimEnded(op, this.#host, plan.runDir));
  }

  /**
   * Whether it goes on from a checkpoint. The runtime's own pause does not hold such a one (20221219): it is heeded by the kernel
   * that made way for the one that was taken up, and says that all is well, or, now and then, nothing at all.
   */
  async wasTakenUp(op: Operation, pid: number): Promise<boolean> {
    const line = new TextDecoder().decode(await this.#host.readFile(op, `/proc/${pid}/cmdline`, COMMAND_BYTES_MAX));
    return line.split('\0').includes('restore');
  }

  /** By the host's kernel, whatever its own does. */
  async freeze(op: Operation, plan: Ended): ReturnType<Cgroups['freeze']> {
    return await this.#cgroups.freeze(op, plan);
  }

  /** False: it did not stand still. */
  async thaw(op: Operation, plan: Ended): Promise<boolean> {
    return await this.#cgroups.thaw(op, plan);
  }

  /** SIGTERM unless `now`, a bounded wait, SIGKILL, a bounded wait. */
  async kill(op: Operation, plan: Ended, how: 'gently' | 'now'): Promise<Dead> {
    const before = await inspectShim(op, this.#host, plan.runDir);
    if (!before.alive) return await this.#endWithin(op, plan, KILL_FORCE_MS);
    await this.thaw(op, plan);
    if (how === 'gently') {
      try {
        using grace = op.within(KILL_GRACE_MS, 'the runtime to end');
        await signalShim(grace, this.#host, plan.runDir, 'SIGTERM');
        return await this.ended(grace, plan);
      } catch (error) {
        if (op.signal.aborted || !(error instanceof HutchError) || error.code !== 'deadline_exceeded') throw error;
      }
    }
    // Past the shim: it may itself be stopped. What the runtime started dies with it.
    await this.#host.kill(op, before, 'SIGKILL');
    return await this.#endWithin(op, plan, KILL_FORCE_MS);
  }

  async #endWithin(op: Operation, plan: Ended, ms: number): Promise<Dead> {
    using limited = op.within(ms, 'the runtime to be killed');
    return await this.ended(limited, plan);
  }

  async #explained(op: Operation, plan: Ended, dead: Dead): Promise<Dead> {
    if (dead.oomKilled || dead.proof === 'boot-id' || dead.proof === 'never-started' || dead.exitCode === 0) return dead;
    return (await this.#cgroups.oomKills(op, plan)) > 0 ? { ...dead, oomKilled: true } : dead;
  }
}
