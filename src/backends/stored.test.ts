import { expect, test } from 'vitest';
import { type Layer, wholeFile } from './stored.ts';

const layer = (number: number, hash: string | null): Layer => ({ number, id: '0'.repeat(32), pages: 1, bytes: 4096, hash });
const disk = (bytes: number, ...layers: Layer[]) => ({ bytes, layers, map: '0'.repeat(64) });

test('only what was written in one piece, for a moment, is a disk as it stands', () => {
  expect(wholeFile('/dir', disk(8192, layer(1, null)))).toBe('/dir/1');
  expect(wholeFile('/dir', disk(8192, layer(1, 'a'.repeat(16))))).toBeNull();
  expect(wholeFile('/dir', disk(8192, layer(1, null), layer(2, null)))).toBeNull();
  expect(wholeFile('/dir', disk(8193, layer(1, null)))).toBeNull();
  expect(wholeFile('/dir', disk(8192))).toBeNull();
});
