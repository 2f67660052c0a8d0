// Unix sockets as `nodeHost` dials them, listens on them, and reads what comes.
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { testOperation } from '../support/operation.ts';

const host = nodeHost();
let dir: string;

beforeEach(async () => {
  dir = await fs.mkdtemp(join(tmpdir(), 'hutch-host-'));
});
afterEach(async () => {
  await fs.rm(dir, { recursive: true });
});

const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

test('a unix socket is connected to, also by a path longer than an address holds', async () => {
  const op = testOperation();
  const deep = join(dir, 'd'.repeat(100), 'e'.repeat(100));
  await fs.mkdir(deep, { recursive: true });
  const server = createServer((socket) => socket.end('hello'));
  server.listen(join(dir, 's'));
  await once(server, 'listening');
  try {
    await fs.rename(join(dir, 's'), join(deep, 's'));
    const stream = await host.connectUnix(op, join(deep, 's'));
    expect(text(Buffer.concat(await stream.toArray()))).toBe('hello');
  } finally {
    server.close();
  }
  await expect(host.connectUnix(op, join(deep, 'absent'))).rejects.toMatchObject({ code: 'not_found' });
  await fs.writeFile(join(dir, 'file'), '');
  await expect(host.connectUnix(op, join(dir, 'file'))).rejects.toMatchObject({ code: 'unavailable', cause: { code: 'ECONNREFUSED' } });
});

test('what is read in place comes whole and in order, waits while it is paused, and ends', async () => {
  const op = testOperation();
  const path = join(dir, 'in-place');
  const bytes = randomBytes(1_000_003);
  const server = createServer((socket) => socket.end(bytes)).listen(path);
  try {
    await once(server, 'listening');
    const stream = await host.connectUnix(op, path, 'in-place');
    await sleep(20); // nobody listens yet
    const copies: Buffer[] = [];
    const memory = new Set<ArrayBufferLike>();
    stream.on('data', (chunk: Uint8Array) => {
      copies.push(Buffer.from(chunk));
      memory.add(chunk.buffer);
      stream.pause();
      setImmediate(() => {
        expect(Buffer.compare(chunk, copies.at(-1) ?? Buffer.alloc(0))).toBe(0); // not written over while it is paused
        stream.resume();
      });
    });
    stream.resume();
    await once(stream, 'end');
    expect(Buffer.compare(Buffer.concat(copies), bytes)).toBe(0);
    expect(copies.length).toBeGreaterThan(1);
    expect(memory.size).toBe(1);
  } finally {
    server.close();
  }
});

test('one peer is listened to until it hangs up, and the socket is gone afterwards', async () => {
  const op = testOperation();
  const path = join(dir, 'r');
  {
    await using receiver = await host.receiveUnix(op, path, 10);
    (await host.connectUnix(op, path)).end('all of it');
    expect(text(await receiver.content)).toBe('all of it');
  }
  {
    await using receiver = await host.receiveUnix(op, path, 10);
    const peer = await host.connectUnix(op, path);
    peer.on('error', () => {}); // it is hung up on
    peer.end('more than that');
    await expect(receiver.content).rejects.toMatchObject({ code: 'payload_too_large' });
  }
  {
    await using receiver = await host.receiveUnix(op, path, 10);
    await receiver[Symbol.asyncDispose]();
    await expect(receiver.content).rejects.toMatchObject({ code: 'cancelled' });
  }
  expect(await host.list(op, dir)).toEqual([]);
});

test('peers arrive one after the other: one may wait, and the next is turned away', async () => {
  const op = testOperation();
  const path = join(dir, 'l');
  {
    await using listener = await host.listenUnix(op, path, 0o640);
    expect((await fs.stat(path)).mode & 0o777).toBe(0o640);
    const asked = listener.accept(op);
    const first = await host.connectUnix(op, path);
    first.write('first');
    expect(text((await once((await asked).resume(), 'data'))[0])).toBe('first');
    const second = await host.connectUnix(op, path);
    second.write('second');
    const third = await host.connectUnix(op, path);
    await once(third.resume(), 'close');
    const waited = await listener.accept(op);
    expect(text((await once(waited.resume(), 'data'))[0])).toBe('second');
    const abort = new AbortController();
    const hurried = listener.accept(testOperation({ signal: abort.signal }));
    abort.abort();
    await expect(hurried).rejects.toMatchObject({ code: 'cancelled' });
    for (const peer of [first, second, waited]) peer.destroy();
  }
  expect(await host.list(op, dir)).toEqual([]);
  // A socket file that a crash left is no hindrance.
  await using _left = await host.listenUnix(op, path, 0o600);
  await using again = await host.listenUnix(op, path, 0o600);
  const peer = await host.connectUnix(op, path);
  (await again.accept(op)).destroy();
  peer.destroy();
});

test('what a peer that came to us sends is read in place, comes whole and in order, waits while it is paused, and ends', async () => {
  const op = testOperation();
  const path = join(dir, 'l-in-place');
  await using listener = await host.listenUnix(op, path, 0o600);
  const asked = listener.accept(op);
  const dialled = await host.connectUnix(op, path);
  const peer = await asked;
  const sent = Buffer.from(Array.from({ length: 300_000 }, (_, i) => i % 251));
  dialled.end(sent);
  const memories = new Set<ArrayBufferLike>();
  const got: Buffer[] = [];
  const ended = once(peer, 'end');
  peer.on('data', (chunk: Buffer) => {
    memories.add(chunk.buffer);
    got.push(Buffer.from(chunk));
    peer.pause();
    setImmediate(() => peer.resume());
  });
  await sleep(20); // nobody has let it go
  expect(got).toEqual([]);
  peer.resume();
  await ended;
  expect(Buffer.concat(got).equals(sent)).toBe(true);
  expect(memories.size).toBe(1);
  peer.destroy();
});

test('a peer that came to us hears what is sent to it, and of the end', async () => {
  const op = testOperation();
  const path = join(dir, 'l-both');
  await using listener = await host.listenUnix(op, path, 0o600);
  const asked = listener.accept(op);
  const dialled = await host.connectUnix(op, path);
  const peer = await asked;
  peer.write('hello');
  expect(text((await once(dialled, 'data'))[0])).toBe('hello');
  const closed = once(dialled.resume(), 'close');
  peer.destroy();
  await closed;
});
