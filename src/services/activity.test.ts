import { expect, test } from 'vitest';
import { isBusy } from './activity.ts';

test('a sandbox works where it takes a tenth of a processor, or has traffic, whatever the time between two looks', () => {
  for (const seconds of [1, 15, 600]) {
    const before = { atMs: 5_000, cpuUs: 7_000_000, bytes: 1_000 };
    const after = (share: number, bytesPerSecond: number) => ({
      ...{ atMs: before.atMs + seconds * 1_000, cpuUs: before.cpuUs + seconds * 1_000_000 * share },
      bytes: before.bytes + seconds * bytesPerSecond,
    });
    expect(isBusy(before, after(0, 0))).toBe(false);
    expect(isBusy(before, after(0.02, 10))).toBe(false);
    expect(isBusy(before, after(0.11, 0))).toBe(true);
    expect(isBusy(before, after(0, 150))).toBe(true);
    expect(isBusy(before, after(4, 1e9))).toBe(true);
    // A counter that began anew says nothing.
    expect(isBusy(before, { ...after(0, 0), cpuUs: 0, bytes: 0 })).toBe(false);
  }
});
