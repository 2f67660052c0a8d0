// The daemon of the conformance suite: the real composition root with one backend, held to its contract.
//   HUTCH_TEST_BACKEND=NAME      the one; `reference` is the suite's own
//   HUTCH_TEST_CLAIM=nothing     it says that it can do nothing that may be left out
// In its home: `capabilities.json`, what the backend's probe said; `violations`, promises that the services
// broke; `faults/STEP-ID` (or `faults/STEP`), put there by a test, makes that step `fail` or `hang`.
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Backend } from '../../src/backends/backend.ts';
import type { Parts } from '../../src/daemon/daemon.ts';
import { makeParts } from '../../src/daemon/parts.ts';
import { runDaemon } from '../../src/daemon/run.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import type { Operation } from '../../src/host/operation.ts';
import { referenceParts } from '../support/reference-backend.ts';
import { strictBackend } from '../support/strict-backend.ts';

const { env } = process;
const home = env['HUTCH_HOME'];
const name = env['HUTCH_TEST_BACKEND'];
if (home === undefined || name === undefined) throw new Error('HUTCH_HOME and HUTCH_TEST_BACKEND must be set');

process.exitCode = await runDaemon(process.argv.slice(2), {
  host: nodeHost(),
  env,
  makeParts: async (making) => {
    const parts: Parts = name === 'reference' ? referenceParts(making.store, { host: making.host }) : await makeParts(making);
    const chosen = name === 'reference' ? parts.backends[0] : parts.backends.find((backend) => backend.name === name);
    const claimed = chosen === undefined ? undefined : claiming(strictBackend(breakable(chosen), report));
    const probe =
      claimed === undefined ? { ok: false, why: `there is no backend ${name} in this daemon yet` } : await claimed.probe(making.op);
    writeFileSync(join(home, 'capabilities.json'), JSON.stringify(probe));
    return claimed === undefined ? parts : { ...parts, backends: [claimed] };
  },
});
process.exit();

function report(violation: string): void {
  appendFileSync(join(home as string, 'violations'), `${violation}\n`);
}

function breakable(backend: Backend): Backend {
  const steps = ['create', 'start', 'kill', 'inspect', 'pause', 'resume'] as const;
  const wrapped = steps.map((step) => {
    const call = backend[step] as (op: Operation, plan: { readonly id: string }, ...rest: readonly unknown[]) => Promise<unknown>;
    return [
      step,
      async (op: Operation, plan: { readonly id: string }, ...rest: readonly unknown[]) => {
        await fault(op, step, plan.id);
        return await call.call(backend, op, plan, ...rest);
      },
    ];
  });
  return { ...backend, ...Object.fromEntries(wrapped) } as Backend;
}

async function fault(op: Operation, step: string, id: string): Promise<void> {
  for (const file of [join(home as string, 'faults', `${step}-${id}`), join(home as string, 'faults', step)]) {
    if (!existsSync(file)) continue;
    if (readFileSync(file, 'utf8') === 'fail') throw op.error('unavailable', `injected failure of ${step}`);
    await new Promise((_resolve, reject) => {
      const stop = (): void => reject(op.signal.reason as Error);
      if (op.signal.aborted) stop();
      else op.signal.addEventListener('abort', stop, { once: true });
    });
  }
}

function claiming(backend: Backend): Backend {
  if (env['HUTCH_TEST_CLAIM'] !== 'nothing') return backend;
  return {
    ...backend,
    async probe(op) {
      const probe = await backend.probe(op);
      const limits = { cpu: 'no', memory: 'no', disk: 'no', processes: 'no' } as const;
      return probe.ok ? { ok: true, can: { ...probe.can, pause: false, networks: ['none'], limits } } : probe;
    },
    async pause() {
      report('pause was called, which this backend does not claim');
    },
  };
}
