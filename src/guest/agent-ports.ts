// What listens in the sandbox, and streams to it that need no network.
import type { Operation } from '../host/operation.ts';
import { CALL_MS, events, open, unary } from './calls.ts';
import type { AgentConnection } from './connection.ts';
import { type Arrived, arrivedEvent, listening, nothing, type PortEvent, type PortInfo, portEvent, ports } from './messages.ts';
import type { AgentStream } from './stream.ts';

export type AgentPorts = {
  list(op: Operation): Promise<readonly PortInfo[]>;
  /** What listens now, and each change within a second. */
  watch(op: Operation): Promise<{ readonly ports: readonly PortInfo[]; readonly changes: AsyncGenerator<PortEvent, void, undefined> }>;
};

export type Target = { readonly tcp: { readonly host?: string; readonly port: number } } | { readonly unix: string };

/** A connection into the sandbox. Disposing it closes both directions at once. */
export class GuestSocket implements Disposable {
  readonly #stream: AgentStream;

  constructor(stream: AgentStream) {
    this.#stream = stream;
  }

  /** What the other end sends, until it has closed its side; ours stays open. Leaving the loop early closes the connection. */
  async *bytes(op: Operation): AsyncGenerator<Uint8Array, void, undefined> {
    let closed = false;
    try {
      while (!closed) {
        const item = await this.#stream.next(op);
        if (item.kind === 'data') yield item.bytes;
        else if (item.kind === 'end' || item.kind === 'close') closed = true;
      }
    } finally {
      if (!closed) this.#stream.cancel();
    }
  }

  write(op: Operation, bytes: Uint8Array): Promise<void> {
    return this.#stream.write(op, bytes);
  }

  /** Closes our side; the other end may go on sending. */
  end(): void {
    this.#stream.end();
  }

  [Symbol.dispose](): void {
    this.#stream.cancel();
  }
}

export function agentPorts(connection: AgentConnection): AgentPorts {
  return {
    list: async (op) => (await unary(op, connection, 'ports.list', null, ports)).ports,
    async watch(op) {
      const { stream, reply } = await open(op, connection, 'ports.watch', null, ports);
      return { ports: reply.ports, changes: events(op, connection, stream, ['opened', 'closed'], portEvent) };
    },
  };
}

/** A port of the sandbox's loopback that is answered here. Leaving the loop, or disposing it, ends it, with all that nobody has accepted. */
export type GuestListener = { readonly port: number; readonly arrivals: AsyncGenerator<Arrived, void, undefined> };

/** `port` 0: any that is free. @throws HutchError `conflict` where it is taken, `unimplemented` by an agent of an older release. */
export async function listenInGuest(op: Operation, connection: AgentConnection, at: number): Promise<GuestListener> {
  const { stream, reply } = await open(op, connection, 'listen', { port: at }, listening);
  connection.stands(stream);
  return { port: reply.port, arrivals: events(op, connection, stream, ['arrived'], arrivedEvent) };
}

/** One who has come to a port that is answered here. @throws HutchError `not_found` when it has gone since. */
export async function acceptFromGuest(op: Operation, connection: AgentConnection, { id }: Pick<Arrived, 'id'>): Promise<GuestSocket> {
  const { stream } = await open(op, connection, 'accept', { id }, nothing);
  return new GuestSocket(stream);
}

/** What a published port needs of a connection into the sandbox: see `AgentStream`. */
export type GuestFlow = Pick<AgentStream, 'flow' | 'flowed' | 'push' | 'end' | 'cancel'>;

/** Begins a connection without waiting for it: what is pushed goes out behind the call. */
export function flowInGuest(op: Operation, connection: AgentConnection, target: Target): GuestFlow {
  return connection.begin(op, 'connect', target);
}

/** A TCP connection attempt may take this long. */
const CONNECT_MS = 2 * CALL_MS;

export async function connectInGuest(op: Operation, connection: AgentConnection, target: Target): Promise<GuestSocket> {
  const { stream } = await open(op, connection, 'connect', target, nothing, CONNECT_MS);
  return new GuestSocket(stream);
}
