import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { WebSocket, WebSocketServer } from 'ws';
import { MessageSocket } from './message-socket.ts';

const PING_MS = 15_000;
let server: WebSocketServer;

beforeEach(async () => {
  // Real sockets; only the pings' clock is ours.
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
  server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  await once(server, 'listening');
});
afterEach(async () => {
  vi.useRealTimers();
  for (const client of server.clients) client.terminate();
  server.close();
});

async function pair(): Promise<{ readonly ours: MessageSocket; readonly client: WebSocket; heard(): number }> {
  const client = new WebSocket(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`);
  let heard = 0;
  client.on('message', (data: Buffer) => {
    heard += data.byteLength;
  });
  const [[socket]] = (await Promise.all([once(server, 'connection'), once(client, 'open')])) as [[WebSocket], unknown];
  return { ours: new MessageSocket(socket), client, heard: () => heard };
}

/** So many pings later, each of which had time to be answered. */
async function pings(count: number): Promise<void> {
  for (let at = 0; at < count; at += 1) {
    vi.advanceTimersByTime(PING_MS);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

test('a client that reads nothing for long is waited for; one that has read all and does not answer is gone', async () => {
  const { ours, client, heard } = await pair();
  client.pause();
  const sent = (async () => {
    for (let at = 0; at < 64; at += 1) await ours.sendBytes(new Uint8Array(256 * 1024));
    await ours.arrivedBut(0);
  })();
  await pings(20);
  expect(ours.gone.aborted).toBe(false);
  client.resume();
  await sent;
  expect(heard()).toBe(16 << 20);
  client.pause();
  await pings(6);
  await vi.waitFor(() => expect(ours.gone.aborted).toBe(true));
});

test('what has not arrived is known, and a break is told from a goodbye', async () => {
  const one = await pair();
  one.client.pause();
  await one.ours.sendBytes(new Uint8Array(64 * 1024));
  await one.ours.arrivedBut(64 * 1024);
  const waiting = one.ours.arrivedBut(64 * 1024 - 1);
  expect(await Promise.race([waiting.then(() => 'arrived'), new Promise((resolve) => setTimeout(() => resolve('waits'), 100))])).toBe(
    'waits',
  );
  one.client.terminate();
  await expect(waiting).rejects.toMatchObject({ code: 'cancelled' });
  expect(await one.ours.wasLost()).toBe(true);

  const other = await pair();
  other.client.close(1000);
  expect(await other.ours.receive()).toBeNull();
  expect(await other.ours.wasLost()).toBe(false);
});
