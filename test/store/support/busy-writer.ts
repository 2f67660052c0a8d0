// A process that writes to a store as fast as it can, and says on stdout what was answered: a JSON line
// for each commit, once it resolved or failed. Tests kill it, take its disk away, or slow it down.
//   node busy-writer.ts PATH COMMITS CONCURRENCY [stay]
// With `stay` it does not close the store at the end, but waits to be killed.
import { performance } from 'node:perf_hooks';
import { HutchError } from '../../../src/domain/errors.ts';
import type { SandboxId } from '../../../src/domain/ids.ts';
import { nodeHost } from '../../../src/host/node-host.ts';
import { openStore } from '../../../src/store/store.ts';
import { testOperation } from '../../support/operation.ts';
import { deleted, someOpId, someSandboxId, someSpec, started, stopped } from './sandboxes.ts';

const [path = '', commits = '0', concurrency = '1', end] = process.argv.slice(2);

export type WriterLine =
  | { readonly said: 'acked'; readonly id: SandboxId; readonly step: string; readonly state: string }
  | { readonly said: 'failed'; readonly id: SandboxId; readonly step: string; readonly code: string; readonly message: string }
  | { readonly said: 'open' | 'closed' }
  /** The share of the time in which the event loop was at work or blocked, and not waiting. */
  | { readonly said: 'loop'; readonly busyShare: number };

function say(line: WriterLine): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

const store = await openStore({ path, host: nodeHost(), op: testOperation() });
say({ said: 'open' });
const before = performance.eventLoopUtilization();

let left = Number(commits);

async function oneLife(): Promise<void> {
  const id = someSandboxId();
  const steps = {
    created: { change: 'createSandbox', id, projectId: store.defaultProjectId, spec: someSpec(id.slice(3)), atMs: Date.now() },
    running: { change: 'applyEvent', sandboxId: id, event: started(Date.now()) },
    stopped: { change: 'applyEvent', sandboxId: id, event: stopped(Date.now()) },
    deleted: { change: 'applyEvent', sandboxId: id, event: deleted(Date.now()) },
  } as const;
  for (const [step, change] of Object.entries(steps)) {
    if (left <= 0) return;
    left -= 1;
    try {
      const [sandbox] = await store.commit({ id: someOpId(), actor: 'daemon' }, [change]);
      say({ said: 'acked', id, step, state: sandbox.state });
    } catch (error) {
      if (!(error instanceof HutchError)) throw error;
      say({ said: 'failed', id, step, code: error.code, message: error.message });
      return; // what follows would be refused for want of it
    }
  }
}

async function livesUntilDone(): Promise<void> {
  while (left > 0) await oneLife();
}

await Promise.all(Array.from({ length: Number(concurrency) }, livesUntilDone));
say({ said: 'loop', busyShare: performance.eventLoopUtilization(before).utilization });
if (end === 'stay') await new Promise(() => setInterval(() => {}, 60_000));
try {
  await store.close();
  say({ said: 'closed' });
} catch (error) {
  if (!(error instanceof HutchError)) throw error;
}
