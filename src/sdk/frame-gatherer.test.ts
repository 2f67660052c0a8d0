// Whatever comes, in whatever pieces, into memory that is written over at once: the same bytes go out,
// and each frame in one.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { FrameGatherer } from './frame-gatherer.ts';

const PAYLOAD_BYTES_MAX = 70_000;
const HEAD = Buffer.from('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n');

function frame(payloadBytes: number, seed: number): Buffer {
  const head =
    payloadBytes < 126
      ? Buffer.from([0x82, payloadBytes])
      : payloadBytes < 65_536
        ? Buffer.from([0x82, 126, payloadBytes >> 8, payloadBytes & 0xff])
        : Buffer.from([0x82, 127, 0, 0, 0, 0, 0, payloadBytes >> 16, (payloadBytes >> 8) & 0xff, payloadBytes & 0xff]);
  return Buffer.concat([head, Buffer.alloc(payloadBytes, seed)]);
}

/** Through one memory, as a socket that reads in place does it; `sizes` are taken in turn. */
function gathered(bytes: Buffer, sizes: readonly number[]): Buffer[] {
  const out: Buffer[] = [];
  const gatherer = new FrameGatherer(PAYLOAD_BYTES_MAX, (piece) => out.push(piece));
  const memory = Buffer.alloc(65_536);
  for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
    const length = Math.min(sizes[turn % sizes.length] ?? 1, bytes.length - at);
    memory.set(bytes.subarray(at, at + length));
    gatherer.push(memory.subarray(0, length));
    memory.fill(0xee);
    at += length;
  }
  return out;
}

const payloads = fc.array(fc.oneof(fc.nat(300), fc.constantFrom(0, 125, 126, 65_535, 65_536, PAYLOAD_BYTES_MAX)), { maxLength: 6 });
const cuts = fc.array(fc.oneof(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 1, max: 65_536 })), { minLength: 1, maxLength: 5 });

test('frames of a WebSocket come out whole, however they are cut', () => {
  fc.assert(
    fc.property(payloads, cuts, (sizes, pieces) => {
      const parts = [HEAD, ...sizes.map((size, index) => frame(size, index))];
      const out = gathered(Buffer.concat(parts), pieces);
      expect(out.map((piece) => piece.length)).toEqual(parts.map((part) => part.length));
      expect(Buffer.concat(out).equals(Buffer.concat(parts))).toBe(true);
    }),
    { numRuns: 60 },
  );
});

test('what is no WebSocket, or a frame beyond the bound, passes through as it is, and nothing is gathered', () => {
  fc.assert(
    fc.property(cuts, fc.constantFrom('answer', 'frame'), (pieces, which) => {
      const refused = Buffer.from(`HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\n${'no '.repeat(30_000)}`);
      const tooLong = Buffer.concat([HEAD, frame(5, 1), Buffer.from([0x82, 127, 0, 0, 1, 0, 0, 0, 0, 0]), Buffer.alloc(90_000, 7)]);
      const bytes = which === 'answer' ? refused : tooLong;
      const out = gathered(bytes, pieces);
      expect(Buffer.concat(out).equals(bytes)).toBe(true);
    }),
    { numRuns: 60 },
  );
});
