import fc from 'fast-check';
import { expect, test } from 'vitest';
import { encodeFrame, type Frame, FrameDecoder, FrameError, writeU32 } from './frames.ts';
import { preambleOf } from './preamble.ts';
import { FRAME, FRAME_BYTES_MAX, FRAME_OVERHEAD_BYTES, type FrameType, HEADER_BYTES, OUTPUT_FRAME_BYTES_MAX } from './protocol.ts';

const MARK = 0x8765_4321;

function decoder(times = 0, answer = new Uint8Array(16)): FrameDecoder {
  return new FrameDecoder({ mark: MARK, from: 'agent', repeated: { answer, times } });
}

/** Everything that comes of the chunks: frames, and the error that ended them. */
function decodeAll(chunks: readonly Uint8Array[], subject = decoder()): { frames: Frame[]; error: FrameError | null; held: number } {
  const frames: Frame[] = [];
  let held = 0;
  try {
    for (const chunk of chunks) {
      subject.push(chunk);
      for (let frame = subject.next(); frame !== null; frame = subject.next()) frames.push(frame);
      held = Math.max(held, subject.heldBytes);
    }
  } catch (error) {
    if (!(error instanceof FrameError)) throw error;
    return { frames, error, held };
  }
  return { frames, error: null, held };
}

/** Cuts bytes at the given places, which may be any numbers. */
function cut(bytes: Uint8Array, places: readonly number[]): Uint8Array[] {
  const sorted = [...new Set(places.map((place) => place % (bytes.byteLength + 1)))].sort((a, b) => a - b);
  const chunks: Uint8Array[] = [];
  let from = 0;
  for (const place of [...sorted, bytes.byteLength]) {
    chunks.push(bytes.subarray(from, place));
    from = place;
  }
  return chunks;
}

const anyFrame = fc.oneof(
  fc.record({
    type: fc.constant(FRAME.data),
    flag: fc.integer({ min: 0, max: 2 }),
    stream: fc.integer({ min: 1, max: 2 ** 32 - 1 }),
    payload: fc.uint8Array({ minLength: 1, maxLength: 300 }),
  }),
  fc.record({
    type: fc.constantFrom(FRAME.reply, FRAME.close),
    flag: fc.integer({ min: 0, max: 1 }),
    stream: fc.integer({ min: 1, max: 9 }),
    payload: fc.uint8Array({ minLength: 1, maxLength: 50 }),
  }),
  fc.record({
    type: fc.constant(FRAME.end),
    flag: fc.integer({ min: 0, max: 2 }),
    stream: fc.integer({ min: 1, max: 9 }),
    payload: fc.constant(new Uint8Array(0)),
  }),
  fc.record({
    type: fc.constantFrom(FRAME.ping, FRAME.pong),
    flag: fc.constant(0),
    stream: fc.constant(0),
    payload: fc.uint8Array({ minLength: 8, maxLength: 8 }),
  }),
);

test('frames come out as they went in, however the bytes are cut', () => {
  fc.assert(
    fc.property(fc.array(anyFrame, { maxLength: 12 }), fc.array(fc.nat(), { maxLength: 40 }), (frames, places) => {
      const bytes = Buffer.concat(frames.map((frame) => encodeFrame(MARK, frame.type, frame.flag, frame.stream, frame.payload)));
      const { frames: decoded, error } = decodeAll(cut(bytes, places));
      expect(error).toBeNull();
      expect(
        decoded.map((frame) => ({
          type: frame.type,
          flag: frame.flag,
          stream: frame.stream,
          payload: Buffer.from(frame.payload).toString('hex'),
        })),
      ).toEqual(
        frames.map((frame) => ({
          type: frame.type,
          flag: frame.flag,
          stream: frame.stream,
          payload: Buffer.from(frame.payload).toString('hex'),
        })),
      );
    }),
  );
});

test('any bytes decode to frames or one typed error, the same for every chunking, and hold at most one frame', () => {
  const mostlyFrames = fc.array(
    fc.oneof(
      { weight: 3, arbitrary: anyFrame.map((frame) => encodeFrame(MARK, frame.type, frame.flag, frame.stream, frame.payload)) },
      { weight: 1, arbitrary: fc.uint8Array({ maxLength: 40 }) },
    ),
    { maxLength: 8 },
  );
  fc.assert(
    fc.property(mostlyFrames, fc.array(fc.nat(), { maxLength: 30 }), (parts, places) => {
      const bytes = Buffer.concat(parts);
      const whole = decodeAll([bytes]);
      const pieces = decodeAll(cut(bytes, places));
      const single = decodeAll([...bytes].map((byte) => Uint8Array.of(byte)));
      for (const other of [pieces, single]) {
        expect(other.error?.message).toBe(whole.error?.message);
        expect(other.frames.map((frame) => Buffer.from(frame.payload).toString('hex'))).toEqual(
          whole.frames.map((frame) => Buffer.from(frame.payload).toString('hex')),
        );
        expect(other.held).toBeLessThanOrEqual(OUTPUT_FRAME_BYTES_MAX + FRAME_OVERHEAD_BYTES);
      }
    }),
  );
});

test('a frame that announces 4 GiB is refused at its header', () => {
  const header = encodeFrame(MARK, FRAME.data, 0, 1, Uint8Array.of(1)).subarray(0, HEADER_BYTES);
  header.fill(0xff, 0, 4);
  const { error, held } = decodeAll([header]);
  expect(error?.reason).toBe('too_long');
  expect(held).toBeLessThanOrEqual(HEADER_BYTES);
});

test('only data from the agent may be larger than other frames', () => {
  const announced = (from: 'agent' | 'host', type: FrameType, length: number) => {
    const header = encodeFrame(MARK, type, 0, 1, Uint8Array.of(1)).subarray(0, HEADER_BYTES);
    writeU32(header, 0, length);
    const frames = new FrameDecoder({ mark: MARK, from });
    frames.push(header);
    try {
      return frames.next();
    } catch (error) {
      return error instanceof FrameError ? error.reason : error;
    }
  };
  expect(announced('agent', FRAME.data, OUTPUT_FRAME_BYTES_MAX)).toBeNull();
  expect(announced('agent', FRAME.data, OUTPUT_FRAME_BYTES_MAX + 1)).toBe('too_long');
  expect(announced('agent', FRAME.event, FRAME_BYTES_MAX)).toBeNull();
  expect(announced('agent', FRAME.event, FRAME_BYTES_MAX + 1)).toBe('too_long');
  expect(announced('host', FRAME.data, FRAME_BYTES_MAX)).toBeNull();
  expect(announced('host', FRAME.data, FRAME_BYTES_MAX + 1)).toBe('too_long');
});

test.each([
  ['a wrong mark', (frame: Uint8Array) => frame.fill(0, frame.byteLength - 4), 'wrong_mark'],
  ['an unknown type', (frame: Uint8Array) => frame.fill(99, 4, 5), 'unknown_type'],
  ['a type that only the host may send', (frame: Uint8Array) => frame.fill(FRAME.open, 4, 5), 'unknown_type'],
  ['a channel that there is not', (frame: Uint8Array) => frame.fill(3, 5, 6), 'wrong_flag'],
  ['reserved bytes that are not zero', (frame: Uint8Array) => frame.fill(1, 7, 8), 'reserved'],
  ['data on stream 0', (frame: Uint8Array) => frame.fill(0, 8, 12), 'wrong_stream'],
  ['credit of three bytes', (frame: Uint8Array) => frame.fill(FRAME.credit, 4, 5), 'wrong_length'],
])('%s is refused, and nothing is decoded after it', (_, spoil, reason) => {
  const frame = encodeFrame(MARK, FRAME.data, 0, 7, Buffer.from('abc'));
  spoil(frame);
  const subject = decoder();
  expect(decodeAll([frame], subject).error?.reason).toBe(reason);
  subject.push(encodeFrame(MARK, FRAME.end, 0, 7));
  expect(() => subject.next()).toThrow(FrameError);
});

test('a repeated answer to the preamble is skipped between frames, as often as it was asked for', () => {
  const answer = preambleOf(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
  const frame = encodeFrame(MARK, FRAME.end, 0, 7);
  const bytes = Buffer.concat([answer, frame, answer, frame]);
  fc.assert(
    fc.property(fc.array(fc.nat(), { maxLength: 10 }), (places) => {
      expect(decodeAll(cut(bytes, places), decoder(2, answer)).frames).toHaveLength(2);
      expect(decodeAll(cut(bytes, places), decoder(1, answer))).toMatchObject({
        frames: [{ stream: 7 }],
        error: { reason: 'unknown_type' },
      });
    }),
  );
});

test('a payload stays as it was when the memory of its chunk is written over', () => {
  for (const length of [1, 100, 5_000, OUTPUT_FRAME_BYTES_MAX]) {
    const payload = Buffer.alloc(length, 7);
    const memory = encodeFrame(MARK, FRAME.data, 0, 1, payload);
    const { frames } = decodeAll([memory]);
    memory.fill(0);
    expect(Buffer.compare((frames[0] as Frame).payload, payload)).toBe(0);
  }
});
