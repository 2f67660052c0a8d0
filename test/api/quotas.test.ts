// What a project may have, asked for by many at once: nobody gets more, and everybody gets what there is.
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';

const AT_ONCE = 50;
let daemon: DaemonUnderTest;

beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});
afterEach(async () => {
  const { bounds } = await mine();
  const all = Object.fromEntries(Object.keys(bounds).map((name) => [name, 'inherit' as const]));
  await daemon.call('quota.set', { project: 'default', tier: null, bounds: all });
  await daemon.deleteAll();
});

async function mine() {
  const [project] = (await daemon.call('quota.list', {})).projects;
  if (project === undefined) throw new Error('there is no project');
  return project;
}

const outcomeOf = async (promise: Promise<unknown>): Promise<string> =>
  await promise.then(
    () => 'ok',
    (error: unknown) => (error instanceof ApiError ? `${error.code}: ${error.body.message}` : Promise.reject(error as Error)),
  );

async function many(count: number, input: object = {}): Promise<readonly string[]> {
  const making = Array.from({ length: count }, () => outcomeOf(daemon.call('sandbox.create', { start: false, ...input })));
  return await Promise.all(making);
}

test('without a quota nothing is bounded, and what is used is known', async () => {
  expect(await many(3)).toEqual(['ok', 'ok', 'ok']);
  const { tier, bounds, use } = await mine();
  expect(tier).toBeNull();
  expect(Object.values(bounds).every((bound) => bound === null)).toBe(true);
  expect(use).toMatchObject({ sandboxes: 3, cpus: 3, imageMiB: 0 });
});

test('of 50 creations at once exactly as many succeed as the quota has room for', { timeout: 120_000 }, async () => {
  for (const [bounds, room] of [
    [{ sandboxes: 7 }, 7],
    [{ cpus: 10 }, 5],
    [{ memoryMiB: 1_000 }, 3],
    [{ diskMiB: 3_000, sandboxes: 20 }, 2],
  ] as const) {
    const what = JSON.stringify(bounds);
    await daemon.call('quota.set', { project: 'default', bounds });
    const outcomes = await many(AT_ONCE, { cpus: 2, memoryMiB: 256, diskMiB: 1_024 });
    expect(
      outcomes.filter((outcome) => outcome === 'ok'),
      what,
    ).toHaveLength(room);
    const [name] = Object.keys(bounds);
    for (const outcome of outcomes)
      if (outcome !== 'ok') expect(outcome).toMatch(new RegExp(`^resource_exhausted: the quota ${name} of project default is `));
    expect((await mine()).use['sandboxes'], what).toBe(room);
    await daemon.deleteAll();
    const all = Object.fromEntries(Object.keys(bounds).map((each) => [each, 'inherit' as const]));
    await daemon.call('quota.set', { project: 'default', bounds: all });
  }
});

test('what is refused, fails or is deleted gives its room back', async () => {
  await daemon.call('quota.set', { project: 'default', bounds: { sandboxes: 1 } });
  expect(await outcomeOf(daemon.call('sandbox.create', { start: false, image: 'none' }))).toMatch(/^not_found/);
  await daemon.call('sandbox.create', { start: false, name: 'only' });
  expect(await outcomeOf(daemon.call('sandbox.create', { start: false, name: 'second' }))).toBe(
    'resource_exhausted: the quota sandboxes of project default is 1: 1 are in use, and 1 more are wanted',
  );
  // The name was not taken either, and what is there goes on.
  await daemon.call('sandbox.start', { ref: 'only' });
  await daemon.call('sandbox.delete', { ref: 'only', force: true });
  await daemon.call('sandbox.create', { start: false, name: 'second' });
});

test('a daemon that is killed leaves no room taken by what it was making', { timeout: 60_000 }, async () => {
  await daemon.call('quota.set', { project: 'default', bounds: { sandboxes: 10 } });
  const making = many(10).catch(() => []);
  await daemon.kill9();
  await making;
  await daemon.startAgain();
  const there = (await daemon.call('sandbox.list', {})).sandboxes.length;
  expect((await mine()).use['sandboxes']).toBe(there);
  expect((await many(11 - there)).filter((outcome) => outcome === 'ok')).toHaveLength(10 - there);
});

test('a size that nobody asked for fits into the project’s quota', async () => {
  await daemon.call('quota.set', { project: 'default', tier: 'FREE' });
  expect(await outcomeOf(daemon.call('sandbox.create', { start: false, diskMiB: 2_048 }))).toMatch(
    /the quota diskMiB of project default \(tier FREE\) is 1024 MiB: 0 are in use, and 2048 more are wanted/,
  );
  expect(await daemon.call('sandbox.create', { start: false })).toMatchObject({ shape: { cpus: 1, memoryMiB: 512, diskMiB: 1_024 } });
  await daemon.deleteAll();
  // As soon as the operator gives more, it is as usual.
  await daemon.call('quota.setTier', { tier: 'FREE', bounds: { memoryMiB: 256 } });
  expect(await daemon.call('sandbox.create', { start: false })).toMatchObject({ shape: { memoryMiB: 256, diskMiB: 1_024 } });
  await daemon.deleteAll();
  await daemon.call('quota.setTier', { tier: 'FREE', bounds: { memoryMiB: 512 } });
  await daemon.call('quota.set', { project: 'default', bounds: { diskMiB: null } });
  expect(await daemon.call('sandbox.create', { start: false })).toMatchObject({ shape: { memoryMiB: 512, diskMiB: 8_192 } });
});

test('tiers are a table: those that are shipped, changed, made and removed', async () => {
  const shipped = (await daemon.call('quota.tiers', {})).tiers;
  expect(shipped.map(({ name, bounds }) => [name, bounds['sandboxes'], bounds['memoryMiB']])).toEqual([
    ['FREE', 1, 512],
    ['PRO', 3, 6_144],
    ['ENTERPRISE', 10, 81_920],
    ['DEDICATED', 50, 1_638_400],
  ]);
  await daemon.call('quota.set', { project: 'default', tier: 'FREE', bounds: { diskMiB: null } });
  expect(await outcomeOf(daemon.call('sandbox.create', { start: false, memoryMiB: 1_024 }))).toMatch(
    /the quota memoryMiB of project default \(tier FREE\) is 512 MiB: 0 are in use, and 1024 more are wanted/,
  );
  await daemon.call('quota.setTier', { tier: 'FREE', bounds: { sandboxes: 2, memoryMiB: 1_024, cpus: null } });
  expect((await many(5)).filter((outcome) => outcome === 'ok')).toHaveLength(2);
  expect(await outcomeOf(daemon.call('quota.removeTier', { tier: 'FREE' }))).toMatch(/^failed_precondition: tier FREE is that of default/);
  await daemon.call('quota.setTier', { tier: 'OWN', bounds: { sandboxes: 4 } });
  await daemon.call('quota.set', { project: 'default', tier: 'OWN' });
  // Lowered below what is there: that stays, and nothing more comes.
  await daemon.call('quota.setTier', { tier: 'OWN', bounds: { sandboxes: 1 } });
  expect((await many(2)).filter((outcome) => outcome === 'ok')).toHaveLength(0);
  expect((await mine()).use['sandboxes']).toBe(2);
  await daemon.call('quota.set', { project: 'default', tier: null });
  await daemon.call('quota.removeTier', { tier: 'OWN' });
  expect(await outcomeOf(daemon.call('quota.set', { project: 'default', tier: 'OWN' }))).toMatch(/^not_found: there is no tier OWN/);
  expect(await outcomeOf(daemon.call('quota.set', { project: 'nobody', tier: 'PRO' }))).toMatch(/^not_found: there is no project/);
});
