// Output with a gap, as a server tells of it: an error where all of it was promised, else a place that
// the numbering goes over.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { expect, test } from 'vitest';
import { WebSocketServer } from 'ws';
import { Hutch } from './hutch.ts';
import { RemoteProcess } from './process.ts';

const STARTED = { type: 'started', execId: 'x', pid: 7, stdoutOffset: 0, stderrOffset: 0, inputOffset: 0, existing: false };
const EXIT = { type: 'exit', exitCode: 0, signal: null, stdoutBytes: 12, stderrBytes: 0 };

/** A server whose command writes `one`, loses six bytes, writes `two` and ends. */
async function withGap<T>(use: (hutch: Hutch) => Promise<T>): Promise<T> {
  const server = createServer();
  const sockets = new WebSocketServer({ server });
  sockets.on('connection', (socket) => {
    socket.send(JSON.stringify(STARTED));
    socket.send(Buffer.from('\x01one'));
    socket.send(JSON.stringify({ type: 'dropped', channel: 'stdout', offset: 3, bytes: 6 }));
    socket.send(Buffer.from('\x01two'));
    socket.send(JSON.stringify(EXIT));
  });
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  using hutch = Hutch.connect({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, apiKey: 'e2b_test', retryForMs: 0 });
  try {
    return await use(hutch);
  } finally {
    for (const socket of sockets.clients) socket.terminate();
    server.close();
  }
}

test('a command whose output was promised whole fails where some of it is gone', async () => {
  await withGap(async ({ api }) => {
    const process = await RemoteProcess.start(api, { argv: ['x'] }, { ref: 'box' });
    const failure = { code: 'unavailable', message: expect.stringContaining('6 bytes of output were lost') };
    await expect(text(process.stdout)).rejects.toMatchObject(failure);
    await expect(process.exit).rejects.toMatchObject(failure);
  });
});

test('where output may be dropped, and to who follows a command of another, the rest comes', async () => {
  await withGap(async ({ api }) => {
    const dropping = await RemoteProcess.start(api, { argv: ['x'], whenUnread: 'drop' }, { ref: 'box' });
    expect(await text(dropping.stdout)).toBe('onetwo');
    expect(await dropping.exit).toMatchObject({ exitCode: 0 });
    const following = await RemoteProcess.attach(api, { ref: 'box', execId: 'main' });
    expect(await text(following.stdout)).toBe('onetwo');
  });
});
