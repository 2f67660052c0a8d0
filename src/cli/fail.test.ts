import { expect, test } from 'vitest';
import { inFlags } from './fail.ts';

const FLAGS = ['memory', 'disk', 'cpus', 'device', 'timeout', 'from', 'size'].map((name) => ({ name }));

test('an error of the API names the flag that was typed, beside the field, where the verb has it', () => {
  const typed: readonly (readonly [string, string])[] = [
    ['memoryMiB is that of snapshot s: it cannot be chosen', '--memory (memoryMiB) is that of snapshot s: it cannot be chosen'],
    ['diskMiB must be at least 8192', '--disk (diskMiB) must be at least 8192'],
    ['cpus must be at most 64', '--cpus must be at most 64'],
    ['devices are that of snapshot s', '--device (devices) are that of snapshot s'],
    ['timeoutMs: Invalid input', '--timeout (timeoutMs): Invalid input'],
    ['pids must be at most 9', 'pids must be at most 9'],
    ['size matters', 'size matters'],
    ['there is no snapshot s', 'there is no snapshot s'],
    ['', ''],
  ];
  for (const [said, told] of typed) expect(inFlags(said, FLAGS)).toBe(told);
});
