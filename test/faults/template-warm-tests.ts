// Ready sandboxes of a template: nobody's until they are handed out, handed out once, whatever becomes of the daemon, and never of
// a template as it was. Of each backend that keeps any.
import { afterAll, expect, test } from 'vitest';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually as soon } from '../support/eventually.ts';
import { all, expectInOrder, expectNoLeaks, isLong, ledgerOf, numbers, options, seed, shellOf } from './world.ts';

const TEST_MS = isLong ? 3_600_000 : 300_000;
const IMAGE = 'debian';
/** A bound against what hangs, not for a busy machine. */
const eventually = (what: string, check: () => boolean | Promise<boolean>): Promise<void> => soon(what, check, 240_000);
/** Kills at moments of a hand-out and of a refill. */
const KILLS = isLong ? 30 : 2;
/** What a machine is to the host's list of processes. */
const MACHINE = { qemu: 'qemu', gvisor: ': runsc-sandbox ' } as const;
// Where the kernel shows them.
const UNLIKE =
  'cat /etc/machine-id /proc/sys/kernel/random/boot_id /sys/class/net/*/address 2>/dev/null; head -c 16 /dev/urandom | od -An -tx1';

export async function readySandboxesOfTemplates(backend: keyof typeof MACHINE): Promise<void> {
  const daemon = await DaemonUnderTest.start(
    options({ HUTCH_SANDBOX_BACKEND: backend, HUTCH_SANDBOX_STOP_GRACE: '2s', HUTCH_SANDBOX_WARM: '0' }),
  );
  afterAll(async () => {
    await daemon.deleteAll();
    for (const { id } of (await daemon.call('template.list', {})).templates)
      await daemon.call('template.remove', { template: id, force: true });
    await daemon[Symbol.asyncDispose]();
  });
  const sh = shellOf(daemon);

  async function build(version: string): Promise<void> {
    const start = ['sh', '-c', `echo ${version} > /dev/shm/version; exec sleep 987654`];
    const { id } = await daemon.call('template.build', { name: 'web', image: IMAGE, env: { COLOUR: 'blue' }, start });
    await eventually('the template is built', async () => (await daemon.call('build.get', { build: id })).state !== 'running');
    expect(await daemon.call('build.get', { build: id })).toMatchObject({ state: 'done', error: null });
  }

  const set = (min: number, max: number) => daemon.call('template.set', { template: 'web', warm: { min, max } });

  async function waitingIds(): Promise<string[]> {
    const { checks } = await daemon.call('doctor.check', {});
    const detail = checks.find(({ name }) => name === 'warm sandboxes')?.detail ?? '';
    return (/\((sbx[^)]*)\)/.exec(detail)?.[1] ?? '').split(', ').filter((id) => id !== '');
  }

  /** Their ids, once so many wait. */
  async function ready(count: number): Promise<string[]> {
    await eventually(`${count} sandboxes of the template wait`, async () => {
      const { warm } = await daemon.call('template.get', { template: 'web' });
      return warm.ready === count;
    });
    return await waitingIds();
  }

  test('ready sandboxes of a template are nobody’s until they are handed out, and then in all things their owner’s', {
    timeout: TEST_MS,
  }, async () => {
    await build('one');
    expect(await set(2, 3)).toMatchObject({ warm: { min: 2, max: 3 } });
    const waiting = await ready(2);
    expect(await daemon.call('template.get', { template: 'web' })).toMatchObject({
      warm: { min: 2, max: 3, ready: 2, why: null },
      usedBy: [],
    });
    expect(await all(daemon)).toEqual([]);
    for (const id of waiting) expect(await ledgerOf(daemon, id)).toEqual([]);
    await expectNoLeaks(daemon);
    await expect(daemon.call('template.set', { template: 'web', warm: { min: 3, max: 2 } })).rejects.toThrow(
      'min must not be more than max',
    );
    await expect(set(1, 1_000)).rejects.toThrow(/warm\.max.*64/);

    const made = await Promise.all(
      ['a', 'b'].map((name) =>
        daemon.call('sandbox.create', {
          template: 'web',
          name,
          env: { MINE: name },
          secrets: { HIDDEN: `h${name}` },
          labels: { for: name },
        }),
      ),
    );
    expect(made.map(({ id }) => id).toSorted()).toEqual(waiting.toSorted());
    for (const { id, name } of made) {
      expect(await ledgerOf(daemon, id)).toEqual(['vm.storage.start clone', 'vm.compute.start clone']);
      const seen = await sh(name, 'echo $(hostname) $COLOUR $MINE $HIDDEN $(cat /dev/shm/version)');
      expect(seen).toBe(`${name} blue ${name} h${name} one\n`);
      const { execs } = await daemon.call('exec.list', { ref: name });
      expect(execs.find(({ execId }) => execId === 'start')?.exit).toBeNull();
      expect(Math.abs(Number(await sh(name, 'date +%s%3N')) - Date.now())).toBeLessThan(5_000);
    }
    const [one, other] = await Promise.all(['a', 'b'].map((ref) => sh(ref, UNLIKE)));
    const lines = `${one}${other}`.split('\n').filter((line) => line !== '' && line !== '00:00:00:00:00:00');
    expect(new Set(lines).size).toBe(lines.length);
    // Two were asked for lately: as many wait again, none of them one that somebody has.
    const next = await ready(2);
    expect(next.filter((id) => waiting.includes(id))).toEqual([]);
    await daemon.deleteAll();
  });

  test('they wait for the next daemon, are handed out once, and one that was killed leaves nothing else', {
    timeout: TEST_MS,
  }, async () => {
    const before = await ready(2);
    await daemon.terminate();
    await daemon.startAgain();
    expect((await ready(2)).toSorted()).toEqual(before.toSorted());
    const random = numbers(seed);
    for (let kill = 0; kill < KILLS; kill += 1) {
      const waiting = await ready(2);
      const asked = ['x', 'y', 'z'].map((name) =>
        daemon.call('sandbox.create', { template: 'web', name: `${name}${kill}` }).catch(() => null),
      );
      await new Promise((resolve) => setTimeout(resolve, random.next().value * 600));
      await daemon.kill9();
      await Promise.all(asked);
      await daemon.startAgain();
      const there = await all(daemon);
      const left = await waitingIds();
      const ids = [...there.map(({ id }) => id), ...left];
      expect(new Set(ids).size, `kill ${kill}`).toBe(ids.length);
      expect(left.filter((id) => !waiting.includes(id)).length, 'only what was on record as ready waits on').toBeLessThanOrEqual(2);
      for (const { name } of there) expect(await sh(name, 'hostname; cat /dev/shm/version')).toBe(`${name}\none\n`);
      await expectInOrder(daemon);
      await daemon.deleteAll();
      await set(2, 2); // what was asked for lately counts no more
    }
  });

  test('a template that is built anew drains them, and none are kept where none are wanted', { timeout: TEST_MS }, async () => {
    const before = await ready(2);
    await build('two');
    const waiting = await ready(2);
    expect(waiting.filter((id) => before.includes(id))).toEqual([]);
    const { id } = await daemon.call('sandbox.create', { template: 'web', name: 'new' });
    expect(waiting).toContain(id);
    expect(await sh('new', 'cat /dev/shm/version')).toBe('two\n');
    // Another network is another kind: it is started, and they wait on.
    const [still] = await ready(2);
    expect((await daemon.call('sandbox.create', { template: 'web', name: 'cut', network: 'allow-lan' })).id).not.toBe(still);
    await set(0, 0);
    expect(await waitingIds()).toEqual([]);
    await daemon.deleteAll();
    const machines = async () => (await daemon.processes()).filter((line) => line.includes(MACHINE[backend])).length;
    await eventually('nothing of them is left', async () => (await machines()) === 0);
    await expectNoLeaks(daemon);
    // One that is being made for nobody does not keep it.
    await set(4, 4);
    await eventually('one is being made', async () => (await machines()) > 0);
    expect(await daemon.call('template.remove', { template: 'web' })).toMatchObject({ name: 'web' });
    await eventually('it goes too', async () => (await machines()) === 0);
    await expectNoLeaks(daemon);
  });
}
