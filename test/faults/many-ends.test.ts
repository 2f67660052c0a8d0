// Several sandboxes that ended while no daemon was there: each end is recorded, none in the way of another.
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';

const COUNT = 6;

test('whatever ended while the daemon was away is recorded, however many', async () => {
  await using daemon = await DaemonUnderTest.start();
  const made = await Promise.all(Array.from({ length: COUNT }, () => daemon.call('sandbox.create', {})));
  const pids = await Promise.all(
    made.map(async ({ id }) => (JSON.parse(await readFile(`${daemon.home}/run/sandboxes/${id}/shim.json`, 'utf8')) as { pid: number }).pid),
  );
  await daemon.kill9();
  for (const pid of pids) process.kill(pid, 'SIGKILL');
  await daemon.startAgain();
  const after = await Promise.all(made.map(({ id }) => daemon.until(id, 'stopped')));
  for (const sandbox of after) expect(sandbox).toMatchObject({ openComputeSinceMs: null, ended: { cause: 'crashed' } });
  expect(await daemon.log()).not.toContain('could not be brought in order');
});
