// A unix socket of our own on which one peer says one thing and hangs up: how a VMM hands over its
// state without being able to open a file of ours.
import * as fs from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { basename, dirname } from 'node:path';
import { abortError, heed, systemError } from './errors.ts';
import type { Receiver } from './host.ts';
import type { Operation } from './operation.ts';
import { SOCKET_PATH_BYTES_MAX } from './sockets.ts';

/** Listens at `path`, which must be free. Disposing removes it. */
export function receiveUnix(op: Operation, path: string, bytesMax: number): Promise<Receiver> {
  const what = `receive at ${path}`;
  return heed(
    op,
    what,
    async () => {
      await using undo = new AsyncDisposableStack();
      const address = await addressOf(path, undo);
      const { promise: content, resolve, reject } = Promise.withResolvers<Uint8Array>();
      content.catch(() => {}); // whoever waits for it hears it; nobody may
      const fail = (error: unknown): void => reject(systemError(op, what, error));
      const server = createServer({ allowHalfOpen: false }, (peer) => {
        server.close(); // one peer only; the path goes with it
        gather(op, peer, bytesMax, resolve, fail);
        open = peer;
      });
      let open: Socket | undefined;
      const onAbort = (): void => {
        open?.destroy();
        reject(abortError(op, what));
      };
      op.signal.addEventListener('abort', onAbort, { once: true });
      await new Promise<void>((listening, failed) => {
        server.once('error', failed);
        server.listen({ path: address, backlog: 1 }, () => {
          server.removeListener('error', failed);
          server.on('error', fail);
          listening();
        });
      });
      undo.defer(() => {
        op.signal.removeEventListener('abort', onAbort);
        open?.destroy();
        server.close();
        reject(op.error('cancelled', `cancelled: ${what}`));
      });
      const kept = undo.move();
      return { content, [Symbol.asyncDispose]: () => kept[Symbol.asyncDispose]() };
    },
    (late) => void late[Symbol.asyncDispose](),
  );
}

/** A path that does not fit into a socket's address goes through its directory's descriptor, held as long as the socket. */
async function addressOf(path: string, undo: AsyncDisposableStack): Promise<string> {
  if (Buffer.byteLength(path) <= SOCKET_PATH_BYTES_MAX) return path;
  const dir = undo.use(await fs.open(dirname(path), 'r'));
  return `/proc/self/fd/${dir.fd}/${basename(path)}`;
}

function gather(op: Operation, peer: Socket, bytesMax: number, done: (content: Uint8Array) => void, fail: (error: unknown) => void): void {
  const chunks: Buffer[] = [];
  let bytes = 0;
  peer.on('data', (chunk: Buffer) => {
    bytes += chunk.byteLength;
    if (bytes > bytesMax) {
      fail(op.error('payload_too_large', `the peer sent more than ${bytesMax} bytes`));
      peer.destroy();
      return;
    }
    chunks.push(chunk);
  });
  peer.once('end', () => done(Buffer.concat(chunks)));
  peer.once('error', fail);
  peer.once('close', () => fail(op.error('unavailable', 'the peer hung up before it had said everything')));
}
