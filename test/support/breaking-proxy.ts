// A proxy for bytes in front of a server, that breaks connections where a test wants it.
import { connect, createServer, type Socket } from 'node:net';
import { freePort } from './free-port.ts';

export type BreakingProxy = AsyncDisposable & {
  /** `127.0.0.1:PORT`. */
  readonly name: string;
  /** The next connections break when so many bytes went that way; each of these breaks one. */
  readonly breaks: { readonly way: 'up' | 'down'; readonly afterBytes: number }[];
  /** How many were broken. */
  readonly broken: () => number;
};

export async function breakingProxy(target: string): Promise<BreakingProxy> {
  const [host = '', port = ''] = target.split(':');
  const breaks: BreakingProxy['breaks'][number][] = [];
  const sockets = new Set<Socket>();
  let broken = 0;
  const server = createServer((client) => {
    const upstream = connect(Number(port), host);
    const passed = { up: 0, down: 0 };
    const both = [client, upstream];
    for (const socket of both) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        sockets.delete(socket);
        for (const other of both) other.destroy();
      });
    }
    const pass = (way: 'up' | 'down', from: Socket, to: Socket) =>
      from.on('data', (chunk) => {
        passed[way] += chunk.byteLength;
        const at = breaks.findIndex((one) => one.way === way && passed[way] > one.afterBytes);
        if (at >= 0) {
          breaks.splice(at, 1);
          broken += 1;
          client.resetAndDestroy();
          upstream.resetAndDestroy();
          return;
        }
        if (!to.write(chunk)) {
          from.pause();
          to.once('drain', () => from.resume());
        }
      });
    pass('up', client, upstream);
    pass('down', upstream, client);
  });
  const own = await freePort();
  await new Promise<void>((resolve) => server.listen(own, '127.0.0.1', resolve));
  return {
    name: `127.0.0.1:${own}`,
    breaks,
    broken: () => broken,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
