// A daemon that dies at a call to the system, or a commit, in the middle of a build: the next one leaves nothing of that build but its
// record, and builds the same image. A sample by the seed; all points with --long, every so many-th with HUTCH_TEST_POINTS.
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MACHINES, World } from '../cli/world.ts';
import { baseImage } from './corpus.ts';

const SAMPLE = 1;
const isLong = process.env['HUTCH_TEST_LONG'] === '1' || process.env['HUTCH_TEST_POINTS'] !== undefined;
const SEED = Number(process.env['HUTCH_TEST_SEED'] ?? Date.now());
/** One of them in the short run: to know how many calls there are takes a build. */
const VERBS = ['build.start', 'daemon.build'].filter((_, at) => isLong || SEED % 2 === at);
const COMMITS = ['beginBuild', 'putImage', 'endBuild'];
const DOCKERFILE =
  'FROM base:1\nCOPY f /f\nRUN --mount=type=cache,target=/c cat /f > /g && echo $MARK > /mark\nARG MARK\nRUN rm -r /opt/old && echo two > /two\n';

let world: World;
let root: string;
let missing: string | null = null;
beforeAll(async () => {
  world = await World.make(MACHINES);
  root = await mkdtemp(join(tmpdir(), 'hutch-build-killed-'));
  await writeFile(join(root, 'Dockerfile'), DOCKERFILE);
  await writeFile(join(root, 'f'), 'content\n');
  const imported = await world.run(['image', 'import', '--name', 'base:1', '-'], { input: baseImage() });
  if (imported.code !== 0) throw new Error(imported.stderr);
  const { backends } = await world.json<{ backends: { name: string; can: object | null }[] }>('backends');
  if (!backends.some(({ name, can }) => name === 'gvisor' && can !== null)) missing = 'gvisor does not work here';
}, 120_000);
afterAll(async () => {
  await rm(root, { recursive: true, force: true });
  await world?.[Symbol.asyncDispose]();
}, 120_000);

/** By a daemon of its own, which has this in its environment. */
async function build(env: Record<string, string>) {
  await world.run(['daemon', 'stop']);
  return await world.run(['build', '-q', '--no-cache', '--backend', 'gvisor', '--build-arg', 'SOURCE_DATE_EPOCH=1700000000', root], {
    env,
  });
}

function staged(): readonly string[] {
  return readdirSync(join(world.home, 'data/staging')).filter((name) => !name.endsWith('.lock'));
}

async function points(): Promise<readonly Record<string, string>[]> {
  const found: Record<string, string>[] = COMMITS.flatMap((change) =>
    ['before', 'after'].map((when) => ({ HUTCH_TEST_STORE_FAULT: `die-${when}:1:${change}` })),
  );
  for (const verb of VERBS) {
    const report = join(root, `count-${verb}`);
    await build({ HUTCH_TEST_COUNT: verb, HUTCH_TEST_COUNT_REPORT: report });
    await world.run(['daemon', 'stop']);
    const calls = readFileSync(report, 'utf8').split('\n').length - 1;
    expect(calls, verb).toBeGreaterThan(1);
    for (let n = 1; n <= calls; n += 1)
      for (const when of ['before', 'after']) found.push({ HUTCH_TEST_FAULT: `die-${when}:${n}:${verb}` });
  }
  return found;
}

test('a build whose daemon is killed at any call leaves nothing but its record, and the next one gives the same image', {
  timeout: 3_600_000,
}, async (ctx) => {
  if (missing !== null) return ctx.skip(missing);
  const whole = await build({});
  expect(whole.code, whole.stderr).toBe(0);
  const all = await points();
  const every = process.env['HUTCH_TEST_LONG'] === '1' ? 1 : Number(process.env['HUTCH_TEST_POINTS'] ?? Math.ceil(all.length / SAMPLE));
  const failures: string[] = [];
  for (const [at, env] of all.entries()) {
    if ((at + SEED) % every !== 0) continue;
    const hung: string[] = [];
    await build(env).catch((error: unknown) => hung.push(String(error)));
    await world.run(['daemon', 'stop']);
    const { builds } = await world.json<{ builds: { id: string; state: string }[] }>('image', 'builds');
    const { sandboxes } = await world.json<{ sandboxes: { name: string }[] }>('ls');
    const { projects } = await world.json<{ projects: { use: { builds: number } }[] }>('quotas', 'ls');
    const left = [
      ...hung,
      ...builds.filter(({ state }) => state === 'running').map(({ id }) => `build ${id}`),
      ...sandboxes.map(({ name }) => `sandbox ${name}`),
      ...staged(),
      ...(projects[0]?.use.builds === 0 ? [] : ['a build in the quota']),
    ];
    const again = await build({});
    if (again.stdout !== whole.stdout) left.push(`another image: ${again.stdout}${again.stderr}`);
    if (left.length > 0) failures.push(`${Object.values(env)[0]}: ${left.join(', ')}`);
  }
  expect(failures, `of ${all.length} points, every ${every}th`).toEqual([]);
});

test('a build on a full disk says so and leaves nothing; with room it works', { timeout: 240_000 }, async (ctx) => {
  if (missing !== null) return ctx.skip(missing);
  const context = join(root, 'large');
  await mkdir(context);
  await writeFile(join(context, 'large'), Buffer.alloc(4 * 1024 * 1024, 'x'));
  const lines = 'FROM base:1\nCOPY large /large\nRUN dd if=/dev/zero of=/larger bs=1M count=48\n';
  await writeFile(join(context, 'Dockerfile'), lines);
  const attempt = () => world.run(['build', '-q', '--no-cache', '--backend', 'gvisor', context]);
  // Where the context lies, and where the sandbox writes.
  for (const [dir, size] of [
    ['staging', '2m'],
    ['sandboxes', '24m'],
  ] as const) {
    const path = join(world.home, 'data', dir);
    if (spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size},mode=711`, 'hutch-test', path]).status !== 0) {
      return ctx.skip('this user cannot mount a small disk');
    }
    try {
      const { code, stderr } = await attempt();
      expect([code, stderr], dir).toEqual([5, expect.stringMatching(/no space left on device/i)]);
      expect((await world.json<{ sandboxes: unknown[] }>('ls')).sandboxes, dir).toEqual([]);
      expect(
        readdirSync(path).filter((name) => !name.endsWith('.lock')),
        dir,
      ).toEqual([]);
      const { builds } = await world.json<{ builds: { state: string }[] }>('image', 'builds');
      expect(
        builds.filter(({ state }) => state === 'running'),
        dir,
      ).toEqual([]);
    } finally {
      spawnSync('umount', ['-l', path]);
    }
  }
  const { code, stderr } = await attempt();
  expect(code, stderr).toBe(0);
});
