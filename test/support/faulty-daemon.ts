// The daemon as tests start it: the real composition root over the reference backend, with a fault at
// the door to the system when the environment asks for one:
//   HUTCH_TEST_FAULT=die-before:7:sandbox.create    see hostWithFault
//   HUTCH_TEST_FAULT_REPORT=PATH                    the call that was hit, as a line of JSON
//   HUTCH_TEST_BOOT_ID=UUID                         another boot of the host
//   HUTCH_TEST_WAIT_MS_MAX=2000                     no wait is longer, so that a test need not wait for a deadline of minutes
//   HUTCH_TEST_STEP=fail:start | hang:start         a step of the backend that fails or hangs
// The API clients of other areas may use it too: node test/support/faulty-daemon.ts --foreground

import { runDaemon } from '../../src/daemon/run.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import type { Operation } from '../../src/host/operation.ts';
import { hostWithFault } from './host-faults.ts';
import { referenceParts } from './reference-backend.ts';

const { env } = process;
const waitMsMax = Number(env['HUTCH_TEST_WAIT_MS_MAX'] ?? Number.POSITIVE_INFINITY);
if (waitMsMax < Number.POSITIVE_INFINITY) {
  const { setTimeout: wait } = globalThis;
  // A Proxy, as what Node hangs on the function (its promise form) must stay.
  globalThis.setTimeout = new Proxy(wait, {
    apply: (target, self, [act, ms, ...rest]: unknown[]) =>
      Reflect.apply(target, self, [act, typeof ms === 'number' ? Math.min(ms, waitMsMax) : ms, ...rest]) as NodeJS.Timeout,
  });
}
const bootId = env['HUTCH_TEST_BOOT_ID'];
const real = nodeHost();
const host = hostWithFault(
  bootId === undefined ? real : { ...real, bootId: () => bootId },
  env['HUTCH_TEST_FAULT'],
  env['HUTCH_TEST_FAULT_REPORT'],
);
const [action, wanted] = (env['HUTCH_TEST_STEP'] ?? '').split(':');

async function before(step: string, _plan: unknown, op: Operation): Promise<void> {
  if (step !== wanted) return;
  if (action === 'fail') throw op.error('unavailable', `injected failure of ${step}`);
  await new Promise((_resolve, reject) => op.signal.addEventListener('abort', () => reject(op.signal.reason), { once: true }));
}

process.exitCode = await runDaemon(process.argv.slice(2), {
  host,
  env,
  makeParts: async ({ host: wrapped, store }) => referenceParts(store, { host: wrapped, before }),
});
process.exit();
