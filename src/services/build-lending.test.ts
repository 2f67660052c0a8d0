import { expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import { NO_PACKAGE_SETTINGS } from '../domain/package-settings.ts';
import { Lending } from './build-lending.ts';

test('package settings that were announced and do not come end the wait with what to do, and those that come count', async () => {
  const op = testOperation();
  const lending = new Lending(null, 20);
  await expect(lending.settings(op)).rejects.toMatchObject({
    ...{ code: 'deadline_exceeded', message: 'the package settings that were announced did not come within 0.02 s' },
    hint: expect.stringMatching(/build it again$/),
  });
  await lending.wanted; // who waits for the build has an answer
  const cancelled = new AbortController();
  const waiting = new Lending(null).settings(testOperation({ signal: cancelled.signal }));
  cancelled.abort();
  await expect(waiting).rejects.toMatchObject({ code: 'cancelled' });
  const given = { ...NO_PACKAGE_SETTINGS };
  const later = new Lending(null);
  const asked = later.settings(op);
  later.give(given);
  expect([await asked, await later.settings(op), await new Lending(given).settings(op)]).toEqual([given, given, given]);
});
