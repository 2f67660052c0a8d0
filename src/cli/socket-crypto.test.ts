import { createHash as realHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { createHash, randomBytes, randomFillSync } from './socket-crypto.ts';

test("the handshake's digest is the one that servers give", () => {
  // RFC 6455, 1.3.
  const asked = 'dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
  expect(createHash('sha1').update(asked).digest('base64')).toBe('s3pPLMBiTxaQ9kYGzzhZRbK+xOo=');
  for (let length = 0; length < 200; length += 1) {
    const text = 'aé'.repeat(length).slice(0, length);
    expect(createHash('sha1').update(text).digest('hex')).toBe(realHash('sha1').update(text).digest('hex'));
  }
  expect(() => createHash('md5')).toThrow(/md5/);
});

test('random bytes fill what they are asked for, and nothing beside it', () => {
  expect(randomBytes(16).equals(randomBytes(16))).toBe(false);
  const into = Buffer.alloc(64);
  randomFillSync(into, 16, 32);
  expect(into.subarray(0, 16).equals(Buffer.alloc(16))).toBe(true);
  expect(into.subarray(48).equals(Buffer.alloc(16))).toBe(true);
  expect(into.subarray(16, 48).equals(Buffer.alloc(32))).toBe(false);
});
