// The daemon is killed while a repository is copied into a sandbox, is copied again, and is brought back: the sandbox lives on, here
// nothing is half, and the same command, given once more, does what it was to do.
import { appendFile, mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { isAlive, MACHINES, type Result, World } from '../cli/world.ts';
import { isLong, numbers, seed } from '../faults/world.ts';
import { armWith } from '../support/armed.ts';
import { eventually } from '../support/eventually.ts';
import { TestRepository } from './repository.ts';

const FILES = 200;
/** Shares of the time that the command takes. */
const MOMENTS = 8;
/** Of each command, unless all points are tried. */
const SAMPLES = 1;
const POINT_MS = 120_000;

/** A commit of the daemon's, before or after which it dies, or a moment. */
type Point = { readonly store: string } | { readonly moment: number };
const MOMENTS_OF_ALL: readonly Point[] = Array.from({ length: MOMENTS }, (_, nth) => ({ moment: (nth + 0.5) / MOMENTS }));
const COMMITS: readonly Point[] = ['before', 'after'].map((when) => ({ store: `die-${when}:1:applyEvent` }));

let world: World;
let repository: TestRepository;
let env: Record<string, string>;
const armed = (): string => join(world.dir, 'armed.json');
const random = numbers(seed);

beforeAll(async () => {
  world = await World.make(MACHINES);
  repository = await TestRepository.make();
  const scratch = join(repository.here, 'scratch');
  await mkdir(scratch);
  env = { HUTCH_TEST_ARMED: armed(), TMPDIR: scratch };
  for (let nth = 0; nth < FILES; nth += 1) await writeFile(join(repository.dir, `f${nth}`), `${nth}\n`.repeat(100));
  repository.git('add', '-A');
  repository.git('commit', '-qm', 'many');
  await ok('create', '--name', 'box');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
  await repository[Symbol.asyncDispose]();
});

const run = async (...args: string[]): Promise<Result> => await world.run(args, { env });

async function ok(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(...args);
  if (code !== 0) throw new Error(`hutch ${args.join(' ')} ended with ${code}: ${stderr}${stdout}`);
  return stdout.trimEnd();
}

const inside = async (path: string, script: string): Promise<string> => await ok('exec', 'box', '--', 'sh', '-ec', `cd ${path}; ${script}`);
const prepare = (path: string) => ['workspace', 'prepare', '--path', path, 'box', repository.dir];

/** The daemon dies there, if the command takes that long, and another one is there. */
async function struck(args: readonly string[], point: Point, tookMs: number): Promise<void> {
  const pid = await world.daemonPid();
  if ('store' in point) armWith(armed(), { HUTCH_TEST_STORE_FAULT: point.store });
  const killing = 'moment' in point ? setTimeout(() => process.kill(pid, 'SIGKILL'), point.moment * tookMs) : undefined;
  let isDone = false;
  const outcome = run(...args).finally(() => {
    isDone = true;
  });
  await eventually('the daemon has died, or the command has ended', async () => isDone || !(await isAlive(pid)), POINT_MS);
  clearTimeout(killing);
  await rm(armed(), { force: true });
  await ok('daemon', 'start');
  const { code, stderr } = await outcome;
  if (code !== 0) expect(stderr, 'it says what became of it').toMatch(/^error: /m);
  expect(await readdir(env['TMPDIR'] ?? ''), 'nothing is left here').toEqual([]);
  expect(await ok('ls', '--json')).toMatch(/"state": ?"running"/);
}

async function timed(args: readonly string[]): Promise<number> {
  const since = performance.now();
  await ok(...args);
  return performance.now() - since;
}

/** All, or some by the seed, of both kinds from one run to the next. */
function some(points: readonly Point[]): readonly Point[] {
  return isLong
    ? points
    : Array.from({ length: SAMPLES }, () => points[Math.floor(random.next().value * points.length)] ?? { moment: 0.5 });
}

const isWhole = async (path: string): Promise<void> => {
  expect(
    await inside(path, 'git status --short; git log -1 --format=%H; cat f7 | tail -n 1; ls .git/hutch-unfinished 2>&1 | grep -c cannot'),
  ).toBe(`${repository.git('rev-parse', 'HEAD')}\n${repository.git('show', 'HEAD:f7').split('\n').at(-1)}\n1`);
};

test(`a repository is copied, and copied again, although the daemon is killed (seed ${seed})`, {
  timeout: isLong ? 3_600_000 : 3 * POINT_MS,
}, async () => {
  const tookMs = await timed(prepare('/work/first'));
  let path = '';
  for (const [nth, point] of some([...MOMENTS_OF_ALL, ...COMMITS]).entries()) {
    path = `/work/k${nth}`;
    await struck(prepare(path), point, tookMs);
    await ok(...prepare(path));
    await isWhole(path);
  }
  for (const [nth, point] of some([...MOMENTS_OF_ALL, ...COMMITS]).entries()) {
    for (const name of ['f7', 'f8']) await appendFile(join(repository.dir, name), `${nth}\n`);
    await rm(join(repository.dir, `f${100 + nth}`));
    repository.git('commit', '-qam', `turn ${nth}`);
    await struck(prepare(path), point, tookMs);
    await ok(...prepare(path));
    await isWhole(path);
  }
});

test(`what was done comes back whole, although the daemon is killed (seed ${seed})`, {
  timeout: isLong ? 3_600_000 : 2 * POINT_MS,
}, async () => {
  await ok('workspace', 'prepare', '--force', '--path', '/work/bring', 'box', repository.dir);
  await inside(
    '/work/bring',
    'echo inside > inside; git add inside; git -c user.name=G -c user.email=g@x commit -qm inside; echo loose > loose',
  );
  const status = repository.git('status', '--short', '--branch');
  const tookMs = await timed(['bring', '-b', 'measured', 'box']);
  for (const [nth, point] of some(MOMENTS_OF_ALL).entries()) {
    await struck(['bring', '-b', `b${nth}`, 'box'], point, tookMs);
    const half = repository.git('branch', '--list', '--format=%(objectname)', `b${nth}`);
    expect(['', repository.git('rev-parse', 'measured')]).toContain(half);
    await ok('bring', '-b', `b${nth}`, 'box');
    expect(repository.git('rev-parse', `b${nth}`)).toBe(repository.git('rev-parse', 'measured'));
    expect(repository.git('status', '--short', '--branch')).toBe(status);
  }
});
