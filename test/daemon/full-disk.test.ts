// All that a daemon writes lies on one disk, as in most installations, and that gets full: what takes room is refused, and what gives
// room works. Only root may mount a small disk.
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';

let daemon: DaemonUnderTest | null = null;
let home = '';
beforeAll(async () => {
  if (process.getuid?.() !== 0) return;
  daemon = await DaemonUnderTest.start({
    env: { HUTCH_LIMITS_FREE: 'off' },
    before: async (path) => {
      const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=80m,mode=711', 'hutch-test', path]);
      if (mounted.status === 0) home = path;
    },
  });
});
afterAll(async () => {
  if (home !== '') spawnSync('umount', ['-l', home]);
  await daemon?.[Symbol.asyncDispose]();
});

/** To the last byte. */
function fill(path: string): void {
  const file = openSync(path, 'w');
  for (const size of [1024 * 1024, 4096, 1]) {
    try {
      for (;;) writeSync(file, Buffer.alloc(size, 1));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
    }
  }
  closeSync(file);
}

test('on a disk that is full to the last byte what gives room still works, and nothing ends the daemon', async (context) => {
  if (daemon === null || home === '') return context.skip('this user cannot mount a small disk');
  const filler = join(home, 'filler');
  for (const name of ['one', 'two']) await daemon.call('sandbox.create', { name, start: false });
  fill(filler);
  const refused = async (): Promise<string> => {
    const error = await daemon?.call('sandbox.create', { name: 'three', start: false }).catch((reason: unknown) => reason);
    return error instanceof ApiError ? error.code : 'it was made';
  };
  // Many, so that the log of the store and that of the daemon have no room left in what they have already.
  for (let round = 0; round < 200 && (await refused()) !== 'resource_exhausted'; round += 1) {
    await daemon.call('sandbox.delete', { ref: 'three' });
    fill(`${filler}-${round}`);
  }
  expect(await refused()).toBe('resource_exhausted');
  await daemon.call('sandbox.delete', { ref: 'one' });
  expect((await daemon.call('sandbox.list', {})).sandboxes.map(({ name }) => name)).toEqual(['two']);
  for (let round = -1; round < 200; round += 1) rmSync(round < 0 ? filler : `${filler}-${round}`, { force: true });
  await daemon.call('sandbox.create', { name: 'three', start: false });
  await daemon.deleteAll();
});
