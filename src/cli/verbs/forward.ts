// hutch forward: listens on this machine's loopback and carries each connection to a port inside.
import { createServer, type Server, type Socket } from 'node:net';
import { HutchError } from '../../domain/errors.ts';
import { preloadSockets } from '../../sdk/socket.ts';
import { connectTunnel } from '../../sdk/tunnel.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { toHutchError } from '../fail.ts';
import { json, safe } from '../output.ts';

type Pair = { readonly local: number; readonly guest: number };

const CONNECTIONS_MAX = 512;
const LOOPBACK = '127.0.0.1';

export async function run(context: Context, args: Args): Promise<number> {
  const [ref = '', ...texts] = args.positionals;
  const pairs = texts.map(parsePair);
  // Checked at once: a mistyped name must not look like a port that works.
  const sandbox = await ask(context, 'sandbox.get', { ref });
  await preloadSockets('now');
  await using servers = new AsyncDisposableStack();
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => {});
  for (const { local, guest } of pairs) {
    const server = createServer({ allowHalfOpen: true }, (socket) => void carryConnection(context, sandbox.id, guest, socket));
    server.maxConnections = CONNECTIONS_MAX;
    const port = await listen(server, local);
    servers.defer(() => close(server));
    server.on('error', (error) => failed.reject(error));
    await context.io.out(
      context.json ? json({ address: LOOPBACK, port, guestPort: guest }) : `${LOOPBACK}:${port} -> ${sandbox.name}:${guest}\n`,
    );
  }
  const { signal } = context.interrupts;
  const interrupted = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    if (signal.aborted) reject(signal.reason);
  });
  return await Promise.race([interrupted, failed.promise]);
}

/** `8080:80`, or `80` for the same on both sides. */
export function parsePair(text: string): Pair {
  const [, local, guest] = /^(?:(\d{1,5}):)?(\d{1,5})$/.exec(text) ?? [];
  const pair = { local: Number(local ?? guest), guest: Number(guest) };
  if (guest === undefined || pair.local > 65_535 || pair.guest > 65_535 || pair.guest === 0) {
    throw usage(`'${text}' is no pair of ports`, 'write it LOCAL:GUEST, like 8080:80; LOCAL 0 takes a free one');
  }
  return pair;
}

async function carryConnection(context: Context, ref: string, port: number, socket: Socket): Promise<void> {
  const gone = new AbortController();
  socket.on('error', () => gone.abort());
  socket.on('close', () => gone.abort());
  try {
    const tunnel = await connectTunnel(context.client, { ref, port }, { signal: gone.signal });
    // Not `pipeline`: it would end both ways when one has ended.
    const closed = Promise.withResolvers<void>();
    for (const stream of [socket, tunnel]) {
      stream.on('error', () => closed.resolve());
      stream.on('close', () => closed.resolve());
    }
    socket.pipe(tunnel).pipe(socket);
    await closed.promise;
    tunnel.destroy();
    socket.destroySoon();
  } catch (error) {
    socket.destroy();
    if (gone.signal.aborted && !(error instanceof HutchError && error.code !== 'cancelled')) return;
    if (error instanceof HutchError && !context.json) await context.io.err(`error: ${safe(toHutchError(error).message)}\n`).catch(() => {});
  }
}

function listen(server: Server, port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const taken = error.code === 'EADDRINUSE';
      reject(
        taken
          ? new HutchError({
              code: 'conflict',
              message: `port ${port} of ${LOOPBACK} is taken`,
              hint: 'choose another, or 0 for a free one',
              cause: error,
            })
          : error,
      );
    });
    server.listen({ host: LOOPBACK, port }, () => {
      const address = server.address();
      if (address === null || typeof address === 'string') reject(new Error('a TCP server without an address'));
      else resolve(address.port);
    });
  });
}

async function close(server: Server): Promise<void> {
  await new Promise<void>((resolve) => {
    server.close(() => resolve());
    resolve(); // connections that go on end with us
  });
}
