// Sandboxes that are put away and taken up again: nothing of them is lost, whatever happens to daemon, machine and disk.
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { tar } from '../images/archives.ts';
import { readTree } from '../images/place.ts';
import { ApiError } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { atPoints } from './points.ts';
import {
  all,
  COUNTER,
  countOf,
  expectInOrder,
  filesOf,
  isAlive,
  isLong,
  ledgerOf,
  numbers,
  options,
  pidOf,
  seed,
  shellOf,
  startDaemon,
} from './world.ts';

const TEST_MS = isLong ? 3_600_000 : 120_000;
const CYCLES = isLong ? Number(process.env['HUTCH_TEST_CYCLES'] ?? 1_000) : 30;
const SAMPLES = 4;
/** Calls to the host that each makes, about. */
const CALLS = [
  ['sandbox.suspend', 45],
  ['sandbox.resume', 50],
] as const;
const OWN = { HUTCH_SANDBOX_BACKEND: 'qemu', HUTCH_SANDBOX_STOP_GRACE: '2s', HUTCH_SANDBOX_WARM: '0' };

const daemon = await startDaemon(OWN);
afterAll(() => daemon[Symbol.asyncDispose]());

const sh = shellOf(daemon);

const counted = (ref: string) => countOf(sh, ref);

test('a sandbox that is suspended has no process, outlives the daemon, and goes on as itself', { timeout: TEST_MS }, async () => {
  const made = await daemon.call('sandbox.create', {
    name: 'web',
    labels: { for: 'test' },
    env: { PLAIN: 'p' },
    secrets: { HIDDEN: 'h' },
    timeoutMs: 3_600_000,
    main: { argv: ['sh', '-c', COUNTER] },
  });
  const { id } = made;
  const look = 'cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; cat /sys/class/net/*/address; ip -o -4 addr show; ip route';
  const before = {
    self: await sh('web', look),
    count: await counted('web'),
    random: await sh('web', 'head -c 16 /dev/urandom | od -An -tx1'),
  };
  const open = await daemon.exec('web', { argv: ['sh', '-c', 'echo begun; cat > /dev/null'], stdin: 'open' }, { execId: 'open' });
  await open.sawOutput('begun');
  const vmm = pidOf(daemon, id, 'vmm');

  const suspended = await daemon.call('sandbox.suspend', { ref: 'web' });
  expect(suspended).toMatchObject({ state: 'suspended', openComputeSinceMs: null, labels: { for: 'test' } });
  expect(isAlive(vmm)).toBe(false);
  expect(existsSync(join(daemon.home, 'run/sandboxes', id))).toBe(false);
  await open.closed;
  expect(open.message('error')).toMatchObject({ error: { message: expect.stringContaining('was suspended') } });
  expect(await daemon.call('sandbox.suspend', { ref: 'web' })).toEqual(suspended);
  await expect(daemon.run('web', ['true'])).rejects.toThrow(/suspended/);
  expect((await daemon.call('why.get', { ref: 'web' })).sentence).toContain('its memory is on disk');

  await daemon.kill9();
  // Another boot of the host.
  await daemon.startAgain(options({ ...OWN, HUTCH_TEST_BOOT_ID: '6f1d2f6e-0000-4000-8000-000000000001' }));
  await expectInOrder(daemon);
  expect(await all(daemon)).toMatchObject([{ id, state: 'suspended' }]);
  await daemon.terminate();
  await daemon.startAgain(options(OWN));

  const wokenAt = Date.now();
  const woken = await daemon.call('sandbox.resume', { ref: 'web' });
  expect(woken).toMatchObject({ id, state: 'running', startCount: 1, labels: { for: 'test' } });
  expect(woken.deadlineAtMs).toBeGreaterThan(wokenAt + 3_000_000);
  const [asked, said] = [Date.now(), Number(await sh('web', 'date +%s%3N'))];
  expect(said).toBeGreaterThan(asked - 1_000);
  expect(said).toBeLessThan(Date.now() + 1_000);
  expect(await sh('web', look)).toBe(before.self);
  expect(await sh('web', 'echo $PLAIN $HIDDEN')).toBe('p h\n');
  expect(await sh('web', 'head -c 16 /dev/urandom | od -An -tx1')).not.toBe(before.random);
  const count = await counted('web');
  expect(count).toBeGreaterThanOrEqual(before.count);
  await eventually('it counts on', async () => (await counted('web')) > count);
  // A command that was open has not ended: whoever wants to follows it again.
  const again = await daemon.attach('web', 'open', { input: 'true' });
  await again.saw('attached').catch(() => {});
  expect((await daemon.call('exec.list', { ref: 'web' })).execs.find(({ execId }) => execId === 'open')).toMatchObject({ running: true });
  again.socket.terminate();
  expect(await ledgerOf(daemon, id)).toEqual([
    'vm.storage.start boot',
    'vm.compute.start boot',
    'vm.compute.stop hibernate',
    'vm.compute.start hibernate-wake',
  ]);
  expect(filesOf(daemon, id)).toEqual(['secrets.json', 'vm']);
  await expectInOrder(daemon);
  await daemon.deleteAll();
});

test('whatever can be done with a suspended sandbox', { timeout: TEST_MS }, async () => {
  const { id } = await daemon.call('sandbox.create', { name: 'away', network: 'none' });
  await sh('away', 'echo disk > /root/a; echo memory > /dev/shm/a; sync');
  await daemon.call('sandbox.pause', { ref: 'away' });
  await daemon.call('sandbox.suspend', { ref: 'away' });
  await daemon.call('sandbox.rename', { ref: 'away', name: 'gone' });
  expect((await daemon.call('sandbox.start', { ref: 'gone' })).state).toBe('running');
  expect(await sh('gone', 'cat /dev/shm/a; hostname')).toBe('memory\ngone\n');
  await daemon.call('sandbox.suspend', { ref: 'gone' });
  expect(await daemon.call('sandbox.stop', { ref: 'gone' })).toMatchObject({ state: 'stopped', ended: { cause: 'stopped' } });
  expect(filesOf(daemon, id)).toEqual(['vm']);
  await daemon.call('sandbox.start', { ref: 'gone' });
  // The disk is as after a power failure: what was synced is there.
  expect(await sh('gone', 'cat /root/a; ls /dev/shm')).toBe('disk\n');
  await daemon.call('sandbox.suspend', { ref: 'gone' });
  await expect(daemon.call('sandbox.delete', { ref: 'gone' }), 'its memory would be lost').rejects.toThrow(
    /is suspended.* only with force/,
  );
  expect((await daemon.call('sandbox.delete', { ref: 'gone', force: true })).state).toBe('deleted');
  expect(existsSync(join(daemon.home, 'data/sandboxes', id))).toBe(false);
  await expectInOrder(daemon);
});

/** What is written in a cycle, and what the guest's own check says of all that was. */
const WRITE =
  'n=$1; head -c 200000 /dev/urandom > /root/tree/$n; cp /root/tree/$n /dev/shm/tree/$n; (cd /root/tree && sha256sum $n) >> /dev/shm/sums';
const CHECK =
  'cd /root/tree && sha256sum --quiet -c /dev/shm/sums && cd /dev/shm/tree && sha256sum --quiet -c /dev/shm/sums && wc -l < /dev/shm/sums';

/** Both are looked at from outside, byte by byte: a program costs a machine that has just been restored more than all else here. */
const TREES = { disk: '/root/tree', memory: '/dev/shm/tree' } as const;
const FILE_BYTES = 20_000;
/** Written over from then on, with others. */
const FILES_MAX = 50;
const KINDS = ['suspended', 'paused', 'killed', 'killed in a suspend', 'killed in a resume', 'timed out'] as const;
/** In which a daemon is killed, a suspend or resume is under way for so long, at most. */
const MOMENTS_MS = 400;

test(`${CYCLES} random cycles lose nothing (seed ${seed})`, { timeout: isLong ? 3 * TEST_MS : 480_000 }, async () => {
  const random = numbers(seed);
  const said = {
    labels: { kept: 'yes' },
    timeoutMs: 3_600_000,
    idleMs: 3_000_000,
    idleAction: 'suspend',
    restart: 'on-failure',
    undo: 0,
  } as const;
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random.next().value * from.length)] as T;
  const state = async () => (await daemon.call('sandbox.get', { ref: 'tree' })).state;
  const wake = () => daemon.call(pick(['sandbox.resume', 'sandbox.start'] as const), { ref: 'tree' });
  const killedIn = async (under: () => Promise<unknown>): Promise<void> => {
    const asked = under().catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, random.next().value * MOMENTS_MS));
    await daemon.kill9();
    await asked;
    await daemon.startAgain();
  };
  await daemon.call('sandbox.create', { name: 'tree', network: 'none', env: { KEPT: 'yes' }, ...said });
  const written = new Map<string, Buffer>();
  const put = async (path: string, files: ReadonlyMap<string, Buffer>): Promise<void> => {
    const body = tar(...[...files].map(([name, content]) => ({ path: name, content })));
    const { status, body: answer } = await daemon.send(
      'PUT',
      `/v1/sandboxes/tree/archive?${new URLSearchParams({ path, mkdirs: 'true' })}`,
      { body },
    );
    expect([status, status === 200 ? '' : String(answer)]).toEqual([200, '']);
  };
  const write = async (cycle: number): Promise<void> => {
    const file = new Map([[String(cycle % FILES_MAX), randomBytes(FILE_BYTES)]]);
    for (const [name, content] of file) written.set(name, content);
    for (const path of Object.values(TREES)) await put(path, file);
  };
  const expectAll = async (when: string): Promise<void> => {
    for (const path of Object.values(TREES)) {
      const { status, body } = await daemon.send('GET', `/v1/sandboxes/tree/archive?${new URLSearchParams({ path })}`);
      expect(status, when).toBe(200);
      const found = [...(await readTree(body))].filter(([, { type }]) => type === 'file');
      expect(found.map(([name]) => basename(name)).sort(), when).toEqual([...written.keys()].sort());
      for (const [name, { content }] of found)
        expect(content.equals(written.get(basename(name)) ?? Buffer.alloc(0)), `${name} in ${path}, ${when}`).toBe(true);
    }
  };
  let starts = 1;
  await write(0);
  for (let cycle = 1; cycle <= CYCLES; cycle += 1) {
    const what = pick(KINDS);
    const where = `cycle ${cycle}, ${what}`;
    await expectAll(`before ${where}`);
    await write(cycle);
    if (what === 'timed out') {
      await sh('tree', 'sync');
      await daemon.call('sandbox.set', { ref: 'tree', timeoutMs: 1_000 });
      await eventually(`its time is up: ${where}`, async () => (await state()) === 'stopped', 60_000);
      await daemon.call('sandbox.set', { ref: 'tree', timeoutMs: said.timeoutMs });
      await daemon.call('sandbox.start', { ref: 'tree' });
      await put(TREES.memory, written); // the disk has all of it still
      starts += 1;
    } else {
      if (what === 'paused') await daemon.call('sandbox.pause', { ref: 'tree' });
      const suspend = () => daemon.call('sandbox.suspend', { ref: 'tree' });
      if (what === 'killed in a suspend') await killedIn(suspend);
      else await suspend();
      if (what === 'killed') await killedIn(async () => {});
      if (what === 'killed in a resume') await killedIn(wake);
      if ((await state()) !== 'running') await wake();
    }
    expect(await daemon.call('sandbox.get', { ref: 'tree' }), where).toMatchObject({ ...said, state: 'running', startCount: starts });
  }
  await expectAll('at the end');
  expect(await sh('tree', 'echo $KEPT')).toBe('yes\n');
  await expectInOrder(daemon);
  await daemon.deleteAll();
});

test(`the machine dies in the middle of a suspend, a fork or a snapshot (seed ${seed})`, { timeout: TEST_MS }, async () => {
  const random = numbers(seed + 3);
  for (let nth = 0; nth < (isLong ? 60 : 3); nth += 1) {
    const { id } = await daemon.call('sandbox.create', { name: 'dies', network: 'none' });
    await sh('dies', 'echo memory > /dev/shm/a');
    const verb = (['sandbox.suspend', 'sandbox.fork', 'snapshot.create'] as const)[nth % 3] ?? 'sandbox.fork';
    const vmm = pidOf(daemon, id, 'vmm');
    const afterMs = Math.floor(random.next().value * 80);
    const asked = daemon.call(verb, { ref: 'dies' }).then(
      () => 'done',
      (error: unknown) => (error instanceof ApiError ? error.code : `${error}`),
    );
    await new Promise((resolve) => setTimeout(resolve, afterMs));
    if (isAlive(vmm)) process.kill(vmm, 'SIGKILL');
    const outcome = await asked;
    const where = `${verb}, killed after ${afterMs} ms: ${outcome}`;
    // A sentence of ours, not a bug's.
    expect(['done', 'unavailable', 'failed_precondition', 'conflict', 'cancelled'], where).toContain(outcome);
    const state = async () => (await daemon.call('sandbox.get', { ref: id })).state;
    await eventually(`it is at rest: ${where}`, async () => ['stopped', 'suspended'].includes(await state()));
    if ((await state()) === 'suspended') {
      await daemon.call('sandbox.resume', { ref: id });
      expect(await sh(id, 'cat /dev/shm/a'), where).toBe('memory\n');
    }
    // What is on record is whole, and nothing else is there.
    const { snapshots } = await daemon.call('snapshot.list', { all: true });
    for (const snapshot of snapshots) {
      await daemon.call('snapshot.verify', { snapshot: snapshot.id });
      await daemon.call('snapshot.remove', { snapshot: snapshot.id });
    }
    for (const kind of ['forks', 'snapshots']) expect(directory(kind), where).toEqual([]);
    await expectInOrder(daemon);
    await daemon.deleteAll();
  }
});

function directory(kind: string): string[] {
  const dir = join(daemon.home, 'data', kind);
  return existsSync(dir) ? readdirSync(dir) : [];
}

test(`the daemon is killed, or the host fails, at ${isLong ? 'every' : 'some'} point of a suspend and of a resume (seed ${seed})`, {
  timeout: isLong ? 2 * TEST_MS : TEST_MS,
}, async () => {
  await daemon.call('sandbox.create', { name: 'tree', network: 'none' });
  await sh('tree', 'mkdir -p /root/tree /dev/shm/tree; : > /dev/shm/sums');
  let written = 0;
  const of = { verbs: CALLS, samples: SAMPLES, random: numbers(seed + 1) };
  await atPoints(daemon, OWN, of, async ({ verb, fault, strike }) => {
    written += 1;
    await daemon.run('tree', ['sh', '-c', WRITE, 'sh', String(written)]);
    if (verb === 'sandbox.resume') await daemon.call('sandbox.suspend', { ref: 'tree' });
    await strike(() => daemon.call(verb as 'sandbox.suspend' | 'sandbox.resume', { ref: 'tree' }));
    const { state } = await daemon.call('sandbox.get', { ref: 'tree' });
    expect(['running', 'suspended'], fault).toContain(state);
    if (state === 'suspended') await daemon.call('sandbox.resume', { ref: 'tree' });
    expect(await sh('tree', CHECK), fault).toBe(`${written}\n`);
    await expectInOrder(daemon);
  });
  await daemon.deleteAll();
});
