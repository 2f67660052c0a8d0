// The agent's stream over an attached container: what we write is its stdin; what comes back is cut in
// records, each with a header of 8 bytes that says which of its outputs it is from, and how long it is.
import { Duplex } from 'node:stream';

const HEADER_BYTES = 8;
const STDOUT = 1;
/** What was written and is not answered sooner may have gone to an Engine that hangs. */
const SILENT_MS = 1_000;

/**
 * The stdout of it as a byte stream. What it says on stderr is dropped: nothing of ours is there.
 * `whenSilent`: asked when something was written and nothing comes back; where it throws, the stream is lost.
 */
export function attachedStream(raw: Duplex, whenSilent: (signal: AbortSignal) => Promise<void>): Duplex {
  const parser = new Records();
  const over = new AbortController();
  let silence: NodeJS.Timeout | undefined;
  const heard = (): void => {
    clearTimeout(silence);
    silence = undefined;
  };
  const look = (): void => {
    whenSilent(over.signal).then(heard, (cause: unknown) => stream.destroy(cause instanceof Error ? cause : new Error(String(cause))));
  };
  const stream = new Duplex({
    allowHalfOpen: false,
    read: () => void raw.resume(),
    write: (chunk: Buffer, _encoding, done) => {
      silence ??= setTimeout(look, SILENT_MS).unref();
      if (raw.write(chunk)) done();
      else raw.once('drain', () => done());
    },
    final: (done) => raw.end(done),
    destroy: (error, done) => {
      heard();
      over.abort();
      raw.destroy();
      done(error);
    },
  });
  raw.on('data', (chunk: Buffer) => {
    heard();
    for (const piece of parser.feed(chunk)) if (!stream.push(piece)) raw.pause();
  });
  raw.once('end', () => stream.push(null));
  raw.once('close', () => stream.destroy());
  raw.on('error', (error) => stream.destroy(error));
  return stream;
}

/** Cuts records at any place of arrival. */
export class Records {
  #header = Buffer.alloc(0);
  #left = 0;
  #wanted = false;

  *feed(chunk: Buffer): Generator<Buffer, void, undefined> {
    let rest = chunk;
    while (rest.byteLength > 0) {
      if (this.#left === 0) {
        const missing = HEADER_BYTES - this.#header.byteLength;
        this.#header = Buffer.concat([this.#header, rest.subarray(0, missing)]);
        rest = rest.subarray(missing);
        if (this.#header.byteLength < HEADER_BYTES) return;
        this.#wanted = this.#header[0] === STDOUT;
        this.#left = this.#header.readUInt32BE(4);
        this.#header = Buffer.alloc(0);
        continue;
      }
      const piece = rest.subarray(0, this.#left);
      this.#left -= piece.byteLength;
      rest = rest.subarray(piece.byteLength);
      if (this.#wanted) yield piece;
    }
  }
}
