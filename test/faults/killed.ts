// The daemon dies at a fault point of an operation on a real sandbox: a call to the system or a commit
// is the last thing that it does. The next daemon finds everything right: sandboxes that live are its
// own again with their main process, the others are stopped or gone, the ledger agrees, nothing is left.
// The same on every backend.
import { once } from 'node:events';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { tar } from '../images/archives.ts';
import { armWith } from '../support/armed.ts';
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
  readonly verb:
    | 'sandbox.create'
    | 'sandbox.start'
    | 'exec.start'
    | 'sandbox.stop'
    | 'sandbox.delete'
    | 'sandbox.set'
    | 'snapshot.create'
    | 'sandbox.restore'
    | 'port.publish'
    | 'file.write'
    | 'archive.put';
  /** What its commits hold, for the faults at the store. */
  readonly changes: readonly string[];
  /** It is mostly the daemon's own, so one backend stands for the others, another from one run to the next, unless all points are tried. */
  readonly sampledOn?: readonly World['backend'][];
  /** The others have tests of their own for it. */
  readonly only?: World['backend'];
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

const MEMORY_MIB = 384;
const PORT_INSIDE = 9;
const set = async (daemon: DaemonUnderTest): Promise<void> => {
  await daemon.call('sandbox.set', { ref: 'it', memoryMiB: MEMORY_MIB, labels: { team: 'one' } });
};

async function dropSnapshots(daemon: DaemonUnderTest): Promise<void> {
  for (const { id } of (await daemon.call('snapshot.list', {})).snapshots)
    await daemon.call('snapshot.remove', { snapshot: id, cascade: true });
}

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
  {
    verb: 'sandbox.set',
    sampledOn: ['gvisor'],
    changes: ['applyEvent'],
    prepare: create,
    act: set,
    async check(daemon, done) {
      const { labels, shape, pending } = await daemon.call('sandbox.get', { ref: 'it' });
      const isSet = (pending?.memoryMiB ?? shape.memoryMiB) === MEMORY_MIB;
      expect(labels, 'all of it, or nothing').toEqual(isSet ? { team: 'one' } : {});
      if (done) expect(isSet).toBe(true);
      await expectBegunOnce(daemon);
      await set(daemon);
      await daemon.call('sandbox.restart', { ref: 'it', graceMs: 1_000 });
      expect(await daemon.call('sandbox.get', { ref: 'it' })).toMatchObject({
        shape: { memoryMiB: MEMORY_MIB },
        labels: { team: 'one' },
        pending: null,
      });
      await works(daemon, 'it');
    },
  },
  {
    verb: 'snapshot.create',
    only: 'docker',
    changes: ['createSnapshot'],
    prepare: create,
    act: (daemon) => daemon.call('snapshot.create', { ref: 'it', diskOnly: true, name: 'kept' }),
    async check(daemon, done) {
      const { snapshots } = await daemon.call('snapshot.list', {});
      expect(snapshots.length).toBeLessThanOrEqual(1);
      if (done) expect(snapshots).toHaveLength(1);
      await expectBegunOnce(daemon);
      await dropSnapshots(daemon);
    },
  },
  {
    verb: 'sandbox.restore',
    only: 'docker',
    changes: ['applyEvent'],
    async prepare(daemon) {
      await create(daemon);
      await putFile(daemon, OLD);
      await daemon.call('snapshot.create', { ref: 'it', diskOnly: true, name: 'kept' });
      await putFile(daemon, NEW);
    },
    act: (daemon) => daemon.call('sandbox.restore', { ref: 'it', snapshot: 'kept' }),
    async check(daemon, done) {
      // What was ended for it goes on where it was to; until then nothing was touched.
      await eventually('it runs', async () => (await stateOf(daemon)) === 'running');
      expect(done ? [OLD] : [OLD, NEW]).toContain(await contentIn(daemon));
      await daemon.call('sandbox.restore', { ref: 'it', snapshot: 'kept' });
      expect(await contentIn(daemon)).toBe(OLD);
      await dropSnapshots(daemon);
    },
  },
  {
    verb: 'port.publish',
    sampledOn: ['gvisor', 'docker'],
    changes: ['reservePorts'],
    prepare: create,
    act: (daemon) => daemon.call('port.publish', { ref: 'it', guestPort: PORT_INSIDE }),
    async check(daemon, done) {
      const { published } = await daemon.call('port.list', { ref: 'it' });
      // Where nobody was told, it is there whole or not at all.
      expect(published.length).toBeLessThanOrEqual(1);
      if (done) expect(published).toHaveLength(1);
      for (const { guestPort } of published) await daemon.call('port.unpublish', { ref: 'it', guestPort });
      const { hostPort } = await daemon.call('port.publish', { ref: 'it', guestPort: PORT_INSIDE });
      // Nobody listens inside: who answers here resets the connection.
      const visit = async (): Promise<string | undefined> =>
        ((await once(connect({ host: '127.0.0.1', port: hostPort }), 'error')) as [NodeJS.ErrnoException])[0].code;
      expect(await visit()).toBe('ECONNRESET');
      await daemon.call('port.unpublish', { ref: 'it', hostPort });
      expect(await visit()).toBe('ECONNREFUSED');
      await expectBegunOnce(daemon);
    },
  },
  {
    verb: 'file.write',
    sampledOn: ['docker', 'gvisor'],
    changes: [],
    async prepare(daemon) {
      await create(daemon);
      await putFile(daemon, OLD);
    },
    act: (daemon) => putFile(daemon, NEW),
    async check(daemon, done) {
      // One of the two, whole, and nothing beside it.
      expect(done ? [NEW] : [OLD, NEW]).toContain(await contentIn(daemon));
      await putFile(daemon, NEW);
      expect(await contentIn(daemon)).toBe(NEW);
      await expectBegunOnce(daemon);
    },
  },
  {
    verb: 'archive.put',
    sampledOn: ['docker', 'gvisor'],
    changes: [],
    async prepare(daemon) {
      await create(daemon);
      await putTree(daemon, OLD);
    },
    act: (daemon) => putTree(daemon, NEW),
    async check(daemon, done) {
      // Each of them is one of the two.
      expect([...(done ? '' : OLD), NEW]).toEqual(expect.arrayContaining([...(await contentIn(daemon))]));
      await putTree(daemon, NEW);
      expect(await contentIn(daemon)).toBe(NEW);
      await expectBegunOnce(daemon);
    },
  },
];

const [OLD, NEW] = ['o', 'n'] as const;
type Letter = typeof OLD | typeof NEW;
const DIRECTORY = '/srv/put';
/** Long enough to be under way when the daemon dies. */
const FILE_BYTES = 8 * 1024 * 1024;
const TREE_FILES = 32;

/** As `hutch cp` of a file. */
async function putFile(daemon: DaemonUnderTest, letter: Letter): Promise<void> {
  const query = new URLSearchParams({ path: `${DIRECTORY}/file`, mkdirs: 'true' });
  await put(daemon, `files?${query}`, Buffer.alloc(FILE_BYTES, letter));
}

/** As `hutch cp` of a directory. */
async function putTree(daemon: DaemonUnderTest, letter: Letter): Promise<void> {
  const content = letter.repeat(FILE_BYTES / TREE_FILES);
  const members = Array.from({ length: TREE_FILES }, (_, at) => ({ path: `file-${at}`, content }));
  await put(daemon, `archive?${new URLSearchParams({ path: DIRECTORY, mkdirs: 'true' })}`, tar(...members));
}

async function put(daemon: DaemonUnderTest, where: string, body: Buffer): Promise<void> {
  const { status, body: said } = await daemon.send('PUT', `/v1/sandboxes/it/${where}`, { body });
  expect([status, status === 200 ? '' : String(said)]).toEqual([200, '']);
}

/** The letters of the files there, which have their whole size, and which nothing is beside. */
async function contentIn(daemon: DaemonUnderTest): Promise<string> {
  const { stdout } = await daemon.run('it', ['sh', '-c', `cd ${DIRECTORY}; ls -A; stat -c %s * | sort -u; cat * | tr -s on`]);
  const lines = stdout.trim().split('\n');
  const [size, letters = ''] = lines.slice(-2);
  expect(lines.slice(0, -2).filter((name) => !/^file(-\d+)?$/.test(name))).toEqual([]);
  expect([FILE_BYTES, FILE_BYTES / TREE_FILES].map(String)).toContain(size);
  return [...new Set(letters)].join('');
}

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

/** What tells a daemon its fault while it runs, and what it says of it. */
const armedBy = ({ home }: DaemonUnderTest): string => join(home, 'armed.json');
const reportBy = ({ home }: DaemonUnderTest): string => join(home, 'fault.json');

/** A daemon without a fault, until one is armed. */
export async function disarmed({ daemon, options }: World): Promise<void> {
  const [armed, report] = [armedBy(daemon), reportBy(daemon)];
  for (const path of [armed, report]) rmSync(path, { force: true });
  await daemon.startAgain(options({ HUTCH_TEST_ARMED: armed, HUTCH_TEST_FAULT_REPORT: report }));
}

/** The points of the operation's calls at which a death leaves something else than at the point before, and how long it takes. */
async function measured(world: World, one: Case): Promise<{ readonly calls: readonly Point[]; readonly tookMs: number }> {
  const { daemon } = world;
  await one.prepare(daemon);
  armWith(armedBy(daemon), { HUTCH_TEST_POINTS: one.verb });
  const since = performance.now();
  await one.act(daemon);
  const tookMs = performance.now() - since;
  await daemon.kill9();
  const faults = reportOf(daemon)?.split('\n') ?? []; // an exec makes no call where the way to the guest is open
  await fresh(world);
  return { calls: faults.map((fault) => ({ env: { HUTCH_TEST_FAULT: fault } })), tookMs };
}

/** A fault that is armed, or a moment: a share of the time that the operation takes. */
type Point = { readonly env: Readonly<Record<string, string>> } | { readonly moment: number };

/** The first such commit is the operation's: `prepare` comes before the fault is armed. */
function commitPoints(one: Case): Point[] {
  return one.changes.flatMap((change) => WHEN.map((when) => ({ env: { HUTCH_TEST_STORE_FAULT: `die-${when}:1:${change}` } })));
}

const moments: Point[] = Array.from({ length: MOMENTS }, (_, index) => ({ moment: (index + 0.5) / MOMENTS }));

/** The daemon dies at that fault of what is done after `prepare`, for certain; the next one is there. */
export async function diedAt(
  world: World,
  fault: Readonly<Record<string, string>>,
  { prepare, act }: { readonly prepare: () => Promise<unknown>; readonly act: () => Promise<unknown> },
): Promise<void> {
  const { daemon } = world;
  await fresh(world);
  await prepare();
  armWith(armedBy(daemon), fault);
  await expect(act()).rejects.toThrow();
  await daemon.kill9();
  expect(reportOf(daemon), 'it died of the fault').not.toBeNull();
}

/** Gives what was hit; null when the operation did not get there. */
async function strike(world: World, one: Case, point: Point, tookMs: number): Promise<string | null> {
  const { daemon } = world;
  await one.prepare(daemon);
  if ('env' in point) armWith(armedBy(daemon), point.env);
  const { pid } = daemon;
  const killing = 'moment' in point ? setTimeout(() => process.kill(pid, 'SIGKILL'), point.moment * tookMs) : undefined;
  const done = await one.act(daemon).then(
    () => true,
    () => false,
  );
  const hit = reportOf(daemon);
  clearTimeout(killing);
  await daemon.kill9(); // most points have killed it, or are about to
  await disarmed(world);
  try {
    await expectInOrder(daemon);
    await one.check(daemon, done);
    await daemon.deleteAll();
    await expectInOrder(daemon);
    expect(await daemon.processes()).toEqual([]);
    expect(await world.leftInEngine()).toEqual([]);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`after ${JSON.stringify(point)} (${hit}): ${why}\n${(await daemon.log()).slice(-4_000)}`, { cause });
  }
  return hit;
}

/** Every point, also after one that failed: a run of hours is to say all that it found. */
async function strikeAll(world: World, one: Case, points: readonly Point[], tookMs: number): Promise<void> {
  const failures: string[] = [];
  const piece = pieceOf(points);
  for (const [index, point] of piece.entries()) {
    const named = `${world.backend} ${one.verb} point ${points.indexOf(point) + 1} of ${points.length}`;
    try {
      const hit = await strike(world, one, point, tookMs);
      process.stdout.write(`${named} passed: ${JSON.stringify(point)} ${hit ?? ('env' in point ? 'not reached' : '')}\n`);
      await fresh(world); // what a daemon remembers is not asked again, and the calls would be others
    } catch (error) {
      failures.push(error instanceof Error ? error.message : String(error));
      process.stdout.write(`${named} failed: ${failures.at(-1)}\n`);
      if (failures.length === FAILURES_MAX) throw new Error(`${failures.length} of ${index + 1} points failed:\n${failures.join('\n')}`);
      await fresh(world);
    }
  }
  expect(failures, `of ${piece.length} points`).toEqual([]);
}

/** All, or those that HUTCH_TEST_PIECE=FROM-TO names: an hour of points can be run in pieces. */
function pieceOf(points: readonly Point[]): readonly Point[] {
  const [from = 1, to = points.length] = (process.env['HUTCH_TEST_PIECE'] ?? '').split('-').filter(Boolean).map(Number);
  return points.slice(from - 1, to);
}

/** A daemon without faults and without sandboxes, whatever was before. */
async function fresh(world: World): Promise<void> {
  await world.daemon.kill9(); // where it still lives
  await disarmed(world);
  await world.daemon.deleteAll();
  await dropSnapshots(world.daemon);
}

/** What was hit, if anything was. */
function reportOf(daemon: DaemonUnderTest): string | null {
  const report = reportBy(daemon);
  return existsSync(report) ? readFileSync(report, 'utf8').trim() : null;
}

/** A test for each operation. */
export function killedAtFaultPoints(world: World): void {
  for (const [index, one] of CASES.entries()) {
    const { sampledOn, only = world.backend } = one;
    if (only !== world.backend) continue;
    if (!isLong && sampledOn !== undefined && sampledOn[(seed + index) % sampledOn.length] !== world.backend) continue;
    test(`${one.verb}: the daemon is killed at ${isLong ? 'every' : 'a'} call and commit (seed ${seed})`, {
      timeout: isLong ? 7_200_000 : 300_000,
    }, async () => {
      await fresh(world); // of what a test that failed has left
      const { calls, tookMs } = await measured(world, one);
      const commits = commitPoints(one);
      if (isLong) return await strikeAll(world, one, [...calls, ...commits, ...moments], tookMs);
      const random = numbers(seed + index);
      const oneOf = (points: readonly Point[]): Point[] => points.slice(Math.floor(random.next().value * points.length)).slice(0, 1);
      const kinds = [oneOf(calls), oneOf(commits), oneOf(moments)].flat();
      // Another kind first from one run to the next.
      const turned = kinds.map((_, at) => kinds[(at + seed) % kinds.length]).filter((point) => point !== undefined);
      for (const point of turned.slice(0, SAMPLES)) await strike(world, one, point, tookMs);
    });
  }
}
