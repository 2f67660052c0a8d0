// Unix sockets that somebody else listens on.
import * as fs from 'node:fs/promises';
import { connect, type OnReadOpts, Socket, type SocketConstructorOpts } from 'node:net';
import { basename, dirname } from 'node:path';
import type { Duplex } from 'node:stream';
import { heed } from './errors.ts';
import type { Reads } from './host.ts';
import type { Operation } from './operation.ts';

/** `sun_path` without its final NUL. */
export const SOCKET_PATH_BYTES_MAX = 107;

const IN_PLACE_BYTES = 64 * 1024;

export function connectUnix(op: Operation, path: string, reads: Reads = 'fresh'): Promise<Duplex> {
  return heed(
    op,
    `connect to ${path}`,
    async () => {
      if (Buffer.byteLength(path) <= SOCKET_PATH_BYTES_MAX) return await dial(op, path, reads);
      // A longer path does not fit into an address; one through the directory's descriptor does.
      await using dir = await fs.open(dirname(path), 'r');
      return await dial(op, `/proc/self/fd/${dir.fd}/${basename(path)}`, reads);
    },
    (late) => late.destroy(),
  );
}

function dial(op: Operation, path: string, reads: Reads): Promise<Duplex> {
  const { promise, resolve, reject } = Promise.withResolvers<Duplex>();
  const socket = reads === 'fresh' ? connect({ path }) : connectInPlace(path);
  const onAbort = (): void => void socket.destroy(new Error('aborted'));
  op.signal.addEventListener('abort', onAbort, { once: true });
  const settled = (): void => {
    op.signal.removeEventListener('abort', onAbort);
    socket.removeListener('connect', onConnect);
    socket.removeListener('error', onError);
  };
  const onConnect = (): void => {
    settled();
    resolve(socket);
  };
  const onError = (error: Error): void => {
    settled();
    reject(error);
  };
  socket.once('connect', onConnect);
  socket.once('error', onError);
  return promise;
}

/** Paused until somebody listens: nothing is kept for a listener that is not there yet. */
function connectInPlace(path: string): Socket {
  const socket: Socket = connect({ path, onread: onread(() => socket) });
  return socket.pause();
}

function onread(socket: () => Socket): OnReadOpts {
  return {
    buffer: Buffer.allocUnsafeSlow(IN_PLACE_BYTES),
    callback: (length, memory) => socket().emit('data', memory.subarray(0, length)) || true,
  };
}

type Handle = { readonly readStop: () => unknown };

/**
 * The same connection read in place, and paused. Node offers this for connections that it makes, not for those that come to it:
 * so what is under the socket goes to another one. Where that is not there, or something was read already, the socket itself.
 */
export function readInPlace(accepted: Socket): Socket {
  const inner = accepted as unknown as { _handle: Handle | null };
  const handle = inner._handle;
  if (typeof handle?.readStop !== 'function' || accepted.readableLength > 0) return accepted.pause();
  handle.readStop();
  inner._handle = null; // whose end would be the connection's
  accepted.removeAllListeners();
  accepted.destroy();
  const options = { handle, onread: onread(() => socket), pauseOnCreate: true };
  const socket: Socket = new Socket(options as unknown as SocketConstructorOpts);
  return socket;
}
