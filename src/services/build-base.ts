// Images as stages begin with them: their layers, and what they say. One whose layers are not kept, or that was made here, is one layer.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { Operation } from '../host/operation.ts';
import type { BuildCache } from '../images/build/cache.ts';
import { keyOf } from '../images/build/keys.ts';
import { LAYER_TYPE, type LayerRef, StageRoot } from '../images/build/layers.ts';
import type { BuildStaging } from '../images/build/staging.ts';
import { type ConfigSection, newState } from '../images/build/state.ts';
import { saidBy } from '../images/export.ts';
import { imageDir, OCI_CONFIG, type PreparedImage } from '../images/image.ts';
import type { ImageLibrary } from '../images/library.ts';
import { CONFIG_BYTES_MAX } from '../images/oci/manifest.ts';
import type { Built, HistoryEntry } from './build-stage-parts.ts';
import type { BootSource } from './deps.ts';

/** Of some kB each. */
const CONFIGS_KEPT_MAX = 64;
const CONFIG_KEPT_BYTES_MAX = 64 * 1024;

export type BaseImage = Built & { readonly digest: string };

/** What an image says of itself, as it came; an image that has a digest never says anything else. */
export type Raw = {
  readonly created?: string;
  readonly author?: string;
  readonly config?: ConfigSection | null;
  readonly history?: readonly HistoryEntry[] | null;
};

/** Pulled where it is not here. @throws HutchError as a pull does. */
export async function baseImage(
  op: Operation,
  {
    boots,
    library,
    staging,
    cache,
    configs,
    isAnew,
  }: {
    readonly boots: BootSource;
    readonly library: ImageLibrary;
    readonly staging: BuildStaging;
    readonly cache: BuildCache;
    /** Those that were read before, by digest. */
    readonly configs: Map<string, Raw>;
    /** Whether its registry is asked although it is here. */
    readonly isAnew: boolean;
  },
  name: string,
): Promise<BaseImage> {
  const { host } = staging;
  if (isAnew) await boots.renew(op, name);
  const { image: record } = await boots.prepare(op, name, { name: 'gvisor', needs: 'root' }, null);
  const image = await library.find(op, record.digest);
  if (image === null) throw op.error('failed_precondition', `the image ${name} is not there any more`, { hint: 'build again' });
  const layers = await layersOf(op, staging, cache, image);
  const raw = await rawConfig(op, library, staging, image, configs);
  const history = historyOf(raw, layers.length);
  const atMs = Date.parse(raw.created ?? '');
  return {
    digest: record.digest,
    key: keyOf('image', record.digest),
    state: { ...newState(raw.config ?? {}, raw.author ?? null), config: raw.config ?? {} },
    root: new StageRoot(host, staging.blobs, layers),
    history,
    atMs: Number.isNaN(atMs) ? 0 : atMs,
    image: { reference: record.digest, layers: layers.length },
  };
}

async function rawConfig(
  op: Operation,
  library: ImageLibrary,
  { host }: BuildStaging,
  image: PreparedImage,
  configs: Map<string, Raw>,
): Promise<Raw> {
  const { digest } = image.record;
  if (image.source.kind !== 'oci') return { config: saidBy(image.record.config) as ConfigSection };
  const known = configs.get(digest);
  if (known !== undefined) return known;
  const bytes = await host.readFile(op, join(imageDir(library.paths, digest), OCI_CONFIG), CONFIG_BYTES_MAX);
  const raw = JSON.parse(Buffer.from(bytes).toString()) as Raw;
  const [oldest] = configs.keys();
  if (configs.size >= CONFIGS_KEPT_MAX && oldest !== undefined) configs.delete(oldest);
  if (bytes.byteLength <= CONFIG_KEPT_BYTES_MAX) configs.set(digest, raw);
  return raw;
}

/** One entry for each layer at least: tools that read it count them. */
function historyOf({ history }: Raw, layers: number): readonly HistoryEntry[] {
  const said = history ?? [];
  if (said.filter(({ empty_layer }) => empty_layer !== true).length === layers) return said;
  return Array.from({ length: layers }, () => ({ created_by: 'base image' }));
}

async function layersOf(op: Operation, staging: BuildStaging, cache: BuildCache, image: PreparedImage): Promise<readonly LayerRef[]> {
  const { source } = image;
  if (source.kind === 'oci') {
    const kept = await Promise.all(source.layers.map(({ digest, sizeBytes }) => staging.blobs.has(op, digest, sizeBytes)));
    if (kept.every((is) => is)) return source.layers;
  }
  const key = keyOf('one layer', image.rootDigest);
  const known = await cache.get(op, key);
  if (known?.layer != null) return [known.layer];
  const { host, blobs } = staging;
  const file = await staging.file(op, `base-${createHash('sha256').update(image.rootDigest).digest('hex').slice(0, 16)}.tar`);
  op.progress({ step: 'build', detail: 'reading the base image' });
  // The shell only opens the output; all names are arguments of its own, never part of the command.
  const { exitCode, stderr } = await host.run(op, ['sh', '-c', 'exec sqfs2tar "$0" > "$1"', image.path, file]);
  if (exitCode !== 0) throw op.error('internal', `the image cannot be unpacked: ${new TextDecoder().decode(stderr).trim().slice(0, 300)}`);
  const digest = `sha256:${await host.sha256(op, file)}`;
  const layer = { digest, sizeBytes: (await host.stat(op, file))?.sizeBytes ?? 0, diffId: digest, mediaType: LAYER_TYPE };
  await blobs.adopt(op, file, digest);
  await cache.put(op, key, { layer, atMs: host.nowMs() });
  return [layer];
}
