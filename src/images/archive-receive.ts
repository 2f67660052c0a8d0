// An archive on its way in. Of one that is not packed, what is large and may be a layer goes into a file of its own, and
// is hashed while it comes: it becomes a blob as it is, and is not copied out of the archive again. A layer that is not packed
// is packed for its image while it comes, and goes past the host's cache: nobody reads it again. All else goes into one file. Whatever
// does not read as an archive is as it came in the end: what is wrong with it, others say.
import { createHash } from 'node:crypto';
import { basename, join } from 'node:path';
import { ArchiveError } from '../domain/archive-error.ts';
import type { TarEntry } from '../domain/tar/entry.ts';
import { TarReader } from '../domain/tar/reader.ts';
import { heed } from '../host/errors.ts';
import { ASIDE_BYTES_MIN, type Aside, type Host, type InsideFile, type Sum } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { type Part, type Place, partsOfArchive, range } from './archive-parts.ts';
import { Handoff } from './handoff.ts';
import { type KnownLayer, knownMaps } from './layers/map.ts';
import { PackFailed, packLayer } from './layers/pack.ts';
import { Tree, type TreeLimits } from './layers/tree.ts';
import { packingOf } from './layers/unpack.ts';
import type { ImagePaths } from './layout.ts';

/** What is smaller is read out of the archive sooner than it has a file of its own. */
const OWN_FILE_BYTES_MIN = 1024 * 1024;
const OWN_FILES_MAX = 1_024;
/** Each time a file is opened, and two threads are woken. */
const BUFFER_BYTES = 2 * 1024 * 1024;
const MAGIC_BYTES = 6;
/** Where every tar archive of today says what it is, POSIX's and GNU's. */
const USTAR = { text: 'ustar', offset: 257 };
/** Layers that are packed: one comes while what has the one before ends. */
const PACKING_MAX = 2;

export type ReceiveParts = { readonly host: Host; readonly paths: ImagePaths };
export type ReceiveLimits = TreeLimits & { readonly layerBytesMax: number };

/** Whoever has it disposes it: then nothing of it is being packed any more. */
export type Received = AsyncDisposable & {
  /** Null for what is packed, or no archive. */
  readonly parts: ReadonlyMap<string, Part> | null;
  /** All of it in one file, as it came. */
  whole(): Promise<string>;
};

/** Into `dir`. @throws what `source` throws. */
export async function receiveArchive(
  op: Operation,
  parts: ReceiveParts,
  source: AsyncIterable<Uint8Array>,
  dir: string,
  limits: ReceiveLimits,
  aside: Aside,
): Promise<Received> {
  await using undo = new AsyncDisposableStack();
  const splitter = undo.use(new Splitter(op, parts, dir, limits, aside));
  const chunks = source[Symbol.asyncIterator]();
  try {
    const found = await partsAsTheyCome(splitter, chunks);
    await splitter.takeRest(chunks);
    await splitter.finish();
    const kept = undo.move();
    return {
      ...{ parts: found === null ? null : splitter.placed(found), whole: () => splitter.whole() },
      [Symbol.asyncDispose]: () => kept.disposeAsync(),
    };
  } finally {
    await chunks.return?.();
  }
}

async function partsAsTheyCome(splitter: Splitter, chunks: AsyncIterator<Uint8Array>): Promise<ReadonlyMap<string, Part> | null> {
  try {
    await using reader = new TarReader({ [Symbol.asyncIterator]: () => splitter.looked(chunks) });
    const parts = await partsOfArchive(reader, (offset, length, digest) => splitter.place(offset, length, digest));
    await reader.drain();
    return parts;
  } catch (error) {
    if (error instanceof ArchiveError && error !== splitter.failure) return null;
    throw error;
  }
}

/** What lies where, in the order of the archive. */
type Own = {
  readonly offset: number;
  readonly length: number;
  readonly file: string;
  readonly sum: Sum;
  /** That its name says, in hexadecimal; null where it says none. */
  readonly said: string | null;
  /** Once all of it came. */
  sha256: string;
  /** That are in its file, or on their way there. */
  takenBytes: number;
  /** Where it is packed as it comes: its file, open, and where whoever packs it takes it from. */
  coming: { readonly file: InsideFile | null; readonly pieces: Handoff } | null;
  packed: Promise<KnownLayer | null> | null;
};

class Splitter implements AsyncDisposable {
  readonly #op: Operation;
  readonly #host: Host;
  readonly #paths: ImagePaths;
  readonly #limits: ReceiveLimits;
  readonly #aside: Aside;
  readonly #dir: string;
  readonly #file: string;
  readonly #owns: Own[] = [];
  /** The chunk that is looked at, and how much of the archive lies before it. */
  #chunk: Uint8Array = Buffer.alloc(0);
  #before = 0;
  #isPacked = false;
  /** How many of `#owns` are whole. */
  #done = 0;
  #plainBytes = 0;
  /** Shared, so that another thread hashes them where they lie. */
  #buffers = [sharedPages(BUFFER_BYTES), sharedPages(BUFFER_BYTES)] as const;
  #filled = 0;
  /** Where what is in the buffer goes: null is `#file`. */
  #into: Own | null = null;
  #writing: Promise<void> = Promise.resolve();
  #syncing: Promise<void> = Promise.resolve();
  /** Those that began last. */
  #packing: readonly Promise<unknown>[] = [];
  #known: Promise<ReadonlyMap<string, string>> | null = null;
  #isOver = false;
  failure: unknown = null;

  constructor(op: Operation, { host, paths }: ReceiveParts, dir: string, limits: ReceiveLimits, aside: Aside) {
    this.#op = op;
    this.#host = host;
    this.#paths = paths;
    this.#limits = limits;
    this.#aside = aside;
    this.#dir = dir;
    this.#file = join(dir, 'archive');
  }

  /** For the reader: when it asks for the next one, it has said all that begins in the one before. */
  looked(chunks: AsyncIterator<Uint8Array>): AsyncIterator<Uint8Array> {
    return { next: () => this.#next(chunks) };
  }

  async #next(chunks: AsyncIterator<Uint8Array>): Promise<IteratorResult<Uint8Array>> {
    try {
      await this.#take();
      if (this.#isPacked) return { done: true, value: undefined };
      const { done, value } = await chunks.next();
      if (done === true) return { done: true, value: undefined };
      this.#chunk = value;
      // Less than that is no archive either way.
      this.#isPacked = this.#before === 0 && value.byteLength >= MAGIC_BYTES && isPacked(value);
      return this.#isPacked ? { done: true, value: undefined } : { done: false, value };
    } catch (error) {
      this.failure = error;
      throw error;
    }
  }

  /** Of a part: asked before its content is looked at. */
  place(offset: number, length: number, said: string | null): Place {
    const own = length >= OWN_FILE_BYTES_MIN && this.#owns.length < OWN_FILES_MAX;
    const file = own ? join(this.#dir, `part-${this.#owns.length}`) : this.#file;
    if (own)
      this.#owns.push({ offset, length, file, sum: this.#newSum(length), said, sha256: '', takenBytes: 0, coming: null, packed: null });
    return { file, offset, length, sha256: null };
  }

  /** Without looking at it: what is packed, or no archive. */
  async takeRest(chunks: AsyncIterator<Uint8Array>): Promise<void> {
    for (;;) {
      await this.#take();
      const { done, value } = await chunks.next();
      if (done === true) return;
      this.#chunk = value;
    }
  }

  /** The chunk goes where it belongs. */
  async #take(): Promise<void> {
    const chunk = this.#chunk;
    for (let at = 0; at < chunk.byteLength; ) {
      const own = this.#owns[this.#done];
      const offset = this.#before + at;
      const isIn = own !== undefined && offset >= own.offset;
      const end = own === undefined ? Number.POSITIVE_INFINITY : isIn ? own.offset + own.length : own.offset;
      const piece = chunk.subarray(at, Math.min(chunk.byteLength, at + end - offset));
      at += piece.byteLength;
      if (!isIn) this.#plainBytes += piece.byteLength;
      await this.#put(isIn ? own : null, piece);
      if (isIn && this.#before + at === end) await this.#end(own);
    }
    this.#before += chunk.byteLength;
    this.#chunk = Buffer.alloc(0);
  }

  async #end(own: Own): Promise<void> {
    this.#done += 1;
    await this.#flush();
    const written = this.#writing.then(async () => {
      own.coming?.pieces.end();
      await own.coming?.file?.[Symbol.asyncDispose]();
      own.sha256 = await own.sum.hex();
    });
    this.#writing = written;
    written.catch(() => {}); // heard at the next flush
    // It is kept in most cases, and then the disk has begun already; whoever keeps it syncs it.
    this.#syncing = this.#syncing.then(() => written).then(() => this.#host.sync(this.#op, own.file));
    this.#syncing.catch(() => {}); // heard by whoever syncs it
  }

  /** From its first bytes on: where it is a layer, and not one that is here as its name says. */
  async #begin(own: Own, first: Uint8Array): Promise<void> {
    if (own.length > this.#limits.layerBytesMax || !isLayer(first) || (own.said !== null && (await this.#isKnown(own.said)))) return;
    await this.#host.appendFile(this.#op, own.file, Buffer.alloc(0));
    const pieces = new Handoff();
    own.coming = { file: await this.#host.openInside(this.#op, this.#dir, `/${basename(own.file)}`, 'write'), pieces };
    const before = this.#packing.length < PACKING_MAX ? Promise.resolve() : this.#packing[0];
    own.packed = Promise.resolve(before)
      .then(() => (this.#isOver ? null : this.#pack(own, pieces)))
      .finally(() => pieces.close());
    own.packed.catch(() => {}); // heard by whoever asks for it
    this.#packing = [...this.#packing, own.packed.catch(() => {})].slice(-PACKING_MAX);
  }

  async #isKnown(sha256: string): Promise<boolean> {
    this.#known ??= knownMaps(this.#op, this.#host, this.#paths);
    return (await this.#known).has(`sha256:${sha256}`);
  }

  /** Null for what is no good layer: whoever reads it then says why. */
  async #pack({ file, said, sha256 }: Own, source: AsyncIterable<Uint8Array>): Promise<KnownLayer | null> {
    const counts = new Tree(this.#limits);
    const count = (_: number, entry: TarEntry): void => {
      if (this.#isOver) throw new ArchiveError('nobody waits for it');
      counts.count(entry);
    };
    try {
      return await packLayer(this.#op, this.#host, count, source, `${file}.packed`, `sha256:${said ?? sha256}`);
    } catch (error) {
      if (error instanceof PackFailed || isOfArchive(error)) return null;
      throw error;
    }
  }

  async #put(into: Own | null, piece: Uint8Array): Promise<void> {
    if (into !== this.#into) await this.#flush();
    this.#into = into;
    for (let at = 0; at < piece.byteLength; ) {
      const taken = Math.min(piece.byteLength - at, BUFFER_BYTES - this.#filled);
      this.#buffers[0].set(piece.subarray(at, at + taken), this.#filled);
      this.#filled += taken;
      at += taken;
      if (this.#filled === BUFFER_BYTES) await this.#flush();
    }
  }

  #newSum(length: number): Sum {
    return length >= ASIDE_BYTES_MIN ? this.#aside.sum() : sumHere();
  }

  /** One buffer is written, hashed and packed while the other is filled. */
  async #flush(): Promise<void> {
    await this.#writing;
    if (this.#filled === 0) return;
    const [full, empty] = this.#buffers;
    const bytes = full.subarray(0, this.#filled);
    const own = this.#into;
    if (own?.takenBytes === 0) await this.#begin(own, bytes);
    this.#writing = allDone(this.#write(own, bytes), own?.sum.update(bytes), own?.coming?.pieces.give(bytes));
    if (own !== null) own.takenBytes += bytes.byteLength;
    this.#writing.catch(() => {}); // heard at the next flush
    this.#buffers = [empty, full];
    this.#filled = 0;
  }

  async #write(own: Own | null, bytes: Uint8Array): Promise<void> {
    const [op, path, file] = [this.#op, own?.file ?? this.#file, own?.coming?.file ?? null];
    if (own === null || file === null) return await this.#host.appendFile(op, path, bytes);
    const at = own.takenBytes;
    await heed(op, `append to ${path}`, () => file.write(bytes, at));
  }

  async finish(): Promise<void> {
    await this.#flush();
    await this.#writing;
    if (this.#plainBytes === 0) await this.#host.appendFile(this.#op, this.#file, Buffer.alloc(0));
  }

  /** Nothing of ours is under way any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOver = true;
    for (const { coming } of this.#owns) {
      coming?.pieces.end(new ArchiveError('nobody waits for it'));
      coming?.pieces.close();
    }
    await this.#writing.catch(() => {});
    await this.#syncing.catch(() => {});
    await Promise.all([...this.#packing, ...this.#owns.map(({ coming }) => coming?.file?.[Symbol.asyncDispose]())]);
  }

  /** The same, by where they lie now: the offsets of those without a file of their own are in `file`. */
  placed(parts: ReadonlyMap<string, Part>): ReadonlyMap<string, Part> {
    const owns = new Map(this.#owns.map((own) => [own.file, own]));
    return new Map(
      [...parts].map(([path, part]): [string, Part] => {
        if ('link' in part) return [path, part];
        const own = owns.get(part.file);
        if (own !== undefined) return [path, { ...part, offset: 0, sha256: own.sha256, packed: () => takePacked(own) }];
        const elsewhere = this.#owns.reduce((sum, { offset, length }) => (offset < part.offset ? sum + length : sum), 0);
        return [path, { ...part, offset: part.offset - elsewhere }];
      }),
    );
  }

  async whole(): Promise<string> {
    const [first] = this.#owns;
    if (first === undefined) return this.#file;
    const [op, host] = [this.#op, this.#host];
    const whole = join(this.#dir, 'whole');
    let [at, plainAt] = [0, 0];
    for (const { offset, length, file } of this.#owns) {
      if (offset > at) await host.appendStream(op, whole, range(op, host, this.#file, plainAt, offset - at));
      plainAt += offset - at;
      // Of one that is cut off, what came.
      if ((await host.stat(op, file)) !== null) await host.appendStream(op, whole, range(op, host, file, 0, length));
      at = offset + length;
    }
    await host.appendStream(op, whole, range(op, host, this.#file, plainAt, Math.max(0, this.#plainBytes - plainAt)));
    return whole;
  }
}

/** Once: its file goes to whoever has it. */
function takePacked(own: Own): Promise<KnownLayer | null> {
  const { packed } = own;
  own.packed = null;
  return packed ?? Promise.resolve(null);
}

function sumHere(): Sum {
  const hash = createHash('sha256');
  return { update: async (bytes) => void hash.update(bytes), hex: async () => hash.digest('hex') };
}

/** Also when one of them fails: then the other is over, too. */
async function allDone(...all: readonly (Promise<void> | undefined)[]): Promise<void> {
  const failed = (await Promise.allSettled(all)).find(({ status }) => status === 'rejected');
  if (failed?.status === 'rejected') throw failed.reason;
}

function isOfArchive(error: unknown): boolean {
  for (let at: unknown = error, depth = 0; at instanceof Error && depth < 4; at = at.cause, depth += 1)
    if (at instanceof ArchiveError) return true;
  return false;
}

/** As `wholePages`, for several threads. */
function sharedPages(length: number): Buffer {
  return Buffer.from(new SharedArrayBuffer(length, { maxByteLength: length }), 0, length);
}

function isLayer(start: Uint8Array): boolean {
  return Buffer.from(start.subarray(USTAR.offset, USTAR.offset + USTAR.text.length)).toString('latin1') === USTAR.text;
}

function isPacked(start: Uint8Array): boolean {
  try {
    return packingOf(start) !== 'none';
  } catch (error) {
    if (error instanceof ArchiveError) return true;
    throw error;
  }
}
