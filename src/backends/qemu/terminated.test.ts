import fc from 'fast-check';
import { expect, test } from 'vitest';
import { terminationIn } from './terminated.ts';

const AT_MS = Date.parse('2026-11-23T02:49:55.723Z');
const WARNING = '2026-11-23T02:49:41.185731Z qemu-system-x86_64: warning: hub 0 is not connected to host network\n';
const ENDED = '2026-11-23T02:49:55.723171Z qemu-system-x86_64: terminating on signal 15 from pid 6075 (bash)\n';

test.each([
  ['a signal', `${WARNING}${ENDED}`, AT_MS - 1, 'signal 15 of pid 6075 (bash)'],
  ['a signal of an earlier start', `${ENDED}${WARNING}`, AT_MS + 1, null],
  ['a program of another name', ENDED.replace('bash', 'a (b)\u001b[2J'), AT_MS, 'signal 15 of pid 6075 (a (b)[2J)'],
  ['the words in the middle of a line', `x ${ENDED}`, AT_MS, null],
  ['nothing', WARNING, 0, null],
])('%s', (_name, log, sinceMs, said) => {
  expect(terminationIn(log, sinceMs)).toBe(said);
});

test('whatever a log says, the answer is short and can be shown', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' }), (before, program) => {
      const said = terminationIn(`${before}\n${ENDED.trim().replace('bash', () => program)}`, 0);
      expect(said ?? '').toMatch(/^[\x20-\x7e]{0,120}$/);
    }),
  );
});
