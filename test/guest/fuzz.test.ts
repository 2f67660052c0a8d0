// Fuzzing of everything that reads what a guest sends: frames, MessagePack, and each schema. It runs
// for HUTCH_TEST_FUZZ_SECONDS (2 unless set); the seed is printed, and HUTCH_TEST_SEED replays it.
import { encode } from '@msgpack/msgpack';
import { expect, test } from 'vitest';
import { z } from 'zod';
import { readFailure } from '../../src/guest/failure.ts';
import { encodeFrame, FrameDecoder, FrameError } from '../../src/guest/frames.ts';
import { Inbox } from '../../src/guest/inbox.ts';
import { LogRecordError, LogRecords } from '../../src/guest/log-records.ts';
import { decodeMessage, MessageError } from '../../src/guest/messagepack.ts';
import * as messages from '../../src/guest/messages.ts';
import { AnswerFinder } from '../../src/guest/preamble.ts';
import { FRAME, FRAME_BYTES_MAX, FRAME_OVERHEAD_BYTES, OUTPUT_FRAME_BYTES_MAX } from '../../src/guest/protocol.ts';
import { seeded } from './support.ts';

const seconds = Number(process.env['HUTCH_TEST_FUZZ_SECONDS'] ?? 2);
const seed = Number(process.env['HUTCH_TEST_SEED'] ?? Date.now() % 2 ** 31);
const MARK = 0x0102_0304;

const schemas = Object.entries<unknown>(messages).flatMap(([, value]) => (value instanceof z.ZodType ? [value] : []));

type Random = { below(count: number): number; bytes(count: number): Buffer; pick<T>(from: readonly T[]): T | undefined };

function randomOf(seed: number): Random {
  const next = seeded(seed);
  const below = (count: number) => Math.floor(next() * count);
  return {
    below,
    bytes: (count) => Buffer.from(Array.from({ length: count }, () => below(256))),
    pick: (from) => from[below(from.length)],
  };
}

const NUMBERS = [
  0,
  1,
  -1,
  2 ** 31,
  2 ** 53,
  -(2 ** 53),
  2n ** 63n,
  -(2n ** 62n),
  2n ** 64n - 1n,
  0.5,
  Number.NaN,
  Number.POSITIVE_INFINITY,
];
const KEYS = [
  'e',
  'code',
  'message',
  'errno',
  'pid',
  'entries',
  'processes',
  'ports',
  'path',
  'name',
  'type',
  'signal',
  'exit',
  'size',
  'inode',
  'mtimeMs',
  'cpu',
  'constructor',
  'toString',
];
const TEXTS = ['', 'x', 'exited', 'file', 'oom', 'ENOENT', '\u0000\u001b', 'é'.repeat(300), 'x'.repeat(5_000)];

/** A value as an agent, or something that pretends to be one, might send it. */
function anyValue(random: Random, depth: number): unknown {
  switch (random.below(depth > 0 ? 8 : 6)) {
    case 0:
      return random.pick(NUMBERS);
    case 1:
      return random.below(1_000);
    case 2:
      return random.pick(TEXTS);
    case 3:
      return random.bytes(random.below(20));
    case 4:
      return random.pick([true, false, null]);
    case 5:
      return random.pick(KEYS);
    case 6:
      return Array.from({ length: random.below(4) }, () => anyValue(random, depth - 1));
    default:
      return Object.fromEntries(Array.from({ length: random.below(12) }, () => [random.pick(KEYS), anyValue(random, depth - 1)]));
  }
}

/** Bytes that are mostly frames, sometimes spoilt. */
function anyWire(random: Random): Buffer {
  const parts = Array.from({ length: random.below(6) }, () => {
    const type = random.pick(Object.values(FRAME)) ?? FRAME.data;
    const lengthMax = type === FRAME.data ? OUTPUT_FRAME_BYTES_MAX : FRAME_BYTES_MAX;
    const length = random.pick([0, 4, 8, 1, random.below(300), FRAME_BYTES_MAX, lengthMax]) ?? 0;
    const frame = encodeFrame(
      random.below(20) === 0 ? 7 : MARK,
      type,
      random.below(4),
      random.below(3),
      Buffer.alloc(length, random.below(256)),
    );
    for (let spoilt = random.below(20) === 0 ? 3 : 0; spoilt > 0; spoilt -= 1) frame[random.below(frame.byteLength)] = random.below(256);
    return frame;
  });
  if (random.below(8) === 0) parts.push(random.bytes(random.below(60)) as Buffer<ArrayBuffer>);
  return Buffer.concat(parts);
}

function fuzzFrames(random: Random): void {
  const wire = anyWire(random);
  const decoder = new FrameDecoder({ mark: MARK, from: random.pick(['agent', 'host'] as const) ?? 'agent' });
  const finder = new AnswerFinder(random.bytes(8));
  const inbox = new Inbox({ bytes: 0 });
  try {
    for (let at = 0; at < wire.byteLength; ) {
      const chunk = wire.subarray(at, at + 1 + random.below(random.pick([2, 50, 70_000]) ?? 1));
      at += chunk.byteLength;
      finder.push(chunk);
      decoder.push(chunk);
      for (let frame = decoder.next(); frame !== null; frame = decoder.next()) {
        expect(frame.payload.byteLength).toBe(frame.length);
        if (frame.type === FRAME.data) inbox.data(frame.flag, frame.length, [frame.payload], false);
        if (frame.type === FRAME.end) inbox.end(frame.flag);
      }
      expect(decoder.heldBytes).toBeLessThanOrEqual(OUTPUT_FRAME_BYTES_MAX + FRAME_OVERHEAD_BYTES);
    }
  } catch (error) {
    if (!(error instanceof FrameError)) throw error;
  }
  while (inbox.take() !== null);
}

function fuzzMessages(random: Random): void {
  let bytes: Uint8Array;
  try {
    bytes = random.below(3) === 0 ? random.bytes(random.below(64)) : encode(anyValue(random, 4), { useBigInt64: true });
  } catch {
    return; // a number that MessagePack has not
  }
  let value: unknown;
  try {
    value = decodeMessage(bytes);
  } catch (error) {
    if (!(error instanceof MessageError)) throw error;
    return;
  }
  for (const schema of schemas) schema.safeParse(value);
  try {
    readFailure(bytes);
  } catch (error) {
    if (!(error instanceof MessageError)) throw error;
  }
}

function fuzzLog(random: Random): void {
  const records = new LogRecords(0);
  try {
    for (let count = 0; count < 5; count += 1) for (const _ of records.push(random.bytes(random.below(40))));
  } catch (error) {
    if (!(error instanceof LogRecordError)) throw error;
  }
}

test.each([
  ['frames', fuzzFrames],
  ['messages', fuzzMessages],
  ['log records', fuzzLog],
])(
  'whatever the guest sends as %s is read or refused, and nothing else happens',
  (what, once) => {
    const untilMs = performance.now() + (seconds * 1_000) / 3;
    let runs = 0;
    for (; runs === 0 || performance.now() < untilMs; runs += 1) {
      const mine = (seed + runs) >>> 0;
      try {
        once(randomOf(mine));
      } catch (error) {
        throw new Error(`${what}: replay with HUTCH_TEST_SEED=${mine}`, { cause: error });
      }
    }
    process.stdout.write(`fuzzed ${what}: ${runs} runs from seed ${seed}\n`);
  },
  (seconds + 30) * 1_000,
);
