// The daemon is killed at fault points of operations on virtual machines; and what only a guest that hears nothing shows.
import { afterAll, expect, test } from 'vitest';
import { diskGrownByNobody } from './changes.ts';
import { again, create, expectBegunOnce, killedAtFaultPoints, stateOf } from './killed.ts';
import { expectInOrder, mainOutput, startWorld } from './world.ts';

const POINT_MS = 60_000;

const world = await startWorld('qemu');
if (typeof world === 'string') throw new Error(`QEMU cannot be run here: ${world}`);
const { daemon } = world;
afterAll(() => world[Symbol.asyncDispose]());

killedAtFaultPoints(world);
diskGrownByNobody(world);

test('a main process that the guest never heard of is begun by the next daemon', { timeout: 2 * POINT_MS }, async () => {
  await again(world, { HUTCH_TEST_DEAF_GUEST: '1', HUTCH_TEST_STORE_FAULT: 'die-after:1:createSandbox' });
  await expect(create(daemon)).rejects.toThrow();
  await daemon.kill9();
  await daemon.startAgain(world.options());
  expect(await stateOf(daemon)).toBe('running');
  await expectBegunOnce(daemon);
  const attached = await daemon.attach('it', 'main');
  await attached.sawOutput('begun\n');
  attached.socket.terminate();
  await expectInOrder(daemon);
  await daemon.deleteAll();
});

test('a main process that the guest never heard of and that cannot be executed ends its sandbox', { timeout: 2 * POINT_MS }, async () => {
  await again(world, { HUTCH_TEST_DEAF_GUEST: '1', HUTCH_TEST_STORE_FAULT: 'die-after:1:createSandbox' });
  await expect(daemon.call('sandbox.create', { name: 'it', main: { argv: ['/nowhere'] } })).rejects.toThrow();
  await daemon.kill9();
  await daemon.startAgain(world.options());
  expect((await daemon.until('it', 'stopped')).ended).toMatchObject({ cause: 'exited', exitCode: 127 });
  expect(await mainOutput(daemon, 'it')).toContain('cannot run /nowhere');
  await expectInOrder(daemon);
  await daemon.deleteAll();
});
