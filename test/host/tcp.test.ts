// Ports of this machine that the daemon answers at, and connections to others.
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { testOperation } from '../support/operation.ts';

const host = nodeHost();
const op = testOperation();

test('a port that is listened at has proved that connections come in, and its proof is no visitor', async () => {
  const visitors: unknown[] = [];
  const came = Promise.withResolvers<void>();
  await using listener = await host.listenTcp(op, { host: '0.0.0.0', port: 0 }, (peer) => {
    visitors.push(peer);
    peer.end('hello');
    came.resolve();
  });
  expect(visitors).toEqual([]);
  const socket = await host.connectTcp(op, { host: '127.0.0.1', port: listener.port });
  const [said] = (await once(socket, 'data')) as [Buffer];
  expect(said.toString()).toBe('hello');
  expect(visitors).toHaveLength(1);
  socket.destroy();
});

test('a listener that is disposed of ends its connections, and its port is free at once', async () => {
  const listener = await host.listenTcp(op, { host: '127.0.0.1', port: 0 }, () => {});
  const socket = connect({ host: '127.0.0.1', port: listener.port });
  await once(socket, 'connect');
  const closed = once(socket, 'close');
  socket.on('error', () => {});
  socket.resume();
  await listener[Symbol.asyncDispose]();
  await closed;
  await using again = await host.listenTcp(op, { host: '127.0.0.1', port: listener.port }, () => {});
  expect(again.port).toBe(listener.port);
  await expect(host.listenTcp(op, { host: '127.0.0.1', port: again.port }, () => {})).rejects.toMatchObject({ code: 'conflict' });
  await expect(host.listenTcp(op, { host: '192.0.2.1', port: 0 }, () => {})).rejects.toMatchObject({ code: 'failed_precondition' });
});

const isRoot = process.getuid?.() === 0;

test.skipIf(!isRoot)('where somebody’s rules carry connections elsewhere, listening fails instead of pretending', async () => {
  const elsewhere = createServer((socket) => socket.destroy());
  elsewhere.listen({ host: '127.0.0.1', port: 0 });
  await once(elsewhere, 'listening');
  const { port } = elsewhere.address() as { port: number };
  const taken = port === 65_535 ? port - 1 : port + 1;
  const table = `hutch_test_tcp_${process.pid}`;
  const rule = `table ip ${table} {
 chain out {
 type nat hook output priority -100
 ip daddr 127.0.0.1 tcp dport ${taken} redirect to :${port}
 }
}
`;
  execFileSync('nft', ['-f', '-'], { input: rule });
  try {
    await expect(host.listenTcp(op, { host: '127.0.0.1', port: taken }, () => {})).rejects.toMatchObject({
      code: 'deadline_exceeded',
      message: expect.stringContaining('somebody'),
    });
  } finally {
    execFileSync('nft', ['delete', 'table', 'ip', table]);
    elsewhere.close();
  }
});

test('where nobody answers is unavailable, and who gives up waits no longer', async () => {
  const silent = createServer();
  silent.listen({ host: '127.0.0.1', port: 0 });
  await once(silent, 'listening');
  const address = { host: '127.0.0.1', port: (silent.address() as { port: number }).port };
  const came = once(silent, 'connection');
  using short = op.within(200, 'a connection');
  await expect(host.connectTcp(short, address, { verify: false })).rejects.toMatchObject({ code: 'deadline_exceeded' });
  const [socket] = (await came) as [Socket];
  socket.resume();
  if (!socket.destroyed) await once(socket, 'close'); // let go of, not left behind
  silent.close();
  await once(silent, 'close');
  await expect(host.connectTcp(op, address)).rejects.toMatchObject({ code: 'unavailable' });
});
