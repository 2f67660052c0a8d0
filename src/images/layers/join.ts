// The data of an image's layers, one after the other in the file that becomes its file system. Each goes there as soon
// as it is packed, while the next one is read; the head, which tells where all else lies, is written last.
import { createHash } from 'node:crypto';
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { PackedLayer } from '../squashfs/format.ts';
import { DATA_AT, type Written } from '../squashfs/write.ts';

/** So many bytes are left to be synced at the end, at most: the disk works while layers are packed. */
const UNSYNCED_BYTES_MAX = 32 * 1024 * 1024;

/** So little is on the disk as soon as the rest of an image. */
const LATE_BYTES_MAX = 4 * 1024 * 1024;

/** A layer that was to be taken from another image is not what it was there. */
export class NotAsItWas extends Error {
  readonly path: string;
  constructor(path: string) {
    super(`${path} has changed`);
    this.path = path;
  }
}

/** Whoever has one disposes it: then nothing is written any more. */
export class Joined implements AsyncDisposable {
  readonly #op: Operation;
  readonly #host: Host;
  readonly #path: string;
  readonly #sums: string[] = [];
  #last: Promise<void>;
  #unsynced = 0;
  #isOver = false;

  /** `path`: where nothing is yet. */
  constructor(op: Operation, host: Host, path: string) {
    this.#op = op;
    this.#host = host;
    this.#path = path;
    this.#last = host.appendFile(op, path, Buffer.alloc(DATA_AT));
    this.#last.catch(() => {}); // heard in `finish`
  }

  /** Layers come in their order. What goes wrong is told by `finish`. `isOwn`: its file is removed once it is here. */
  add(packed: PackedLayer, isOwn: boolean): void {
    this.#last = this.#last.then(() => this.#append(packed, isOwn));
    this.#last.catch(() => {}); // heard in `finish`
  }

  /**
   * The rest of it, and all of it on the disk. `sums`: the digest of each layer's data, in hexadecimal.
   * @throws NotAsItWas
   */
  async finish({ head, tables }: Written): Promise<{ readonly sha256: string; readonly sums: readonly string[] }> {
    await this.#last;
    const [op, host, path] = [this.#op, this.#host, this.#path];
    await host.appendFile(op, path, Buffer.concat(tables));
    await host.writeAt(op, path, 0, head);
    // Where little is left, it goes with the image's other files, when it is moved into place.
    const [sha256] = await Promise.all([host.sha256(op, path), ...(this.#unsynced < LATE_BYTES_MAX ? [] : [host.sync(op, path)])]);
    return { sha256, sums: this.#sums };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOver = true;
    await this.#last.catch(() => {});
  }

  async #append(packed: PackedLayer, isOwn: boolean): Promise<void> {
    const [op, host] = [this.#op, this.#host];
    const hash = createHash('sha256');
    if (packed.bytes > 0)
      await host.appendStream(
        op,
        this.#path,
        this.#hashed(packed, (chunk) => hash.update(chunk)),
      );
    const sum = hash.digest('hex');
    if (packed.sha256 !== null && packed.sha256 !== sum) throw new NotAsItWas(packed.path);
    this.#sums.push(sum);
    if (isOwn) await host.remove(op, packed.path);
    this.#unsynced += packed.bytes;
    if (this.#unsynced < UNSYNCED_BYTES_MAX) return;
    this.#unsynced = 0;
    await host.sync(op, this.#path);
  }

  async *#hashed({ path, offset, bytes, sha256 }: PackedLayer, update: (chunk: Uint8Array) => void): AsyncGenerator<Uint8Array> {
    let left = bytes;
    try {
      for await (const chunk of left === 0 ? [] : this.#host.readStream(this.#op, path, offset, 'in-place')) {
        if (this.#isOver) throw new Error('the image is not made any more');
        const part = chunk.subarray(0, left);
        left -= part.byteLength;
        update(part);
        yield part;
        if (left === 0) return;
      }
    } catch (error) {
      // Another image's, which may be removed at any time.
      if (sha256 !== null && error instanceof HutchError && error.code === 'not_found') throw new NotAsItWas(path);
      throw error;
    }
    if (left > 0) throw new NotAsItWas(path);
  }
}
