import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import type { Backend, SandboxPlan } from '../backends/backend.ts';
import { nodeHost } from '../host/node-host.ts';
import { MainLog } from './main-log.ts';
import { mirror } from './mirror.ts';
import { Run } from './run.ts';

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-mirror-'));
});
afterEach(() => rm(dir, { recursive: true }));

/** A run whose guest is dialled so. */
function runOf(dialAgent: Backend['dialAgent']): Run {
  const over = new AbortController();
  const plan = { id: 'sbx00000000000000000' } as SandboxPlan;
  return new Run(plan, { dialAgent } as Backend, testOperation({ signal: over.signal }), over);
}

for (const [what, dialAgent, freeze] of [
  ['refuses', (op) => Promise.reject(op.error('unavailable', 'nobody listens')), false],
  ['never answers', () => new Promise(() => {}), false],
  ['was frozen', () => new Promise(() => {}), true],
] as const satisfies readonly (readonly [string, Backend['dialAgent'], boolean])[]) {
  test(`nobody waits for the log of a guest that is proven dead: one that ${what}`, async () => {
    using run = runOf(dialAgent);
    if (freeze) run.freeze();
    const log = await MainLog.open(run.op, nodeHost(), dir);
    let isOver = false;
    const copied = mirror(run.op, run, log, { run: 1, atMs: 0 }).then(() => {
      isOver = true;
    });
    for (let turn = 0; turn < 10; turn += 1) await new Promise(setImmediate);
    expect(isOver, 'while the guest lives it is asked again').toBe(false);
    run.died();
    await copied;
    expect(log.end).toBe(0);
  });
}
