// The golden vectors that both ends of the agent protocol read.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { encodeFrame, FrameDecoder, FrameError, type FrameErrorReason } from '../../src/guest/frames.ts';
import { decodeMessage, encodeMessage, MessageError } from '../../src/guest/messagepack.ts';
import { AnswerFinder, markOf, preambleOf } from '../../src/guest/preamble.ts';
import type { FrameType } from '../../src/guest/protocol.ts';

type FrameVector = {
  readonly name: string;
  readonly from: 'host' | 'agent';
  readonly typeNumber: FrameType;
  readonly flag: number;
  readonly stream: number;
  readonly payload: string;
  readonly bytes: string;
  readonly message?: unknown;
};
type Why = 'length' | 'type' | 'reserved' | 'mark' | 'stream' | 'flag';
type Vectors = {
  readonly nonce: string;
  readonly preamble: string;
  readonly frames: readonly FrameVector[];
  readonly brokenFrames: readonly { readonly name: string; readonly bytes: string; readonly why: Why }[];
  readonly brokenFromHost: readonly { readonly name: string; readonly bytes: string; readonly why: Why }[];
  readonly messages: readonly { readonly name: string; readonly bytes: string; readonly value: unknown }[];
  readonly brokenMessages: readonly { readonly name: string; readonly bytes: string }[];
};

const vectors = JSON.parse(readFileSync(join(import.meta.dirname, '../vectors/agent-protocol.json'), 'utf8')) as Vectors;
const hex = (text: string) => Buffer.from(text, 'hex');
const nonce = hex(vectors.nonce);
const mark = markOf(nonce);

/** A decoded value as the vectors write it. */
function written(value: unknown): unknown {
  if (typeof value === 'bigint') return value >= -(2n ** 53n) && value <= 2n ** 53n ? Number(value) : { $int: String(value) };
  if (value instanceof Uint8Array) return { $bin: Buffer.from(value).toString('hex') };
  if (Array.isArray(value)) return value.map(written);
  if (typeof value === 'object' && value !== null)
    return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, written(entry)]));
  return value;
}

/** The other way round. */
function meant(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(meant);
  if (typeof value !== 'object' || value === null) return value;
  if ('$bin' in value) return hex(String(value.$bin));
  if ('$int' in value) return BigInt(String(value.$int));
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, meant(entry)]));
}

test('the preamble is written and found as it was agreed', () => {
  expect(preambleOf(nonce).toString('hex')).toBe(vectors.preamble);
  expect(new AnswerFinder(nonce).push(hex(vectors.preamble))).toMatchObject({ version: 1 });
});

test.each(vectors.frames.map((vector): [string, FrameVector] => [vector.name, vector]))(
  '%s is written and read as it was agreed',
  (_, vector) => {
    expect(Buffer.from(encodeFrame(mark, vector.typeNumber, vector.flag, vector.stream, hex(vector.payload))).toString('hex')).toBe(
      vector.bytes,
    );
    const decoder = new FrameDecoder({ mark, from: vector.from });
    decoder.push(hex(vector.bytes));
    const frame = decoder.next();
    expect(frame).toMatchObject({ type: vector.typeNumber, flag: vector.flag, stream: vector.stream });
    if (frame === null) return;
    expect(Buffer.from(frame.payload).toString('hex')).toBe(vector.payload);
    if (vector.message === undefined) return;
    expect(written(decodeMessage(frame.payload))).toEqual(vector.message);
    expect(written(decodeMessage(encodeMessage(meant(vector.message))))).toEqual(vector.message);
  },
);

const WHY: Readonly<Record<FrameErrorReason, Why>> = {
  too_long: 'length',
  wrong_length: 'length',
  unknown_type: 'type',
  wrong_flag: 'flag',
  wrong_stream: 'stream',
  reserved: 'reserved',
  wrong_mark: 'mark',
};

/** Why bytes are refused; null when they are not. */
function refusal(from: 'host' | 'agent', bytes: Uint8Array): Why | null {
  const decoder = new FrameDecoder({ mark, from });
  decoder.push(bytes);
  try {
    decoder.next();
    return null;
  } catch (error) {
    if (error instanceof FrameError) return WHY[error.reason];
    throw error;
  }
}

test.each(vectors.brokenFrames.map(({ name, bytes, why }) => [name, bytes, why]))('%s ends the connection', (_, bytes, why) => {
  expect(refusal('agent', hex(bytes))).toBe(why);
  expect(refusal('host', hex(bytes))).toBe(why);
});

test.each(vectors.brokenFromHost.map(({ name, bytes, why }) => [name, bytes, why]))('%s would end the connection', (_, bytes, why) => {
  expect(refusal('host', hex(bytes))).toBe(why);
});

test.each(vectors.messages.map(({ name, bytes, value }): [string, string, unknown] => [name, bytes, value]))(
  'the message "%s" is read as it was meant',
  (_, bytes, value) => {
    expect(written(decodeMessage(hex(bytes)))).toEqual(value);
  },
);

test.each(vectors.brokenMessages.map(({ name, bytes }) => [name, bytes]))('the message "%s" is refused', (_, bytes) => {
  expect(() => decodeMessage(hex(bytes))).toThrow(MessageError);
});
