// The wall clock steps while sandboxes run. The same on every backend.
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { expectInOrder, expectSoundLedger, type World, works } from './world.ts';

const FAKETIME = '/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1';

export type SteppingClock = Disposable & {
  /** For a daemon that is to have this clock. Its monotonic one is the machine's. */
  readonly env: Readonly<Record<string, string>>;
  /** It is so far from the machine's from now on, in seconds. */
  step(seconds: number): void;
};

export function steppingClock(): SteppingClock {
  expect(existsSync(FAKETIME), 'needs the package libfaketime').toBe(true);
  const dir = mkdtempSync(join(tmpdir(), 'hutch-clock-'));
  const path = join(dir, 'offset');
  const step = (seconds: number): void => writeFileSync(path, `${seconds < 0 ? '' : '+'}${seconds}`);
  step(0);
  return {
    env: {
      LD_PRELOAD: FAKETIME,
      FAKETIME_TIMESTAMP_FILE: path,
      FAKETIME_NO_CACHE: '1',
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
      DONT_FAKE_MONOTONIC: '1',
    },
    step,
    [Symbol.dispose]: () => rmSync(dir, { recursive: true }),
  };
}

export async function clockStepsBack({ daemon, options }: Pick<World, 'daemon' | 'options'>): Promise<void> {
  {
    using clock = steppingClock();
    const skewed = options(clock.env);
    await daemon.terminate();
    await daemon.startAgain(skewed);
    const made = await daemon.call('sandbox.create', { name: 'before', network: 'none' });
    const limited = await daemon.call('sandbox.create', { name: 'limited', network: 'none', timeoutMs: 10_000 });
    const lasting = await daemon.call('sandbox.create', { name: 'lasting', network: 'none', timeoutMs: 1_800_000 });
    clock.step(-3600);
    const after = await daemon.call('sandbox.create', { name: 'after', network: 'none' });
    expect(after.createdAtMs).toBeLessThan(made.createdAtMs); // the step was seen
    await works(daemon, 'before');
    const stopped = await daemon.call('sandbox.stop', { ref: 'before', force: true });
    expect(stopped.ended?.atMs).toBeGreaterThanOrEqual(made.createdAtMs);
    // The next daemon has the same limit to keep, and no more.
    await daemon.kill9();
    await daemon.startAgain(skewed);
    await eventually('its time is up', async () => (await daemon.call('sandbox.get', { ref: limited.id })).state === 'stopped', 60_000);
    expect((await daemon.call('sandbox.get', { ref: limited.id })).ended).toMatchObject({ cause: 'timeout' });
    expect((await daemon.call('sandbox.get', { ref: lasting.id })).state).toBe('running');
    await daemon.call('sandbox.start', { ref: 'before' });
    await daemon.call('sandbox.pause', { ref: 'before' });
    clock.step(-7200);
    await daemon.call('sandbox.resume', { ref: 'before' });
    await works(daemon, 'before');
    await expectInOrder(daemon);
    await daemon.deleteAll();
    await expectSoundLedger(daemon);
    for await (const line of daemon.lines('ledger.list', {})) {
      const { kind, atMs } = line as { kind: string; atMs: number };
      expect(atMs, kind).toBeGreaterThan(made.createdAtMs - 7_300_000);
      expect(atMs, kind).toBeLessThan(made.createdAtMs + 7_300_000);
    }
  }
  // At the right time the record goes on.
  await daemon.terminate();
  await daemon.startAgain(options());
  await expectInOrder(daemon);
}
