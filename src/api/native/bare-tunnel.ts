// A tunnel for who passes its connection on to another program, as OpenSSH takes one from its proxy (ProxyUseFdpass): after the
// answer's head there is nothing but the bytes. Always true: nothing is said before the client has, as whoever reads the head must
// not take what is meant for whom the connection is passed on to.
import type { IncomingMessage } from 'node:http';
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Tunnel } from '../../services/handlers.ts';

/** What such a client asks the connection to become, in place of `websocket`. */
const PROTOCOL = 'hutch-bytes';
/** Whose machine has vanished is noticed by the system: there is nothing of ours in such a connection that could be asked for. */
const KEEP_ALIVE_MS = 30_000;

export function wantsBytes(request: IncomingMessage): boolean {
  return request.headers.upgrade?.toLowerCase() === PROTOCOL;
}

/** Tells that from here on the connection is the tunnel. */
export function becomeBytes(socket: Duplex, opId: string): void {
  if (socket instanceof Socket) socket.setKeepAlive(true, KEEP_ALIVE_MS);
  const lines = ['HTTP/1.1 101 Switching Protocols', 'Connection: Upgrade', `Upgrade: ${PROTOCOL}`, `Hutch-Op-Id: ${opId}`];
  socket.write(`${lines.join('\r\n')}\r\n\r\n`);
}

/** Carries until both sides have ended. */
export async function carryBytes(socket: Duplex, head: Uint8Array, tunnel: Tunnel): Promise<void> {
  const spoken = Promise.withResolvers<void>();
  const inward = (async () => {
    try {
      if (head.byteLength > 0) {
        spoken.resolve();
        await tunnel.write(head);
      }
      for await (const bytes of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Uint8Array>) {
        spoken.resolve();
        await tunnel.write(bytes);
      }
      tunnel.end();
    } finally {
      spoken.resolve();
    }
  })();
  const outward = (async () => {
    await spoken.promise;
    for await (const bytes of tunnel.bytes()) await written(socket, bytes);
    socket.end();
  })();
  await Promise.all([inward, outward]);
}

/** Resolves once the system has them, and there is room for more. */
async function written(socket: Duplex, bytes: Uint8Array): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    socket.write(bytes, (error) => (error === undefined || error === null ? resolve() : reject(error)));
  });
}
