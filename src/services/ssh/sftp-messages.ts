// What a client sends for files, put together to whole messages before the library looks at them. Left to the collector, the memory of
// contents, and of the packets in which they come, would cost a round over the whole heap for every few megabytes: the packets' is let
// go of here, and the contents' by whoever has written them. Always true: what the library is given is one whole message.
import { Buffer } from 'node:buffer';
import type { SFTPWrapper } from 'ssh2';
import { takeToWrite } from '../../host/large-buffers.ts';

/** What the library takes of one message. */
const MESSAGE_BYTES_MAX = 256 * 1024;
const LENGTH_BYTES = 4;
/** Larger ones are contents alone; smaller ones keep their bytes longer than it takes to write them. */
const CONTENT_BYTES_MIN = 16 * 1024;
/** What a packet has around its data at most: its own length, four fields, and padding. */
const AROUND_BYTES_MAX = 4 + 13 + 255;

/** What of the library's stands behind such a session (1.17.0, lib/protocol/SFTP.js, Protocol.js). */
type Inside = {
  push(data: Buffer | null): void;
  readonly _protocol: { readonly _packetRW: { readonly read: object } };
};

export function gatherMessages(sftp: SFTPWrapper): void {
  const inside = sftp as unknown as Inside;
  const plain = inside.push.bind(sftp);
  const length = Buffer.alloc(LENGTH_BYTES);
  let [lengthBytes, at] = [0, 0];
  let message: Buffer | null = null;

  function begin(): void {
    const bytes = length.readUInt32BE();
    lengthBytes = 0;
    if (bytes === 0 || bytes > MESSAGE_BYTES_MAX) {
      plain(Buffer.from(length)); // which it refuses
      return;
    }
    message = bytes < CONTENT_BYTES_MIN ? Buffer.allocUnsafe(LENGTH_BYTES + bytes) : takeToWrite(LENGTH_BYTES + bytes);
    message.set(length);
    at = LENGTH_BYTES;
  }

  inside.push = (data) => {
    if (data === null) return plain(null);
    for (let from = 0; from < data.byteLength; ) {
      const into: Buffer = message ?? length;
      const filled = message === null ? lengthBytes : at;
      const part = data.subarray(from, from + into.byteLength - filled);
      into.set(part, filled);
      from += part.byteLength;
      if (message === null) {
        lengthBytes += part.byteLength;
        if (lengthBytes === LENGTH_BYTES) begin();
      } else {
        at += part.byteLength;
        if (at < into.byteLength) continue;
        message = null;
        plain(into);
      }
    }
    letGoOfPacket(data, inside);
  };
}

/** What is not its memory's only content shares it with others; what was unpacked lies in the unpacker's. */
function letGoOfPacket({ buffer, byteLength }: Buffer, { _protocol }: Inside): void {
  if (!(buffer instanceof ArrayBuffer) || byteLength < CONTENT_BYTES_MIN || buffer.byteLength - byteLength > AROUND_BYTES_MAX) return;
  if (!('_zlib' in _protocol._packetRW.read)) buffer.transferToFixedLength(0);
}
