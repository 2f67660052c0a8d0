import fc from 'fast-check';
import { expect, test } from 'vitest';
import { parseIo, parseStat } from './proc.ts';

const TAIL = 'S 1 2 3 0 -1 4194560 1 2 3 4 70 30 0 0 20 0 1 0 4242 100 200 18446744073709551615';

test('state, start and processor time are read whatever the program is called', () => {
  fc.assert(
    fc.property(fc.string(), (name) => {
      expect(parseStat(`17 (${name}) ${TAIL}\n`)).toEqual({ state: 'S', startTicks: 4242, cpuUs: 1_000_000 });
    }),
  );
  expect(parseStat(`17 (a) R 9) ${TAIL}`)).toMatchObject({ state: 'S' });
});

test('what is not a stat line is nothing, never a wrong number', () => {
  fc.assert(
    fc.property(fc.string(), (text) => {
      const parsed = parseStat(text);
      expect(parsed === null || Number.isSafeInteger(parsed.startTicks)).toBe(true);
    }),
  );
  for (const text of ['', '17 (a) S', `17 (a) ${TAIL.replace('4242', 'x')}`]) expect(parseStat(text)).toBeNull();
});

test('what a process moved to and from disks is read, and anything else is nothing', () => {
  const io = 'rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 100\n';
  expect(parseIo(io)).toEqual({ readBytes: 4_096, writtenBytes: 8_192 });
  for (const text of ['', 'read_bytes: 1\n', 'read_bytes: x\nwrite_bytes: 1\n', 'write_bytes: -1\nread_bytes: 1\n'])
    expect(parseIo(text)).toBeNull();
});
