// The daemon dies, or its host fails, while the disk of a container is kept, is begun with or gone back to: what is on record is
// there, the Engine has nothing else of ours, and the sandbox has one of the two disks.
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { atPoints } from './points.ts';
import { all, expectInOrder, isLong, numbers, seed, shellOf, startWorld } from './world.ts';

const TEST_MS = isLong ? 3_600_000 : 240_000;
const SAMPLES = 2;
/** Calls to the host that each makes, about. */
const CALLS = [
  ['snapshot.create', 10],
  ['sandbox.create', 25],
  ['sandbox.restore', 30],
  ['sandbox.undo', 30],
] as const;

const world = await startWorld('docker');
if (typeof world === 'string') throw new Error(`no container can be run here: ${world}`);
const { daemon } = world;
afterAll(() => world[Symbol.asyncDispose]());
const sh = shellOf(daemon);
const dirs = (): string[] => {
  const dir = join(daemon.home, 'data/snapshots');
  return existsSync(dir) ? readdirSync(dir).sort() : [];
};
const kept = async (): Promise<string[]> =>
  (await world.leftInEngine()).flatMap((name) => /^hutch\/snapshot:(.*)$/.exec(name)?.[1] ?? []).sort();

test(`docker: the daemon is killed, or the host fails, at ${isLong ? 'every' : 'some'} point of a snapshot, of what begins there and of the way back (seed ${seed})`, {
  timeout: TEST_MS,
}, async () => {
  const own = { HUTCH_SANDBOX_BACKEND: 'docker', HUTCH_SANDBOX_STOP_GRACE: '2s', ...world.engine?.env };
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  await sh('web', 'echo then > /root/a');
  await daemon.call('snapshot.create', { ref: 'web', name: 'good', diskOnly: true });
  const verbs = CALLS.map((_, nth) => CALLS[(nth + seed) % CALLS.length] ?? CALLS[0]);
  await atPoints(daemon, own, { verbs, samples: SAMPLES, random: numbers(seed + 4) }, async ({ verb, fault, strike }) => {
    if (verb === 'sandbox.undo') await daemon.call('sandbox.set', { ref: 'web', undo: 1 });
    await sh('web', 'echo now > /root/a');
    const done = await strike(async () => {
      if (verb === 'snapshot.create') await daemon.call(verb, { ref: 'web', name: 'maybe', diskOnly: true });
      else if (verb === 'sandbox.create') await daemon.call(verb, { from: 'good', name: 'maybe' });
      else if (verb === 'sandbox.restore') await daemon.call(verb, { ref: 'web', snapshot: 'good' });
      else await daemon.call('sandbox.undo', { ref: 'web' });
    });
    const state = async () => (await daemon.call('sandbox.get', { ref: 'web' })).state;
    if ((await state()) === 'stopped') await daemon.call('sandbox.start', { ref: 'web' }); // a host that failed after its end
    await eventually(`it runs after ${fault}`, async () => (await state()) === 'running', 60_000);
    await daemon.call('sandbox.set', { ref: 'web', undo: 0 });
    const found = await sh('web', 'cat /root/a');
    const goesBack = verb === 'sandbox.restore' || verb === 'sandbox.undo';
    expect(!goesBack ? ['now\n'] : done ? ['then\n'] : ['then\n', 'now\n'], fault).toContain(found);
    for (const { name } of await all(daemon)) if (name !== 'web') await daemon.call('sandbox.delete', { ref: name, force: true });
    const { snapshots } = await daemon.call('snapshot.list', { all: true });
    expect(dirs(), fault).toEqual(snapshots.map(({ id }) => id).sort());
    expect(await kept(), fault).toEqual(expect.arrayContaining(dirs()));
    for (const { name, id } of snapshots) if (name !== 'good') await daemon.call('snapshot.remove', { snapshot: id });
    expect(
      (await world.leftInEngine()).filter((name) => name.startsWith('/')),
      fault,
    ).toHaveLength(1);
    await daemon.call('sandbox.restore', { ref: 'web', snapshot: 'good' });
    // Only now: what its container stood on stays for as long as that.
    expect(await kept(), fault).toEqual(dirs());
    await expectInOrder(daemon);
  });
});
