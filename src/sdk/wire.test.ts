// What travels, and what comes out of it, whatever the pieces.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { parseAddress } from './address.ts';
import { InputBuffer } from './input-buffer.ts';
import { jsonLines } from './lines.ts';
import { LogRecordReader } from './log-records.ts';
import { encodeRequest } from './request.ts';
import { backoffMs } from './retry.ts';
import { routes } from './routes.ts';

test('an input travels in the path, the query or the body, as its route says', () => {
  expect(encodeRequest(routes['sandbox.stop'], { ref: 'a/b', force: true })).toEqual({
    method: 'POST',
    path: '/v1/sandboxes/a%2Fb/stop',
    body: '{"force":true}',
  });
  expect(encodeRequest(routes['sandbox.list'], { label: ['a=1', 'b'], state: undefined })).toEqual({
    method: 'GET',
    path: '/v1/sandboxes?label=a%3D1&label=b',
    body: null,
  });
  expect(encodeRequest(routes['file.write'], { ref: 'x', path: '/a b', mode: 420 }).path).toBe(
    '/v1/sandboxes/x/files?path=%2Fa+b&mode=420',
  );
  expect(() => encodeRequest(routes['sandbox.get'], { ref: '' })).toThrow('ref');
});

test('lines come out whole, however they are cut, and a heartbeat is none', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.jsonValue()), fc.integer({ min: 1, max: 20 }), async (values, size) => {
      const bytes = Buffer.from(values.map((value) => `${JSON.stringify(value)}\n\n`).join(''));
      const seen: unknown[] = [];
      for await (const line of jsonLines(pieces(bytes, size))) seen.push(line);
      expect(JSON.stringify(seen)).toBe(JSON.stringify(values));
    }),
    { numRuns: 100 },
  );
});

async function* pieces(bytes: Buffer, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

test('log records come out with their channel and time, however they are cut', () => {
  const record = (channel: number, text: string): Buffer => {
    const head = Buffer.alloc(13);
    head.writeUInt8(channel, 0);
    head.writeBigUInt64LE(1_700_000_000_123n, 1);
    head.writeUInt32LE(text.length, 9);
    return Buffer.concat([head, Buffer.from(text)]);
  };
  const bytes = Buffer.concat([record(1, 'out'), record(2, ''), record(2, 'error'), record(1, 'again')]);
  const ends = [16, 29, 47, 65]; // of the records
  for (let size = 1; size <= bytes.length; size += 1) {
    const reader = new LogRecordReader();
    const text = { stdout: '', stderr: '' };
    for (let at = 0; at < bytes.length; at += size) {
      for (const piece of reader.push(bytes.subarray(at, at + size))) {
        expect(piece.wallMs).toBe(1_700_000_000_123);
        if (piece.last) expect(ends).toContain(reader.wholeBytes);
        text[piece.channel] += Buffer.from(piece.bytes).toString();
      }
    }
    expect(text).toEqual({ stdout: 'outagain', stderr: 'error' });
    expect(reader.wholeBytes).toBe(bytes.length);
  }
  expect(() => [...new LogRecordReader().push(Buffer.alloc(13, 9))]).toThrow('log records');
});

test('input that was not acknowledged is kept, byte for byte', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ minLength: 1, maxLength: 9 })), fc.array(fc.nat(60)), (chunks, acks) => {
      const buffer = new InputBuffer();
      buffer.startAt(1_000);
      for (const chunk of chunks) buffer.push(chunk);
      const all = Buffer.concat(chunks);
      let acked = 0;
      for (const ack of acks) {
        buffer.ack(1_000 + ack);
        acked = Math.max(acked, Math.min(ack, all.length));
        expect(Buffer.concat(buffer.unacked()).equals(all.subarray(acked))).toBe(true);
        expect(buffer.acked).toBe(1_000 + acked);
      }
    }),
  );
});

test('addresses are read as they are written', () => {
  expect(parseAddress('unix:/run/hutch/hutch.sock')).toEqual({ type: 'unix', path: '/run/hutch/hutch.sock' });
  expect(parseAddress('http://127.0.0.1')).toEqual({ type: 'tcp', host: '127.0.0.1', port: 4880, tls: false });
  expect(parseAddress('https://[::1]:9')).toEqual({ type: 'tcp', host: '::1', port: 9, tls: true });
  for (const text of ['', 'nonsense', 'ftp://x', 'http://x/path', 'http://u@x']) expect(() => parseAddress(text)).toThrow('no address');
});

test('retries wait longer and longer, up to a bound, and never all at once', () => {
  expect(backoffMs(1, 0)).toBe(10);
  expect(backoffMs(3, 0)).toBeLessThan(backoffMs(3, 0.999));
  expect(backoffMs(100, 0.999)).toBeLessThanOrEqual(1_000);
});
