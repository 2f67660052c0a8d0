// A unix socket of our own at which peers arrive, one after the other: how an agent that cannot be
// dialled reaches us. Whoever owns it takes each peer by `accept`; nobody waits unseen.
import * as fs from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { basename, dirname } from 'node:path';
import type { Duplex } from 'node:stream';
import { abortError, heed, systemError } from './errors.ts';
import type { UnixListener } from './host.ts';
import type { Operation } from './operation.ts';
import { readInPlace, SOCKET_PATH_BYTES_MAX } from './sockets.ts';

/** Listens at `path` in place of whatever socket is there, with that mode. */
export function listenUnix(op: Operation, path: string, mode: number): Promise<UnixListener> {
  return heed(
    op,
    `listen at ${path}`,
    async () => await open(op, path, mode),
    (late) => void late[Symbol.asyncDispose](),
  );
}

async function open(op: Operation, path: string, mode: number): Promise<UnixListener> {
  await using undo = new AsyncDisposableStack();
  await fs.rm(path, { force: true });
  let address = path;
  if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
    // Through its directory's descriptor, which is held as long as the socket.
    const dir = undo.use(await fs.open(dirname(path), 'r'));
    address = `/proc/self/fd/${dir.fd}/${basename(path)}`;
  }
  const peers = new Peers();
  const server = createServer({ allowHalfOpen: false }, (socket) => peers.arrived(socket));
  undo.defer(() => peers.close());
  await listening(op, server, address);
  undo.defer(() => void server.close());
  server.unref();
  await fs.chmod(path, mode);
  const kept = undo.move();
  return { accept: (asking) => peers.next(asking), [Symbol.asyncDispose]: () => kept[Symbol.asyncDispose]() };
}

async function listening(op: Operation, server: Server, address: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('error', reject);
  server.listen({ path: address, backlog: 1 }, resolve);
  try {
    await promise;
  } catch (error) {
    throw systemError(op, `listen at ${address}`, error);
  }
  server.removeListener('error', reject);
  server.on('error', (cause) => op.log.warn({ cause, address }, 'a socket that is listened on failed'));
}

/** At most one peer waits: who comes while another does is turned away, and may try again. */
class Peers {
  #waiting: Socket | null = null;
  #asker: ((peer: Socket) => void) | null = null;

  arrived(socket: Socket): void {
    socket.on('error', () => socket.destroy());
    const asker = this.#asker;
    this.#asker = null;
    if (asker !== null) asker(socket);
    else if (this.#waiting !== null && !this.#waiting.destroyed) socket.destroy();
    else this.#waiting = socket;
  }

  async next(op: Operation): Promise<Duplex> {
    const peer = readInPlace(await this.#next(op));
    peer.on('error', () => peer.destroy());
    return peer;
  }

  async #next(op: Operation): Promise<Socket> {
    const waiting = this.#waiting;
    this.#waiting = null;
    if (waiting !== null && !waiting.destroyed) return waiting;
    const { promise, resolve, reject } = Promise.withResolvers<Socket>();
    const onAbort = (): void => {
      if (this.#asker === resolve) this.#asker = null;
      reject(abortError(op, 'wait for a peer'));
    };
    if (op.signal.aborted) onAbort();
    else op.signal.addEventListener('abort', onAbort, { once: true });
    this.#asker = resolve;
    try {
      return await promise;
    } finally {
      op.signal.removeEventListener('abort', onAbort);
    }
  }

  close(): void {
    this.#waiting?.destroy();
    this.#waiting = null;
  }
}
