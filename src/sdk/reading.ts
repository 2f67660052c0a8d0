// Connections to the daemon's unix socket that carry much. Node gives each read 64 KiB of new memory,
// however little comes; most of a client's time went into the collector.
import { connect, type Socket } from 'node:net';
import { FrameGatherer } from './frame-gatherer.ts';

const READ_BYTES = 64 * 1024;

/** Read into one place; `data` events bring whole WebSocket frames, after the head of the answer. */
export function connectForFrames(path: string, payloadBytesMax: number): Socket {
  const gatherer = new FrameGatherer(payloadBytesMax, (bytes) => socket.emit('data', bytes));
  const buffer = Buffer.allocUnsafeSlow(READ_BYTES);
  const callback = (length: number): boolean => {
    gatherer.push(buffer.subarray(0, length));
    return true;
  };
  const socket: Socket = connect({ path, onread: { buffer, callback } });
  return socket;
}

/** Read into one place as well, valid until the next `data`: a parser copies what an answer carries, and nothing else is kept of it. */
export function connectForBodies(path: string, readBytes = READ_BYTES): Socket {
  const buffer = Buffer.allocUnsafeSlow(readBytes);
  const callback = (length: number): boolean => socket.emit('data', buffer.subarray(0, length)) || true;
  const socket: Socket = connect({ path, onread: { buffer, callback } });
  return socket;
}
