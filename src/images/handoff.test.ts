import { expect, test } from 'vitest';
import { Handoff } from './handoff.ts';

const piece = (text: string) => Buffer.from(text);

test('a piece is used up when the next one is asked for', async () => {
  const handoff = new Handoff();
  const taker = handoff[Symbol.asyncIterator]();
  const events: string[] = [];
  const given = handoff.give(piece('a')).then(() => events.push('used up'));
  expect(String((await taker.next()).value)).toBe('a');
  const next = taker.next().then(({ value }) => events.push(String(value)));
  await given;
  const last = handoff.give(piece('b'));
  await next;
  expect(events).toEqual(['used up', 'b']);
  handoff.end();
  expect(await taker.next()).toEqual({ done: true, value: undefined });
  await last;
});

test('what is given after nobody takes any more is let go of', async () => {
  const handoff = new Handoff();
  const given = handoff.give(piece('a'));
  for await (const _ of handoff) break;
  await given;
  await handoff.give(piece('b'));
  const unheard = new Handoff();
  const waiting = unheard.give(piece('a'));
  unheard.close();
  await waiting;
});

test('a failure is what whoever takes hears', async () => {
  const handoff = new Handoff();
  handoff.end(new Error('the sender is gone'));
  await expect(handoff[Symbol.asyncIterator]().next()).rejects.toThrow('the sender is gone');
});
