import fc from 'fast-check';
import { expect, test } from 'vitest';
import { modeWithoutAcl } from './acl.ts';

function acl(...entries: readonly [tag: number, rights: number, id?: number][]): Buffer {
  const bytes = Buffer.alloc(4 + 8 * entries.length, 0xff);
  bytes.writeUInt32LE(2, 0);
  for (const [at, [tag, rights]] of entries.entries()) {
    bytes.writeUInt16LE(tag, 4 + 8 * at);
    bytes.writeUInt16LE(rights, 6 + 8 * at);
  }
  return bytes;
}

test('a group has what its access list gives it, and not the mask that stands there', () => {
  // user::rwx user:1000:rwx group::r-- mask::rwx other::---, as setfacl -m u:1000:rwx makes it of a file of 0740
  expect(modeWithoutAcl(0o100770, acl([1, 7], [2, 7], [4, 4], [16, 7], [32, 0]))).toBe(0o100740);
  expect(modeWithoutAcl(0o4750, acl([1, 7], [4, 7], [16, 5], [32, 0]))).toBe(0o4750);
  expect(modeWithoutAcl(0o640, acl([1, 6], [4, 4], [32, 0]))).toBe(0o640); // no mask: the bits are the group's
  expect(modeWithoutAcl(0o640, undefined)).toBe(0o640);
});

test('whatever a list says, nobody has more rights than before', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 0o7777 }), fc.uint8Array({ maxLength: 80 }), fc.boolean(), (mode, bytes, isVersion) => {
      const list = Buffer.from(bytes);
      if (isVersion && list.byteLength >= 4) list.writeUInt32LE(2, 0);
      const found = modeWithoutAcl(mode, list);
      expect(found & ~mode).toBe(0);
      expect(found & ~0o070).toBe(mode & ~0o070);
    }),
  );
});
