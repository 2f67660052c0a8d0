// /run of a guest lies in memory: at each start it is filled with what its image has there.
import type { Agent } from '../guest/agent.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Boot } from './deps.ts';

/** Before anything else writes there. What cannot be put there is told in the log: few programs need it. */
export async function fillRun(op: Operation, host: Host, agent: Agent, { image, runArchive }: Boot): Promise<void> {
  if (runArchive === null || (await host.stat(op, runArchive)) === null) return;
  try {
    await agent.tar.unpack(op, { path: '/run', preserveOwner: true, user: '0' }, host.readStream(op, runArchive));
  } catch (cause) {
    op.signal.throwIfAborted();
    op.log.warn({ image: image.id, cause }, 'what an image has in /run could not be put into a sandbox');
  }
}
