// Many creations at once. The same on every backend.
import { expect } from 'vitest';
import { ApiError, type DaemonUnderTest } from '../support/daemon-under-test.ts';
import { all, expectInOrder, works } from './world.ts';

/** All work, or say why not. */
export async function createAtOnce(daemon: DaemonUnderTest, count: number): Promise<void> {
  const outcomes = await Promise.all(
    Array.from({ length: count }, () =>
      daemon.call('sandbox.create', {}).then(
        ({ id }) => id,
        (error: unknown) => (error instanceof ApiError ? error : Promise.reject(error as Error)),
      ),
    ),
  );
  const made = outcomes.filter((outcome) => typeof outcome === 'string');
  try {
    const refused = outcomes.filter((outcome) => outcome instanceof ApiError);
    for (const { code, message } of refused) expect(code, message).toMatch(/^(resource_exhausted|deadline_exceeded|unavailable)$/);
    expect(made.length, refused[0]?.message).toBeGreaterThan(count / 2);
    await Promise.all(made.map((id) => works(daemon, id)));
    expect((await all(daemon)).map(({ id }) => id).sort()).toEqual([...made].sort());
  } finally {
    await daemon.deleteAll(); // the next test begins with none
  }
  await expectInOrder(daemon);
}
