// hutchd: the entry of the daemon's process.
import { nodeHost } from '../host/node-host.ts';
import { makeParts } from './parts.ts';
import { runDaemon } from './run.ts';

process.exitCode = await runDaemon(process.argv.slice(2), { host: nodeHost(), env: process.env, makeParts });
process.exit();
