// hutch forward: listens on this machine's loopback, or on a unix socket that only its user may open, and
// carries each connection to a port or a unix socket inside.
import { lstat, rm } from 'node:fs/promises';
import { connect, createServer, type ListenOptions, type Server, type Socket } from 'node:net';
import { resolve } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import { preloadSockets } from '../../sdk/socket.ts';
import { connectTunnel } from '../../sdk/tunnel.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { toHutchError } from '../fail.ts';
import { json, safe } from '../output.ts';

/** A port, or the path of a unix socket. */
type End = number | string;
type Pair = { readonly local: End; readonly guest: End };

const CONNECTIONS_MAX = 512;
/** What the kernel takes as the path of a unix socket. */
const PATH_BYTES_MAX = 107;
const LOOPBACK = '127.0.0.1';

export async function run(context: Context, args: Args): Promise<number> {
  const [ref = '', ...texts] = args.positionals;
  const pairs = texts.map(parsePair);
  // Checked at once: a mistyped name must not look like a port that works.
  const sandbox = await ask(context, 'sandbox.get', { ref });
  requireRunning(sandbox);
  await preloadSockets('now');
  await using servers = new AsyncDisposableStack();
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => {});
  for (const { local, guest } of pairs) {
    const server = createServer({ allowHalfOpen: true }, (socket) => void carryConnection(context, sandbox.id, guest, socket));
    server.maxConnections = CONNECTIONS_MAX;
    const bound = typeof local === 'number' ? await listenOnPort(server, local) : await listenOnPath(server, local);
    servers.defer(() => close(server));
    server.on('error', (error) => failed.reject(error));
    const here = typeof bound === 'number' ? { address: LOOPBACK, port: bound } : { path: bound };
    const there = typeof guest === 'number' ? { guestPort: guest } : { guestPath: guest };
    const name = typeof bound === 'number' ? `${LOOPBACK}:${bound}` : bound;
    await context.io.out(context.json ? json({ ...here, ...there }) : `${safe(name)} -> ${sandbox.name}:${safe(String(guest))}\n`);
  }
  const { signal } = context.interrupts;
  const interrupted = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    if (signal.aborted) reject(signal.reason);
  });
  return await Promise.race([interrupted, failed.promise]);
}

/** So must one that does not run. It may end and start again meanwhile. */
function requireRunning({ name, state }: { readonly name: string; readonly state: string }): void {
  if (state === 'running' || state === 'paused') return;
  const verb = state === 'suspended' ? 'resume' : 'start';
  throw new HutchError({
    code: 'failed_precondition',
    message: `sandbox ${name} does not run: it is ${state}`,
    hint: `start it with: hutch ${verb} ${name}`,
  });
}

/** `8080:80`, or `80` for the same on both sides; a path in place of either is a unix socket. */
export function parsePair(text: string): Pair {
  const colon = text.indexOf(':');
  const guest = endOf(text.slice(colon + 1), (path) => path.startsWith('/'));
  const local = colon < 0 ? guest : endOf(text.slice(0, colon), (path) => path.includes('/'));
  if (guest === null || guest === 0 || local === null || (colon < 0 && typeof guest === 'string')) {
    const hint = 'write it LOCAL:GUEST, like 8080:80 or ./web.sock:/run/web.sock; LOCAL 0 takes a free port';
    throw usage(`'${text}' is no pair of ports or of sockets’ paths`, hint);
  }
  return { local, guest };
}

function endOf(text: string, isPath: (text: string) => boolean): End | null {
  if (/^\d{1,5}$/.test(text)) return Number(text) <= 65_535 ? Number(text) : null;
  return isPath(text) ? text : null;
}

async function carryConnection(context: Context, ref: string, guest: End, socket: Socket): Promise<void> {
  const gone = new AbortController();
  socket.on('error', () => gone.abort());
  socket.on('close', () => gone.abort());
  try {
    const to = typeof guest === 'number' ? { port: guest } : { unix: guest };
    const tunnel = await connectTunnel(context.client, { ref, ...to }, { signal: gone.signal });
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

async function listenOnPort(server: Server, port: number): Promise<number> {
  if (!(await listen(server, { host: LOOPBACK, port }))) {
    throw new HutchError({
      code: 'conflict',
      message: `port ${port} of ${LOOPBACK} is taken`,
      hint: 'choose another, or 0 for a free one',
    });
  }
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('a TCP server without an address');
  return address.port;
}

/** The socket is its user's alone, and is removed with the server; one that a killed server has left is replaced. */
async function listenOnPath(server: Server, text: string): Promise<string> {
  const path = resolve(text);
  if (Buffer.byteLength(path) > PATH_BYTES_MAX) {
    throw usage(`${path} is longer than the path of a socket can be (${PATH_BYTES_MAX} bytes)`, 'give one that is shorter');
  }
  const umask = process.umask(0o177);
  try {
    if (await listen(server, { path })) return path;
    if ((await lstat(path)).isSocket() && !(await isAnswered(path))) {
      await rm(path);
      if (await listen(server, { path })) return path;
    }
  } finally {
    process.umask(umask);
  }
  throw new HutchError({ code: 'conflict', message: `${path} exists`, hint: 'choose another, or remove it' });
}

function isAnswered(path: string): Promise<boolean> {
  return new Promise((settle) => {
    const socket = connect(path);
    socket.once('connect', () => settle(true));
    socket.once('error', (error: NodeJS.ErrnoException) => settle(error.code !== 'ECONNREFUSED'));
    socket.once('close', () => settle(true));
    socket.once('connect', () => socket.destroy());
  });
}

/** Whether it listens now: not, where somebody else is there. */
function listen(server: Server, at: ListenOptions): Promise<boolean> {
  return new Promise((settle, reject) => {
    const onError = (error: NodeJS.ErrnoException): void => {
      if (error.code === 'EADDRINUSE') settle(false);
      else if (at.path === undefined) reject(error);
      else reject(usage(`${at.path}: ${error.code === 'ENOENT' ? 'there is no such directory' : error.message}`));
    };
    server.once('error', onError);
    server.listen(at, () => {
      server.off('error', onError);
      settle(true);
    });
  });
}

async function close(server: Server): Promise<void> {
  await new Promise<void>((settle) => {
    server.close(() => settle());
    settle(); // connections that go on end with us
  });
}
