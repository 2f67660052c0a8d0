// Takes the lock on argv[2], starts a program, prints that program's pid, and waits to be killed.
import { nodeHost } from '../../src/host/node-host.ts';
import { testOperation } from '../support/operation.ts';

const path = process.argv[2];
if (path === undefined) throw new Error('usage: lock-holder.ts FILE');
const host = nodeHost();
const op = testOperation();
const lock = await host.lockFile(op, path);
if (lock === null) throw new Error(`${path} is locked already`);
const { pid } = await host.spawnDetached(op, ['sleep', '1000'], { logPath: '/dev/null' });
process.stdout.write(`${pid}\n`);
setInterval(() => lock, 1_000_000); // keeps the process, and the lock's object, alive
