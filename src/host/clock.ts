// Time, randomness and the identity of this boot. Monotonic time is CLOCK_MONOTONIC, the same clock
// that the shim writes into exit.json, so that the two can be compared within one boot.
import { randomBytes as nodeRandomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Host } from './host.ts';

export function clock(): Pick<Host, 'nowMs' | 'monotonicMs' | 'bootId' | 'randomBytes'> {
  let known: string | undefined; // it cannot change while this process lives
  return {
    nowMs: () => Date.now(),
    monotonicMs: () => Number(process.hrtime.bigint() / 1_000n) / 1_000,
    bootId: () => {
      known ??= readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
      return known;
    },
    randomBytes: (count) => new Uint8Array(nodeRandomBytes(count)),
  };
}
