// What lies here only to save work later: layers that no image has, steps of builds, and their cache mounts. Each is removed when nothing
// has used it for `retention.cache` (as are images without a name that nothing uses), and what was not used for longest when all take more than `retention.cache_size`. Always true:
// nothing goes that was used within the last hour, or while something is built.
import { join } from 'node:path';
import type { Image } from '../domain/image.ts';
import type { Operation } from '../host/operation.ts';
import type { BuildCache } from '../images/build/cache.ts';
import type { PreparedImage } from '../images/image.ts';
import { listOr } from '../images/layout.ts';
import type { ImageLibrary } from '../images/library.ts';
import type { Core } from './core.ts';

/** What comes or is used at this moment is younger. */
const RECENT_MS = 60 * 60_000;
/** Images of layers that stages begin with. */
const BEGINNINGS_MAX = 4;
const MOUNT = /^[0-9a-f]{64}\.tar$/;
const MIB = 2 ** 20;

export type Kept = {
  /** A layer is one with all steps that have it; a step alone has no layer, or one of an image. */
  readonly kind: 'layer' | 'step' | 'mount';
  /** Digest of a layer, key of a step, file of a mount. */
  readonly name: string;
  /** Keys of the steps that go with it. */
  readonly steps: readonly string[];
  readonly sizeBytes: number;
  readonly usedAtMs: number;
};

export type Stale = Kept & { readonly why: string };

/** What goes by age, then by what all take together. Sizes in bytes. */
export function staleOf(
  all: readonly Kept[],
  { nowMs, unusedMs, bytesMax }: { readonly nowMs: number; readonly unusedMs: number; readonly bytesMax: number },
): readonly Stale[] {
  const stale: Stale[] = [];
  let bytes = 0;
  for (const each of all.toSorted((left, right) => right.usedAtMs - left.usedAtMs)) {
    const idleMs = nowMs - each.usedAtMs;
    if (idleMs >= RECENT_MS && idleMs > unusedMs) {
      stale.push({ ...each, why: `nothing has used it for ${Math.floor(idleMs / 86_400_000)} days (retention.cache)` });
    } else if (idleMs >= RECENT_MS && each.sizeBytes > 0 && bytes + each.sizeBytes > bytesMax) {
      stale.push({ ...each, why: `what was used later takes all of ${Math.round(bytesMax / MIB)} MiB (retention.cache_size)` });
    } else bytes += each.sizeBytes;
  }
  return stale;
}

/**
 * Of one without a name: made under one, which another image has by now. What never had one is its owner's to remove, as is what was
 * registered or made here: nothing may be able to make that again.
 */
export function lostItsName(made: (Pick<PreparedImage, 'source'> & { readonly record: Pick<Image, 'name'> }) | null): boolean {
  return made?.source.kind === 'oci' && made.record.name !== null;
}

type Made = { readonly id: string; readonly createdAtMs: number };
type Use = { readonly id: string; readonly atMs: number };

/** When one came, or was last used. */
function lastUse(uses: readonly Use[]): (made: Made) => number {
  const usedAtMs = new Map(uses.map(({ id, atMs }) => [id, atMs]));
  return ({ id, createdAtMs }) => Math.max(createdAtMs, usedAtMs.get(id) ?? 0);
}

/** Those that came, and were last used, before `beforeMs`. */
export function unusedSince<T extends Made>(all: readonly T[], uses: readonly Use[], beforeMs: number): readonly T[] {
  const lastMs = lastUse(uses);
  return all.filter((each) => lastMs(each) <= beforeMs);
}

/** Beginnings of stages that others were used after, without those of the last hour: each takes as much as a whole image. */
export function surplusOf<T extends Made>(beginnings: readonly T[], uses: readonly Use[], nowMs: number): readonly T[] {
  const lastMs = lastUse(uses);
  return unusedSince(beginnings.toSorted((left, right) => lastMs(right) - lastMs(left)).slice(BEGINNINGS_MAX), uses, nowMs - RECENT_MS);
}

export type BuildCacheKeeping = {
  /** Layers that the cache of builds has. */
  cachedLayers(op: Operation): Promise<ReadonlySet<string>>;
  mounts(op: Operation): Promise<readonly Kept[]>;
  /** Removes what is stale, or only says what is. `keep`: layers of images. */
  sweep(op: Operation, keep: ReadonlySet<string>, really: boolean): Promise<readonly Stale[]>;
  /** Removes all mounts, and steps whose layers are gone; or only says which mounts. */
  clear(op: Operation, really: boolean): Promise<readonly Kept[]>;
};

export function newBuildCacheKeeping(
  { deps: { host, settings } }: Core,
  of: {
    readonly cache: (op: Operation) => BuildCache;
    readonly library: (op: Operation) => ImageLibrary;
    readonly mountsDir: string;
    readonly isBuilding: () => boolean;
  },
): BuildCacheKeeping {
  const keeping: BuildCacheKeeping = {
    cachedLayers: async (op) => await of.cache(op).layers(op),
    async mounts(op) {
      const found: Kept[] = [];
      for (const name of await listOr(op, host, of.mountsDir)) {
        const info = MOUNT.test(name) ? await host.stat(op, join(of.mountsDir, name)) : null;
        if (info !== null) found.push({ kind: 'mount', name, steps: [], sizeBytes: info.sizeBytes, usedAtMs: ms(info.changedNs) });
      }
      return found;
    },
    async sweep(op, keep, really) {
      if (of.isBuilding()) return [];
      const { cacheMs: unusedMs, cacheMiBMax } = settings.retention;
      const all = [...(await steps(op, keep)), ...(await keeping.mounts(op))];
      const stale = staleOf(all, { nowMs: host.nowMs(), unusedMs, bytesMax: cacheMiBMax * MIB });
      const gone: Stale[] = [];
      for (const each of stale) if (!really || (await removed(op, each))) gone.push(each);
      return gone;
    },
    async clear(op, really) {
      const mounts = await keeping.mounts(op);
      if (!really) return mounts;
      for (const mount of mounts) await removed(op, mount);
      for (const { key, entry } of await of.cache(op).entries(op))
        if (entry.layer !== null && !(await of.library(op).blobs.has(op, entry.layer.digest, entry.layer.sizeBytes)))
          await of.cache(op).drop(op, key);
      return mounts;
    },
  };

  /** The layers that are in no image, each with the steps that have it; then the steps without such a layer. */
  async function steps(op: Operation, keep: ReadonlySet<string>): Promise<readonly Kept[]> {
    const layers = new Map<string, Kept>();
    const { blobs } = of.library(op);
    for (const { digest, sizeBytes } of await blobs.list(op)) {
      const info = keep.has(digest) ? null : await host.stat(op, blobs.path(digest));
      if (info !== null) layers.set(digest, { kind: 'layer', name: digest, steps: [], sizeBytes, usedAtMs: ms(info.changedNs) });
    }
    const alone: Kept[] = [];
    for (const { key, entry, usedAtMs } of await of.cache(op).entries(op)) {
      const layer = layers.get(entry.layer?.digest ?? '');
      if (layer === undefined) alone.push({ kind: 'step', name: key, steps: [key], sizeBytes: 0, usedAtMs });
      else layers.set(layer.name, { ...layer, steps: [...layer.steps, key], usedAtMs: Math.max(layer.usedAtMs, usedAtMs) });
    }
    return [...layers.values(), ...alone];
  }

  /** False for a layer that somebody holds. */
  async function removed(op: Operation, { kind, name, steps: keys }: Kept): Promise<boolean> {
    if (kind === 'mount') await host.remove(op, join(of.mountsDir, name));
    if (kind === 'layer' && !(await of.library(op).blobs.remove(op, name))) return false;
    for (const key of keys) await of.cache(op).drop(op, key);
    return true;
  }

  return keeping;
}

function ms(ns: bigint): number {
  return Number(ns / 1_000_000n);
}
