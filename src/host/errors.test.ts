import { expect, test } from 'vitest';
import { HutchError } from '../domain/errors.ts';
import type { OpId } from '../domain/ids.ts';
import { errnoOf, heed, systemError } from './errors.ts';
import { newOperation } from './operation.ts';

const log = { debug() {}, info() {}, warn() {}, error() {} };
const operation = (signal?: AbortSignal) =>
  newOperation({ id: 'op-0123456789ab' as OpId, actor: 'daemon', log, ...(signal === undefined ? {} : { signal }) });

test.each([
  ['ENOENT', 'not_found'],
  ['EEXIST', 'conflict'],
  ['EACCES', 'permission_denied'],
  ['EPERM', 'permission_denied'],
  ['ENOSPC', 'resource_exhausted'],
  ['EDQUOT', 'resource_exhausted'],
  ['EMFILE', 'resource_exhausted'],
  ['ECONNREFUSED', 'unavailable'],
  ['EIO', 'internal'],
])('%s becomes %s, and can still be told', (errno, code) => {
  const error = systemError(operation(), 'do it', Object.assign(new Error(`${errno}: as the system says`), { code: errno }));
  expect(error).toMatchObject({ code, message: `cannot do it: ${errno}: as the system says`, opId: 'op-0123456789ab' });
  expect(errnoOf(new HutchError({ code: 'internal', message: 'wrapped', cause: error }))).toBe(errno);
});

test('a HutchError is passed on as it is, and what has no errno has none', () => {
  const error = new HutchError({ code: 'conflict', message: 'x' });
  expect(systemError(operation(), 'do it', error)).toBe(error);
  expect([errnoOf(error), errnoOf('ENOENT'), errnoOf(undefined)]).toEqual([null, null, null]);
});

test('a call that unwinds by itself after an abort is waited for; its value counts', async () => {
  const abort = new AbortController();
  const { promise, resolve } = Promise.withResolvers<string>();
  const call = heed(operation(abort.signal), 'wait', () => promise);
  abort.abort();
  resolve('done after all');
  expect(await call).toBe('done after all');
});

test('a call that hangs is given up after an abort, and what it brings later is released', async () => {
  const abort = new AbortController();
  const { promise, resolve } = Promise.withResolvers<string>();
  const released = Promise.withResolvers<string>();
  const call = heed(operation(abort.signal), 'wait', () => promise, released.resolve);
  abort.abort();
  await expect(call).rejects.toMatchObject({ code: 'cancelled' });
  resolve('late');
  expect(await released.promise).toBe('late');
});

test('a call that the abort itself ended is cancelled, and one that failed by itself is not', async () => {
  const abort = new AbortController();
  const refused = Object.assign(new Error('no room'), { code: 'ENOSPC' });
  const calls = [new Error('aborted'), refused].map((error) => {
    const { promise, reject } = Promise.withResolvers<never>();
    abort.signal.addEventListener('abort', () => reject(error));
    return heed(operation(abort.signal), 'wait', () => promise);
  });
  abort.abort();
  await expect(calls[0]).rejects.toMatchObject({ code: 'cancelled' });
  await expect(calls[1]).rejects.toMatchObject({ code: 'resource_exhausted' });
});
