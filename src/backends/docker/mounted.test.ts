import { expect, test } from 'vitest';
import { parseMounts, placeIn } from './mounted.ts';

const table = parseMounts(
  Buffer.from(
    [
      '21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw',
      '22 21 8:2 / /srv rw - ext4 /dev/sda2 rw',
      '23 22 8:3 /deep/down /srv/a\\040b rw - ext4 /dev/sda3 rw',
      '24 21 8:4 /over /srv rw - ext4 /dev/sda4 rw',
      '',
    ].join('\n'),
  ),
);

test.each([
  ['/', '8:1 /'],
  ['/home/me', '8:1 /home/me'],
  ['/srvx', '8:1 /srvx'],
  // The later one lies over the earlier one.
  ['/srv', '8:4 /over'],
  ['/srv/x', '8:4 /over/x'],
  ['/srv/a b', '8:3 /deep/down'],
  ['/srv/a b/c', '8:3 /deep/down/c'],
  ['/höme', `8:1 ${Buffer.from('/höme').toString('latin1')}`],
])('a path is found on the file system that it lies on: %s', (path, place) => {
  expect(placeIn(table, path)).toBe(place);
});

test('a path is found nowhere in an empty table', () => {
  expect(placeIn([], '/a')).toBeNull();
});
