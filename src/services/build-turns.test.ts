import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import { Locks } from './build-mounts.ts';
import { BuildTurns } from './build-turns.ts';

test('a build that gives up while it waits for those before it keeps no slot from those after it', async () => {
  const turns = new BuildTurns(2);
  const first = [await turns.take(testOperation()), await turns.take(testOperation())];
  expect(turns.areTaken).toBe(true);
  const impatient = new AbortController();
  const given = [1, 2, 3].map(() => turns.take(testOperation({ signal: impatient.signal })));
  const after = turns.take(testOperation());
  impatient.abort();
  for (const each of given) await expect(each).rejects.toThrow('cancelled while waiting for builds before it');
  first[0]?.[Symbol.dispose]();
  const second = await after;
  expect(turns.areTaken).toBe(true);
  // Given up at the moment at which its turn comes: it goes on to the next.
  const late = new AbortController();
  const [lost, next] = [turns.take(testOperation({ signal: late.signal })), turns.take(testOperation())];
  late.abort();
  second[Symbol.dispose]();
  await expect(lost).rejects.toThrow('cancelled');
  const third = await next;
  for (const each of [third, first[1]]) each?.[Symbol.dispose]();
  expect(turns.areTaken).toBe(false);
});

test('a step that waits for a cache mount hears that its build is cancelled', async () => {
  const locks = new Locks();
  const held = await locks.take(testOperation(), 'npm');
  const cancelled = new AbortController();
  const waiting = locks.take(testOperation({ signal: cancelled.signal }), 'npm');
  const next = locks.take(testOperation(), 'npm');
  cancelled.abort();
  await expect(waiting).rejects.toThrow('cancelled while waiting for the cache npm');
  let isTaken = false;
  const taken = next.then((lock) => {
    isTaken = true;
    return lock;
  });
  await sleep(10);
  expect(isTaken).toBe(false);
  held[Symbol.dispose]();
  (await taken)[Symbol.dispose]();
});
