// What earlier builds made, by key: a layer, or nothing. A file for each, so that a crash leaves whole ones; a layer that is gone
// makes its entry as good as absent. What was read once is kept in memory: an entry says nothing that can go stale but its layer, which
// is looked at each time.
import { join } from 'node:path';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Blobs } from '../blobs.ts';
import { listOr } from '../layout.ts';
import type { Key } from './keys.ts';
import type { LayerRef } from './layers.ts';

const ENTRY_BYTES_MAX = 64 * 1024;
/** A use is put down that often: a build that is all cached writes nothing. */
const USED_EVERY_MS = 20 * 60_000;
/** Of some hundred bytes each. */
const KEPT_MAX = 4_096;
const ENTRY_MODE = 0o600;
const NAME = /^[0-9a-f]{64}\.json$/;

const entrySchema = z.strictObject({
  layer: z
    .strictObject({
      digest: z.string().max(80),
      sizeBytes: z.int().nonnegative(),
      diffId: z.string().max(80),
      mediaType: z.string().max(255),
    })
    .nullable(),
  /** When the step was really done. */
  atMs: z.int(),
  /** Another key of the same step, by which what comes after it is known. */
  as: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .optional(),
});
export type CacheEntry = { readonly layer: LayerRef | null; readonly atMs: number; readonly as?: Key | undefined };

export class BuildCache {
  readonly #host: Host;
  readonly #dir: string;
  readonly #blobs: Blobs;
  /** The one that was asked for last is the last. */
  readonly #kept = new Map<Key, CacheEntry>();
  /** Wall clock, in ms: when the use of an entry was put down last. */
  readonly #usedAtMs = new Map<Key, number>();

  constructor(host: Host, dir: string, blobs: Blobs) {
    this.#host = host;
    this.#dir = dir;
    this.#blobs = blobs;
  }

  async get(op: Operation, key: Key): Promise<CacheEntry | null> {
    const entry = this.#kept.get(key) ?? (await this.#read(op, this.#path(key)));
    if (entry === null) return null;
    const isHere = entry.layer === null || (await this.#blobs.has(op, entry.layer.digest, entry.layer.sizeBytes));
    if (!isHere) return null;
    this.#keep(key, entry);
    await this.#used(op, key);
    return entry;
  }

  #keep(key: Key, entry: CacheEntry): void {
    this.#kept.delete(key);
    this.#kept.set(key, entry);
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > KEPT_MAX && oldest !== undefined) {
      this.#kept.delete(oldest);
      this.#usedAtMs.delete(oldest);
    }
  }

  /** The time of its file's last change is that of its last use. */
  async #used(op: Operation, key: Key): Promise<void> {
    const nowMs = this.#host.nowMs();
    if (nowMs - (this.#usedAtMs.get(key) ?? 0) < USED_EVERY_MS) return;
    this.#usedAtMs.set(key, nowMs);
    await this.#host.chmod(op, this.#path(key), ENTRY_MODE).catch((cause: unknown) => {
      op.signal.throwIfAborted();
      op.log.debug({ key, cause }, 'the use of a step of a build is not put down');
    });
  }

  async put(op: Operation, key: Key, entry: CacheEntry): Promise<void> {
    this.#kept.delete(key);
    await this.#host.makeDir(op, this.#dir, 0o700);
    await this.#host.writeFileAtomic(op, this.#path(key), JSON.stringify(entry), ENTRY_MODE);
  }

  /** The digests of all layers that an entry has. */
  async layers(op: Operation): Promise<ReadonlySet<string>> {
    return new Set((await this.entries(op)).flatMap(({ entry }) => (entry.layer === null ? [] : [entry.layer.digest])));
  }

  /** `usedAtMs`: wall clock, as of its file. */
  async entries(op: Operation): Promise<readonly { readonly key: Key; readonly entry: CacheEntry; readonly usedAtMs: number }[]> {
    const found = [];
    for (const name of await listOr(op, this.#host, this.#dir)) {
      if (!NAME.test(name)) continue;
      const path = join(this.#dir, name);
      const [info, entry] = [await this.#host.stat(op, path), await this.#read(op, path)];
      if (info === null || entry === null) continue;
      found.push({ key: name.slice(0, 64) as Key, entry, usedAtMs: Number(info.changedNs / 1_000_000n) });
    }
    return found;
  }

  async drop(op: Operation, key: Key): Promise<void> {
    this.#kept.delete(key);
    this.#usedAtMs.delete(key);
    await this.#host.remove(op, this.#path(key));
  }

  #path(key: Key): string {
    return join(this.#dir, `${key}.json`);
  }

  async #read(op: Operation, path: string): Promise<CacheEntry | null> {
    try {
      const parsed = entrySchema.safeParse(JSON.parse(Buffer.from(await this.#host.readFile(op, path, ENTRY_BYTES_MAX)).toString()));
      return parsed.success ? parsed.data : null;
    } catch (error) {
      if (op.signal.aborted) throw error;
      if (error instanceof HutchError && error.code === 'not_found') return null;
      op.log.warn({ path, cause: error }, 'an entry of the build cache cannot be read; the step is done again');
      return null;
    }
  }
}
