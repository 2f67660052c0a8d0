// A process that brings an image here and is killed at the call that it is told: `node killed.ts DIR FAULT VERB WHAT`, with
// `pull NAME`, `import FILE` or `promote DIGEST`. Without a fault it goes to its end, and says how many calls it made.
import { createReadStream } from 'node:fs';
import { requireImageReference } from '../../src/domain/image-reference.ts';
import { countCalls, type FaultyHost, hostWithFault } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { place } from './place.ts';

const [dir = '', fault = '', verb = '', what = ''] = process.argv.slice(2);
const counting: { host: FaultyHost | null } = { host: null };
await using here = await place({
  dir,
  host(host) {
    if (fault !== '') return hostWithFault(host, fault);
    counting.host = countCalls(host);
    return counting.host;
  },
});
const op = testOperation();
if (verb === 'pull') await here.library.pull(op, requireImageReference(what));
else if (verb === 'import') await here.library.import(op, createReadStream(what));
else if (verb === 'promote') await here.library.promote(op, what);
else throw new Error(`no such verb: ${verb}`);
process.stdout.write(`${counting.host?.calls.length ?? 0}\n`);
