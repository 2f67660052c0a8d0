// What a connection of SSH is about, and how bytes are carried over its channels.
import { Buffer } from 'node:buffer';
import type { Duplex } from 'node:stream';
import type { Agent } from '../../guest/agent.ts';
import type { Handlers } from '../handlers.ts';

export type Served = {
  readonly ref: string;
  readonly name: string;
  readonly agent: Agent;
  readonly handlers: Pick<Handlers, 'exec.start' | 'exec.signal'>;
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
