import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { countCalls, describeCall, dieAtNthCall, failNthCall, hangNthCall, hostWithFault } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';

const host = nodeHost();
let dir: string;

beforeEach(async () => {
  dir = await fs.mkdtemp(join(tmpdir(), 'hutch-faults-'));
});
afterEach(async () => {
  await fs.rm(dir, { recursive: true });
});

test('calls that touch the system are counted, the clock is not', async () => {
  const op = testOperation();
  const counted = countCalls(host);
  counted.nowMs();
  counted.bootId();
  await counted.makeDir(op, join(dir, 'a'), 0o700);
  await Array.fromAsync(counted.readStream(op, '/dev/null'));
  expect(counted.calls.map(({ n, method }) => [n, method])).toEqual([
    [1, 'makeDir'],
    [2, 'readStream'],
  ]);
  expect([counted.hit, counted.uid]).toEqual([undefined, host.uid]);
});

test('the N-th call alone fails and is told; the call is not made', async () => {
  const op = testOperation();
  const faulty = failNthCall(host, 2);
  await faulty.makeDir(op, join(dir, 'a'), 0o700);
  await expect(faulty.makeDir(op, join(dir, 'b'), 0o700)).rejects.toMatchObject({ code: 'internal', opId: op.id, cause: { code: 'EIO' } });
  await faulty.makeDir(op, join(dir, 'c'), 0o700);
  expect(await fs.readdir(dir)).toEqual(['a', 'c']);
  expect(faulty.hit).toMatchObject({ n: 2, method: 'makeDir', args: [join(dir, 'b'), 0o700] });
});

test('a stream that is the N-th call fails when it is read', async () => {
  const faulty = failNthCall(host, 1, { error: new Error('chosen') });
  await expect(Array.fromAsync(faulty.readStream(testOperation(), '/dev/null'))).rejects.toThrow('chosen');
});

test('a call that hangs hears its deadline', async () => {
  using op = testOperation().within(20, 'the hanging call');
  await expect(hangNthCall(host, 1).list(op, dir)).rejects.toMatchObject({ code: 'deadline_exceeded' });
});

test('dying before a call leaves it undone, dying after it leaves it done, and neither comes back', async () => {
  const op = testOperation();
  for (const when of ['before', 'after'] as const) {
    const { promise: died, resolve: die } = Promise.withResolvers<unknown>();
    const faulty = dieAtNthCall(host, 1, { when, die });
    let cameBack = false;
    void faulty.makeDir(op, join(dir, when), 0o700).finally(() => {
      cameBack = true;
    });
    expect(await died).toMatchObject({ method: 'makeDir' });
    expect([when, cameBack]).toEqual([when, false]);
  }
  expect(await fs.readdir(dir)).toEqual(['after']);
});

test('only the calls of the operation or verb that was asked for are counted', async () => {
  const [mine, other] = [testOperation({ verb: 'create' }), testOperation()];
  for (const only of [{ opId: mine.id }, { verb: 'create' }]) {
    const faulty = failNthCall(host, 1, { only });
    await faulty.list(other, dir);
    using less = mine.within(1_000, 'the same operation with less time');
    await expect(faulty.list(less, dir)).rejects.toMatchObject({ code: 'internal' });
  }
});

test('a fault is chosen by a text and reports the call that it hit', async () => {
  const report = join(dir, 'report');
  const faulty = hostWithFault(host, 'fail:1:create', report);
  await faulty.list(testOperation(), dir);
  await expect(faulty.list(testOperation({ verb: 'create' }), dir)).rejects.toMatchObject({ code: 'internal' });
  expect(await fs.readFile(report, 'utf8')).toBe(`${describeCall({ n: 1, method: 'list', args: [dir] })}\n`);
  expect(hostWithFault(host, undefined)).toBe(host);
  expect(() => hostWithFault(host, 'explode:1')).toThrow(/ACTION:N/);
});
