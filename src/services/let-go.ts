// Before a sandbox is written down and after: nobody reaches its agent meanwhile, and where the agent has to let go for that it runs
// for a moment, also in a sandbox that is paused, which is paused again afterwards.
import type { Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { Run } from './run.ts';

/** What fails for a moment must not let it go on. */
const TRIES = 3;

/** @throws HutchError when its agent does not answer; what was paused may run then, see `asItWas`. */
export async function letGo(op: Operation, sandbox: Sandbox, run: Run): Promise<void> {
  if (sandbox.state === 'paused' && run.backend.closeDoor !== undefined) await run.backend.resume(op, run.plan);
  await run.freezeAlone(op);
}

/** Of one that goes on: as it was before `letGo`. Never fails. */
export async function asItWas(op: Operation, { state }: Sandbox, run: Run): Promise<void> {
  if (state === 'running') return run.thaw();
  if (run.backend.closeDoor === undefined) return;
  run.freeze(); // unless it is already
  for (let triesLeft = TRIES; triesLeft > 0; triesLeft -= 1) {
    try {
      return await run.backend.pause(op, run.plan);
    } catch (cause) {
      op.log.warn({ sandbox: run.id, cause, triesLeft }, 'a sandbox that was paused goes on');
    }
  }
}
