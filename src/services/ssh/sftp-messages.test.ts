import { Buffer } from 'node:buffer';
import fc from 'fast-check';
import type { SFTPWrapper } from 'ssh2';
import { expect, test } from 'vitest';
import { gatherMessages } from './sftp-messages.ts';

type Session = { push(data: Buffer | null): void; readonly _protocol: unknown };

function session(read: object = {}): { readonly session: Session; readonly given: (Buffer | null)[] } {
  const given: (Buffer | null)[] = [];
  const session: Session = { push: (data) => void given.push(data), _protocol: { _packetRW: { read } } };
  gatherMessages(session as unknown as SFTPWrapper);
  return { session, given };
}

function message(bytes: number, fill: number): Buffer {
  const whole = Buffer.alloc(4 + bytes, fill);
  whole.writeUInt32BE(bytes);
  return whole;
}

/** As decrypted: in memory of its own, with fields and padding around. */
function packet(data: Uint8Array): Buffer {
  const own = Buffer.allocUnsafeSlow(data.byteLength + 20);
  own.set(data, 10);
  return own.subarray(10, 10 + data.byteLength);
}

test('however a client’s messages are cut into packets, the library is given each of them whole', () => {
  const sizes = fc.array(fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 16_000, max: 40_000 })), { maxLength: 8 });
  fc.assert(
    fc.property(sizes, fc.array(fc.integer({ min: 1, max: 33_000 }), { minLength: 1, maxLength: 5 }), (lengths, cuts) => {
      const messages = lengths.map((length, nth) => message(length, nth));
      const all = Buffer.concat(messages);
      const { session: sftp, given } = session();
      for (let at = 0, nth = 0; at < all.byteLength; nth += 1) {
        const part = all.subarray(at, at + (cuts[nth % cuts.length] ?? 1));
        sftp.push(packet(part));
        at += part.byteLength;
      }
      sftp.push(null);
      expect(given).toEqual([...messages, null]);
    }),
    { numRuns: 50 },
  );
});

test('the memory of a large packet is let go of, and neither that of a small one nor an unpacker’s', () => {
  const all = message(40_000, 7);
  const { session: sftp, given } = session();
  const [large, small] = [packet(all.subarray(0, 32_000)), packet(all.subarray(32_000))];
  for (const part of [large, small]) sftp.push(part);
  expect(given).toEqual([all]);
  expect([large.byteLength, small.byteLength]).toEqual([0, all.byteLength - 32_000]);

  const unpacked = packet(all);
  session({ _zlib: {} }).session.push(unpacked);
  expect(unpacked).toEqual(all);
});

test('a length that nobody may send goes to the library as it came, which refuses it', () => {
  for (const length of [0, 256 * 1024 + 1, 0xffff_ffff]) {
    const { session: sftp, given } = session();
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(length);
    sftp.push(packet(bytes));
    expect(given).toEqual([bytes]);
  }
});
