import { encode } from '@msgpack/msgpack';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { decodeMessage, encodeMessage, MessageError } from './messagepack.ts';

test('any bytes decode to a value or a MessageError', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      try {
        decodeMessage(bytes);
      } catch (error) {
        expect(error).toBeInstanceOf(MessageError);
      }
    }),
    { numRuns: 2_000 },
  );
});

test('what is encoded comes back', () => {
  const value = fc.letrec((tie) => ({
    leaf: fc.oneof(
      fc.string(),
      fc.integer(),
      fc.boolean(),
      fc.constant(null),
      fc.double({ noNaN: true }).filter((value) => !Object.is(value, -0)),
      fc.uint8Array({ maxLength: 20 }),
    ),
    tree: fc.oneof(
      { depthSize: 'small', maxDepth: 5 },
      tie('leaf'),
      fc.array(tie('tree'), { maxLength: 5 }),
      fc.dictionary(
        fc.string().filter((key) => key !== '__proto__'),
        tie('tree'),
        { maxKeys: 5 },
      ),
    ),
  }));
  fc.assert(
    fc.property(value.tree, (tree) => {
      const same = (found: unknown, wanted: unknown): void => {
        if (typeof found === 'bigint') expect(found).toBe(BigInt(wanted as number));
        else if (Array.isArray(wanted)) for (const [index, entry] of wanted.entries()) same((found as unknown[])[index], entry);
        else if (wanted instanceof Uint8Array) expect(Buffer.from(found as Uint8Array)).toEqual(Buffer.from(wanted));
        else if (typeof wanted === 'object' && wanted !== null)
          for (const [key, entry] of Object.entries(wanted)) same((found as Record<string, unknown>)[key], entry);
        else expect(found).toEqual(wanted);
      };
      same(decodeMessage(encodeMessage(tree)), tree);
    }),
  );
});

test('nested arrays that announce thousands of entries are refused before anything is allocated', () => {
  const bomb = Buffer.concat(Array.from({ length: 20_000 }, () => Buffer.from([0xdc, 0x10, 0x00])));
  const before = process.memoryUsage().rss;
  expect(() => decodeMessage(bomb)).toThrow(MessageError);
  expect(process.memoryUsage().rss - before).toBeLessThan(64 * 1024 * 1024);
});

test.each([
  ['nothing', new Uint8Array(0)],
  ['a key that is a number', Buffer.from([0x81, 0x01, 0x02])],
  ['depth beyond 8', Buffer.from([0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0xc0])],
  ['an array of 65,537', encode(Array.from({ length: 65_537 }, () => 0))],
  ['an extension type', Buffer.from([0xd4, 0x01, 0x00])],
  ['a text that is not UTF-8', Buffer.from([0xa1, 0xff])],
  ['bytes after the message', Buffer.from([0xc0, 0xc0])],
  ['the key __proto__', encode(JSON.parse('{"__proto__": 1}'))],
  ['a string that is cut', Buffer.from([0xdb, 0xff, 0xff, 0xff, 0xff])],
])('%s is refused', (_, bytes) => {
  expect(() => decodeMessage(bytes)).toThrow(MessageError);
});

test('what the bounds allow is read', () => {
  expect(decodeMessage(encode(Array.from({ length: 65_536 }, () => 0)))).toHaveLength(65_536);
  expect(decodeMessage(encodeMessage('x'.repeat(131_072)))).toHaveLength(131_072);
});

test('what does not fit into a call, or is no Unicode, is not sent', () => {
  expect(() => encodeMessage({ text: 'x'.repeat(131_073) })).toThrow(MessageError);
  expect(() => encodeMessage(Array.from({ length: 42 }, () => 'x'.repeat(100_000)))).toThrow(MessageError);
  expect(() => encodeMessage({ path: '\ud800' })).toThrow(MessageError);
});
