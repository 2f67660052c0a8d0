import { expect, test } from 'vitest';
import { LABEL } from './config.ts';
import type { ImageAnswer } from './image.ts';
import { layerBytesLabel, layerBytesOf, layerHoldings } from './layer-bytes.ts';

const image = (layers: readonly string[], sizeBytes: number, label?: string): ImageAnswer => ({
  ...{ Id: `sha256:${'0'.repeat(64)}`, Architecture: 'amd64', Os: 'linux', Size: sizeBytes, RootFS: { Layers: [...layers] } },
  ...(label === undefined ? {} : { Config: { Labels: { [LABEL.layerBytes]: label } } }),
});

test('what each layer takes is known of one image after the other, also when those below have gone', () => {
  expect(layerBytesOf(image(['base'], 100), 1)).toEqual([]);
  const first = image(['base', 'a'], 110, layerBytesLabel({ sizeBytes: 100, layerBytes: [] }));
  expect(layerBytesOf(first, 1)).toEqual([10]);
  const second = image(['base', 'a', 'b'], 115, layerBytesLabel({ sizeBytes: 110, layerBytes: [10] }));
  expect(layerBytesOf(second, 1)).toEqual([10, 5]);
  // Nothing was written since: there is no layer more.
  expect(layerBytesOf(image(['base', 'a', 'b'], 115, layerBytesLabel({ sizeBytes: 115, layerBytes: [10, 5] })), 1)).toEqual([10, 5]);
  // Of an older version, or somebody else's.
  for (const label of [undefined, '', '1,x', '-5', '110', '110,1,2,3'])
    expect(layerBytesOf(image(['base', 'a', 'b'], 115, label), 1)).toBeNull();
});

test('a layer is the same where all below it are, in one Engine', () => {
  const held = (layers: readonly string[], below = ['base'], identity = 'one') =>
    layerHoldings({ layers: [...layers], image: { id: '', below, engine: { identity, address: '' }, layerBytes: [1, 2, 3] } })?.map(
      ({ what }) => what,
    ) ?? [];
  const [a, b] = held(['a', 'b']);
  expect(a).not.toBe(b);
  expect(held(['a', 'c'])[0]).toBe(a);
  expect(held(['b'])).not.toContain(b);
  expect([held(['a'], ['other']), held(['a'], ['base'], 'two')].flat()).not.toContain(a);
  expect(layerHoldings({ layers: ['a'], image: null })).toEqual([]);
  expect(layerHoldings({ layers: ['a'], image: { id: '', below: [], engine: { identity: '', address: '' } } })).toBeNull();
});
