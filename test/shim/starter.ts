// A daemon in little: starts `sleep MARKER` under a shim, with the fault that HUTCH_TEST_FAULT asks
// for, and waits to be killed.
import { nodeHost } from '../../src/host/node-host.ts';
import { startShim } from '../../src/host/shim.ts';
import { hostWithFault } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { SHIM } from './place.ts';

const [dir, logPath, marker] = process.argv.slice(2);
if (dir === undefined || logPath === undefined || marker === undefined) throw new Error('usage: starter.ts DIR LOG MARKER');
const host = hostWithFault(nodeHost(), process.env['HUTCH_TEST_FAULT']);
await startShim(testOperation(), host, SHIM, {
  ...{ dir, logPath, runAs: null, cgroups: [], also: [], awaitSockets: [] },
  argv: ['sleep', marker],
});
setInterval(() => {}, 1_000_000);
