// What the WebSocket client asks of node:crypto, in its place in the command line's bundle (scripts/bundle.ts): to load that takes 5 to 8 ms of the
// processor, a tenth of a command, and all that is wanted of it are a few random bytes and the handshake's digest (RFC 6455, 4.1).
// The digest tells a WebSocket server from another one; it protects nothing.
import { closeSync, openSync, readSync } from 'node:fs';

const ENTROPY = '/dev/urandom';
const BLOCK_BYTES = 64;
const LENGTH_BYTES = 8;
const BEGIN = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0] as const;

export function randomBytes(count: number): Buffer {
  return randomFillSync(Buffer.alloc(count));
}

export function randomFillSync(into: Buffer, offset = 0, count = into.byteLength - offset): Buffer {
  const file = openSync(ENTROPY, 'r');
  try {
    for (let done = 0; done < count; ) done += readSync(file, into, offset + done, count - done, null);
  } finally {
    closeSync(file);
  }
  return into;
}

export function createHash(algorithm: string) {
  if (algorithm !== 'sha1') throw new Error(`a WebSocket's handshake has no ${algorithm}`);
  const pieces: Buffer[] = [];
  const hash = {
    update(text: string) {
      pieces.push(Buffer.from(text));
      return hash;
    },
    digest: (encoding: BufferEncoding): string => sha1(Buffer.concat(pieces)).toString(encoding),
  };
  return hash;
}

/** FIPS 180-4, 6.1. */
function sha1(message: Buffer): Buffer {
  const blocks = Math.ceil((message.byteLength + 1 + LENGTH_BYTES) / BLOCK_BYTES);
  const padded = Buffer.alloc(blocks * BLOCK_BYTES);
  message.copy(padded);
  padded[message.byteLength] = 0x80;
  padded.writeBigUInt64BE(8n * BigInt(message.byteLength), padded.byteLength - LENGTH_BYTES);
  const digest = Uint32Array.from(BEGIN);
  for (let at = 0; at < padded.byteLength; at += BLOCK_BYTES) addBlock(digest, padded.subarray(at, at + BLOCK_BYTES));
  const bytes = Buffer.alloc(digest.byteLength);
  for (const [at, word] of digest.entries()) bytes.writeUInt32BE(word, at * 4);
  return bytes;
}

function addBlock(digest: Uint32Array, block: Buffer): void {
  const words = new Uint32Array(80);
  for (let t = 0; t < 16; t += 1) words[t] = block.readUInt32BE(t * 4);
  const word = (t: number): number => words[t] ?? 0;
  for (let t = 16; t < 80; t += 1) words[t] = rotated(word(t - 3) ^ word(t - 8) ^ word(t - 14) ^ word(t - 16), 1);
  let [a = 0, b = 0, c = 0, d = 0, e = 0] = digest;
  for (let t = 0; t < 80; t += 1) {
    const [mixed, constant] = roundOf(t, b, c, d);
    [a, b, c, d, e] = [(rotated(a, 5) + mixed + e + constant + word(t)) | 0, a, rotated(b, 30), c, d];
  }
  for (const [at, added] of [a, b, c, d, e].entries()) digest[at] = (digest[at] ?? 0) + added;
}

function roundOf(t: number, b: number, c: number, d: number): readonly [mixed: number, constant: number] {
  if (t < 20) return [(b & c) ^ (~b & d), 0x5a827999];
  if (t < 40) return [b ^ c ^ d, 0x6ed9eba1];
  if (t < 60) return [(b & c) ^ (b & d) ^ (c & d), 0x8f1bbcdc];
  return [b ^ c ^ d, 0xca62c1d6];
}

function rotated(word: number, by: number): number {
  return (word << by) | (word >>> (32 - by));
}
