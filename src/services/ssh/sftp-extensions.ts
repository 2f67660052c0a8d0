// What of OpenSSH's own words for files we know (its PROTOCOL, 4), told to clients that ask: the library has no way to say that as a server.
import { Buffer } from 'node:buffer';
import type { SFTPWrapper } from 'ssh2';

const VERSION = 2;
const EXTENDED_REPLY = 201;
/** What the library takes of one message. */
const MESSAGE_BYTES_MAX = 256 * 1024;
/** Of a file in one message. With 255 KiB the daemon needed half as much processor time again: so much is taken from the system and given back each time. */
const CONTENT_BYTES_MAX = 112 * 1024;
const KNOWN = { 'posix-rename@openssh.com': '1', 'limits@openssh.com': '1' } as const;

/** What of the library's stands behind such a session (1.17.0, lib/protocol/SFTP.js). */
type Inside = {
  _protocol: { channelData(channel: number, bytes: Buffer): void };
  readonly outgoing: { readonly id: number; window: number };
  /** Waits for the client's window. */
  readonly _buffer: Buffer[];
};

/** Before the client has said anything: its first answer is then ours. */
export function announceExtensions(sftp: SFTPWrapper): void {
  const inside = sftp as unknown as Inside;
  const plain = inside._protocol;
  inside._protocol = Object.create(plain, {
    channelData: {
      value: (channel: number, without: Buffer) => {
        inside._protocol = plain;
        const words = Object.entries(KNOWN).flat().map(text);
        const all = message(VERSION, number32(3), ...words);
        inside.outgoing.window -= all.byteLength - without.byteLength;
        plain.channelData(channel, all);
      },
    },
  }) as Inside['_protocol'];
}

/** Else it would read and write 32 KiB at a time. */
export function sendLimits(sftp: SFTPWrapper, reqId: number, handlesMax: number): void {
  const { outgoing, _buffer, _protocol } = sftp as unknown as Inside;
  const limits = [MESSAGE_BYTES_MAX, CONTENT_BYTES_MAX, CONTENT_BYTES_MAX, handlesMax].map(number64);
  const answer = message(EXTENDED_REPLY, number32(reqId), ...limits);
  if (_buffer.length > 0 || outgoing.window < answer.byteLength) {
    _buffer.push(answer);
    return;
  }
  outgoing.window -= answer.byteLength;
  _protocol.channelData(outgoing.id, answer);
}

function message(type: number, ...parts: readonly Buffer[]): Buffer {
  const content = Buffer.concat([Buffer.of(type), ...parts]);
  return Buffer.concat([number32(content.byteLength), content]);
}

function text(value: string): Buffer {
  return Buffer.concat([number32(value.length), Buffer.from(value)]);
}

function number32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function number64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}
