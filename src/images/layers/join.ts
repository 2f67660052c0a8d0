// The data of an image's layers, one after the other in the file that becomes its file system. Each goes there as soon
// as it is packed, while the next one is read; the head, which tells where all else lies, is written last.
import { createHash } from 'node:crypto';
import { HutchError } from '../../domain/errors.ts';
import { hashed } from '../../domain/hashed.ts';
import { ASIDE_BYTES_MIN, type Aside, type Host } from '../../host/host.ts';
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
  readonly #aside: Aside | null;
  readonly #over = new AbortController();
  readonly #sums: string[] = [];
  /** In order; `here` resolves when its data lies in the file. */
  readonly #layers: { readonly bytes: number; readonly here: Promise<void> }[] = [];
  #last: Promise<void>;
  #unsynced = 0;
  #syncing: Promise<void> = Promise.resolve();

  /** `path`: where nothing is yet. `aside`: where large layers are copied and hashed; null: here. */
  constructor(op: Operation, host: Host, path: string, aside: Aside | null = null) {
    this.#op = op;
    this.#host = host;
    this.#path = path;
    this.#aside = aside;
    this.#last = host.appendFile(op, path, Buffer.alloc(DATA_AT));
    this.#last.catch(() => {}); // heard in `finish`
  }

  /** Layers come in their order. What goes wrong is told by `finish`. `isOwn`: its file is removed once it is here. */
  add(packed: PackedLayer, isOwn: boolean): void {
    this.#last = this.#last.then(() => this.#append(packed, isOwn));
    this.#last.catch(() => {}); // heard in `finish`
    this.#layers.push({ bytes: packed.bytes, here: this.#last });
  }

  /**
   * The rest of it, and all of it on the disk. `sums`: the digest of each layer's data, in hexadecimal.
   * @throws NotAsItWas
   */
  async finish(rest: Written): Promise<{ readonly sha256: string; readonly sums: readonly string[] }> {
    const [digest, stored] = await Promise.allSettled([this.#digest(rest), this.#store(rest)]);
    if (stored.status === 'rejected') throw stored.reason;
    if (digest.status === 'rejected') throw digest.reason;
    return { sha256: digest.value, sums: this.#sums };
  }

  /** Of the whole file: each layer as soon as it is there, while the next one is copied. */
  async #digest({ head, tables }: Written): Promise<string> {
    const hash = createHash('sha256').update(head);
    let offset = head.byteLength;
    for (const { bytes, here } of this.#layers) {
      await here;
      for await (const chunk of this.#data({ path: this.#path, offset, bytes, sha256: null })) hash.update(chunk);
      offset += bytes;
    }
    for (const table of tables) hash.update(table);
    return hash.digest('hex');
  }

  async #store({ head, tables }: Written): Promise<void> {
    await this.#last;
    await this.#syncing;
    const [op, host, path] = [this.#op, this.#host, this.#path];
    await host.appendFile(op, path, Buffer.concat(tables));
    await host.writeAt(op, path, 0, head);
    // Where little is left, it goes with the image's other files, when it is moved into place.
    if (this.#unsynced >= LATE_BYTES_MAX) await host.sync(op, path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#over.abort();
    await this.#last.catch(() => {});
    await this.#syncing.catch(() => {});
  }

  async #append(packed: PackedLayer, isOwn: boolean): Promise<void> {
    const [op, host] = [this.#op, this.#host];
    const sum = await (this.#aside !== null && packed.bytes >= ASIDE_BYTES_MIN
      ? this.#copiedAside(this.#aside, packed)
      : this.#copied(packed));
    if (packed.sha256 !== null && packed.sha256 !== sum) throw new NotAsItWas(packed.path);
    this.#sums.push(sum);
    if (isOwn) await host.remove(op, packed.path);
    this.#unsynced += packed.bytes;
    if (this.#unsynced < UNSYNCED_BYTES_MAX) return;
    this.#unsynced = 0;
    // One at a time, while more is written.
    await this.#syncing;
    this.#syncing = host.sync(op, this.#path);
    this.#syncing.catch(() => {}); // heard before the next one
  }

  /** Gives the digest of what was copied, as the next one does. */
  async #copiedAside(aside: Aside, { path, offset, bytes, sha256: expected }: PackedLayer): Promise<string> {
    try {
      const copied = await aside.append(this.#op, { path, offset, bytes }, this.#path, this.#over.signal);
      if (copied.bytes < bytes) throw new NotAsItWas(path);
      return copied.sha256;
    } catch (error) {
      throw this.#ofOther(error, path, expected);
    }
  }

  async #copied(packed: PackedLayer): Promise<string> {
    const hash = createHash('sha256');
    if (packed.bytes > 0) await this.#host.appendStream(this.#op, this.#path, hashed(this.#data(packed), hash));
    return hash.digest('hex');
  }

  /** Another image's file may be removed at any time. */
  #ofOther(error: unknown, path: string, expected: string | null): unknown {
    return expected !== null && error instanceof HutchError && error.code === 'not_found' ? new NotAsItWas(path) : error;
  }

  async *#data({ path, offset, bytes, sha256 }: Pick<PackedLayer, 'path' | 'offset' | 'bytes' | 'sha256'>): AsyncGenerator<Uint8Array> {
    let left = bytes;
    try {
      for await (const chunk of left === 0 ? [] : this.#host.readStream(this.#op, path, offset, 'in-place')) {
        if (this.#over.signal.aborted) throw new Error('the image is not made any more');
        const part = chunk.subarray(0, left);
        left -= part.byteLength;
        yield part;
        if (left === 0) return;
      }
    } catch (error) {
      throw this.#ofOther(error, path, sha256);
    }
    if (left > 0) throw new NotAsItWas(path);
  }
}
