// What every backend has to stand, beside the conformance suite: the daemon killed at fault points, many creations at
// once, a clock that steps. QEMU's are in files of their own, with what only virtual machines have.
import { afterAll, describe, expect, test } from 'vitest';
import { createAtOnce } from './at-once.ts';
import { clockStepsBack } from './clock.ts';
import { killedAtFaultPoints } from './killed.ts';
import { type BackendName, isLong, startWorld, type World } from './world.ts';

const AT_ONCE = isLong ? 30 : 8;

/** `own`: tests of this backend alone. */
export async function badDays(backend: BackendName, own: (world: World) => void = () => {}): Promise<void> {
  const world = await startWorld(backend);
  if (typeof world === 'string') {
    test.skip(`${backend}: ${world}`, () => {});
    return;
  }
  const { daemon } = world;
  // Of the file, not of a group: a group of which no test was chosen runs no hook.
  afterAll(() => world[Symbol.asyncDispose]());
  describe(backend, () => {
    killedAtFaultPoints(world);

    test(`${AT_ONCE} creations at once all work, or say why not`, { timeout: AT_ONCE * 30_000 }, async () => {
      await createAtOnce(daemon, AT_ONCE);
      expect(await world.leftInEngine()).toEqual([]);
    });

    test('a clock that steps back by an hour breaks no interval and holds up no time limit', { timeout: 240_000 }, () =>
      clockStepsBack(world),
    );

    own(world);
  });
}
