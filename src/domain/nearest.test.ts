import { expect, test } from 'vitest';
import { nearest } from './nearest.ts';

const keys = ['memory', 'cpus', 'log_level', 'timeout', 'disk'];

test.each([
  ['memroy', 'memory'],
  ['memry', 'memory'],
  ['Memory', 'memory'],
  ['logLevel', 'log_level'],
  ['log-level', 'log_level'],
  ['cpu', 'cpus'],
  ['dsik', 'disk'],
  ['image', null],
  ['', null],
  ['x', null],
  ['m'.repeat(10_000), null],
])('%s was probably meant to be %s', (word, meant) => expect(nearest(word, keys)).toBe(meant));
