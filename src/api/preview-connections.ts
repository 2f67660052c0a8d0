// Connections into shared ports, kept for a moment for the next request to the same port: opening one is an operation, and a connection
// inside. One that is idle ends by itself, before what serves inside ends it and before it counts as use of the sandbox for long.
import { Agent, type AgentOptions, type ClientRequest, type ClientRequestArgs } from 'node:http';
import { Duplex, finished } from 'node:stream';
import type { Tunnel } from '../services/handlers.ts';
import type { Preview, Previews } from '../services/previews.ts';

/** Servers close what is idle after 5 s at the earliest (Node.js, gunicorn take 5 and 2 s, most others longer). */
const IDLE_MS = 1_500;
/** Of one port. */
const IDLE_MAX = 16;

export type PreviewConnections = {
  /** How a request reaches the port, by a connection that another has left where there is one. */
  kept(preview: Preview): Pick<ClientRequestArgs, 'agent' | 'host' | 'port'>;
  /** By a connection of its own, which ends with it. */
  own(preview: Preview): Pick<ClientRequestArgs, 'createConnection'>;
  /** Ends what is idle. */
  close(): void;
};

export function newPreviewConnections(previews: Pick<Previews, 'connect'>): PreviewConnections {
  const agent = new KeptAgent(previews);
  return {
    // Of these Node.js makes the name under which it keeps them.
    kept: ({ sandboxId, port }) => ({ agent, host: sandboxId, port }),
    own: ({ sandboxId, port }) => ({
      createConnection: (_, opened) => agent.createConnection({ host: sandboxId, port }, opened),
    }),
    close: () => agent.destroy(),
  };
}

type Opening = ClientRequestArgs & { readonly host?: string; readonly port?: number };

class KeptAgent extends Agent {
  readonly #previews: Pick<Previews, 'connect'>;
  readonly #idle = new WeakMap<Duplex, () => void>();

  constructor(previews: Pick<Previews, 'connect'>) {
    super({ keepAlive: true, maxFreeSockets: IDLE_MAX, scheduling: 'lifo' } satisfies AgentOptions);
    this.#previews = previews;
  }

  override createConnection(
    { host = '', port = 0 }: Opening,
    opened: (error: Error | null, stream: Duplex) => void = () => {},
  ): Duplex | null | undefined {
    let isOpen = false;
    this.#previews
      .connect({ sandboxId: host as Preview['sandboxId'], port }, undefined, async (tunnel) => {
        const socket = duplexOf(tunnel);
        const ended = new Promise<void>((resolve) => finished(socket, () => resolve()));
        isOpen = true;
        opened(null, socket);
        await ended;
      })
      .catch((error: Error) => {
        if (!isOpen) opened(error, null as never);
      });
    return undefined;
  }

  /** Node.js asks its own sockets for more than a stream has. What is said by, or ends, while nobody has asked is of no use to the next. */
  override keepSocketAlive(socket: Duplex): boolean {
    if (socket.readableLength > 0 || socket.readableEnded) return false;
    const drop = (): void => void socket.destroy();
    const timer = setTimeout(drop, IDLE_MS);
    socket.once('data', drop).once('end', drop);
    const forget = (): void => {
      clearTimeout(timer);
      socket.off('data', drop).off('end', drop).off('close', forget);
      this.#idle.delete(socket);
    };
    socket.once('close', forget);
    this.#idle.set(socket, forget);
    return true;
  }

  override reuseSocket(socket: Duplex, request: ClientRequest): void {
    request.reusedSocket = true;
    this.#idle.get(socket)?.();
  }
}

/** Both directions of a connection into a sandbox as Node.js has them. Destroying it ends the connection. */
export function duplexOf(tunnel: Tunnel): Duplex {
  return new TunnelStream(tunnel);
}

class TunnelStream extends Duplex {
  readonly #tunnel: Tunnel;
  readonly #bytes: AsyncIterator<Uint8Array>;

  constructor(tunnel: Tunnel) {
    super({ allowHalfOpen: true });
    this.#tunnel = tunnel;
    this.#bytes = tunnel.bytes()[Symbol.asyncIterator]();
  }

  override _read(): void {
    this.#bytes.next().then(
      ({ done, value }) => this.push(done === true ? null : value),
      (error: unknown) => this.destroy(error as Error),
    );
  }

  override _write(chunk: Uint8Array, _: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#tunnel.write(chunk).then(() => done(), done);
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#tunnel.end();
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#tunnel[Symbol.dispose]();
    done(error);
  }

  /** What Node.js calls once an answer is whole and no other is to come: without it, it waits for the sandbox to end its side. */
  destroySoon(): void {
    this.destroy();
  }
}
