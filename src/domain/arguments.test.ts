import { expect, test } from 'vitest';
import { ARGUMENT_BYTES_MAX, ARGUMENTS_BYTES_MAX, argumentsRefusal } from './arguments.ts';

test('what the kernel takes is not refused, up to the last byte', () => {
  expect(argumentsRefusal(['a'.repeat(ARGUMENT_BYTES_MAX)], { A: 'b'.repeat(ARGUMENT_BYTES_MAX - 2) })).toBeNull();
  const many = Array.from({ length: ARGUMENTS_BYTES_MAX / 24 }, () => 'fifteen letters');
  expect(argumentsRefusal(many, {})).toBeNull();
  expect(argumentsRefusal([...many, ''], {})).not.toBeNull();
});

test('the entry that is too large is named, in bytes, with what to do', () => {
  expect(argumentsRefusal(['ok', 'ü'.repeat(65_536)], {})).toEqual({
    path: ['argv', 1],
    message: 'has 131,072 bytes; at most 131,071 are possible: give it by stdin or as a file',
  });
  expect(argumentsRefusal([], { LONG: 'x'.repeat(ARGUMENT_BYTES_MAX) })?.path).toEqual(['env', 'LONG']);
});

test('of too much together the largest entry is named', () => {
  const refusal = argumentsRefusal([...Array.from({ length: 20 }, () => 'x'.repeat(100_000)), 'y'.repeat(100_001)], {});
  expect(refusal).toMatchObject({ path: ['argv', 20] });
  expect(refusal?.message).toContain('take 2,100,190 bytes together; at most 2,064,384 are possible');
});
