import { PassThrough } from 'node:stream';
import { expect, test } from 'vitest';
import { chunksOf } from './chunks.ts';

const MIB = 2 ** 20;
const chunk = (value: number, bytes = 64 * 1024) => Buffer.alloc(bytes, value);

test('chunks come one by one in their order, as they were, to the end', async () => {
  const stream = new PassThrough({ highWaterMark: MIB });
  for (const value of [1, 2, 3]) stream.write(chunk(value));
  stream.end();
  const seen: Uint8Array[] = [];
  for await (const each of chunksOf(stream)) seen.push(each);
  expect(seen.map((each) => [each[0], each.byteLength])).toEqual([1, 2, 3].map((value) => [value, 64 * 1024]));
  expect(await chunksOf(stream).next(), 'of one that has ended').toMatchObject({ done: true });
});

test('no more is read than a bound while nobody takes it', async () => {
  let asked = 0;
  const stream = new PassThrough({ highWaterMark: 1 });
  stream._transform = (given, _encoding, done) => {
    asked += 1;
    done(null, given);
  };
  const chunks = chunksOf(stream);
  for (let i = 0; i < 64; i += 1) stream.write(chunk(i));
  await chunks.next();
  for (let i = 0; i < 10; i += 1) await new Promise((resolve) => setImmediate(resolve));
  expect(asked).toBeLessThan(16);
  stream.end();
  let left = 0;
  for await (const each of chunks) left += each.byteLength;
  expect(left).toBe(63 * 64 * 1024);
});

test('what breaks off says why, after what had come, and also to who looks too late', async () => {
  const stream = new PassThrough();
  const chunks = chunksOf(stream);
  stream.write(chunk(1));
  expect((await chunks.next()).value?.[0]).toBe(1);
  stream.destroy(new Error('broken'));
  await expect(chunks.next()).rejects.toThrow('broken');
  await expect(chunksOf(stream).next()).rejects.toThrow('broken');
  const closed = new PassThrough();
  const waiting = chunksOf(closed).next();
  closed.destroy();
  await expect(waiting).rejects.toThrow('before its end');
});

test('who leaves early leaves the stream open, paused, and heard by nobody', async () => {
  const stream = new PassThrough();
  stream.write(chunk(1));
  for await (const each of chunksOf(stream)) {
    expect(each[0]).toBe(1);
    break;
  }
  expect([stream.destroyed, stream.isPaused(), stream.listenerCount('data'), stream.listenerCount('error')]).toEqual([false, true, 0, 0]);
});
