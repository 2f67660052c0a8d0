import { expect, test } from 'vitest';
import { wholePages } from './inside.ts';
import { giveBack, LARGE_BYTES_MAX, letGo, takeBuffer, takeToWrite, whenWritten, withByteBefore } from './large-buffers.ts';

test('a large buffer is handed out again only after it was given back, and once', () => {
  const first = takeBuffer(LARGE_BYTES_MAX);
  const second = takeBuffer(LARGE_BYTES_MAX - 1);
  expect(second.buffer).not.toBe(first.buffer);
  giveBack(first.subarray(0)); // another object: somebody may still have the whole
  const third = takeBuffer(LARGE_BYTES_MAX);
  expect(third.buffer).not.toBe(first.buffer);
  giveBack(first);
  giveBack(first);
  const [again, other] = [takeBuffer(LARGE_BYTES_MAX), takeBuffer(LARGE_BYTES_MAX)];
  expect(again.buffer).toBe(first.buffer);
  expect(other.buffer).not.toBe(first.buffer);
});

test.each([0, 1, 5_000, LARGE_BYTES_MAX / 2, LARGE_BYTES_MAX, LARGE_BYTES_MAX + 1])('a byte stands before %i bytes', (length) => {
  const bytes = takeBuffer(length);
  expect(bytes.byteLength).toBe(length);
  bytes.fill(7);
  const message = withByteBefore(2, bytes);
  expect(message.byteLength).toBe(1 + length);
  expect(Buffer.compare(message, Buffer.concat([Uint8Array.of(2), Buffer.alloc(length, 7)]))).toBe(0);
});

test('what is not from here is copied, and cannot be given back', () => {
  const bytes = Buffer.alloc(LARGE_BYTES_MAX, 1);
  const message = withByteBefore(1, bytes);
  expect(message.buffer).not.toBe(bytes.buffer);
  giveBack(bytes);
  expect(takeBuffer(LARGE_BYTES_MAX).buffer).not.toBe(bytes.buffer);
});

test('memory is let go of where all of it is these bytes’, and nowhere else', () => {
  const whole = new Uint8Array(1024);
  const part = new Uint8Array(1024).subarray(1);
  const pages = wholePages(8192);
  for (const bytes of [whole, part, pages]) letGo(bytes);
  expect([whole.byteLength, part.byteLength, pages.byteLength]).toEqual([0, 1023, 0]);
});

test('memory that is lent to whoever writes it is freed once, when that is said', () => {
  const bytes = takeToWrite(100_000);
  const part = bytes.subarray(99_000);
  const [free, again] = [whenWritten(part), whenWritten(bytes)];
  expect(bytes.byteLength).toBe(100_000);
  free?.();
  again?.();
  expect([bytes.byteLength, part.byteLength]).toEqual([0, 0]);
  expect(whenWritten(Buffer.allocUnsafeSlow(100_000))).toBeNull();
});
