// What a connection of SSH is about, and how bytes are carried over its channels.
import { Buffer } from 'node:buffer';
import type { Duplex } from 'node:stream';
import type { ServerChannel } from 'ssh2';
import type { Agent } from '../../guest/agent.ts';
import type { GuestSocket } from '../../guest/agent-ports.ts';
import type { Operation } from '../../host/operation.ts';
import type { Handlers } from '../handlers.ts';

export type Served = {
  readonly ref: string;
  readonly name: string;
  /** Who its commands run as where nobody says; null: root. */
  readonly ownUser: () => Promise<string | null>;
  readonly agent: Agent;
  readonly handlers: Pick<Handlers, 'exec.start' | 'exec.signal'>;
  /** Of a process: no other one of any connection has it. All that a connection starts is of one operation, by which an exec is otherwise named. */
  readonly processId: () => string;
};

/** To the end of one direction: the other one goes on. */
export function piecesOf(stream: Duplex): AsyncIterable<Uint8Array> {
  return stream.iterator({ destroyOnReturn: false }) as AsyncIterable<Uint8Array>;
}

type Writable = NodeJS.WritableStream & { readonly destroyed?: boolean };

/** Resolves when the other side has room for more. The bytes may be changed then. */
export async function written(stream: Writable, bytes: Uint8Array): Promise<void> {
  await taken(stream, Buffer.from(bytes));
}

/** The same of bytes that nobody else will change. */
export async function taken(stream: Writable, bytes: Uint8Array): Promise<void> {
  if (stream.destroyed === true) return;
  if (stream.write(bytes)) return;
  await new Promise<void>((resolve) => {
    const settle = (): void => {
      stream.off('drain', settle);
      stream.off('close', settle);
      resolve();
    };
    stream.on('drain', settle);
    stream.on('close', settle);
  });
}

/** Resolves when nothing waits in it, or it is closed. */
async function allTaken(channel: ServerChannel): Promise<void> {
  await new Promise<void>((resolve) => {
    channel.once('close', () => resolve());
    channel.write(Buffer.alloc(0), () => resolve());
  });
}

/** Both ways, to the end of both: who has said all may still be answered. */
export async function carryBetween(op: Operation, socket: GuestSocket, channel: ServerChannel): Promise<void> {
  channel.on('error', () => {});
  const inward = (async () => {
    for await (const chunk of piecesOf(channel)) await socket.write(op, chunk as Buffer);
    socket.end();
  })();
  const outward = (async () => {
    for await (const bytes of socket.bytes(op)) await written(channel, bytes);
    await allTaken(channel);
    channel.eof(); // its `end` would close the other direction too
  })();
  await Promise.allSettled([inward, outward]);
  channel.destroy();
}
