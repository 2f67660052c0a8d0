import fc from 'fast-check';
import { expect, test } from 'vitest';
import { EVENT_BYTES_PER_CONNECTION_MAX, EVENT_BYTES_QUEUED_MAX, type EventBudget, Inbox } from './inbox.ts';
import { EVENTS_QUEUED_MAX, OUTPUT_CREDIT_START_BYTES } from './protocol.ts';

function inbox(budget: EventBudget = { bytes: 0 }): Inbox {
  return new Inbox(budget);
}

/** Takes everything, as what each channel said. */
function drain(subject: Inbox): { text: string[]; kinds: string[] } {
  const text = ['', '', ''];
  const kinds: string[] = [];
  for (let item = subject.take(); item !== null; item = subject.take()) {
    kinds.push(item.kind);
    if (item.kind === 'data') text[item.channel] += Buffer.from(item.bytes).toString('latin1');
  }
  return { text, kinds };
}

test('each channel gives the bytes that came, in order, however they were cut', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 2 }), fc.uint8Array({ minLength: 1, maxLength: 6_000 })), { maxLength: 30 }),
      (frames) => {
        const subject = inbox();
        const sent = ['', '', ''];
        for (const [channel, bytes] of frames) {
          if (subject.data(channel, bytes.byteLength, [bytes], false) !== null) return;
          sent[channel] += Buffer.from(bytes).toString('latin1');
        }
        expect(drain(subject).text).toEqual(sent);
      },
    ),
  );
});

test('data beyond the credit is a violation, also when it is thrown away', () => {
  for (const dropped of [false, true]) {
    const subject = inbox();
    const bytes = new Uint8Array(65_536);
    for (let sent = 0; sent < OUTPUT_CREDIT_START_BYTES; sent += bytes.byteLength)
      expect(subject.data(0, bytes.byteLength, [bytes], dropped)).toBeNull();
    expect(subject.data(0, 1, [Uint8Array.of(1)], dropped)).not.toBeNull();
  }
});

test('credit goes back only for what was taken, in large pieces', () => {
  const subject = inbox();
  expect(subject.taken(262_143)).toBe(0);
  expect(subject.taken(1)).toBe(262_144);
  expect(subject.taken(300_000)).toBe(300_000);
});

test('a flood of single bytes, alternating between channels, takes little memory', () => {
  const subject = inbox();
  for (let index = 0; index < OUTPUT_CREDIT_START_BYTES; index += 1) subject.data(1 + (index % 2), 1, [Uint8Array.of(index)], false);
  const items = drain(subject).kinds.length;
  expect(items).toBeLessThan(400);
});

test('a small piece does not keep its large chunk in memory', () => {
  const subject = inbox();
  const chunk = new Uint8Array(65_536);
  subject.data(0, 5_000, [chunk.subarray(0, 5_000)], false);
  const item = subject.take();
  expect(item?.kind === 'data' && item.bytes.buffer.byteLength).toBe(5_000);
});

test('events are bounded by count, by size, and over the connection', () => {
  const many = inbox();
  for (let index = 0; index < EVENTS_QUEUED_MAX; index += 1) expect(many.event(Uint8Array.of(1))).toBe(true);
  expect(many.event(Uint8Array.of(1))).toBe(false);

  const budget = { bytes: 0 };
  const large = new Uint8Array(65_536);
  const one = inbox(budget);
  for (let bytes = 0; bytes < EVENT_BYTES_QUEUED_MAX; bytes += large.byteLength) expect(one.event(large)).toBe(true);
  expect(one.event(large)).toBe(false);
  for (let index = 1; index < EVENT_BYTES_PER_CONNECTION_MAX / EVENT_BYTES_QUEUED_MAX; index += 1) {
    const next = inbox(budget);
    for (let bytes = 0; bytes < EVENT_BYTES_QUEUED_MAX; bytes += large.byteLength) expect(next.event(large)).toBe(true);
  }
  expect(inbox(budget).event(large)).toBe(false);
  one.clear();
  expect(budget.bytes).toBe(EVENT_BYTES_PER_CONNECTION_MAX - EVENT_BYTES_QUEUED_MAX);
});

test('data that comes after an event stays after it', () => {
  const subject = inbox();
  subject.data(1, 1, [Buffer.from('a')], false);
  subject.event(Uint8Array.of(0x80));
  subject.data(1, 1, [Buffer.from('b')], false);
  subject.end(1);
  expect(drain(subject).kinds).toEqual(['data', 'event', 'data', 'end']);
  expect(subject.data(1, 1, [Buffer.from('c')], false)).not.toBeNull();
});
