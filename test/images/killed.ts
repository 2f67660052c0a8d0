// A process that pulls an image and is killed at the call that it is told: `node killed.ts DIR NAME FAULT`.
import { requireImageReference } from '../../src/domain/image-reference.ts';
import { hostWithFault } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { place } from './place.ts';

const [dir = '', name = '', fault = ''] = process.argv.slice(2);
await using here = await place({ dir, host: (host) => hostWithFault(host, fault) });
await here.library.pull(testOperation(), requireImageReference(name));
process.stdout.write('whole\n');
