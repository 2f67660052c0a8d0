// The same request again with its Idempotency-Key, and what becomes of a request whose client is gone.
import { existsSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

const keyed = (key: string) => ({ headers: { 'Idempotency-Key': key } });
const count = async (): Promise<number> => (await daemon.call('sandbox.list', {})).sandboxes.length;

test('a repeated creation gives the first one’s reply and makes nothing', async () => {
  const before = await count();
  const first = await daemon.callWithHeaders('sandbox.create', { labels: { a: '1' } }, keyed('k1'));
  const second = await daemon.callWithHeaders('sandbox.create', { labels: { a: '1' } }, keyed('k1'));
  expect(second.result).toEqual({ ...first.result });
  expect(second.headers['idempotency-replayed']).toBe('true');
  expect(second.headers['hutch-op-id']).toBe(first.headers['hutch-op-id']);
  expect(await count()).toBe(before + 1);
});

test('the key with another request is a conflict', async () => {
  await daemon.call('sandbox.create', { labels: { a: '1' } }, keyed('k2'));
  const refused = await daemon.call('sandbox.create', { labels: { a: '2' } }, keyed('k2')).catch((error: unknown) => error as ApiError);
  expect((refused as ApiError).code).toBe('conflict');
});

test('a repetition while the first is under way waits for it', async () => {
  const before = await count();
  const both = await Promise.all([1, 2, 3].map(() => daemon.call('sandbox.create', {}, keyed('k3'))));
  expect(new Set(both.map(({ id }) => id)).size).toBe(1);
  expect(await count()).toBe(before + 1);
});

test('a failed request may be made again with its key', async () => {
  await daemon.call('sandbox.create', { name: 'taken' });
  const again = () => daemon.call('sandbox.create', { name: 'taken' }, keyed('k4'));
  expect(((await again().catch((error: unknown) => error)) as ApiError).code).toBe('conflict');
  await daemon.call('sandbox.delete', { ref: 'taken', force: true });
  expect((await again()).name).toBe('taken');
});

test('another API key’s requests are its own', async () => {
  const other = await daemon.call('key.create', { name: 'other' });
  const first = await daemon.call('sandbox.create', {}, keyed('k5'));
  const second = await daemon.call('sandbox.create', {}, { headers: { ...keyed('k5').headers, Authorization: `Bearer ${other.secret}` } });
  expect(second.id).not.toBe(first.id);
});

test('replies outlive the daemon', async () => {
  const first = await daemon.call('sandbox.create', {}, keyed('k6'));
  await daemon.kill9();
  await daemon.startAgain();
  expect((await daemon.call('sandbox.create', {}, keyed('k6'))).id).toBe(first.id);
});

test('every verb that changes takes a key: stop, rename, restart', async () => {
  const { id } = await daemon.call('sandbox.create', {});
  const one = await daemon.call('sandbox.restart', { ref: id }, keyed('k7'));
  const two = await daemon.call('sandbox.restart', { ref: id }, keyed('k7'));
  expect([one.startCount, two.startCount, (await daemon.call('sandbox.get', { ref: id })).startCount]).toEqual([2, 2, 2]);
});

test('a client that goes away while it creates leaves nothing', async () => {
  await using slow = await DaemonUnderTest.start({ env: { HUTCH_TEST_STEP: 'hang:started' } });
  const gone = new AbortController();
  const creating = slow.call('sandbox.create', { name: 'lost' }, { signal: gone.signal }).catch(() => {});
  await eventually('it is under way', async () => (await slow.processes()).some((line) => line.includes('hutch-shim')));
  gone.abort();
  await creating;
  await eventually('nothing is left', async () => (await slow.processes()).every((line) => !line.includes('hutch-shim')));
  expect((await slow.call('sandbox.list', {})).sandboxes).toEqual([]);
  await eventually('it is recorded', async () =>
    (await slow.call('operation.list', { all: true })).operations.some(
      ({ verb, state }) => verb === 'sandbox.create' && state === 'cancelled',
    ),
  );
});

test('a creation with a key goes on without its client', async () => {
  const gone = new AbortController();
  const creating = daemon.call('sandbox.create', { name: 'kept' }, { ...keyed('k8'), signal: gone.signal }).catch(() => {});
  await eventually(
    'it is under way',
    async () => (await daemon.call('operation.list', {})).operations.some(({ verb }) => verb === 'sandbox.create') || (await count()) > 0,
  );
  gone.abort();
  await creating;
  expect((await daemon.call('sandbox.create', { name: 'kept' }, keyed('k8'))).name).toBe('kept');
});

test('a cancelled creation leaves nothing, and its boot log is kept', async () => {
  await using slow = await DaemonUnderTest.start({ env: { HUTCH_TEST_STEP: 'hang:dial' } });
  const creating = slow.call('sandbox.create', { name: 'cancelled' }).catch((error: unknown) => error as ApiError);
  let opId = '';
  await eventually('it is under way', async () => {
    const running = (await slow.call('operation.list', {})).operations.find(({ verb }) => verb === 'sandbox.create');
    opId = running?.id ?? '';
    return running?.step === 'starting';
  });
  await eventually('its machine boots', async () => (await slow.processes()).some((line) => line.includes('hutch-agent')));
  expect(await slow.call('operation.cancel', { opId })).toMatchObject({ state: 'cancelled' });
  expect(((await creating) as ApiError).code).toBe('cancelled');
  expect((await slow.call('sandbox.list', { state: 'created,running,stopped,deleted,error' })).sandboxes).toEqual([]);
  const { sentence } = await slow.call('why.get', { ref: opId });
  expect(sentence).toContain('it was cancelled by the key owner and cleaned up');
  expect(existsSync(`${slow.home}/log/failed/${opId}/boot.log`)).toBe(true);
});

test('a creation that fails at any step leaves nothing', async () => {
  for (const step of ['create', 'created', 'start', 'started', 'dial']) {
    await using broken = await DaemonUnderTest.start({ env: { HUTCH_TEST_STEP: `fail:${step}` } });
    const refused = await broken.call('sandbox.create', { name: 'broken' }).catch((error: unknown) => error as ApiError);
    expect((refused as ApiError).body, step).toMatchObject({ code: 'unavailable' });
    expect((await broken.call('sandbox.list', { state: 'created,running,stopped,deleted,error' })).sandboxes).toEqual([]);
    const { leaks } = await broken.call('doctor.leaks', {});
    expect(leaks, step).toEqual([]);
  }
});
