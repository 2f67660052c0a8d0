import fc from 'fast-check';
import { expect, test } from 'vitest';
import { panicIn, startMark } from './panic.ts';

const start = new TextDecoder().decode(startMark(1_700_000_000_000));
const PANIC = `[    3.1] sysrq: Trigger a crash\r\n[    3.2] Kernel panic - not syncing: sysrq triggered crash\r\n[    3.2] CPU: 0 PID: 92 Comm: sh Not tainted\r\n[    3.3] Kernel Offset: disabled\r\n`;

test.each([
  ['a panic', `${start}${PANIC}`, 'sysrq triggered crash'],
  ['a panic in a log whose beginning is cut off', PANIC.slice(20), 'sysrq triggered crash'],
  ['the last of two', `${start}${PANIC}[    4.0] Kernel panic - not syncing: again\r\n`, 'again'],
  ['a panic of an earlier start', `${start}${PANIC}${start}[    9.0] clocksource: tsc\r\n`, null],
  ['a guest that says that it panics, and then turns itself off', `${start}${PANIC}[    9.0] reboot: Power down\r\n`, null],
  ['nothing at all', start, null],
  ['an empty log', '', null],
])('%s', (_name, console, panic) => {
  expect(panicIn(console)).toBe(panic);
});

test('whatever a console says, the reason is short and can be shown', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' }), (before, reason) => {
      const panic = panicIn(`${before}\nKernel panic - not syncing: ${reason}`);
      expect(panic ?? '').toMatch(/^[\x20-\x7e]{0,200}$/);
    }),
  );
});
