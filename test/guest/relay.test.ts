// Connections to a published port, carried by the real agent to servers on this machine.
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { AgentLink } from '../../src/guest/link.ts';
import { listenTcp } from '../../src/host/tcp.ts';
import { relay } from '../../src/services/relay.ts';
import { eventually } from '../support/eventually.ts';
import { type RealAgent, realAgent } from './real-agent.ts';
import { testOperation } from './support.ts';

const op = testOperation();
let agent: RealAgent;
let link: AgentLink;
let used = 0;

beforeAll(async () => {
  agent = await realAgent();
  link = new AgentLink(op, { dial: () => agent.dial() });
});

afterAll(async () => {
  link.close();
  await agent[Symbol.asyncDispose]();
});

type Published = AsyncDisposable & { readonly port: number };

/** A server, and a port at which the relay answers for it. */
async function published(onConnection: (socket: Socket) => void): Promise<Published> {
  const server: Server = createServer({ allowHalfOpen: true }, onConnection);
  const sockets = new Set<Socket>();
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const outside = await answering((server.address() as AddressInfo).port);
  return {
    port: outside.port,
    async [Symbol.asyncDispose]() {
      await outside[Symbol.asyncDispose]();
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

async function answering(inside: number): Promise<Published> {
  const run = {
    ...{ id: 'sbx00000000000000000' as never, op, link },
    use: () => {
      used += 1;
      return {
        [Symbol.dispose]: () => {
          used -= 1;
        },
      };
    },
  };
  return await listenTcp(op, { host: '127.0.0.1', port: 0 }, (peer) => void relay(run, inside, peer));
}

const client = (port: number): Socket => connect({ host: '127.0.0.1', port, allowHalfOpen: true });

async function wholeOf(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of socket.iterator({ destroyOnReturn: false })) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

const digest = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

test('every byte arrives both ways, also what is said before the connection is answered, and each side may end first', async () => {
  await using port = await published((socket) => void socket.pipe(socket));
  const sizes = [1, 100, 65_536, 65_537, 3_000_000];
  await Promise.all(
    sizes.map(async (size) => {
      const bytes = randomBytes(size);
      const socket = client(port.port);
      socket.end(bytes); // at once: it may go out before the connection inside is made
      expect(digest(await wholeOf(socket))).toBe(digest(bytes));
    }),
  );
  await using greeter = await published((socket) => void socket.end('done'));
  const socket = client(greeter.port);
  expect((await wholeOf(socket)).toString()).toBe('done');
  socket.end();
  await eventually('nothing is left of them', () => used === 0);
});

test('a client that does not read holds its server up, and gets every byte when it does', async () => {
  const total = 64 * 1_048_576;
  let written = 0;
  await using port = await published((socket) => {
    const chunk = Buffer.alloc(65_536, 'x');
    const more = (): void => {
      while (written < total && !socket.destroyed) {
        written += chunk.byteLength;
        if (!socket.write(chunk)) return void socket.once('drain', more);
      }
      socket.end();
    };
    more();
  });
  const socket = client(port.port).pause();
  await once(socket, 'connect');
  let before = -1;
  // What the kernel keeps on the way differs from machine to machine; that it ends does not.
  await eventually('the server is held up', async () => {
    const same = written > 0 && written === before;
    before = written;
    await sleep(200);
    return same && written === before;
  });
  expect(written).toBeLessThan(total);
  let got = 0;
  for await (const chunk of socket.iterator({ destroyOnReturn: false })) got += (chunk as Buffer).byteLength;
  expect(got).toBe(total);
  socket.end();
  await eventually('nothing is left of it', () => used === 0);
});

test('a server that does not read holds its client up, and gets every byte when it does', async () => {
  const total = 64 * 1_048_576;
  const inside = Promise.withResolvers<Socket>();
  await using port = await published((socket) => inside.resolve(socket.pause()));
  const socket = client(port.port);
  const chunk = Buffer.alloc(65_536, 'x');
  let written = 0;
  const sent = (async () => {
    for (; written < total; written += chunk.byteLength) if (!socket.write(chunk)) await once(socket, 'drain');
    socket.end();
  })();
  const server = await inside.promise;
  let before = -1;
  await eventually('the client is held up', async () => {
    const same = written > 0 && written === before;
    before = written;
    await sleep(200);
    return same && written === before;
  });
  expect(written).toBeLessThan(total);
  expect((await wholeOf(server)).byteLength).toBe(total);
  await sent;
  server.end();
  expect((await wholeOf(socket)).byteLength).toBe(0);
  await eventually('nothing is left of it', () => used === 0);
});

test('what a client has sent is taken to the end, though both sides have said that they are done', async () => {
  const inside = Promise.withResolvers<Socket>();
  await using port = await published((socket) => {
    socket.pause();
    socket.end('enough');
    inside.resolve(socket);
  });
  const socket = client(port.port);
  socket.resume();
  const server = await inside.promise;
  // More than the kernel takes on the way, so that the rest waits in the relay and in the agent.
  const bytes = randomBytes(24 * 1_048_576);
  socket.end(bytes);
  const got: Buffer[] = [];
  // Read no faster than it must be, for the client to be done while much of it still waits.
  await eventually('the client is gone', () => {
    for (let reads = 0; reads < 3; reads += 1) got.push((server.read() as Buffer | null) ?? Buffer.alloc(0));
    return socket.closed;
  });
  expect(Buffer.concat(got).byteLength).toBeLessThan(bytes.byteLength);
  got.push(await wholeOf(server));
  expect(digest(Buffer.concat(got))).toBe(digest(bytes));
  await eventually('nothing is left of it', () => used === 0);
});

test('where nobody listens the connection is reset, and so is one whose server resets it', async () => {
  const none = createServer().listen(0, '127.0.0.1');
  await once(none, 'listening');
  const inside = (none.address() as AddressInfo).port;
  none.close();
  await once(none, 'close');
  await using nobody = await answering(inside);
  await using rude = await published((socket) => void socket.once('data', () => socket.resetAndDestroy()));
  for (const { port } of [nobody, rude]) {
    const socket = client(port);
    socket.write('hello');
    const [error] = (await once(socket, 'error')) as [NodeJS.ErrnoException];
    expect(error.code).toBe('ECONNRESET');
  }
  await eventually('nothing is left of them', () => used === 0);
});

test('a client that is gone is gone inside, too', async () => {
  const inside = Promise.withResolvers<Socket>();
  await using port = await published((socket) => inside.resolve(socket.resume()));
  const socket = client(port.port);
  socket.write('hello');
  const server = await inside.promise;
  socket.resetAndDestroy();
  await eventually('its connection has ended inside', () => server.readableEnded || server.destroyed);
  await eventually('nothing is left of it', () => used === 0);
});
