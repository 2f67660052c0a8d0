import { expect, test } from 'vitest';
import { percentDone } from './percent.ts';

test('how far a build is, is told by the steps that have begun, of stages beside each other too', () => {
  const percent = percentDone(8);
  expect(percent({ type: 'step', stage: 'one' })).toBe(0); // its FROM
  expect(percent({ type: 'step', stage: 'one', number: 1 })).toBe(0);
  expect(percent({ type: 'output', stage: 'one' })).toBe(0);
  expect(percent({ type: 'step', stage: 'one', number: 3 })).toBe(25);
  expect(percent({ type: 'step', stage: 'two', number: 2 })).toBe(37);
  expect(percent({ type: 'note', stage: 'two' })).toBe(37);
  // Triggers of a base image are steps that nobody counted.
  expect(percent({ type: 'step', stage: 'two', number: 20 })).toBe(99);
  expect(percentDone(0)({ type: 'step', stage: 'one', number: 1 })).toBe(0);
});
