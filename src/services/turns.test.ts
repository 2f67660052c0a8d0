import { expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import type { SandboxId } from '../domain/ids.ts';
import { Turns } from './turns.ts';

const [one, other] = ['sbxone', 'sbxother'] as SandboxId[] as [SandboxId, SandboxId];

test('what is asked of one sandbox happens in order, one after the other', async () => {
  const turns = new Turns();
  const seen: string[] = [];
  const gates = Array.from({ length: 5 }, () => Promise.withResolvers<void>());
  const all = gates.map((gate, index) =>
    turns.take(testOperation(), one, async () => {
      seen.push(`begin ${index}`);
      await gate.promise;
      seen.push(`end ${index}`);
    }),
  );
  for (const gate of [...gates].reverse()) gate.resolve();
  await Promise.all(all);
  expect(seen).toEqual([0, 1, 2, 3, 4].flatMap((index) => [`begin ${index}`, `end ${index}`]));
});

test('sandboxes do not wait for each other', async () => {
  const turns = new Turns();
  const gate = Promise.withResolvers<void>();
  const stuck = turns.take(testOperation(), one, () => gate.promise);
  expect(await turns.take(testOperation(), other, async () => 'done')).toBe('done');
  gate.resolve();
  await stuck;
});

test('who gives up does not let the next one in before its time', async () => {
  const turns = new Turns();
  const gate = Promise.withResolvers<void>();
  const holder = testOperation();
  const first = turns.take(holder, one, () => gate.promise);
  while (turns.holder(one) === null) await Promise.resolve();
  const impatient = new AbortController();
  const second = turns.take(testOperation({ signal: impatient.signal }), one, async () => 'second');
  let third = 'waits';
  const last = turns.take(testOperation(), one, async () => {
    third = 'done';
  });
  impatient.abort();
  await expect(second).rejects.toMatchObject({ code: 'cancelled', message: expect.stringContaining(holder.id) });
  expect([third, turns.holder(one)]).toEqual(['waits', holder.id]);
  gate.resolve();
  await Promise.all([first, last]);
  expect([third, turns.holder(one)]).toEqual(['done', null]);
});

test('a turn that fails is over', async () => {
  const turns = new Turns();
  await expect(turns.take(testOperation(), one, async () => Promise.reject(new Error('broken')))).rejects.toThrow('broken');
  expect(await turns.take(testOperation(), one, async () => 'next')).toBe('next');
});

test('nobody waits in a line without end', async () => {
  const turns = new Turns();
  const gate = Promise.withResolvers<void>();
  const waiting = Array.from({ length: 256 }, () => turns.take(testOperation(), one, () => gate.promise));
  await expect(turns.take(testOperation(), one, async () => {})).rejects.toMatchObject({ code: 'resource_exhausted' });
  gate.resolve();
  await Promise.all(waiting);
});
