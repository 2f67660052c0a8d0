import { expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import type { Operation } from '../host/operation.ts';
import { Asked } from './asked.ts';
import { asLongAs } from './wait.ts';

const never = (op: Operation): Promise<string> => asLongAs(op, 'find out', new Promise<string>(() => {}));

test('who waits for what another finds out is not cancelled with it, and asks instead; an answer is asked for once', async () => {
  const asked = new Asked<string>();
  const given = new AbortController();
  const first = asked.get(testOperation({ signal: given.signal }), never);
  let times = 0;
  const find = async (): Promise<string> => {
    times += 1;
    return 'found';
  };
  const others = [asked.get(testOperation(), find), asked.get(testOperation(), find)];
  given.abort();
  await expect(first).rejects.toMatchObject({ code: 'cancelled' });
  expect([await Promise.all(others), await asked.get(testOperation(), never), times]).toEqual([['found', 'found'], 'found', 1]);
});

test('who waits gives up with its own operation, and a failure is everybody’s, and asked again', async () => {
  const asked = new Asked<string>();
  const { promise, reject } = Promise.withResolvers<string>();
  const first = asked.get(testOperation(), () => promise);
  const given = new AbortController();
  const impatient = asked.get(testOperation({ signal: given.signal }), never);
  const patient = asked.get(testOperation(), never);
  given.abort();
  await expect(impatient).rejects.toMatchObject({ code: 'cancelled' });
  const failed = [first, patient].map((each) => expect(each).rejects.toThrow('broken'));
  reject(new Error('broken'));
  await Promise.all(failed);
  expect(await asked.get(testOperation(), async () => 'found')).toBe('found');
});
