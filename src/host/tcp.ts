// TCP: ports of this machine at which we answer, and connections to others, with TLS or without.
import { connect, createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { connect as connectTls } from 'node:tls';
import { heed } from './errors.ts';
import type { TcpAddress, TcpListener, TcpPeer, TlsOptions } from './host.ts';
import type { Operation } from './operation.ts';

/** Of one port; who comes beyond that is turned away. */
const CONNECTIONS_MAX = 1_024;
/** A connection to ourselves that has not come in by then does not come in. */
const PROVE_MS = 3_000;
/** Addresses that stand for all of them, and one by which they are tried. */
const ANY: Readonly<Record<string, string>> = { '0.0.0.0': '127.0.0.1', '::': '::1' };
/** After so much silence the other end is asked whether it is still there. */
const KEEP_ALIVE_MS = 30_000;

/**
 * Listens, and has proved it when it resolves: a connection of our own to that address came in there, so nobody's rules
 * carry them elsewhere. `arrived` gets each other one, paused; it ends at the latest with the listener.
 */
export function listenTcp(op: Operation, address: TcpAddress, arrived: (peer: TcpPeer) => void): Promise<TcpListener> {
  return heed(
    op,
    `listen at ${address.host} port ${address.port}`,
    async () => {
      const listener = new Listener(arrived);
      try {
        return await listener.open(op, address);
      } catch (error) {
        await listener[Symbol.asyncDispose]();
        throw error;
      }
    },
    (late) => void late[Symbol.asyncDispose](),
  );
}

class Listener implements AsyncDisposable {
  readonly #server: Server;
  readonly #peers = new Set<Socket>();
  readonly #arrived: (peer: TcpPeer) => void;
  /** Until it is proved: who has come, and may be ourselves. */
  #early: Set<Socket> | null = new Set();
  #onEarly: () => void = () => {};

  constructor(arrived: (peer: TcpPeer) => void) {
    this.#arrived = arrived;
    this.#server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (socket) => this.#came(socket));
    this.#server.maxConnections = CONNECTIONS_MAX;
    this.#server.unref();
  }

  async open(op: Operation, { host, port }: TcpAddress): Promise<TcpListener> {
    const bound = await listening(op, this.#server, host, port);
    using limited = op.within(PROVE_MS, `a connection to ${host} port ${bound}: somebody's rules carry it elsewhere`);
    const probe = await connected(limited, connect({ host: ANY[host] ?? host, port: bound }));
    try {
      await this.#prove(limited, probe.localPort ?? 0);
    } finally {
      probe.destroy();
    }
    return { port: bound, [Symbol.asyncDispose]: () => this[Symbol.asyncDispose]() };
  }

  #came(socket: Socket): void {
    socket.on('error', () => socket.destroy());
    this.#peers.add(socket);
    socket.once('close', () => this.#peers.delete(socket));
    if (this.#early === null) {
      this.#arrived(socket);
    } else {
      this.#early.add(socket);
      this.#onEarly();
    }
  }

  async #prove(op: Operation, ownPort: number): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const onAbort = (): void => reject(op.signal.reason);
    op.signal.addEventListener('abort', onAbort, { once: true });
    this.#onEarly = () => {
      const own = [...(this.#early ?? [])].find(({ remotePort }) => remotePort === ownPort);
      if (own === undefined) return;
      this.#early?.delete(own);
      own.destroy();
      resolve();
    };
    this.#onEarly();
    try {
      await promise;
    } finally {
      op.signal.removeEventListener('abort', onAbort);
    }
    const others = this.#early ?? [];
    this.#early = null;
    for (const socket of others) this.#arrived(socket);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    for (const peer of this.#peers) peer.destroy();
  }
}

async function listening(op: Operation, server: Server, host: string, port: number): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('error', reject);
  server.listen({ host, port, exclusive: true }, resolve);
  await promise;
  server.removeListener('error', reject);
  server.on('error', (cause) => op.log.warn({ cause, host, port }, 'a port that is listened on failed'));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('a TCP server without an address');
  return address.port;
}

export function connectTcp(op: Operation, { host, port }: TcpAddress, tls?: TlsOptions): Promise<Duplex> {
  return heed(
    op,
    `connect to ${host} port ${port}`,
    async () => {
      if (tls === undefined) return await connected(op, connect({ host, port, noDelay: true }));
      const { ca, cert, key, verify } = tls;
      const socket = connectTls({
        host,
        port,
        ...(isAddress(host) ? {} : { servername: host }),
        rejectUnauthorized: verify,
        ...(ca === undefined ? {} : { ca: Buffer.from(ca) }),
        ...(cert === undefined ? {} : { cert: Buffer.from(cert) }),
        ...(key === undefined ? {} : { key: Buffer.from(key) }),
      });
      socket.setNoDelay(true);
      return await connected(op, socket, 'secureConnect');
    },
    (late) => late.destroy(),
  );
}

function isAddress(host: string): boolean {
  return host.includes(':') || /^[\d.]+$/.test(host);
}

async function connected<S extends Socket>(op: Operation, socket: S, event: 'connect' | 'secureConnect' = 'connect'): Promise<S> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const onAbort = (): void => void socket.destroy(op.signal.reason instanceof Error ? op.signal.reason : new Error('aborted'));
  op.signal.addEventListener('abort', onAbort, { once: true });
  socket.once(event, resolve).once('error', reject);
  try {
    await promise;
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    return socket;
  } finally {
    op.signal.removeEventListener('abort', onAbort);
    socket.removeListener('error', reject);
  }
}
