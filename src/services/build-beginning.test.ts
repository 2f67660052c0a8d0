import { expect, test } from 'vitest';
import { layersToBeginWith } from './build-beginning.ts';

const MIB = 2 ** 20;
const of = (...sizesMiB: readonly number[]) => sizesMiB.map((size) => ({ sizeBytes: size * MIB }));

test('a stage begins with an image of its large layers, if they were there before', () => {
  expect(layersToBeginWith(of(100, 1, 30), 1, 3), 'little is unpacked').toBe(1);
  expect(layersToBeginWith(of(100, 300, 1, 4), 1, 4), 'what is small at the end is unpacked').toBe(2);
  expect(layersToBeginWith(of(100, 300, 1, 40), 1, 4)).toBe(4);
  expect(layersToBeginWith(of(100, 300, 40), 1, 2), 'what this build has made may be other with the next').toBe(2);
  expect(layersToBeginWith(of(100, 300), 1, 1)).toBe(1);
  expect(layersToBeginWith(of(100, ...Array.from({ length: 40 }, () => 1)), 1, 41), 'many that are small are as much').toBe(33);
  expect(layersToBeginWith([], 0, 0)).toBe(0);
});
