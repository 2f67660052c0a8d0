// Connections to the daemon's unix socket that carry much. Node gives each read 64 KiB of new memory,
// however little comes; most of a client's time went into the collector.
import { connect, type Socket } from 'node:net';
import { FrameGatherer } from './frame-gatherer.ts';

const READ_BYTES = 64 * 1024;
const PIECE_BYTES_MIN = 64 * 1024;
const PIECE_BYTES_MAX = 512 * 1024;

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

/** What is read comes to lie one after the other in pieces of memory, which grow when much comes. */
export function connectForBodies(path: string): Socket {
  let piece = Buffer.alloc(0);
  let at = 0;
  const place = (): Uint8Array => {
    if (piece.byteLength - at < READ_BYTES) {
      piece = Buffer.allocUnsafeSlow(Math.min(Math.max(piece.byteLength * 2, PIECE_BYTES_MIN), PIECE_BYTES_MAX));
      at = 0;
    }
    return piece.subarray(at);
  };
  const callback = (length: number): boolean => {
    const bytes = piece.subarray(at, at + length);
    at += length;
    socket.emit('data', bytes);
    return true;
  };
  const socket: Socket = connect({ path, onread: { buffer: place, callback } });
  return socket;
}
