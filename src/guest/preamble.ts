// How a connection begins: the preamble is sent, and its answer is found in whatever an earlier
// connection left in the pipe. Nothing that comes before the answer is kept.
import type { Duplex } from 'node:stream';
import type { Operation } from '../host/operation.ts';
import { readU32 } from './frames.ts';
import { FRAME_BYTES_MAX } from './protocol.ts';
import { reasonOf } from './wait.ts';

export const PROTOCOL_VERSION = 1;
const NONCE_BYTES = 8;
export const PREAMBLE_BYTES = 8 + NONCE_BYTES;
/** The zeros before a repeated preamble: they fill up a frame that was cut. */
const FILLER_BYTES = FRAME_BYTES_MAX + 64;
const FIRST_REPEAT_MS = 100;
const REPEAT_MS = 250;

const FIXED = Uint8Array.of(0x48, 0x55, 0x54, 0x43, 0x48, PROTOCOL_VERSION, 0x0d, 0x0a); // HUTCH\x01\r\n
const VERSION_AT = 5;

/** Random, and its first four bytes are not all zero: they are the mark. */
export function newNonce(randomBytes: (count: number) => Uint8Array): Uint8Array {
  const nonce = Uint8Array.from(randomBytes(NONCE_BYTES));
  if (readU32(nonce, 0) === 0) nonce[0] = 1;
  return nonce;
}

export function preambleOf(nonce: Uint8Array): Buffer<ArrayBuffer> {
  return Buffer.concat([FIXED, nonce]);
}

/** The number that ends every frame of the connection. */
export function markOf(nonce: Uint8Array): number {
  return readU32(nonce, 0);
}

export type Found = { readonly version: number /** Bytes after the answer: the first frames. */; readonly rest: Uint8Array };

/** Looks for the answer to one nonce in any bytes, in any chunking. Holds at most 15 bytes. */
export class AnswerFinder {
  readonly #nonce: Uint8Array;
  #tail: Uint8Array = new Uint8Array(0);

  constructor(nonce: Uint8Array) {
    this.#nonce = nonce;
  }

  push(chunk: Uint8Array): Found | null {
    const bytes =
      this.#tail.byteLength === 0 ? Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength) : Buffer.concat([this.#tail, chunk]);
    // The nonce is random, so it is what is searched for; the fixed bytes before it say the version.
    for (let at = bytes.indexOf(this.#nonce); at !== -1; at = bytes.indexOf(this.#nonce, at + 1)) {
      const version = versionBefore(bytes, at);
      if (version !== null) return { version, rest: bytes.subarray(at + NONCE_BYTES) };
    }
    this.#tail = Uint8Array.from(bytes.subarray(Math.max(0, bytes.byteLength - (PREAMBLE_BYTES - 1))));
    return null;
  }
}

function versionBefore(bytes: Uint8Array, at: number): number | null {
  const start = at - FIXED.byteLength;
  if (start < 0) return null;
  for (const [index, byte] of FIXED.entries()) {
    if (index !== VERSION_AT && bytes[start + index] !== byte) return null;
  }
  return bytes[start + VERSION_AT] ?? null;
}

export type Greeting = {
  readonly nonce: Uint8Array;
  readonly rest: Uint8Array;
  /** How often the preamble was repeated: as many more answers may still come. */
  readonly repeats: number;
};

/**
 * Sends the preamble until it is answered. The duplex is left without listeners and paused.
 * @throws HutchError `unavailable` when the stream ends, `failed_precondition` when the agent speaks
 * another version, else the operation's own reason.
 */
export function greet(op: Operation, duplex: Duplex, nonce: Uint8Array): Promise<Greeting> {
  return new Promise((resolve, reject) => {
    const finder = new AnswerFinder(nonce);
    const preamble = preambleOf(nonce);
    let repeats = 0;

    const repeat = () => {
      // What is not even read yet needs no repetition, and must not pile up.
      if (duplex.writableLength === 0) {
        repeats += 1;
        duplex.write(Buffer.alloc(FILLER_BYTES));
        duplex.write(preamble);
      }
      timer = setTimeout(repeat, REPEAT_MS);
    };
    let timer = setTimeout(repeat, FIRST_REPEAT_MS);

    const done = () => {
      clearTimeout(timer);
      duplex.pause();
      duplex.off('data', onData).off('error', onError).off('close', onClose).off('end', onClose);
      op.signal.removeEventListener('abort', onAbort);
    };
    const onData = (chunk: Uint8Array) => {
      const found = finder.push(chunk);
      if (found === null) return;
      done();
      if (found.version === PROTOCOL_VERSION) return resolve({ nonce, rest: found.rest, repeats });
      reject(
        op.error(
          'failed_precondition',
          `the agent in the sandbox speaks version ${found.version} of the protocol; this daemon speaks ${PROTOCOL_VERSION}`,
          {
            hint: 'stop and start the sandbox, so that it gets the agent of this release',
          },
        ),
      );
    };
    const onError = (cause: unknown) => {
      done();
      reject(op.error('unavailable', 'the connection to the agent failed before it answered', { cause }));
    };
    const onClose = () => {
      done();
      reject(op.error('unavailable', 'the connection to the agent ended before it answered'));
    };
    const onAbort = () => {
      done();
      reject(reasonOf(op));
    };

    op.signal.addEventListener('abort', onAbort);
    duplex.on('error', onError).on('close', onClose).on('end', onClose).on('data', onData);
    if (op.signal.aborted) return onAbort();
    if (duplex.destroyed) return onClose();
    duplex.write(preamble);
    duplex.resume();
  });
}
