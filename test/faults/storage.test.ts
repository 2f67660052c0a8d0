// The disk under a daemon with real machines is full, fails, or gives back something else than was
// written: what cannot be made leaves nothing, and what was damaged is refused and made anew.
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ApiError, type DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import {
  all,
  expectInOrder,
  expectNoLeaks,
  expectSoundLedger,
  isLong,
  numbers,
  options,
  pidOf,
  seed,
  startDaemon,
  works,
} from './world.ts';

const SAMPLES = 6;
const isRoot = process.getuid?.() === 0;

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await startDaemon();
});
afterAll(() => daemon[Symbol.asyncDispose]());

const refusal = (promise: Promise<unknown>): Promise<ApiError> =>
  promise.then(
    () => Promise.reject(new Error('it was not refused')),
    (error: unknown) => (error instanceof ApiError ? error : Promise.reject(error as Error)),
  );

function sh(...argv: readonly string[]): void {
  const [program = '', ...args] = argv;
  const { status, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${argv.join(' ')}: ${stderr}`);
}

/** A small file system over a directory of the daemon, for as long as it is not disposed. */
function small(dir: string, size: string): Disposable {
  const path = join(daemon.home, dir);
  sh('mount', '-t', 'tmpfs', '-o', `size=${size},mode=711`, 'hutch-test', path);
  return { [Symbol.dispose]: () => sh('umount', '-l', path) };
}

// Only root may mount; as a user the same is seen with calls that fail, below.
describe.runIf(isRoot)('with a full disk', () => {
  test.each(['data/sandboxes', 'run/sandboxes', 'log/sandboxes'])(
    'under %s: a creation is refused or works, and leaves nothing',
    async (dir) => {
      {
        using _full = small(dir, '4k');
        const made = await daemon.call('sandbox.create', { name: 'it' }).catch((error: unknown) => error);
        if (made instanceof ApiError) expect(made.code).toMatch(/^(resource_exhausted|unavailable)$/);
        else await daemon.call('sandbox.delete', { ref: 'it', force: true });
        expect(await all(daemon)).toEqual([]);
        expect(readdirSync(join(daemon.home, dir))).toEqual([]);
      }
      await daemon.call('sandbox.create', { name: 'it' });
      await expectInOrder(daemon);
      await daemon.deleteAll();
    },
  );

  test('a guest that writes more than the disk has room for hears of it, and stays reachable', { timeout: 180_000 }, async () => {
    {
      using _full = small('data/sandboxes', '24m');
      await using left = new AsyncDisposableStack();
      const { id } = await daemon.call('sandbox.create', { network: 'none' });
      left.defer(async () => void (await daemon.call('sandbox.delete', { ref: id, force: true })));
      const written = await daemon.run(id, ['sh', '-c', 'dd if=/dev/urandom of=/big bs=1M count=64 conv=fsync 2>&1']);
      // A file system that had an error of its disk may have made itself read-only before the program asks.
      expect([written.exitCode, written.stdout]).toEqual([
        1,
        expect.stringMatching(/Input\/output error|No space left|Read-only file system/),
      ]);
      await works(daemon, id);
    }
    await expectNoLeaks(daemon);
    await expectSoundLedger(daemon);
  });
});

test(`a creation whose disk gives EIO at ${isLong ? 'any' : 'some'} call fails and leaves nothing, or works (seed ${seed})`, {
  timeout: isLong ? 7_200_000 : 300_000,
}, async () => {
  const random = numbers(seed);
  // Whatever fails here, the tests after it have a daemon whose disk is well.
  await using well = new AsyncDisposableStack();
  well.defer(async () => {
    await daemon.terminate();
    await daemon.startAgain(options());
    await daemon.deleteAll();
  });
  const points = isLong
    ? Array.from({ length: 260 }, (_, index) => index + 1)
    : Array.from({ length: SAMPLES }, () => 1 + Math.floor(random.next().value * 200));
  for (const n of points) {
    const report = join(daemon.home, 'fault.json');
    await daemon.terminate();
    await daemon.startAgain(options({ HUTCH_TEST_FAULT: `fail:${n}:sandbox.create`, HUTCH_TEST_FAULT_REPORT: report }));
    const outcome = await daemon.call('sandbox.create', { name: 'it', main: { argv: ['sleep', '100000'] } }).then(
      () => 'made',
      (error: unknown) => (error instanceof ApiError ? 'refused' : Promise.reject(error as Error)),
    );
    const what = `call ${n}`;
    expect(
      (await all(daemon)).map(({ name }) => name),
      what,
    ).toEqual(outcome === 'made' ? ['it'] : []);
    await expectInOrder(daemon);
    await daemon.deleteAll();
    expect(await daemon.processes(), what).toEqual([]);
    if (!existsSync(report)) continue; // it makes fewer calls than that
    rmSync(report);
    await daemon.call('sandbox.create', { name: 'it' }); // its name is free, and what failed once works
    await works(daemon, 'it');
    await daemon.deleteAll();
  }
});

describe('a template that is not what was built is built again:', () => {
  const directory = () => {
    const dir = join(daemon.home, 'data/templates');
    const [key] = readdirSync(dir).filter((name) => /^[0-9a-f]{40}$/.test(name));
    return join(dir, key ?? 'none');
  };

  function flip(path: string): void {
    chmodSync(path, 0o600);
    const at = Math.floor(statSync(path).size / 2);
    const fd = openSync(path, 'r+');
    const byte = Buffer.alloc(1);
    readSync(fd, byte, 0, 1, at);
    writeSync(fd, Buffer.from([(byte[0] ?? 0) ^ 0x40]), 0, 1, at);
    closeSync(fd);
  }

  function halve(path: string): void {
    chmodSync(path, 0o600);
    truncateSync(path, Math.floor(statSync(path).size / 2));
  }

  const damages: readonly (readonly [string, () => void])[] = [
    ['a flipped bit in its memory', () => flip(join(directory(), 'memory'))],
    ['half of its memory', () => halve(join(directory(), 'memory'))],
    ['a flipped bit in its state', () => flip(join(directory(), 'state'))],
    ['half of its manifest', () => halve(join(directory(), 'manifest.json'))],
    ['no memory at all', () => rmSync(join(directory(), 'memory'))],
  ];
  // Each boots a machine anew: a short run takes two, chosen by the seed.
  const done = damages.filter((_damage, nth) => isLong || [0, 2].includes((nth + seed) % damages.length));

  test.each(done)('%s', { timeout: 180_000 }, async (_name, damage) => {
    const manifest = () => {
      const path = join(directory(), 'manifest.json');
      return existsSync(path) ? readFileSync(path, 'latin1') : null;
    };
    const before = manifest();
    damage();
    const { id } = await daemon.call('sandbox.create', {});
    await works(daemon, id);
    // Behind the sandbox, which booted without it.
    await eventually('it is built again', () => manifest() !== null && manifest() !== before);
    expect(await daemon.log()).toContain('template refused; it is built again');
    await daemon.deleteAll();
    await expectNoLeaks(daemon);
  });
});

test('a disk that is gone is told when its sandbox starts, and the sandbox can be deleted', async () => {
  const { id } = await daemon.call('sandbox.create', {});
  await daemon.call('sandbox.stop', { ref: id, force: true });
  rmSync(join(daemon.home, 'data/sandboxes', id, 'vm/disk.img'));
  expect((await refusal(daemon.call('sandbox.start', { ref: id }))).body).toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('disk'),
  });
  await daemon.call('sandbox.delete', { ref: id });
  await expectInOrder(daemon);
});

test('a machine that cannot write its state directory any more still ends honestly', { timeout: 180_000 }, async () => {
  const { id } = await daemon.call('sandbox.create', {});
  const vmm = pidOf(daemon, id, 'vmm');
  rmSync(join(daemon.home, 'run/sandboxes', id), { recursive: true, maxRetries: 5 }); // it may be writing there
  process.kill(vmm, 'SIGKILL');
  await eventually('it has ended', async () => (await daemon.call('sandbox.get', { ref: id })).state === 'stopped', 60_000);
  await daemon.call('sandbox.start', { ref: id });
  await works(daemon, id);
  await daemon.deleteAll();
  await expectNoLeaks(daemon);
});
