// The suite: every behaviour that each backend shares, over one daemon. A backend's own file says
// `await conformance('NAME')` and nothing else; what it cannot do it says in its capabilities.
import { afterAll, describe, expect, test } from 'vitest';
import { directories } from './directories.ts';
import { fileSync } from './file-sync.ts';
import { files } from './files.ts';
import { honesty } from './honesty.ts';
import { lifecycle } from './lifecycle.ts';
import { limits } from './limits.ts';
import { network } from './network.ts';
import { oracle } from './oracle.ts';
import { processes } from './processes.ts';
import { publish } from './publish.ts';
import { reach } from './reach.ts';
import { sequences } from './sequences.ts';
import { Subject, type SubjectName } from './subject.ts';
import { survival } from './survival.ts';
import { sync } from './sync.ts';
import { together } from './together.ts';
import { volumes } from './volumes.ts';

/** Of the file, not of a group: a group of which no test was chosen runs no hook, and its daemon would stay. */
export function endWith(subject: Subject): void {
  afterAll(() => subject[Symbol.asyncDispose]());
}

export async function conformance(name: SubjectName): Promise<void> {
  const subject = await Subject.start(name);
  if (typeof subject === 'string') {
    // Asked for by name, it must run; among all the others it is named as not run.
    if (process.env['HUTCH_TEST_REQUIRE_BACKEND'] === name) throw new Error(`${name} cannot be run here: ${subject}`);
    test.skip(`${name}: ${subject}`, () => {});
    return;
  }
  describe(name, () => {
    lifecycle(subject);
    together(subject);
    processes(subject);
    files(subject);
    fileSync(subject);
    sync(subject);
    reach(subject);
    publish(subject);
    limits(subject);
    honesty(subject);
    directories(subject);
    volumes(subject);
    oracle(subject);
    network(subject);
    survival(subject);
    sequences(subject);

    test('the services kept the contract of backends through all of it', async () => {
      expect(await subject.violations()).toBe('');
    });
  });
  endWith(subject);
}
