// The disk is full in the middle of what writes a sandbox down or takes one up: it is refused for that reason, the sandbox is what it was, nothing
// of the try is left, and with room again it works. All that the daemon writes lies on that disk. Only root may mount a small one.
import { spawnSync } from 'node:child_process';
import { chmodSync, closeSync, existsSync, ftruncateSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { expectInOrder, filesOf, isLong, options, seed, shellOf } from './world.ts';

const TEST_MS = isLong ? 3_600_000 : 600_000;
const KIB = 1024;
/** What is left of the disk: from nothing to more than the whole needs. */
const LEFT_KIB = [0, 4, 64, 512, 2_048, 8_192, 24_576];
/** Of the short run: half of them go through, half are refused. */
const SAMPLE_KIB = { suspend: 24_576, resume: 8_192, restore: 2_048, snapshot: 512, fork: 64, from: 2_048 } as const;
const VERBS = ['suspend', 'resume', 'restore', 'snapshot', 'fork', 'from'] as const;

/** A kind of file system that a data directory may lie on; the one fails at the write, the other at the page. */
const isTmpfs = !isLong || seed % 2 === 0;
const DISK = '900M';

function command(...argv: readonly string[]): void {
  const [program = '', ...args] = argv;
  const { status, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${argv.join(' ')}: ${stderr}`);
}

describe.runIf(process.getuid?.() === 0)(`on a small ${isTmpfs ? 'tmpfs' : 'ext4'}`, () => {
  let daemon: DaemonUnderTest;
  const image = join(tmpdir(), `hutch-no-room-${process.pid}.img`);
  beforeAll(async () => {
    const own = { HUTCH_SANDBOX_BACKEND: 'qemu', HUTCH_SANDBOX_STOP_GRACE: '2s', HUTCH_SANDBOX_WARM: '0', HUTCH_LIMITS_FREE: 'off' };
    daemon = await DaemonUnderTest.start({
      ...options(own),
      before: async (path) => {
        if (isTmpfs) return command('mount', '-t', 'tmpfs', '-o', `size=${DISK},mode=711`, 'hutch-test', path);
        command('truncate', '-s', DISK, image);
        command('mkfs.ext4', '-q', '-m', '0', image);
        command('mount', '-o', 'loop', image, path);
        chmodSync(path, 0o711);
      },
    });
  });
  // Its template is made where there is room.
  beforeAll(async () => {
    await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  }, TEST_MS);
  afterAll(async () => {
    const { home } = daemon;
    await daemon.deleteAll();
    const { snapshots } = await daemon.call('snapshot.list', { all: true });
    for (const { id, depth } of snapshots) if (depth === 0) await daemon.call('snapshot.remove', { snapshot: id, cascade: true });
    await daemon.terminate();
    spawnSync('umount', ['-l', home]);
    rmSync(image, { force: true });
    await daemon[Symbol.asyncDispose]();
  });

  /** Leaves so much of the disk, until it is disposed. */
  function filled(leftBytes: number): Disposable {
    const path = join(daemon.home, 'filler');
    const file = openSync(path, 'w');
    let size = 0;
    for (const piece of [KIB * KIB, 4 * KIB]) {
      const bytes = Buffer.alloc(piece, 1);
      try {
        for (;;) size += writeSync(file, bytes);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
      }
    }
    ftruncateSync(file, Math.max(0, size - leftBytes));
    closeSync(file);
    return { [Symbol.dispose]: () => rmSync(path, { force: true }) };
  }

  const left = (kind: string): string[] => {
    const dir = join(daemon.home, 'data', kind);
    return existsSync(dir) ? readdirSync(dir) : [];
  };

  test('what has no room is refused and leaves all as it was', { timeout: TEST_MS }, async () => {
    const sh = shellOf(daemon);
    const { id } = await daemon.call('sandbox.get', { ref: 'web' });
    await sh('web', 'head -c 3000000 /dev/urandom > /dev/shm/a; sha256sum /dev/shm/a > /dev/shm/sum; echo disk > /root/a; sync');
    const ready = await daemon.call('snapshot.create', { ref: 'web', name: 'ready' });
    const act = {
      snapshot: () => daemon.call('snapshot.create', { ref: 'web', name: 'more' }),
      fork: () => daemon.call('sandbox.fork', { ref: 'web', namePrefix: 'kid' }),
      suspend: () => daemon.call('sandbox.suspend', { ref: 'web' }),
      resume: () => daemon.call('sandbox.resume', { ref: 'web' }),
      restore: () => daemon.call('sandbox.restore', { ref: 'web', snapshot: 'ready' }),
      from: () => daemon.call('sandbox.create', { from: 'ready', name: 'kid' }),
    };
    const stateOf = async (): Promise<string> => (await daemon.call('sandbox.get', { ref: 'web' })).state;
    const whole = async (where: string): Promise<void> =>
      expect(await sh('web', 'sha256sum -c /dev/shm/sum; cat /root/a'), where).toBe('/dev/shm/a: OK\ndisk\n');
    for (const [nth, verb] of (isLong ? LEFT_KIB.flatMap(() => [...VERBS]) : VERBS).entries()) {
      // Something that is not written down yet.
      await sh('web', 'head -c 2000000 /dev/urandom > /dev/shm/b; sync');
      if (verb === 'resume') await daemon.call('sandbox.suspend', { ref: 'web' });
      const before = await stateOf();
      const leftKiB = isLong ? (LEFT_KIB[Math.floor(nth / VERBS.length)] ?? 0) : SAMPLE_KIB[verb];
      let outcome = '';
      {
        using _full = filled(leftKiB * KIB);
        outcome = await act[verb]().then(
          () => 'done',
          (error: unknown) => (error instanceof ApiError ? `${error.code}: ${error.body.message}` : String(error)),
        );
      }
      const where = `${verb} with ${leftKiB} KiB: ${outcome}`;
      expect(outcome, where).toMatch(/^(done$|resource_exhausted: )/);
      if (outcome !== 'done') {
        const after = await stateOf();
        expect(after, where).toBe(before);
        if (after === 'running') await whole(where);
        for (const kind of ['forks']) expect(left(kind), where).toEqual([]);
        expect(left('snapshots'), where).toEqual([ready.id]);
        expect(
          (await daemon.call('sandbox.list', {})).sandboxes.map(({ name }) => name),
          where,
        ).toEqual(['web']);
        await act[verb]();
      }
      if (verb === 'suspend') await daemon.call('sandbox.resume', { ref: 'web' });
      await whole(where);
      for (const { name } of (await daemon.call('sandbox.list', {})).sandboxes)
        if (name !== 'web') await daemon.call('sandbox.delete', { ref: name, force: true });
      if (verb === 'snapshot') await daemon.call('snapshot.remove', { snapshot: 'more' });
      await eventually(`nothing else is left: ${where}`, () => filesOf(daemon, id).filter((name) => name !== 'vm').length === 0);
      await daemon.call('snapshot.verify', { snapshot: 'ready' });
      await expectInOrder(daemon);
    }
  });

  test.runIf(isLong)(
    'a template that has no room behind a first boot is given up whole, with the reason; the next start makes it',
    {
      timeout: TEST_MS,
    },
    async () => {
      const sh = shellOf(daemon);
      const made = () => left('templates').filter((name) => !/^\.(lock|used)-/.test(name));
      const before = made().toSorted();
      const failed = async (): Promise<readonly string[]> =>
        (await daemon.log()).split('\n').filter((line) => line.includes('could not be made; the next start'));
      // Of another size, so the first of its kind; it is another kind's turn half a second after it at the earliest.
      await daemon.call('sandbox.create', { name: 'first', network: 'none', memoryMiB: 384 });
      {
        using _full = filled(64 * KIB);
        await eventually('the template is given up', async () => (await failed()).length > 0, TEST_MS);
        expect((await failed())[0]).toMatch(/"no room is left in \S+ to make a template","code":"resource_exhausted"/);
        expect(made().toSorted(), 'the half one is gone').toEqual(before);
        expect(await sh('first', 'echo still here')).toBe('still here\n');
      }
      await daemon.call('sandbox.create', { name: 'second', network: 'none', memoryMiB: 384 });
      expect(await sh('second', 'echo here')).toBe('here\n');
      expect(made()).toHaveLength(before.length + 1);
      for (const ref of ['first', 'second']) await daemon.call('sandbox.delete', { ref, force: true });
      await expectInOrder(daemon);
    },
  );
});
