// Builds that begin in a sandbox that was kept ready for them: the next build upon an image is the one after, and what it gives is what any
// other gives.
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MACHINES, type Result, World } from '../cli/world.ts';
import { eventually } from '../support/eventually.ts';
import { baseImage } from './corpus.ts';

const ENV = { HUTCH_SANDBOX_WARM: '1' };
const TEST_MS = 240_000;
const isLong = process.env['HUTCH_TEST_LONG'] === '1';
const DOCKERFILE =
  'FROM base:1\nCOPY f /f\nRUN cat /f > /g; echo of the build > /tmp/h; rm -r /opt/old; echo hosts > /etc/left\nRUN ls / /tmp /etc > /list\n';

let world: World;
let root: string;
let works: readonly string[] = [];
beforeAll(async () => {
  world = await World.make(MACHINES);
  root = await mkdtemp(join(tmpdir(), 'hutch-build-warm-'));
  await writeFile(join(root, 'Dockerfile'), DOCKERFILE);
  await writeFile(join(root, 'f'), 'content\n');
  await imported();
  const { stdout } = await run('backends', '--json');
  const { backends } = JSON.parse(stdout) as { backends: { name: string; can: object | null }[] };
  works = backends.filter(({ can }) => can !== null).map(({ name }) => name);
}, 120_000);
afterAll(async () => {
  await rm(root, { recursive: true, force: true });
  await world?.[Symbol.asyncDispose]();
}, 120_000);

/** By a daemon that keeps sandboxes ready, whoever starts it. */
async function run(...args: readonly string[]): Promise<Result> {
  const done = await world.run(args, { env: ENV });
  if (done.code !== 0) throw new Error(`hutch ${args.join(' ')}: ${done.stderr}`);
  return done;
}

async function imported(): Promise<void> {
  const { code, stderr } = await world.run(['image', 'import', '--name', 'base:1', '-'], { input: baseImage(), env: ENV });
  if (code !== 0) throw new Error(stderr);
}

/** The same bytes, whoever builds them and when. */
async function build(backend: string): Promise<string> {
  const args = ['--no-cache', '--backend', backend, '--build-arg', 'SOURCE_DATE_EPOCH=1700000000'];
  return (await run('build', '-q', ...args, root)).stdout.trim();
}

/** Those that wait for builds, as `hutch doctor` says. */
async function kept(): Promise<readonly string[]> {
  const { stdout } = await world.run(['doctor'], { env: ENV });
  return [...stdout.matchAll(/for builds upon img\w+: 1 ready \((sbx\w+)\)/g)].map(([, id]) => id ?? '');
}

async function ready(): Promise<string> {
  let id: string | undefined;
  await eventually(
    'a sandbox waits for the next build',
    async () => {
      [id] = await kept();
      return id !== undefined;
    },
    120_000,
  );
  return id as string;
}

async function hasBeen(id: string): Promise<boolean> {
  return (await run('events', '--sandbox', id, '--json').catch(() => null))?.stdout.includes('sandbox.deleted') === true;
}

for (const backend of ['gvisor', ...(isLong ? ['qemu'] : [])]) {
  test(`the next build upon an image begins in a sandbox that waits for it, and gives the same image, on ${backend}`, {
    timeout: TEST_MS,
  }, async (ctx) => {
    if (!works.includes(backend)) return ctx.skip(`${backend} does not work here`);
    const cold = await build(backend);
    const waiting = await ready();
    expect((await run('ls', '-q')).stdout).toBe('');
    expect(await hasBeen(waiting)).toBe(false);
    expect(await build(backend)).toBe(cold);
    expect(await hasBeen(waiting), 'what waited was the sandbox of that build').toBe(true);
    const next = await ready();
    expect(next).not.toBe(waiting);
    // With its image it goes: nothing stands on that any more.
    await run('image', 'rm', 'base:1');
    expect(await kept()).toEqual([]);
    expect((await world.run(['doctor', '--leaks'], { env: ENV })).stdout).not.toContain(next);
    await imported();
  });
}

test('of what waits for builds a daemon that ends leaves nothing, and one that is killed leaves it to the next, which removes it', {
  timeout: TEST_MS,
}, async (ctx) => {
  if (!works.includes('gvisor')) return ctx.skip('gvisor does not work here');
  await build('gvisor');
  await ready();
  await run('daemon', 'stop');
  // Before another daemon looks.
  expect(await readdir(join(world.home, 'run/sandboxes'))).toEqual([]);
  expect(await readdir(join(world.home, 'data/sandboxes'))).toEqual([]);
  await build('gvisor');
  const left = await ready();
  await world.killDaemon();
  await run('ls');
  await eventually('the next daemon has removed it', async () => {
    const { code, stdout } = await world.run(['doctor', '--leaks'], { env: ENV });
    return code === 0 && !stdout.includes(left);
  });
  expect(await kept()).toEqual([]);
});
