// A byte stream to a port or unix socket inside a sandbox, as a Node Duplex with back-pressure both ways.
import { Duplex } from 'node:stream';
import { HutchError } from '../domain/errors.ts';
import type { Input } from '../services/verbs.ts';
import type { ApiClient, CallOptions } from './client.ts';
import { ConnectionError, errorFromBody } from './errors.ts';
import { openSocket, type Socket } from './socket.ts';

const WINDOW_BYTES = 256 * 1024;
const MESSAGE_BYTES = 64 * 1024;

/** Resolves once the sandbox has connected. @throws HutchError when nothing listens there. */
export async function connectTunnel(client: ApiClient, input: Input<'port.connect'>, options: CallOptions = {}): Promise<Duplex> {
  return await tunnel(client, 'port.connect', input, options);
}

/** To the SSH server of a sandbox. @throws HutchError when it does not run. */
export async function connectSsh(client: ApiClient, input: Input<'ssh.connect'>, options: CallOptions = {}): Promise<Duplex> {
  return await tunnel(client, 'ssh.connect', input, options);
}

async function tunnel(client: ApiClient, verb: 'port.connect' | 'ssh.connect', input: object, options: CallOptions): Promise<Duplex> {
  const connected = Promise.withResolvers<void>();
  let socket: Socket | null = null;
  let ended = false;
  const stream = new Duplex({
    allowHalfOpen: true,
    readableHighWaterMark: WINDOW_BYTES,
    writableHighWaterMark: MESSAGE_BYTES,
    read: () => socket?.resume(),
    write: (chunk: Buffer, _, done) => void send(socket, chunk).then(() => done(), done),
    final: (done) => {
      socket?.sendJson({ type: 'end' });
      done();
    },
    destroy: (error, done) => {
      socket?.terminate();
      done(error);
    },
  });
  const fail = (error: HutchError): void => {
    connected.reject(error);
    if (!stream.destroyed) stream.destroy(error);
  };
  stream.on('error', () => {}); // also of one that nobody holds yet
  socket = await openSocket(
    client,
    verb,
    input,
    {
      onJson: (message) => {
        if (message.type === 'connected') connected.resolve();
        else if (message.type === 'end') {
          ended = true;
          stream.push(null);
        } else if (message.type === 'error') fail(errorFromBody(message['error'], {}));
      },
      onBytes: (bytes) => {
        if (!stream.push(bytes)) socket?.pause();
      },
      onClose: () => {
        if (!ended) fail(new ConnectionError('the connection to the sandbox was lost', { sent: true }));
        else if (!stream.writableFinished) stream.destroy();
      },
    },
    options,
  );
  await connected.promise;
  return stream;
}

async function send(socket: Socket | null, chunk: Buffer): Promise<void> {
  if (socket === null || socket.closed) throw new HutchError({ code: 'unavailable', message: 'the connection to the sandbox has ended' });
  for (let at = 0; at < chunk.byteLength; at += MESSAGE_BYTES) {
    socket.sendBytes(chunk.subarray(at, at + MESSAGE_BYTES));
    await socket.drained();
  }
}
