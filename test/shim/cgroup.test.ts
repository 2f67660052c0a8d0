// A real cgroup of whichever version the machine has: joined before the program runs, and asked at its end.
import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { shimEnded } from '../../src/host/shim.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';
import { host, newPlace } from './place.ts';

const op = testOperation();
const isRoot = process.getuid?.() === 0;
const LIMIT_BYTES = 32 * 2 ** 20;

/** A memory cgroup of this test's own; disposing it removes it. */
async function limitedCgroup(): Promise<AsyncDisposable & { readonly dir: string }> {
  const isV2 = (await host.stat(op, '/sys/fs/cgroup/cgroup.controllers')) !== null;
  const dir = join(isV2 ? '/sys/fs/cgroup' : '/sys/fs/cgroup/memory', `hutch-test-${randomBytes(6).toString('hex')}`);
  if (isV2) await fs.writeFile('/sys/fs/cgroup/cgroup.subtree_control', '+memory');
  await fs.mkdir(dir);
  await fs.writeFile(join(dir, isV2 ? 'memory.max' : 'memory.limit_in_bytes'), `${LIMIT_BYTES}`);
  return {
    dir,
    [Symbol.asyncDispose]: () =>
      eventually('the cgroup is empty and removed', async () => {
        await fs.rmdir(dir).catch(() => {}); // busy until its last process is reaped
        return (await host.stat(op, dir)) === null;
      }),
  };
}

test.runIf(isRoot)('a program that the kernel kills for want of memory is told apart from one that somebody killed', async () => {
  await using cgroup = await limitedCgroup();
  await using place = await newPlace();
  const eat = `x = bytearray(${4 * LIMIT_BYTES})`;
  await place.start(['python3', '-c', eat], { cgroups: [cgroup.dir] });
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ signal: 'SIGKILL', oomKilled: true });
  // The count stays with the cgroup: it must not be taken for the next one's.
  await place.start(['sh', '-c', 'kill -KILL $$'], { cgroups: [cgroup.dir] });
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ signal: 'SIGKILL', oomKilled: false });
});

test.runIf(isRoot)(
  'the program and its companions are in the cgroup, the shim is not, and the user it becomes does not matter',
  async () => {
    await using cgroup = await limitedCgroup();
    await using place = await newPlace();
    const { child, shim } = await place.start(['sleep', '1000'], {
      cgroups: [cgroup.dir],
      also: [['sleep', '1000']],
      runAs: { uid: 912_347, gid: 912_347 },
    });
    const members = (await fs.readFile(join(cgroup.dir, 'cgroup.procs'), 'utf8')).trim().split('\n').map(Number);
    expect(members).toContain(child.pid);
    expect(members).not.toContain(shim.pid);
    expect(members).toHaveLength(2);
  },
);
