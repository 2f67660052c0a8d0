// Snapshots of the disk of a container. The disk is an image of the Engine's, where all that two of them have in common is there once;
// what it has to be is written down here. It becomes files of ours when it leaves that Engine, and it comes back as such.
import { createHash } from 'node:crypto';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import type { Snapshots, SnapshotTaken } from '../snapshots.ts';
import { keepDisk } from './commit.ts';
import { type DockerConfig, LABEL, RELEASE_MS } from './config.ts';
import type { Container } from './container.ts';
import type { Engine } from './engine.ts';
import { findImage, type ImageAnswer } from './image.ts';
import type { KnownContainers } from './known.ts';
import { layerBytesOf, layerHoldings } from './layer-bytes.ts';
import { type LayerFile, layerPath, loadImage, readLayers } from './layers.ts';
import type { Maker } from './make.ts';
import { newPortable } from './portable.ts';
import { LAYERS_MAX, readSaved, type Saved, unusable, writeSaved } from './saved.ts';
import { REPOSITORY, type SnapshotImages } from './snapshot-images.ts';

type Parts = {
  readonly config: Pick<DockerConfig, 'host' | 'instance'>;
  readonly engine: Engine;
  readonly known: KnownContainers;
  readonly maker: Maker;
  readonly images: SnapshotImages;
};

/** Below what an Engine mounts: who stands on it may be kept once more. */
const STACK_MAX = LAYERS_MAX - 5;

/** What is mounted in it, and where the Engine marks what it is. */
const HIDES = ['.hutch', '.dockerenv'];

export function newSnapshots(parts: Parts): Snapshots {
  const { config, engine, known, maker, images } = parts;
  const { host } = config;
  return {
    takesUnwritten: true,
    async take(op, plan, dir, { what }) {
      if (what !== 'disk') throw op.error('failed_precondition', 'a container is kept without its memory');
      const { container, made } = await known.find(op, plan);
      if (container === null)
        throw op.error('failed_precondition', made ? 'its container was removed by somebody else' : 'it has no container');
      return await takeDisk(op, parts, { container, dir });
    },
    async create(op, plan, dir) {
      await maker.makeFrom(op, plan, (await imageOf(op, parts, dir, plan)).Id);
    },
    async start(op) {
      throw op.error('failed_precondition', 'a container is kept without its memory');
    },
    async check(op, dir, how = 'every byte') {
      const saved = await readSaved(op, host, dir);
      if (saved.image === null) await checkFiles(op, host, dir, saved);
      else {
        const image = await imageInEngine(op, engine, dir, saved, saved.image);
        if (how === 'every byte') await readLayers(op, { host, engine }, image.Id, saved.layers, null);
      }
    },
    async layerFiles(op, dir, scratch) {
      const pathOf = new Map((await layersIn(op, parts, dir, scratch)).map(({ digest, path }) => [digest, path]));
      const { layers } = await readSaved(op, host, dir);
      return { paths: layers.flatMap((digest) => pathOf.get(digest) ?? []), hides: HIDES };
    },
    portable: newPortable({ host, layersIn: (op, dir, scratch) => layersIn(op, parts, dir, scratch) }),
    async describe(op, dir) {
      const { image, layers } = await readSaved(op, host, dir);
      return { layers: layers.length, ...(image === null ? {} : { engine: image.engine.address, image: image.id }) };
    },
    async digest(op, dir) {
      const { layers } = await readSaved(op, host, dir);
      return createHash('sha256').update(JSON.stringify(layers)).digest('hex');
    },
    async settle(op, plan) {
      await known.settle(op, plan);
      // The container that made way may have stood on what is no snapshot any more.
      await images.sweep(op).catch((cause: unknown) => op.log.warn({ sandbox: plan.id, cause }, 'an image was left in the Docker Engine'));
    },
    async holdings(op, dir) {
      const saved = await readSaved(op, host, dir);
      return layerHoldings(saved.image === null ? { ...saved, image: await broughtIn(op, parts, dir, saved) } : saved);
    },
    sweep: (op) => images.sweep(op),
  };
}

type Taking = { readonly container: Container; readonly dir: string };

async function takeDisk(op: Operation, { config, engine, images }: Parts, { container, dir }: Taking): Promise<SnapshotTaken> {
  const { host } = config;
  const before = await findImage(op, engine, container.Image);
  if (before === null)
    throw op.error('failed_precondition', 'somebody has removed the image of its container from the Docker Engine', {
      hint: 'copy what is to be kept: hutch cp',
    });
  const stack = layersOf(before);
  if (stack.length >= STACK_MAX)
    throw op.error('failed_precondition', `its disk stands on ${stack.length} layers, and the Docker Engine mounts ${LAYERS_MAX} of them`, {
      hint: 'copy what is to be kept into a new sandbox: hutch cp',
    });
  const below = Number(container.Config.Labels?.[LABEL.below] || stack.length);
  const beneath = layerBytesOf(before, below);
  await host.makeDir(op, dir, 0o700);
  await using undo = new AsyncDisposableStack();
  using held = images.hold(dir);
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await host.remove(late, dir);
    held[Symbol.dispose]();
    await images.sweep(late).catch((cause: unknown) => op.log.warn({ dir, cause }, 'an image was left in the Docker Engine'));
  });
  const sinceMs = host.monotonicMs();
  let stillMs = 0;
  const image = await keepDisk(op, engine, container, {
    labels: images.labels(held.key, below, beneath === null ? null : { sizeBytes: before.Size, layerBytes: beneath }),
    name: { repo: REPOSITORY, tag: held.key },
    onGoesOn: () => {
      if (container.State.Running) stillMs = host.monotonicMs() - sinceMs;
    },
  });
  const digests = layersOf(image);
  const layers = digests.slice(below);
  // Of what an older version made nobody knows it: what is new here is known all the same.
  const known = beneath ?? stack.slice(below).map(() => 0);
  const layerBytes = layers.map((_, at) => known[at] ?? Math.max(0, image.Size - before.Size));
  const saved: Saved = held.lasts
    ? { version: 1, layers, image: { ...(await placeOf(op, engine, image.Id, digests.slice(0, below))), layerBytes }, files: [] }
    : { version: 1, layers, image: null, files: await asFiles(op, { host, engine }, image.Id, layers, dir) };
  await writeSaved(op, host, dir, saved);
  undo.move();
  held[Symbol.dispose]();
  if (!held.lasts) await images.sweep(op);
  return { stillMs, apparentBytes: image.Size };
}

async function placeOf(op: Operation, engine: Engine, id: string, below: readonly string[]): Promise<NonNullable<Saved['image']>> {
  const [identity, { address }] = [await engine.identity(op), await engine.endpoint(op)];
  return { id, below: [...below], engine: { identity, address } };
}

async function asFiles(
  op: Operation,
  parts: Pick<Parts, 'engine'> & { readonly host: Host },
  id: string,
  layers: readonly string[],
  dir: string,
) {
  const found = await readLayers(op, parts, id, layers, dir);
  return [...found.values()].map(({ digest, bytes }) => ({ digest, bytes }));
}

/** In the Engine: what was brought here is brought there first. */
async function imageOf(op: Operation, { config, engine, maker, images }: Parts, dir: string, plan: SandboxPlan): Promise<ImageAnswer> {
  const { host } = config;
  const saved = await readSaved(op, host, dir);
  if (saved.image !== null) return await imageInEngine(op, engine, dir, saved, saved.image);
  const base = await findImage(op, engine, await maker.imageOf(op, plan));
  if (base === null) throw op.error('unavailable', 'the image has just been removed from the Docker Engine', { hint: 'try again' });
  const below = layersOf(base);
  using held = images.hold(dir);
  const name = `${REPOSITORY}:${held.key}`;
  const fits = (image: ImageAnswer | null) => image !== null && sameList(layersOf(image), [...below, ...saved.layers]);
  const earlier = await findImage(op, engine, name);
  if (earlier !== null && fits(earlier)) return earlier;
  await checkFiles(op, host, dir, saved);
  const bytesOf = new Map(saved.files.map(({ digest, bytes }) => [digest, bytes]));
  const above = saved.layers.map((digest): LayerFile => ({ digest, path: layerPath(dir, digest), bytes: bytesOf.get(digest) ?? 0 }));
  op.progress({ step: 'load', detail: 'the disk, into the Docker Engine (once)' });
  const { Architecture: architecture } = base;
  const labels = images.labels(held.key, below.length, { sizeBytes: base.Size, layerBytes: above.map(({ bytes }) => bytes) });
  await loadImage(op, { host, engine }, { name, architecture, labels, below, above });
  const loaded = await findImage(op, engine, name);
  if (loaded !== null && fits(loaded)) return loaded;
  throw op.error('internal', 'the Docker Engine has taken a disk, and has another one');
}

/** What the Engine was given of one that was brought here, beside its files: null before a sandbox has begun with it, and where somebody took it away. */
async function broughtIn(op: Operation, { engine, images }: Parts, dir: string, { layers }: Saved): Promise<Saved['image']> {
  const name = images.nameOf(dir);
  const image = name === null ? null : await findImage(op, engine, name);
  if (image === null) return null;
  const below = layersOf(image).length - layers.length;
  const layerBytes = layerBytesOf(image, below);
  return {
    ...(await placeOf(op, engine, image.Id, layersOf(image).slice(0, below))),
    ...(layerBytes === null ? {} : { layerBytes: [...layerBytes] }),
  };
}

/** @throws HutchError `failed_precondition` where it has gone, `unavailable` where another Engine is asked than the one that has it. */
async function imageInEngine(
  op: Operation,
  engine: Engine,
  dir: string,
  saved: Saved,
  { id, below, engine: made }: NonNullable<Saved['image']>,
): Promise<ImageAnswer> {
  const image = await findImage(op, engine, id);
  if (image !== null && sameList(layersOf(image), [...below, ...saved.layers])) return image;
  const { address, source } = await engine.endpoint(op);
  if (image === null && address !== made.address && (await engine.identity(op, 'now')) !== made.identity)
    throw op.error('unavailable', `its disk is in the Docker Engine at ${made.address}, and ${address} (from ${source}) is asked`, {
      hint: `hutch daemon stop, then go on with DOCKER_HOST=${made.address}`,
    });
  throw unusable(
    op,
    dir,
    image === null ? 'somebody has removed its image from the Docker Engine' : 'its image in the Docker Engine is another one',
    'nothing of it is left to go back to; what docker image prune -a takes away, a file keeps: hutch snapshot export',
  );
}

async function checkFiles(op: Operation, host: Host, dir: string, { files }: Saved): Promise<void> {
  for (const { digest, bytes } of files) {
    const path = layerPath(dir, digest);
    const isThere = (await host.stat(op, path))?.sizeBytes === bytes;
    if (!isThere || `sha256:${await host.sha256(op, path)}` !== digest)
      throw unusable(op, dir, `the layer ${digest} is not what was saved`);
  }
}

/** As files: its own, or made in `scratch`. */
async function layersIn(op: Operation, { config, engine }: Parts, dir: string, scratch: string): Promise<readonly LayerFile[]> {
  const { host } = config;
  const saved = await readSaved(op, host, dir);
  if (saved.image === null) return saved.files.map(({ digest, bytes }) => ({ digest, bytes, path: layerPath(dir, digest) }));
  const image = await imageInEngine(op, engine, dir, saved, saved.image);
  op.progress({ step: 'reading its disk from the Docker Engine' });
  const found = await readLayers(op, { host, engine }, image.Id, saved.layers, scratch);
  // In their order, whatever that of the Engine's archive: a snapshot that travels twice is the same.
  return [...new Set(saved.layers)].flatMap((digest) => found.get(digest) ?? []);
}

function layersOf({ RootFS }: ImageAnswer): readonly string[] {
  return RootFS?.Layers ?? [];
}

function sameList(left: readonly string[], right: readonly string[]): boolean {
  return left.length === right.length && left.every((each, at) => each === right[at]);
}
