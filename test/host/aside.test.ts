// The thread for large files: what it gives is what the daemon's own thread would have given, and nothing of it is left.
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { HutchError } from '../../src/domain/errors.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { testOperation } from '../support/operation.ts';

const op = testOperation();
const MIB = 1024 * 1024;
const content = randomBytes(3 * MIB + 5);
const hashOf = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
let dir = '';

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-aside-'));
  await writeFile(join(dir, 'from'), content);
});

afterAll(() => rm(dir, { recursive: true, force: true }));

test('files are hashed and appended there, beside sums of what comes', async () => {
  const host = nodeHost();
  await using aside = host.aside();
  await using other = host.aside();
  const from = join(dir, 'from');
  const to = join(dir, 'to');
  const shared = Buffer.from(new SharedArrayBuffer(MIB));
  const [one, two] = [aside.sum(), other.sum()];
  const appending = aside.append(op, { path: from, offset: 7, bytes: 2 * MIB }, to);
  const hashing = other.sha256(op, from);
  for (const byte of [1, 2, 3]) {
    await one.update(shared.fill(byte));
    await two.update(content.subarray(0, byte));
  }
  const piece = content.subarray(7, 7 + 2 * MIB);
  expect(await appending).toEqual({ sha256: hashOf(piece), bytes: 2 * MIB });
  expect(await hashing).toBe(hashOf(content));
  expect(await one.hex()).toBe(hashOf(Buffer.concat([1, 2, 3].map((byte) => Buffer.alloc(MIB, byte)))));
  expect(await two.hex()).toBe(hashOf(Buffer.concat([1, 2, 3].map((count) => content.subarray(0, count)))));
  // A second time: behind what is there, and no more than the file has.
  const end = content.subarray(-9);
  expect(await aside.append(op, { path: from, offset: content.byteLength - 9, bytes: MIB }, to)).toEqual({ sha256: hashOf(end), bytes: 9 });
  expect(await readFile(to)).toEqual(Buffer.concat([piece, end]));
});

test('what goes wrong is told as of the same call here, and the thread goes on', async () => {
  await using aside = nodeHost().aside();
  const gone = { path: join(dir, 'gone'), offset: 0, bytes: 1 };
  await expect(aside.sha256(op, gone.path)).rejects.toMatchObject({ code: 'not_found' });
  await expect(aside.append(op, gone, join(dir, 'into'))).rejects.toBeInstanceOf(HutchError);
  await expect(aside.append(op, { ...gone, path: join(dir, 'from') }, '/dev/full')).rejects.toMatchObject({ code: 'resource_exhausted' });
  expect(await aside.sha256(op, join(dir, 'from'))).toBe(hashOf(content));
});

test('nothing is written any more when what appends is over, or the thread was disposed', async () => {
  const host = nodeHost();
  // Without an end: it is over only when it is told.
  const zeros = { path: '/dev/zero', offset: 0, bytes: Number.MAX_SAFE_INTEGER };
  const over = new AbortController();
  const to = '/dev/null';
  {
    await using aside = host.aside();
    const appending = aside.append(op, zeros, to, over.signal);
    expect(await aside.sha256(op, join(dir, 'from'))).toBe(hashOf(content)); // has its turn meanwhile
    over.abort();
    await expect(appending).rejects.toThrow(/nobody waits for it/);
    await expect(aside.append(op, zeros, to, over.signal)).rejects.toThrow(/nobody waits for it/);
    const cancelled = new AbortController();
    const hashing = aside.sha256(testOperation({ signal: cancelled.signal }), '/dev/zero');
    cancelled.abort();
    await expect(hashing).rejects.toThrow();
  }
  // Another one begins anew.
  await using again = host.aside();
  expect(await again.sha256(op, join(dir, 'from'))).toBe(hashOf(content));
});
