// The daemon dies at a fault point of an operation on a real sandbox: a call to the system or a commit
// is the last thing that it does. The next daemon finds everything right: sandboxes that live are its
// own again with their main process, the others are stopped or gone, the ledger agrees, nothing is left.
// The same on every backend.
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { all, expectInOrder, expectMain, isLong, mainOutput, numbers, seed, type World, works } from './world.ts';

/** Points of each operation, unless all of them are tried. */
const SAMPLES = 1;
const MOMENTS = 12;
/** Of one operation: more are no accident. */
const FAILURES_MAX = 5;
const WHEN = ['before', 'after'] as const;
const MAIN = { argv: ['sh', '-c', 'echo begun >> /begun; echo begun; exec sleep 100000'] };

type Case = {
  readonly verb: 'sandbox.create' | 'sandbox.start' | 'exec.start' | 'sandbox.stop' | 'sandbox.delete';
  /** What its commits hold, for the faults at the store. */
  readonly changes: readonly string[];
  prepare(daemon: DaemonUnderTest): Promise<void>;
  act(daemon: DaemonUnderTest): Promise<unknown>;
  /** After the restart. `done`: it was answered, so it must have happened. */
  check(daemon: DaemonUnderTest, done: boolean): Promise<void>;
};

export const create = async (daemon: DaemonUnderTest): Promise<void> => {
  await daemon.call('sandbox.create', { name: 'it', main: MAIN });
};
export const stateOf = async (daemon: DaemonUnderTest): Promise<string | undefined> =>
  (await all(daemon)).find(({ name }) => name === 'it')?.state;

const CASES: readonly Case[] = [
  {
    verb: 'sandbox.create',
    changes: ['addIntent', 'createSandbox'],
    prepare: async () => {},
    act: create,
    async check(daemon, done) {
      const state = await stateOf(daemon);
      expect(state).toBe(done ? 'running' : state === undefined ? undefined : 'running');
      if (state === undefined) await create(daemon); // its name is free
      await expectBegunOnce(daemon);
    },
  },
  {
    verb: 'sandbox.start',
    changes: ['addIntent', 'applyEvent'],
    async prepare(daemon) {
      await create(daemon);
      await daemon.call('sandbox.stop', { ref: 'it', force: true });
    },
    act: (daemon) => daemon.call('sandbox.start', { ref: 'it' }),
    async check(daemon, done) {
      if (done) expect(await stateOf(daemon)).toBe('running');
      await daemon.call('sandbox.start', { ref: 'it' });
      await expectMain(daemon, 'it');
    },
  },
  {
    verb: 'exec.start',
    changes: [],
    prepare: create,
    act: async (daemon) => (await daemon.exec('it', { argv: ['sh', '-c', 'echo once >> /once'] }, { execId: 'once' })).exit(),
    async check(daemon) {
      expect(await stateOf(daemon)).toBe('running');
      await (await daemon.exec('it', { argv: ['sh', '-c', 'echo once >> /once'] }, { execId: 'once' })).exit();
      expect((await daemon.run('it', ['cat', '/once'])).stdout).toBe('once\n');
      await expectBegunOnce(daemon);
    },
  },
  {
    verb: 'sandbox.stop',
    changes: ['applyEvent'],
    prepare: create,
    act: (daemon) => daemon.call('sandbox.stop', { ref: 'it', graceMs: 1_000 }),
    async check(daemon, done) {
      if (done) expect(await stateOf(daemon)).toBe('stopped');
      expect((await daemon.call('sandbox.stop', { ref: 'it', force: true })).state).toBe('stopped');
      await daemon.call('sandbox.start', { ref: 'it' });
      await works(daemon, 'it');
    },
  },
  {
    verb: 'sandbox.delete',
    changes: ['addIntent', 'applyEvent'],
    prepare: create,
    act: (daemon) => daemon.call('sandbox.delete', { ref: 'it', force: true }),
    async check(daemon, done) {
      if (done) expect(await stateOf(daemon)).toBeUndefined();
      if ((await stateOf(daemon)) !== undefined) await daemon.call('sandbox.delete', { ref: 'it', force: true });
      await create(daemon);
      await works(daemon, 'it');
    },
  },
];

export async function expectBegunOnce(of: DaemonUnderTest): Promise<void> {
  await expectMain(of, 'it');
  // It may have only just been begun.
  await eventually('what it said is in its log', async () => (await mainOutput(of, 'it')).includes('begun\n'));
  expect((await of.run('it', ['cat', '/begun'])).stdout).toBe('begun\n');
}

export async function again({ daemon, options }: World, env: Readonly<Record<string, string>>): Promise<void> {
  await daemon.terminate();
  await daemon.startAgain(options(env));
}

/** How many calls to the system the operation makes, and how long it takes. */
async function measured(world: World, one: Case): Promise<{ readonly calls: number; readonly tookMs: number }> {
  const { daemon, options } = world;
  const report = join(daemon.home, 'count');
  await again(world, { HUTCH_TEST_COUNT: one.verb, HUTCH_TEST_COUNT_REPORT: report });
  await one.prepare(daemon);
  const since = performance.now();
  await one.act(daemon);
  const tookMs = performance.now() - since;
  await daemon.deleteAll();
  await daemon.terminate();
  const calls = readFileSync(report, 'utf8').split('\n').length - 1;
  rmSync(report);
  await daemon.startAgain(options());
  return { calls, tookMs };
}

/** A fault in the daemon's environment, or a moment: a share of the time that the operation takes. */
type Point = { readonly env: Readonly<Record<string, string>> } | { readonly moment: number };

function callPoints(one: Case, calls: number): Point[] {
  const ns = Array.from({ length: calls }, (_, index) => index + 1);
  return ns.flatMap((n) => WHEN.map((when) => ({ env: { HUTCH_TEST_FAULT: `die-${when}:${n}:${one.verb}` } })));
}

/** The first such commit after the daemon's start is the operation's: `prepare` comes before the fault is armed. */
function commitPoints(one: Case): Point[] {
  return one.changes.flatMap((change) => WHEN.map((when) => ({ env: { HUTCH_TEST_STORE_FAULT: `die-${when}:1:${change}` } })));
}

const moments: Point[] = Array.from({ length: MOMENTS }, (_, index) => ({ moment: (index + 0.5) / MOMENTS }));

async function strike(world: World, one: Case, point: Point, tookMs: number): Promise<void> {
  const { daemon, options } = world;
  const report = join(daemon.home, 'fault.json');
  rmSync(report, { force: true });
  await one.prepare(daemon);
  await again(world, { ...('env' in point ? point.env : {}), HUTCH_TEST_FAULT_REPORT: report });
  const { pid } = daemon;
  const killing = 'moment' in point ? setTimeout(() => process.kill(pid, 'SIGKILL'), point.moment * tookMs) : undefined;
  const done = await one.act(daemon).then(
    () => true,
    () => false,
  );
  const hit = reportOf(report);
  clearTimeout(killing);
  await daemon.kill9(); // most points have killed it, or are about to
  await daemon.startAgain(options());
  try {
    await expectInOrder(daemon);
    await one.check(daemon, done);
    await expectInOrder(daemon);
    await daemon.deleteAll();
    await expectInOrder(daemon);
    expect(await daemon.processes()).toEqual([]);
    expect(await world.leftInEngine()).toEqual([]);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`after ${JSON.stringify(point)} (${hit}): ${why}\n${(await daemon.log()).slice(-4_000)}`, { cause });
  }
}

/** Every point, also after one that failed: a run of hours is to say all that it found. */
async function strikeAll(world: World, one: Case, points: readonly Point[], tookMs: number): Promise<void> {
  const failures: string[] = [];
  for (const [index, point] of points.entries()) {
    try {
      await strike(world, one, point, tookMs);
    } catch (error) {
      failures.push(error instanceof Error ? error.message : String(error));
      if (failures.length === FAILURES_MAX) throw new Error(`${failures.length} of ${index + 1} points failed:\n${failures.join('\n')}`);
      await fresh(world);
    }
  }
  expect(failures, `of ${points.length} points`).toEqual([]);
}

/** A daemon without faults and without sandboxes, whatever was before. */
async function fresh({ daemon, options }: World): Promise<void> {
  await daemon.kill9();
  await daemon.startAgain(options());
  await daemon.deleteAll();
}

function reportOf(path: string): string | null {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return null;
  }
}

/** A test for each operation. */
export function killedAtFaultPoints(world: World): void {
  for (const [index, one] of CASES.entries()) {
    test(`${one.verb}: the daemon is killed at ${isLong ? 'every' : 'a'} call and commit (seed ${seed})`, {
      timeout: isLong ? 7_200_000 : 300_000,
    }, async () => {
      await fresh(world); // of what a test that failed has left
      const { calls, tookMs } = await measured(world, one);
      const commits = commitPoints(one);
      if (isLong) return await strikeAll(world, one, [...callPoints(one, calls), ...commits, ...moments], tookMs);
      const random = numbers(seed + index);
      const oneOf = (points: readonly Point[]): Point[] => points.slice(Math.floor(random.next().value * points.length)).slice(0, 1);
      const kinds = [oneOf(callPoints(one, calls)), oneOf(commits), oneOf(moments)].flat();
      // Another kind first from one run to the next.
      const turned = kinds.map((_, at) => kinds[(at + seed) % kinds.length]).filter((point) => point !== undefined);
      for (const point of turned.slice(0, SAMPLES)) await strike(world, one, point, tookMs);
    });
  }
}
