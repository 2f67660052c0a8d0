// What the SSH library has to say to a client, put together: it writes each packet in three parts, without asking whether there is room.
import { Buffer } from 'node:buffer';
import { setImmediate as turn } from 'node:timers/promises';

/** A client that reads no answers is not read from beyond this. Files and commands have windows of their own. */
const WAITING_BYTES_MAX = 1024 * 1024;
/** Less than what an allocator takes from the system and gives back each time. */
const PIECE_BYTES_MAX = 120 * 1024;

export class Outgoing {
  #parts: Uint8Array[] = [];
  #bytes = 0;
  #ended = false;
  #reason: Error | undefined;
  #hasSome = Promise.withResolvers<void>();
  #hasRoom = Promise.withResolvers<void>();

  put(bytes: Uint8Array): void {
    this.#parts.push(bytes);
    this.#bytes += bytes.byteLength;
    this.#hasSome.resolve();
  }

  /** With a reason: what waits is not sent any more. */
  end(reason?: Error): void {
    this.#ended = true;
    this.#reason ??= reason;
    this.#hasSome.resolve();
    this.#hasRoom.resolve();
  }

  /** Until not too much waits for the client, or there is none any more. */
  async room(): Promise<void> {
    while (this.#bytes > WAITING_BYTES_MAX && !this.#ended) {
      this.#hasRoom = Promise.withResolvers();
      await this.#hasRoom.promise;
    }
  }

  /** What was put in one turn of the event loop, and what was put while the reader was busy, is one piece. */
  async *pieces(): AsyncGenerator<Uint8Array> {
    for (;;) {
      if (this.#parts.length === 0) {
        if (this.#ended) return;
        this.#hasSome = Promise.withResolvers();
        await this.#hasSome.promise;
        await turn();
      }
      if (this.#reason !== undefined) throw this.#reason;
      if (this.#parts.length > 0) yield this.#take();
    }
  }

  #take(): Uint8Array {
    let [count, bytes] = [0, 0];
    for (const part of this.#parts) {
      if (count > 0 && bytes + part.byteLength > PIECE_BYTES_MAX) break;
      count += 1;
      bytes += part.byteLength;
    }
    const taken = Buffer.concat(this.#parts.splice(0, count), bytes);
    this.#bytes -= bytes;
    this.#hasRoom.resolve();
    return taken;
  }
}
