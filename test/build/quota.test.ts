// What a project may build: how many at once, how many within a day, and how long each.
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MACHINES, World } from '../cli/world.ts';
import { eventually } from '../support/eventually.ts';
import { baseImage } from './corpus.ts';

let world: World;
let root: string;
beforeAll(async () => {
  world = await World.make(MACHINES);
  root = await mkdtemp(join(tmpdir(), 'hutch-build-quota-'));
  const imported = await world.run(['image', 'import', '--name', 'base:1', '-'], { input: baseImage() });
  if (imported.code !== 0) throw new Error(imported.stderr);
}, 120_000);
afterAll(async () => {
  await rm(root, { recursive: true, force: true });
  await world?.[Symbol.asyncDispose]();
}, 120_000);

async function context(name: string, dockerfile: string): Promise<string> {
  const dir = join(root, name);
  await mkdir(dir, { recursive: true });
  await writeFile(join(dir, 'Dockerfile'), dockerfile);
  return dir;
}

async function used() {
  const [project] = (await world.json<{ projects: { use: { builds: number; buildsPerDay: number } }[] }>('quotas', 'ls')).projects;
  return [project?.use.builds, project?.use.buildsPerDay];
}

test('a build is refused before its context is read where its project has as many as it may, at once or within a day', {
  timeout: 120_000,
}, async (ctx) => {
  const { backends } = await world.json<{ backends: { name: string; can: object | null }[] }>('backends');
  if (!backends.some(({ name, can }) => name === 'gvisor' && can !== null)) return ctx.skip('gvisor does not work here');
  await world.ok('quotas', 'set', 'default', '--builds', '1', '--builds-per-day', '2');
  const small = await context('small', 'FROM base:1\nLABEL a=1\n');
  // What cannot be a build is none.
  const wrong = await world.run(['build', '-q', await context('wrong', 'FROM base:1\nNOPE\n')]);
  expect([wrong.code, await used()]).toEqual([2, [0, 0]]);
  const endless = world.spawn([
    'build',
    '--backend',
    'gvisor',
    await context('endless', 'FROM base:1\nRUN echo it-runs; cat /dev/zero > /dev/null\n'),
  ]);
  let said = '';
  endless.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  await eventually('the command to run', () => said.includes('  it-runs'), 60_000);
  expect(await used()).toEqual([1, 1]);
  const second = await world.run(['build', '-q', small]);
  expect([second.code, second.stderr]).toEqual([5, expect.stringMatching(/the quota builds of project default is 1: 1 are in use/)]);
  // Also the next daemon knows how many there were, and that none runs any more.
  await world.killDaemon();
  await eventually('the client to end', () => endless.exitCode !== null, 90_000);
  expect(await used()).toEqual([0, 1]);
  const third = await world.run(['build', '-q', small]);
  expect(third.code, third.stderr).toBe(0);
  const builds = await world.json<{ builds: { id: string }[] }>('image', 'builds');
  await world.ok('image', 'build-rm', ...builds.builds.map(({ id }) => id));
  const fourth = await world.run(['build', '-q', small]);
  expect([fourth.code, fourth.stderr]).toEqual([5, expect.stringMatching(/the quota buildsPerDay of project default is 2: 2 are in use/)]);
});

test('a build that takes longer than its project’s may fails, says why, and leaves nothing', { timeout: 60_000 }, async () => {
  await world.ok('quotas', 'set', 'default', '--builds', 'none', '--builds-per-day', 'none', '--build-minutes', '0');
  const { code, stderr } = await world.run(['build', await context('late', 'FROM base:1\nRUN sleep 1000\n')]);
  expect(code).not.toBe(0);
  expect(stderr).toMatch(/error: a build, which may take 0 minutes \(quota buildMinutes\), took longer/);
  expect((await world.json<{ builds: { state: string }[] }>('image', 'builds')).builds[0]?.state).toBe('failed');
  expect((await world.json<{ sandboxes: unknown[] }>('ls')).sandboxes).toEqual([]);
  expect((await used())[0]).toBe(0);
});
