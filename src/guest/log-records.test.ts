import fc from 'fast-check';
import { expect, test } from 'vitest';
import { LogRecordError, LogRecords } from './log-records.ts';

function record(channel: number, wallMs: number, bytes: Uint8Array): Buffer {
  const header = Buffer.alloc(13);
  header.writeUInt8(channel, 0);
  header.writeBigUInt64LE(BigInt(wallMs), 1);
  header.writeUInt32LE(bytes.byteLength, 9);
  return Buffer.concat([header, bytes]);
}

test('records come out as they were written, however the bytes are cut', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 1, max: 2 }), fc.nat(), fc.uint8Array({ maxLength: 30 })), { maxLength: 8 }),
      fc.integer({ min: 1, max: 20 }),
      (written, size) => {
        const bytes = Buffer.concat(written.map(([channel, wallMs, content]) => record(channel, wallMs, content)));
        const records = new LogRecords(0);
        let end = 0;
        const boundaries = written.map(([, , content]) => (end += 13 + content.byteLength));
        const read = { stdout: '', stderr: '' };
        for (let at = 0; at < bytes.byteLength; at += size) {
          for (const piece of records.push(bytes.subarray(at, at + size))) {
            read[piece.channel] += Buffer.from(piece.bytes).toString('latin1');
            if (piece.nextOffset !== null) expect(boundaries).toContain(piece.nextOffset);
          }
        }
        const wanted = { stdout: '', stderr: '' };
        for (const [channel, , content] of written) wanted[channel === 1 ? 'stdout' : 'stderr'] += Buffer.from(content).toString('latin1');
        expect(read).toEqual(wanted);
      },
    ),
  );
});

test('a record that announces 4 GiB gives what there is and waits', () => {
  const header = record(1, 5, new Uint8Array(0));
  header.writeUInt32LE(0xffff_ffff, 9);
  expect([...new LogRecords(0).push(Buffer.concat([header, Buffer.from('ab')]))]).toMatchObject([{ channel: 'stdout', writtenAtMs: 5 }]);
});

test('bytes that are no log are refused', () => {
  expect(() => [...new LogRecords(0).push(Buffer.alloc(13, 7))]).toThrow(LogRecordError);
});
