// hutch system upgrade, with a fault at the door to the system: node test/install/upgrade-with-fault.ts FROM
//   HUTCH_TEST_FAULT=die-before:7:system.upgrade    see hostWithFault; none counts the calls, and prints them
import { nodeHost } from '../../src/host/node-host.ts';
import { sceneOf } from '../../src/install/scene.ts';
import { upgrade } from '../../src/install/upgrade.ts';
import { countCalls, hostWithFault } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';

const fault = process.env['HUTCH_TEST_FAULT'];
const counting = countCalls(nodeHost());
const host = fault === undefined ? counting : hostWithFault(nodeHost(), fault);
const scene = sceneOf({ host, env: process.env, whose: 'user', root: '' });
const op = testOperation({ verb: 'system.upgrade' });
await upgrade(op, scene, { from: process.argv[2] ?? '', how: 'do', withinMs: 120_000 });
const calls = counting.calls.map(({ method, args }) => [method, typeof args[0] === 'string' ? args[0] : '']);
process.stdout.write(`${JSON.stringify(calls)}\n`);
