// What is put away and taken up again on a bad day: a file of it is damaged, another release wrote it, its machine dies before it runs, somebody is
// in the middle of something, its time is over, the clock steps. It is refused with what is wrong, and whole again it goes on.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { afterAll, afterEach, expect, test } from 'vitest';
import { ApiError } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { steppingClock } from './clock.ts';
import { damaged, filesIn, removeAll, savedOf, snapshotOf } from './saved-files.ts';
import { type Step, traced, unsynced } from './syncs.ts';
import { expectInOrder, filesOf, isAlive, isLong, numbers, options, pidOf, seed, shellOf, startDaemon } from './world.ts';

const TEST_MS = isLong ? 1_800_000 : 240_000;
const OWN = { HUTCH_SANDBOX_BACKEND: 'qemu', HUTCH_SANDBOX_STOP_GRACE: '2s', HUTCH_SANDBOX_WARM: '0' };

const daemon = await startDaemon(OWN);
afterAll(() => daemon[Symbol.asyncDispose]());
afterEach(() => removeAll(daemon));

const sh = shellOf(daemon);
const stateOf = async (ref: string): Promise<string> => (await daemon.call('sandbox.get', { ref })).state;

test(`each file of a snapshot and of a suspended sandbox, with a bit flipped or cut, is refused, and whole again it goes on (seed ${seed})`, {
  timeout: TEST_MS,
}, async () => {
  const random = numbers(seed);
  const { id } = await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  await sh('web', 'echo one > /root/a; echo one > /dev/shm/a; sync');
  await daemon.call('snapshot.create', { ref: 'web', name: 'first' });
  await sh('web', 'echo two > /root/a; echo two > /dev/shm/a; sync');
  const { id: second } = await daemon.call('snapshot.create', { ref: 'web', name: 'second' });
  await daemon.call('sandbox.suspend', { ref: 'web' });
  const cases = [
    ...filesIn(snapshotOf(daemon, second)).map((path) => ({ path, use: () => daemon.call('snapshot.verify', { snapshot: 'second' }) })),
    ...filesIn(savedOf(daemon, id)).map((path) => ({ path, use: () => daemon.call('sandbox.resume', { ref: 'web' }) })),
  ];
  const kinds = cases.map(({ path }) =>
    path
      .slice(daemon.home.length)
      .replace(/snp\w+|sbx\w+/, 'it')
      .replace(/memory-\w+/, 'memory'),
  );
  // State of the devices, map, base and layers of the memory and of the disk: none of them was forgotten.
  for (const name of [
    'it/manifest.json',
    'it/state',
    'memory/map',
    'memory/base',
    'memory/1',
    'memory/2',
    'disk/map',
    'disk/1',
    'disk/2',
    'suspended/manifest.json',
  ])
    expect(
      kinds.filter((kind) => kind.endsWith(name)),
      name,
    ).not.toEqual([]);
  let refused = 0;
  for (const [nth, { path, use }] of cases.entries()) {
    for (const how of isLong ? (['flipped', 'cut'] as const) : [(['flipped', 'cut'] as const)[(nth + seed) % 2] ?? 'cut']) {
      using broken = damaged(path, how, random.next().value);
      if (broken === null) continue;
      await expect(use(), `${kinds[nth]} ${how}`).rejects.toThrow(/cannot be used/);
      refused += 1;
    }
  }
  expect(refused).toBeGreaterThan(cases.length * (isLong ? 1.5 : 0.5));
  expect(await stateOf('web')).toBe('suspended');
  await daemon.call('snapshot.verify', { snapshot: 'second' });
  await daemon.call('sandbox.resume', { ref: 'web' });
  expect(await sh('web', 'cat /root/a /dev/shm/a')).toBe('two\ntwo\n');
  await expectInOrder(daemon);
});

test('a snapshot is on the disk before it is on record, a suspended sandbox before its machine ends, and none of it goes too early', {
  timeout: TEST_MS,
}, async () => {
  const { id } = await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  // Another disk than that of the template's, which is saved beside it.
  await daemon.call('sandbox.restart', { ref: 'web' });
  await sh('web', 'echo disk > /root/a; echo memory > /dev/shm/a');
  const sandboxDir = join(daemon.home, 'data/sandboxes', id);
  const own = (path: string): boolean => basename(path) !== 'base'; // of the template, which was synced when it was made
  const record = join(daemon.home, 'data/hutch.db-wal');
  const isRecorded = (step: Step): boolean => step.what === 'synced' && step.path === record;

  const kept = await traced(daemon, [], () => daemon.call('snapshot.create', { ref: 'web', name: 'kept' }));
  const { id: snapshotId } = await daemon.call('snapshot.get', { snapshot: 'kept' });
  const snapshot = filesIn(snapshotOf(daemon, snapshotId)).filter(own);
  expect(snapshot.length).toBeGreaterThan(5);
  expect(unsynced(kept, kept.findLastIndex(isRecorded), snapshot, join(daemon.home, 'data/snapshots'))).toEqual([]);

  const vmm = pidOf(daemon, id, 'vmm');
  const suspended = await traced(daemon, [vmm], () => daemon.call('sandbox.suspend', { ref: 'web' }));
  const died = suspended.findIndex((step) => step.what === 'died' && step.pid === vmm);
  const saved = filesIn(savedOf(daemon, id)).filter(own);
  expect(saved.map((path) => basename(path))).toContain('scratch.img');
  expect(died).toBeGreaterThan(0);
  const links = new Map([[join(savedOf(daemon, id), 'scratch.img'), join(sandboxDir, 'vm/scratch.img')]]);
  const files = [...saved.map((path) => links.get(path) ?? path), join(sandboxDir, 'vm/disk.img')];
  expect(unsynced(suspended, died, files, sandboxDir).filter((path) => path !== `${sandboxDir}/vm/`)).toEqual([]);
  expect(suspended.findLastIndex(isRecorded)).toBeGreaterThan(died);

  const woken = await traced(daemon, [], async () => {
    await daemon.call('sandbox.resume', { ref: 'web' });
    await eventually('what it went on from is gone', () => !existsSync(savedOf(daemon, id)));
  });
  const discarded = woken.findIndex((step) => step.what === 'unnamed' && step.path.startsWith(`${sandboxDir}/woken/`));
  expect(discarded, JSON.stringify(woken)).toBeGreaterThan(woken.findIndex(isRecorded));
  expect(await sh('web', 'cat /root/a /dev/shm/a')).toBe('disk\nmemory\n');
  await expectInOrder(daemon);
});

test('what an older release wrote goes on, and what another format is says so', { timeout: TEST_MS }, async () => {
  const { id } = await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  await sh('web', 'echo memory > /dev/shm/a');
  const snapshot = await daemon.call('snapshot.create', { ref: 'web', name: 'ready' });
  await daemon.call('sandbox.suspend', { ref: 'web' });
  const paths = [snapshotOf(daemon, snapshot.id), savedOf(daemon, id)].map((dir) => join(dir, 'manifest.json'));
  const written = paths.map((path) => JSON.parse(readFileSync(path, 'utf8')) as Record<string, object>);
  const write = (change: (manifest: Record<string, object>) => object): void => {
    for (const [nth, path] of paths.entries()) writeFileSync(path, JSON.stringify(change(written[nth] ?? {})));
  };
  // The first release had no sum over it, and knew of no kernel and agent.
  const old = ({ sum: _sum, fingerprint = {}, ...rest }: Record<string, object>) => {
    const { kernel: _kernel, agent: _agent, ...known } = fingerprint as Record<string, unknown>;
    return { ...rest, fingerprint: known };
  };
  write((manifest) => ({ ...old(manifest), version: 2 }));
  const why = /cannot be used: another release of Hutch wrote it, in format 2; this one reads format 1/;
  await expect(daemon.call('snapshot.verify', { snapshot: 'ready' })).rejects.toThrow(why);
  await expect(daemon.call('sandbox.create', { from: 'ready', name: 'never' })).rejects.toThrow(why);
  await expect(daemon.call('sandbox.resume', { ref: 'web' })).rejects.toThrow(why);
  expect(await stateOf('web')).toBe('suspended');
  write(old);
  await daemon.call('snapshot.verify', { snapshot: 'ready' });
  await daemon.call('sandbox.create', { from: 'ready', name: 'child' });
  await daemon.call('sandbox.resume', { ref: 'web' });
  for (const ref of ['web', 'child']) expect(await sh(ref, 'cat /dev/shm/a')).toBe('memory\n');
  await expectInOrder(daemon);
});

/** Of a machine that is being started: as soon as it has a process, and so much later. */
async function killNext(isIt: (id: string) => boolean, afterMs: number, asked: Promise<unknown>): Promise<boolean> {
  const runs = join(daemon.home, 'run/sandboxes');
  let over = false;
  void asked.finally(() => {
    over = true;
  });
  for (;;) {
    const id = readdirSync(runs).find((name) => isIt(name) && existsSync(join(runs, name, 'shim.json')));
    if (id !== undefined) {
      await new Promise((resolve) => setTimeout(resolve, afterMs));
      try {
        const vmm = pidOf(daemon, id, 'vmm');
        if (!isAlive(vmm)) return false;
        process.kill(vmm, 'SIGKILL');
        return true;
      } catch {
        return false; // it was taken back, or not begun yet
      }
    }
    if (over) return false;
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

const VERBS = ['resume', 'restore', 'from', 'fork'] as const;

test(`a machine that dies before it runs costs nothing that was put away (seed ${seed})`, { timeout: TEST_MS }, async () => {
  const random = numbers(seed + 5);
  for (let nth = 0; nth < (isLong ? 60 : 4); nth += 1) {
    const verb = VERBS[nth % VERBS.length] ?? 'resume';
    const { id } = await daemon.call('sandbox.create', { name: 'web', network: 'none' });
    await sh('web', 'echo memory > /dev/shm/a; echo disk > /root/a; sync');
    await daemon.call('snapshot.create', { ref: 'web', name: 'ready' });
    if (verb === 'resume') await daemon.call('sandbox.suspend', { ref: 'web' });
    if (verb === 'restore') await daemon.call('sandbox.stop', { ref: 'web', force: true });
    const own = verb === 'resume' || verb === 'restore';
    const act = {
      resume: () => daemon.call('sandbox.resume', { ref: 'web' }),
      restore: () => daemon.call('sandbox.restore', { ref: 'web', snapshot: 'ready' }),
      from: () => daemon.call('sandbox.create', { from: 'ready', name: 'child' }),
      fork: () => daemon.call('sandbox.fork', { ref: 'web', namePrefix: 'child' }),
    };
    const asked = act[verb]().then(
      () => 'done',
      (error: unknown) => (error instanceof ApiError ? `${error.code}: ${error.body.message}` : String(error)),
    );
    const afterMs = Math.floor(random.next().value * 120);
    const killed = await killNext((name) => (name === id) === own, afterMs, asked);
    const outcome = await asked;
    const where = `${verb}, ${killed ? 'killed' : 'missed'} after ${afterMs} ms: ${outcome}`;
    expect(outcome, where).toMatch(/^(done|unavailable: |failed_precondition: |deadline_exceeded: )/);
    if (killed && verb === 'resume' && outcome !== 'done') {
      // Before it was let go on it stays what it was; after that it has crashed, with its disk.
      await eventually(`it is at rest: ${where}`, async () => ['suspended', 'stopped'].includes(await stateOf('web')));
      const before = await stateOf('web');
      await daemon.call('sandbox.start', { ref: 'web' });
      expect(await sh('web', 'cat /root/a'), where).toBe('disk\n');
      if (before === 'suspended') expect(await sh('web', 'cat /dev/shm/a'), where).toBe('memory\n');
    }
    if (verb === 'restore') {
      await eventually(`it runs or is stopped: ${where}`, async () => ['running', 'stopped'].includes(await stateOf('web')));
      await daemon.call('sandbox.restore', { ref: 'web', snapshot: 'ready' });
      expect(await sh('web', 'cat /root/a /dev/shm/a'), where).toBe('disk\nmemory\n');
    }
    if (!own) expect(await sh('web', 'cat /dev/shm/a'), where).toBe('memory\n');
    await daemon.call('snapshot.verify', { snapshot: 'ready' });
    await eventually(`nothing else is left: ${where}`, () => filesOf(daemon, id).every((name) => name === 'vm'));
    await daemon.deleteAll();
    await daemon.call('snapshot.remove', { snapshot: 'ready' });
    expect(readdirSync(join(daemon.home, 'data/snapshots')), where).toEqual([]);
    await expectInOrder(daemon);
  }
});

test('who sits at a terminal when it is suspended hears of it, and goes on at the same prompt', { timeout: TEST_MS }, async () => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  const shell = { argv: ['bash', '--norc'], env: { PS1: 'ready> ' }, terminal: { cols: 70, rows: 20 }, stdin: 'open' };
  const first = await daemon.exec('web', shell, { execId: 'tty' });
  await first.sawOutput('ready> ');
  first.input('kept=41; echo $((kept+1)); sleep 0; stty size\n');
  await first.sawOutput('20 70');
  await daemon.call('sandbox.suspend', { ref: 'web' });
  await first.closed;
  expect(first.message('error')).toMatchObject({
    error: { code: 'unavailable', message: expect.stringMatching(/web was suspended; the command goes on when it is resumed/) },
  });
  await expect((await daemon.attach('web', 'tty')).exit()).rejects.toThrow(/suspended/);
  await daemon.call('sandbox.resume', { ref: 'web' });
  const again = await daemon.attach('web', 'tty', { input: 'true' });
  again.input('echo still $kept; stty size; exit 7\n');
  await again.sawOutput('still 41');
  expect(await again.exit()).toMatchObject({ exitCode: 7 });
  expect(again.stdout.toString('utf8')).toContain('20 70');
  await expectInOrder(daemon);
});

test('a time limit that is over while a sandbox is suspended wakes and ends nobody, and begins anew', { timeout: TEST_MS }, async () => {
  const { id } = await daemon.call('sandbox.create', {
    name: 'web',
    network: 'none',
    timeoutMs: 3_600_000,
    main: { argv: ['sleep', '100000'] },
  });
  await sh('web', 'echo memory > /dev/shm/a');
  await daemon.call('sandbox.suspend', { ref: 'web' });
  // Over in the life of a daemon, and again while there is none.
  await daemon.call('sandbox.set', { ref: 'web', timeoutMs: 1_000 });
  await new Promise((resolve) => setTimeout(resolve, 1_300));
  expect(await stateOf('web')).toBe('suspended');
  await daemon.kill9();
  await daemon.startAgain(options(OWN));
  expect(await stateOf('web')).toBe('suspended');
  await daemon.call('sandbox.set', { ref: 'web', timeoutMs: 3_600_000 });
  const before = Date.now();
  const woken = await daemon.call('sandbox.resume', { ref: 'web' });
  expect(woken.deadlineAtMs).toBeGreaterThanOrEqual(before + 3_600_000);
  expect(await sh('web', 'cat /dev/shm/a')).toBe('memory\n');
  // And then it holds.
  await daemon.call('sandbox.set', { ref: 'web', timeoutMs: 1_000 });
  await eventually('its time is up', async () => (await stateOf('web')) === 'stopped', 60_000);
  expect((await daemon.call('sandbox.get', { ref: id })).ended).toMatchObject({ cause: 'timeout' });
  await expectInOrder(daemon);
});

test('the clock steps by hours, both ways, while one is suspended: nobody wakes or ends, and limits begin anew', {
  timeout: TEST_MS,
}, async () => {
  using clock = steppingClock();
  await daemon.terminate();
  await daemon.startAgain(options({ ...OWN, ...clock.env }));
  const [limited, endless] = [{ timeoutMs: 1_800_000 }, { main: { argv: ['sleep', '100000'] } }];
  await daemon.call('sandbox.create', { name: 'web', network: 'none', ...limited, ...endless });
  await daemon.call('sandbox.create', { name: 'runs', network: 'none', ...limited });
  await sh('web', 'echo memory > /dev/shm/a');
  await daemon.call('sandbox.suspend', { ref: 'web' });
  for (const seconds of [7_200, -3_600]) {
    clock.step(seconds);
    await new Promise((resolve) => setTimeout(resolve, 1_300)); // longer than anybody looks
    expect([await stateOf('web'), await stateOf('runs')], `by ${seconds} s`).toEqual(['suspended', 'running']);
    const nowMs = Date.now() + seconds * 1000;
    const woken = await daemon.call('sandbox.resume', { ref: 'web' });
    expect(woken.deadlineAtMs).toBeGreaterThanOrEqual(nowMs + limited.timeoutMs);
    expect(await sh('web', 'cat /dev/shm/a')).toBe('memory\n');
    expect(Math.abs(Number(await sh('web', 'date +%s%3N')) - Date.now() - seconds * 1000)).toBeLessThan(5_000);
    await daemon.call('sandbox.suspend', { ref: 'web' });
  }
  // A daemon that comes later has another clock, and the same one to wake.
  await daemon.kill9();
  await daemon.startAgain(options(OWN));
  expect(await stateOf('web')).toBe('suspended');
  // Who is put away for want of use is put away by no clock that steps.
  await daemon.kill9();
  await daemon.startAgain(options({ ...OWN, ...clock.env }));
  await daemon.call('sandbox.set', { ref: 'web', idleMs: 1_000, idleAction: 'suspend', timeoutMs: null });
  expect(await sh('web', 'cat /dev/shm/a')).toBe('memory\n');
  clock.step(-7_200);
  await eventually('nobody touches it', async () => (await stateOf('web')) === 'suspended', 60_000);
  expect(await sh('web', 'cat /dev/shm/a')).toBe('memory\n');
  await daemon.terminate();
  await daemon.startAgain(options(OWN));
  await daemon.call('sandbox.set', { ref: 'web', idleMs: 0 });
  await expectInOrder(daemon);
});
