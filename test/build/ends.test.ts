// How builds end when their client does not stay, or their daemon does not.
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { placesOf } from '../../src/config/places.ts';
import { Hutch } from '../../src/sdk/hutch.ts';
import { readOwnerKey } from '../../src/sdk/owner-key.ts';
import type { World } from '../cli/world.ts';
import { eventually } from '../support/eventually.ts';
import { contextTar } from './talk.ts';
import { BuildWorld } from './world.ts';

let here: BuildWorld;
let world: World;
beforeAll(async () => {
  here = await BuildWorld.make();
  world = here.world;
}, 120_000);
afterAll(async () => await here?.[Symbol.asyncDispose](), 120_000);

/** A build whose command runs, and goes on. */
async function endless() {
  const dir = await here.context({ Dockerfile: 'FROM base:1\nRUN echo it-runs; sleep 1000\n' });
  const child = world.spawn(['build', '--backend', 'gvisor', '--no-cache', dir]);
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  await eventually('the command to run', () => said.includes('  it-runs'), 60_000);
  return child;
}

test('an interrupted build is cancelled, and nothing of it is left', { timeout: 120_000 }, async (ctx) => {
  const missing = await here.why('gvisor');
  if (missing !== null) return ctx.skip(missing);
  const child = await endless();
  expect((await here.builds())[0]).toMatchObject({
    state: 'running',
    step: 'stage 0 1/1: RUN echo it-runs; sleep 1000',
    progressPercent: 0,
  });
  let last = '';
  child.stderr.on('data', (chunk: Buffer) => {
    last += chunk.toString();
  });
  const closed = once(child, 'close');
  child.kill('SIGINT');
  await eventually('the client to end', () => child.exitCode !== null, 60_000);
  expect(child.exitCode).toBe(130);
  await closed;
  expect(last).toMatch(/error: interrupted; what was begun is cleaned up \(op-\w+\)\n$/);
  expect((await here.builds())[0]?.state).toBe('cancelled');
  expect(await here.sandboxes()).toEqual([]);
  expect((await readdir(join(world.home, 'data/staging'))).filter((name) => name.startsWith('build-'))).toEqual([]);
});

test('a build that is left to itself goes on; its log says whose each line is and, followed, ends as the build did', {
  timeout: 120_000,
}, async (ctx) => {
  const missing = await here.why('gvisor');
  if (missing !== null) return ctx.skip(missing);
  const dir = await here.context({
    Dockerfile: 'FROM base:1 AS side\nRUN echo of-the-side\nFROM base:1\nCOPY --from=side /bin/sh /x\nRUN echo of-the-end; exit 7\n',
  });
  const left = await world.run(['build', '--detach', '--backend', 'gvisor', '--no-cache', dir]);
  expect([left.code, left.stdout, left.stderr.replace(/^note: .*\n/gm, '')]).toEqual([0, expect.stringMatching(/^bld\w{17}\n$/), '']);
  const id = left.stdout.trim();
  const followed = await world.run(['image', 'build-logs', '-f', id]);
  // The step of the last stage was named meanwhile: it waits for the other.
  expect(followed.stdout).toContain('\n  [side] of-the-side\n');
  expect(followed.stdout).toMatch(/\n\[stage 1 2\/2\] RUN echo of-the-end; exit 7\n {2}of-the-end\n {2}failed: .*\n$/);
  expect([followed.code, followed.stderr]).toEqual([4, expect.stringMatching(/^error: Dockerfile:5: RUN: exit code 7: /)]);
  expect((await world.run(['image', 'build-logs', id])).code).toBe(0);
  expect(JSON.parse(await world.ok('image', 'build-inspect', id))).toMatchObject({
    ...{ id, state: 'failed', step: 'stage 1 2/2: RUN echo of-the-end; exit 7', stepsDone: 2, stepsTotal: 3, progressPercent: 66 },
    logTail: ['of-the-end'],
  });
});

test('a build is cancelled wherever it waits: for builds before it, for its base image, for a cache mount; others go on as if it had not been', {
  timeout: 120_000,
}, async (ctx) => {
  const missing = await here.why('gvisor');
  if (missing !== null) return ctx.skip(missing);
  const silent = createServer(() => {}); // a registry that takes calls, and says nothing
  await once(silent.listen(0, '127.0.0.1'), 'listening');
  onTestFinished(() => void silent.close());
  const { port } = silent.address() as AddressInfo;
  const begin = async (dockerfile: string) =>
    (
      await world.ok(
        'build',
        '-d',
        '--no-package-settings',
        '--backend',
        'gvisor',
        '--no-cache',
        await here.context({ Dockerfile: dockerfile }),
      )
    ).trim();
  const found = async (id: string) => (await here.builds()).find((build) => build.id === id);
  const inStep = async (id: string, step: string) =>
    await eventually(step, async () => (await found(id))?.step?.includes(step) === true, 60_000);
  const cancelled = async (...ids: readonly string[]) => {
    expect(await world.ok('image', 'build-cancel', ...ids)).toBe(ids.map((id) => `${id}: cancelled`).join('\n'));
    for (const id of ids) expect(await found(id)).toMatchObject({ state: 'cancelled' });
  };
  const [pulling, queued]: [string[], string[]] = [[], []];
  for (const many of [pulling, queued]) for (let at = 0; at < 4; at += 1) many.push(await begin(`FROM 127.0.0.1:${port}/none:${at}\n`));
  for (const id of pulling) await inStep(id, 'FROM 127.0.0.1');
  for (const id of queued) await inStep(id, 'waiting for builds before it');
  await cancelled(...queued);
  await cancelled(...pulling);
  const cached = 'FROM base:1\nRUN --mount=type=cache,target=/c ';
  const holding = await begin(`${cached}echo holds-it; sleep 1000\n`);
  await eventually('the cache to be taken', async () => (await world.ok('image', 'build-logs', holding)).includes('  holds-it'), 60_000);
  // Who follows may leave, and leaves it to itself.
  const follower = world.spawn(['image', 'build-logs', '-f', holding]);
  let seen = '';
  follower.stdout.on('data', (chunk: Buffer) => {
    seen += chunk.toString();
  });
  await eventually('the follower to see it', () => seen.includes('  holds-it'), 60_000);
  follower.kill('SIGINT');
  await eventually('the follower to end', () => follower.exitCode !== null, 20_000);
  expect([follower.exitCode, (await found(holding))?.state]).toEqual([130, 'running']);
  const waiting = await begin(`${cached}true\n`);
  await inStep(waiting, 'RUN --mount');
  await eventually('its sandbox', async () => (await here.sandboxes()).length === 2, 60_000);
  await cancelled(waiting);
  await cancelled(holding);
  expect(await here.sandboxes()).toEqual([]);
  expect((await readdir(join(world.home, 'data/staging'))).filter((name) => name.startsWith('build-'))).toEqual([]);
  const after = await world.run(['build', '--backend', 'gvisor', await here.context({ Dockerfile: `${cached}echo all-free\n` })]);
  expect([after.code, after.stderr]).toEqual([0, expect.stringContaining('  all-free\n')]);
});

test('an answer that waits has the end of a build that the cache knows; who leaves before it has cancelled the build', {
  timeout: 120_000,
}, async (ctx) => {
  const missing = await here.why('gvisor');
  if (missing !== null) return ctx.skip(missing);
  const { socketPath, ownerKeyPath } = placesOf({ env: { HUTCH_HOME: world.home }, uid: process.getuid?.() ?? 0 });
  using hutch = Hutch.connect({ url: `unix:${socketPath}`, apiKey: readOwnerKey(ownerKeyPath) });
  const { api } = hutch;
  const of = async (run: string) => await contextTar(await here.context({ Dockerfile: `FROM base:1\nRUN ${run}\n` }));
  const quick = await of('echo waits > /waits');
  // Nothing of a kernel, which gVisor has not; an image that cannot be mounted is unpacked, once.
  await world.ok(
    'build',
    '-q',
    '--backend',
    'gvisor',
    '-t',
    'never:1',
    await here.context({ Dockerfile: 'FROM base:1\nCOPY Dockerfile /never\n' }),
  );
  const ran = await world.run(['run', '--rm', '--backend', 'gvisor', '--no-net', '--image', 'never:1', '--', 'true']);
  expect([ran.code, ran.stderr]).toEqual([0, expect.stringMatching(/^(hutch: unpacking the image for gVisor .*\n)?$/)]);
  const build = (body: Buffer, waitMs: number, signal?: AbortSignal) =>
    api.upload('build.start', { backend: 'gvisor', waitMs }, body, { signal });
  const first = await build(quick, 60_000);
  expect([first.state, first.stepsDone]).toEqual(['done', 1]);
  const second = await build(quick, 60_000);
  expect(second).toMatchObject({ state: 'done', image: first.image });
  expect(second.log).toBeUndefined();
  // Its log comes along for who asks, as it is told to everybody else.
  const third = await api.upload('build.start', { backend: 'gvisor', waitMs: 60_000, log: true }, quick);
  expect(third.log?.map(({ text }) => text)).toEqual([
    'FROM base:1',
    'RUN echo waits > /waits',
    'CACHED',
    expect.stringMatching(/^image sha256:/),
  ]);
  expect(third.log).toEqual(await Array.fromAsync(api.lines('build.logs', { build: third.id })));
  // One that takes longer goes on when it has answered.
  const slow = await of('sleep 1000');
  const running = await build(slow, 50);
  expect(running.state).toBe('running');
  expect((await api.call('build.cancel', { build: running.id })).state).toBe('cancelled');
  const leaving = new AbortController();
  const left = build(slow, 60_000, leaving.signal);
  left.catch(() => {});
  const newest = async () => (await api.call('build.list', {})).builds[0];
  await eventually('the build to be under way', async () => (await newest())?.state === 'running', 60_000);
  leaving.abort();
  await expect(left).rejects.toThrow();
  await eventually('the build to be cancelled', async () => (await newest())?.state === 'cancelled', 60_000);
  expect(await here.sandboxes()).toEqual([]);
});

test('a daemon that is killed while it builds leaves nothing but a build that failed', { timeout: 120_000 }, async (ctx) => {
  const missing = await here.why('gvisor');
  if (missing !== null) return ctx.skip(missing);
  const child = await endless();
  await world.killDaemon();
  await eventually('the client to end', () => child.exitCode !== null, 90_000);
  expect(child.exitCode).not.toBe(0);
  const [build] = await here.builds();
  expect(build).toMatchObject({ state: 'failed', error: { message: expect.stringContaining('the daemon ended') } });
  expect(await here.sandboxes()).toEqual([]);
  expect((await readdir(join(world.home, 'data/staging'))).filter((name) => /^(build|make|blob)-/.test(name))).toEqual([]);
});
