// The daemon is killed at fault points: before and after the N-th call to the system of one operation.
// The next daemon must find a state that is right: the operation happened or it did not, the ledger
// agrees, and nothing is left over. Or the call fails, or never comes back: then the operation ends in time,
// and the daemon goes on as if it had not been asked. Sampled by the seed; `--long` tries every point.
import { existsSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { isLong, numbers, seed } from '../faults/world.ts';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

const POINTS_MAX = 400;
/** Deadlines of minutes end after this where a call hangs. */
const WAIT_MS_MAX = 3_000;
/** An operation has several steps, each with its deadline, and is undone. */
const ANSWER_MS_MAX = 35_000;

type Case = {
  readonly verb: string;
  /** With a daemon without fault. */
  prepare(daemon: DaemonUnderTest): Promise<string>;
  act(daemon: DaemonUnderTest, id: string): Promise<unknown>;
  /** After the restart; `done` when the operation was answered. */
  check(daemon: DaemonUnderTest, id: string, done: boolean): Promise<void>;
};

const running = async (daemon: DaemonUnderTest): Promise<string> => (await daemon.call('sandbox.create', { name: 'it' })).id;
const nobody = async (): Promise<string> => '';

async function works(daemon: DaemonUnderTest, ref: string): Promise<void> {
  expect((await daemon.run(ref, ['echo', 'works'])).stdout).toBe('works\n');
}

/** What fails or hangs is tried again after some seconds. */
const gone = (daemon: DaemonUnderTest, id: string) => daemon.until(id, 'deleted').catch(() => daemon.until(id, 'deleted'));

const CASES: readonly Case[] = [
  {
    verb: 'sandbox.create',
    prepare: nobody,
    act: (daemon) => daemon.call('sandbox.create', { name: 'it', secrets: { A: 'b' }, main: { argv: ['sleep', '1000'] } }),
    async check(daemon, _id, done) {
      const { sandboxes } = await daemon.call('sandbox.list', {});
      expect(sandboxes.length).toBeGreaterThanOrEqual(done ? 1 : 0);
      if (sandboxes.length === 0) await daemon.call('sandbox.create', { name: 'it' });
      expect((await daemon.call('sandbox.get', { ref: 'it' })).state).toBe('running');
      await works(daemon, 'it');
    },
  },
  {
    verb: 'sandbox.start',
    async prepare(daemon) {
      const id = await running(daemon);
      await daemon.call('sandbox.stop', { ref: id, force: true });
      return id;
    },
    act: (daemon, id) => daemon.call('sandbox.start', { ref: id }),
    async check(daemon, id, done) {
      const now = await daemon.call('sandbox.get', { ref: id });
      expect(now.state).toBe(done ? 'running' : now.openComputeSinceMs === null ? 'stopped' : 'running');
      await daemon.call('sandbox.start', { ref: id });
      await works(daemon, id);
    },
  },
  {
    verb: 'sandbox.stop',
    prepare: running,
    act: (daemon, id) => daemon.call('sandbox.stop', { ref: id, graceMs: 100 }),
    async check(daemon, id, done) {
      const now = await daemon.call('sandbox.get', { ref: id });
      if (done) expect(now.state).toBe('stopped');
      expect((await daemon.call('sandbox.stop', { ref: id })).state).toBe('stopped');
      await daemon.call('sandbox.start', { ref: id });
      await works(daemon, id);
    },
  },
  {
    verb: 'sandbox.delete',
    prepare: running,
    act: (daemon, id) => daemon.call('sandbox.delete', { ref: id, force: true }),
    async check(daemon, id, done) {
      const now = await daemon.call('sandbox.get', { ref: id });
      if (done) expect(now.state).toBe('deleted');
      // It runs on, or dies of what the failed call had begun.
      if (now.state === 'running')
        await works(daemon, id).catch(async () => expect((await daemon.until(id, 'stopped')).ended?.cause).toBe('stopped'));
      await daemon.call('sandbox.delete', { ref: id, force: true });
      await daemon.call('sandbox.create', { name: 'it' });
    },
  },
  {
    // One that removes itself, from the end of its main process on.
    verb: 'daemon.end',
    async prepare(daemon) {
      const argv = ['sh', '-c', 'until [ -e /tmp/go ]; do sleep 0.1; done'];
      return (await daemon.call('sandbox.create', { name: 'it', autoRemove: true, main: { argv } })).id;
    },
    async act(daemon, id) {
      await daemon.run(id, ['touch', '/tmp/go']);
      await gone(daemon, id);
    },
    async check(daemon, id) {
      await gone(daemon, id);
      // It is deleted first, and cleared away then; what fails is tried again.
      const dirs = ['data', 'run', 'log'].map((part) => `${daemon.home}/${part}/sandboxes/${id}`);
      await eventually('nothing of it is on the host', () => !dirs.some(existsSync));
      await daemon.call('sandbox.create', { name: 'it' });
    },
  },
  {
    verb: 'exec.start',
    prepare: running,
    act: async (daemon, id) => (await daemon.exec(id, { argv: ['sh', '-c', 'echo once >> /tmp/once'] }, { execId: 'once' })).exit(),
    async check(daemon, id) {
      await (await daemon.exec(id, { argv: ['sh', '-c', 'echo once >> /tmp/once'] }, { execId: 'once' })).exit();
      expect((await daemon.run(id, ['cat', '/tmp/once'])).stdout).toBe('once\n');
    },
  },
];

/** Whether the point was reached. */
async function strike(one: Case, action: 'die-before' | 'die-after' | 'fail' | 'hang', n: number): Promise<boolean> {
  await using daemon = await DaemonUnderTest.start();
  const id = await one.prepare(daemon);
  const report = `${daemon.home}/fault.json`;
  await daemon.terminate();
  const fault = { HUTCH_TEST_FAULT: `${action}:${n}:${one.verb}`, HUTCH_TEST_FAULT_REPORT: report };
  await daemon.startAgain({ env: action === 'hang' ? { ...fault, HUTCH_TEST_WAIT_MS_MAX: `${WAIT_MS_MAX}` } : fault });
  const done = await inTime(one.act(daemon, id), () => reportOf(report)).then(
    () => true,
    (error: unknown) => {
      if (!(error instanceof ApiError) && action === 'hang') throw error;
      if (error instanceof ApiError && action !== 'fail' && error.code === 'internal') throw error;
      return false;
    },
  );
  const hit = reportOf(report);
  const goesOn = action === 'fail' || action === 'hang';
  if (!goesOn || hit === null) {
    await daemon.kill9(); // it is dead, or about to be; or the fault lies in wait for a later call
    await daemon.startAgain({});
  }
  try {
    await one.check(daemon, id, done);
  } catch (error) {
    throw new Error(
      `after ${action} at call ${n} (${hit}): ${error instanceof Error ? error.message : String(error)}\n${(await daemon.log()).slice(-3_000)}`,
      { cause: error },
    );
  }
  return hit !== null;
}

async function inTime(answer: Promise<unknown>, hit: () => string | null): Promise<unknown> {
  const late = AbortSignal.timeout(ANSWER_MS_MAX);
  const lateness = new Promise((_resolve, reject) =>
    late.addEventListener('abort', () => reject(new Error(`no answer in ${ANSWER_MS_MAX} ms: ${hit()} hangs`)), { once: true }),
  );
  return await Promise.race([answer, lateness]);
}

function reportOf(path: string): string | null {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return null;
  }
}

const ACTIONS = ['die-before', 'die-after', 'fail', 'hang'] as const;

for (const [index, one] of CASES.entries()) {
  for (const [at, action] of ACTIONS.entries()) {
    // Half of them in each run, others from one run to the next: each starts three daemons.
    if (!isLong && (seed + index + at) % 2 === 1) continue;
    test(
      `${one.verb}: ${action} at ${isLong ? 'every' : 'some'} call (seed ${seed})`,
      async () => {
        if (isLong) {
          for (let n = 1; n < POINTS_MAX && (await strike(one, action, n)); n += 1);
          return;
        }
        // The early points are the densest; one beyond the end must change nothing.
        const random = numbers(seed + 4 * index + at);
        random.next(); // neighbours begin alike
        await strike(one, action, 1 + Math.floor(random.next().value ** 2 * 30));
      },
      isLong ? 1_800_000 : 180_000,
    );
  }
}
