// The agent's stream over an attached container: what we write is its stdin; what comes back is cut in
// records, each with a header of 8 bytes that says which of its outputs it is from, and how long it is.
import { Duplex } from 'node:stream';

const HEADER_BYTES = 8;
const STDOUT = 1;

/** The stdout of it as a byte stream. What it says on stderr is dropped: nothing of ours is there. */
export function attachedStream(raw: Duplex): Duplex {
  const parser = new Records();
  const stream = new Duplex({
    allowHalfOpen: false,
    read: () => void raw.resume(),
    write: (chunk: Buffer, _encoding, done) => {
      if (raw.write(chunk)) done();
      else raw.once('drain', () => done());
    },
    final: (done) => raw.end(done),
    destroy: (error, done) => {
      raw.destroy();
      done(error);
    },
  });
  raw.on('data', (chunk: Buffer) => {
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
