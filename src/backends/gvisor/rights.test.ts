import { expect, test } from 'vitest';
import { rangeIn } from './rights.ts';

test('a range of users is taken by name or number, and only one that is large enough', () => {
  const content = '# granted\nroot:1:70000\nann:200000:1000\nann:300000:65536\n1001:400000:70000\nbob:x:65536\n';
  expect(rangeIn(content, 'ann', 5)).toBe('300000:65535');
  expect(rangeIn(content, 'eve', 1001)).toBe('400000:65535');
  expect(rangeIn(content, 'bob', 7)).toBeNull();
  expect(rangeIn(content, 'nn', 100)).toBeNull();
  expect(rangeIn('', 'ann', 5)).toBeNull();
});
