// Images in files: what `docker save` writes, an OCI layout in a tar archive, or a root file system as one;
// each packed with gzip or zstd, or not at all. What it is, its content says.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import * as z from 'zod';
import { ArchiveError, shown } from '../domain/archive-error.ts';
import { hashed } from '../domain/hashed.ts';
import { parseImageReference, requireImageReference, shownReference } from '../domain/image-reference.ts';
import type { Aside, Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import {
  type ArchiveParts,
  mediaTypeOf,
  type Place,
  partOf,
  partsIn,
  range,
  readBlob,
  readJson,
  readPart,
  scan,
  TAR_TYPE,
} from './archive-parts.ts';
import { receiveArchive } from './archive-receive.ts';
import type { Blobs } from './blobs.ts';
import { BUILD_LIMITS, type BuildLimits, buildImage, type LayerToBuild, named } from './build.ts';
import { bounded } from './chunks.ts';
import { DEFAULT_IMAGE } from './default-image.ts';
import { digestOf } from './digest.ts';
import { tarOfDisk } from './disk/import.ts';
import { openImage, type PreparedImage } from './image.ts';
import { digestOfOwn, type OwnImage, ownImages, takeOwnImage } from './image-bundle.ts';
import type { PreparedKernel } from './kernel.ts';
import { type KernelTaken, kernelsListed, type ReadBlob, takeKernel } from './kernel-bundle.ts';
import { packingOf, unpacked } from './layers/unpack.ts';
import { type ImagePaths, SHARED_DIR_MODE, unlessDamaged } from './layout.ts';
import { blobPath } from './oci/layout-tar.ts';
import {
  CONFIG_BYTES_MAX,
  INDEX_DEPTH_MAX,
  type Index,
  LAYERS_MAX,
  ownPlatform,
  parseConfig,
  parseManifest,
  runConfig,
  runsHere,
} from './oci/manifest.ts';
import { unpackedOutside } from './outside-reader.ts';
import { besideImages, imageIn, manifestsListed, readSignatures, signaturesFor } from './trust/archived.ts';
import { keepSignatures } from './trust/kept.ts';
import { type ImagePolicy, keysFor, refusalOfName } from './trust/policy.ts';
import { requireSigned, type ToBeSigned } from './trust/signature.ts';

const ARCHIVE_BYTES_MAX = 64 * 1024 ** 3;
const MANIFEST_BYTES_MAX = 4 * 1024 * 1024;
const MAGIC_BYTES = 6;
const IMPORT_STEP = 'import';
const TOLD_EVERY_BYTES = 4 * 1024 * 1024;
const IMAGES_MAX = 64;
const KERNELS_MAX = 16;

const savedSchema = z
  .array(
    z.object({
      Config: z.string().max(256),
      RepoTags: z.array(z.string().max(512)).max(256).nullish(),
      Layers: z.array(z.string().max(256)).max(LAYERS_MAX),
    }),
  )
  .min(1)
  .max(IMAGES_MAX);

type Archive = ArchiveParts & {
  /** In place of the names in it. */
  readonly name: string | null;
  readonly aside: Aside;
};
export type ImportParts = {
  readonly host: Host;
  readonly paths: ImagePaths;
  readonly blobs: Blobs;
  readonly limits?: BuildLimits;
  readonly policyOf: (op: Operation) => Promise<ImagePolicy>;
};
/** `names`: in the short form; the default image's bare word only where the archive calls one so that Hutch made. */
export type Imported = { readonly image: PreparedImage; readonly names: readonly string[] };
/** All that an archive had. */
export type Brought = { readonly images: readonly Imported[]; readonly kernels: readonly PreparedKernel[] };

/**
 * `name`: what its one image is to be called, in place of what the archive says.
 * @throws HutchError `failed_precondition` for what is none of these, `permission_denied` for what may not have its name.
 */
export async function importImages(
  op: Operation,
  parts: ImportParts,
  source: AsyncIterable<Uint8Array>,
  name: string | null,
  taken: KernelTaken = { by: 'user' },
): Promise<Brought> {
  const { host, blobs, limits = BUILD_LIMITS } = parts;
  await using staged = await blobs.stage(op, `import-${op.id}`);
  await host.makeDir(op, staged.path, SHARED_DIR_MODE);
  const coming = told(op, bounded(source, ARCHIVE_BYTES_MAX), 'receiving', null);
  await using aside = host.aside();
  await using received = await receiveArchive(op, parts, coming, staged.path, limits, aside);
  const what = 'the archive';
  return await named(op, what, async () => {
    const opened = hasImages(received.parts) ? received.parts : await openWhole(op, parts, await received.whole(), staged.path, limits);
    if ('root' in opened) {
      await requireNames(op, parts, name === null ? [] : [name], what, NOT_SIGNED);
      return { images: [{ image: await importRoot(op, parts, opened.root, opened.diffId, aside), names: [] }], kernels: [] };
    }
    const archive = { parts: opened, name, aside };
    const own = await ownImages(op, host, archive);
    const kernels = await importKernels(op, parts, archive, taken);
    const images = [
      ...(await importOwn(op, parts, archive, own)),
      ...(opened.has('manifest.json') ? await importSaved(op, parts, archive, own) : await importLayout(op, parts, archive, own)),
    ];
    if (images.length + kernels.length === 0) throw new ArchiveError('there is no image in it');
    return { images: eachOnce(images), kernels };
  });
}

function hasImages(parts: ArchiveParts['parts'] | null): parts is ArchiveParts['parts'] {
  return parts !== null && (parts.has('manifest.json') || (parts.has('index.json') && parts.has('oci-layout')));
}

type Root = { readonly root: string; readonly diffId: string | null };

/** What has not been looked into on its way, in `file`: packed, a disk image, or a root file system. */
async function openWhole(
  op: Operation,
  { host }: ImportParts,
  received: string,
  dir: string,
  { layerBytesMax }: BuildLimits,
): Promise<ArchiveParts['parts'] | Root> {
  const outside = { from: received, to: join(dir, 'outside'), bytesMax: layerBytesMax, what: 'the archive' };
  const file = (await unpackedOutside(op, host, outside)) ? outside.to : received;
  const disk = await tarOfDisk(op, host, file, dir, layerBytesMax);
  if (disk !== null) return { root: disk, diffId: (await scan(unpacked(op, host, disk, layerBytesMax))).diffId };
  const isPacked = packingOf(await host.readRange(op, file, 0, MAGIC_BYTES)) !== 'none';
  const plain = isPacked ? join(dir, 'unpacked') : file;
  const { found, diffId } = isPacked
    ? await scan(told(op, unpacked(op, host, file, layerBytesMax), 'reading', null), plain)
    : { found: await partsTold(op, host, file), diffId: null };
  if (!hasImages(found)) return { root: file, diffId };
  if (plain !== file) await host.appendStream(op, plain, unpacked(op, host, file, layerBytesMax));
  return found;
}

/** Those beside the images of `hutch image export --kernel`. */
async function importKernels(op: Operation, parts: ImportParts, archive: Archive, taken: KernelTaken): Promise<readonly PreparedKernel[]> {
  if (!archive.parts.has('index.json')) return [];
  const done: PreparedKernel[] = [];
  for (const digest of kernelsListed(await readPart(op, parts.host, archive, 'index.json', MANIFEST_BYTES_MAX))) {
    if (done.length === KERNELS_MAX) throw new ArchiveError(`it has more than ${KERNELS_MAX} kernels`);
    done.push(await takeKernel(op, parts, digest, (blob, bytesMax) => readBlob(op, parts.host, archive, blob, bytesMax), taken));
  }
  return done;
}

/** Those without layers, under their own digests: what others find in their place is passed over. */
async function importOwn(op: Operation, parts: ImportParts, archive: Archive, own: readonly OwnImage[]): Promise<readonly Imported[]> {
  const done: Imported[] = [];
  for (const said of own) {
    const names = archive.name === null ? namesOf(said.names) : [archive.name];
    await requireNames(op, parts, names, said.names[0] ?? digestOfOwn(said), NOT_SIGNED);
    const isDefault = archive.name === null && said.description === null && said.names.includes(DEFAULT_IMAGE);
    const bare = isDefault && !(await isRuledOn(op, parts, DEFAULT_IMAGE)) ? [DEFAULT_IMAGE] : [];
    done.push({ image: await takeOwnImage(op, parts, archive, said), names: [...bare, ...names] });
  }
  return done;
}

/** What an archive calls the default image is nobody's word where a rule is about who may be called so. */
async function isRuledOn(op: Operation, { policyOf }: ImportParts, name: string): Promise<boolean> {
  const policy = await policyOf(op);
  const reference = requireImageReference(name);
  return refusalOfName(policy, reference, 'imported') !== null || keysFor(policy, reference) !== null;
}

/** The same, saying how far it is. `total`: null where nobody knows. */
async function* told(op: Operation, chunks: AsyncIterable<Uint8Array>, detail: string, total: number | null): AsyncGenerator<Uint8Array> {
  let done = 0;
  let said = Number.NEGATIVE_INFINITY;
  for await (const chunk of chunks) {
    done += chunk.byteLength;
    if (done - said >= TOLD_EVERY_BYTES) {
      said = done;
      op.progress({ step: IMPORT_STEP, detail, done, unit: 'bytes', ...(total === null ? {} : { total }) });
    }
    yield chunk;
  }
}

async function partsTold(op: Operation, host: Host, file: string): Promise<ArchiveParts['parts']> {
  const sizeBytes = (await host.stat(op, file))?.sizeBytes ?? 0;
  op.progress({ step: IMPORT_STEP, detail: 'reading', done: 0, total: sizeBytes, unit: 'bytes' });
  return await partsIn(op, host, file, sizeBytes);
}

/** A root file system is an image of one layer that says nothing of itself. `unpackedDigest`: null where it is not packed. */
async function importRoot(
  op: Operation,
  parts: ImportParts,
  file: string,
  unpackedDigest: string | null,
  aside: Aside,
): Promise<PreparedImage> {
  const { host, blobs } = parts;
  const digest = `sha256:${await host.sha256(op, file)}`;
  const diffId = unpackedDigest ?? digest;
  const sizeBytes = (await host.stat(op, file))?.sizeBytes ?? 0;
  const mediaType = mediaTypeOf(await host.readRange(op, file, 0, MAGIC_BYTES));
  const path = blobs.path(digest);
  using _held = blobs.hold([digest]);
  await blobs.adopt(op, file, digest);
  const configBytes = Buffer.from(
    JSON.stringify({
      architecture: 'amd64',
      os: 'linux',
      config: {},
      rootfs: { type: 'layers', diff_ids: [diffId] },
      history: [{ created_by: 'hutch image import' }],
    }),
  );
  const layer = { digest, sizeBytes, diffId, mediaType, file: Promise.resolve(path) };
  return await build(op, parts, configBytes, null, [layer], 'the archive', aside);
}

async function importSaved(op: Operation, parts: ImportParts, archive: Archive, own: readonly OwnImage[]): Promise<readonly Imported[]> {
  const saved = savedSchema.safeParse(await readJson(op, parts.host, archive, 'manifest.json', MANIFEST_BYTES_MAX));
  if (!saved.success) throw new ArchiveError('its manifest.json is not as docker save writes it');
  const others = new Set(own.map((one) => blobPath(one.others?.config ?? '')));
  const images = saved.data.filter(({ Config }) => !others.has(Config));
  requireOne(op, archive, new Set([...own.map(digestOfOwn), ...images.map(({ Config }) => Config)]));
  const done: Imported[] = [];
  const beside = await besideSaved(op, parts, archive);
  for (const { Config, RepoTags, Layers } of images) {
    const what = RepoTags?.[0] ?? Config.slice(0, 80);
    const configBytes = await readPart(op, parts.host, archive, Config, CONFIG_BYTES_MAX);
    const { diff_ids: diffIds } = parseConfig(op, configBytes, what).rootfs;
    if (diffIds.length !== Layers.length)
      throw new ArchiveError(`${shown(what)} has ${Layers.length} layers, and its configuration ${diffIds.length}`);
    const signed = await signaturesFor(op, readerOf(op, parts, archive), beside.signatures, digestOf(configBytes));
    const names = archive.name === null ? namesOf(RepoTags ?? []) : [archive.name];
    await requireNames(op, parts, names, what, signed);
    await using kept = new KeptLayers(op, parts, archive);
    for (const [at, path] of Layers.entries()) await kept.add({ path, diffId: diffIds[at] ?? '', digest: null, what });
    const { layers } = kept;
    using _held = parts.blobs.hold(layers.map(({ digest }) => digest));
    const manifest = beside.manifestOf(digestOf(configBytes), layers);
    const image = await build(op, parts, configBytes, manifest, layers, what, archive.aside);
    await keepSignatures(op, parts.host, parts.paths, image.record.digest, signed);
    done.push({ image, names });
  }
  return done;
}

async function importLayout(op: Operation, parts: ImportParts, archive: Archive, own: readonly OwnImage[]): Promise<readonly Imported[]> {
  const index = await readPart(op, parts.host, archive, 'index.json', MANIFEST_BYTES_MAX);
  const top = parseManifest(op, index, '', 'the archive');
  const { signatures: listed, all: others } = besideImages(index);
  const notImages = new Set([...kernelsListed(index), ...others, ...own.map((one) => one.others?.manifest ?? '')]);
  const signatures = await readSignatures(readerOf(op, parts, archive), listed);
  if (!('index' in top)) throw new ArchiveError('its index.json is no index');
  if (top.index.manifests.length > IMAGES_MAX) throw new ArchiveError(`it has more than ${IMAGES_MAX} images`);
  const listedImages = ofOwnPlatform(
    op,
    top.index.manifests.filter(({ digest }) => !notImages.has(digest)),
  );
  requireOne(op, archive, new Set([...own.map(digestOfOwn), ...listedImages.map(({ digest }) => digest)]));
  const done: Imported[] = [];
  for (const { digest, mediaType, annotations = {} } of listedImages) {
    const tag = annotations['io.containerd.image.name'] ?? annotations['org.opencontainers.image.ref.name'];
    const what = tag ?? digest;
    let bytes = await readBlob(op, parts.host, archive, digest, MANIFEST_BYTES_MAX);
    let parsed = parseManifest(op, bytes, mediaType, what);
    for (let depth = 0; 'index' in parsed; depth += 1) {
      if (depth === INDEX_DEPTH_MAX) throw new ArchiveError(`${shown(what)} is an index of indexes, more than ${INDEX_DEPTH_MAX} deep`);
      bytes = await readBlob(op, parts.host, archive, ownPlatform(op, parsed.index, what).digest, MANIFEST_BYTES_MAX);
      parsed = parseManifest(op, bytes, '', what);
    }
    const { config, layers: said } = parsed.manifest;
    const configBytes = await readBlob(op, parts.host, archive, config.digest, CONFIG_BYTES_MAX);
    const { diff_ids: diffIds } = parseConfig(op, configBytes, what).rootfs;
    if (diffIds.length !== said.length)
      throw new ArchiveError(`${shown(what)} has ${said.length} layers, and its configuration ${diffIds.length}`);
    const signed = await signaturesFor(op, readerOf(op, parts, archive), signatures, config.digest);
    const names = archive.name === null ? namesOf(tag === undefined ? [] : [tag]) : [archive.name];
    await requireNames(op, parts, names, what, signed);
    await using kept = new KeptLayers(op, parts, archive);
    for (const [at, { digest: layer }] of said.entries()) {
      await kept.add({ path: `blobs/sha256/${layer.slice(7)}`, diffId: diffIds[at] ?? '', digest: layer, what });
    }
    const { layers } = kept;
    using _held = parts.blobs.hold(layers.map((layer) => layer.digest));
    const manifest = { digest: digestOf(bytes), bytes };
    const image = await build(op, parts, configBytes, manifest, layers, what, archive.aside);
    await keepSignatures(op, parts.host, parts.paths, image.record.digest, signed);
    done.push({ image, names });
  }
  return done;
}

/** Some list what is for several machines side by side: what is not for this one is left out, where something is. */
function ofOwnPlatform(op: Operation, listed: Index['manifests']): Index['manifests'] {
  const own = listed.filter(({ platform }) => platform == null || runsHere(platform));
  if (own.length === 0 && listed.length > 0) ownPlatform(op, { manifests: listed }, 'the archive');
  return own;
}

/** Before anything of it is kept: a name for all of it is one image's. One image may be listed under several names. */
function requireOne(op: Operation, { name }: Archive, images: ReadonlySet<string>): void {
  if (name === null || images.size <= 1) return;
  throw op.error('failed_precondition', `there are ${images.size} images in the archive: one name is too few`, {
    hint: 'import it without a name',
  });
}

/** One that is listed once for each of its names. */
function eachOnce(done: readonly Imported[]): readonly Imported[] {
  const merged = new Map<string, Imported>();
  for (const { image, names } of done) {
    const before = merged.get(image.record.digest)?.names ?? [];
    merged.set(image.record.digest, { image, names: [...new Set([...before, ...names])] });
  }
  return [...merged.values()];
}

const NOT_SIGNED = { signatures: [], digests: [] };

/** @throws HutchError `permission_denied` where a rule is about a name that it would get, and does not let it. */
async function requireNames(
  op: Operation,
  { host, policyOf }: ImportParts,
  names: readonly string[],
  what: string,
  { signatures, digests }: Pick<ToBeSigned, 'signatures' | 'digests'>,
): Promise<void> {
  const policy = await policyOf(op);
  for (const name of names) {
    const reference = requireImageReference(name);
    const refusal = refusalOfName(policy, reference, 'imported');
    if (refusal !== null) throw op.error('permission_denied', refusal.message, { hint: refusal.hint });
    const keyPaths = keysFor(policy, reference);
    if (keyPaths === null) continue;
    const called = what === name ? what : `${what}, as ${name},`;
    await requireSigned(op, host, { what: called, doing: 'imported', digests, signatures }, { keyPaths, rule: policy.names.signed });
  }
}

/** What newer archives of docker save, and ours, have in an index beside the list of images. */
async function besideSaved(op: Operation, parts: ImportParts, archive: Archive) {
  const read = readerOf(op, parts, archive);
  const index = archive.parts.has('index.json')
    ? await readPart(op, parts.host, archive, 'index.json', MANIFEST_BYTES_MAX)
    : Buffer.from('{}');
  const manifests = new Map<string, { readonly bytes: Buffer; readonly layers: string }>();
  for (const digest of manifestsListed(index)) {
    if (!archive.parts.has(`blobs/sha256/${digest.slice(7)}`)) continue;
    const bytes = await read(digest, MANIFEST_BYTES_MAX);
    const found = imageIn(op, bytes);
    if (found !== null) manifests.set(found.config.digest, { bytes, layers: found.layers.map((layer) => layer.digest).join() });
  }
  return {
    signatures: await readSignatures(read, besideImages(index).signatures),
    /** With it an image keeps the digest by which registries know it. */
    manifestOf(config: string, layers: readonly LayerToBuild[]) {
      const found = manifests.get(config);
      return found?.layers === layers.map(({ digest }) => digest).join() ? { digest: digestOf(found.bytes), bytes: found.bytes } : null;
    },
  };
}

function readerOf(op: Operation, parts: ImportParts, archive: Archive): ReadBlob {
  return (digest, bytesMax) => readBlob(op, parts.host, archive, digest, bytesMax);
}

async function build(
  op: Operation,
  { host, paths, blobs, limits }: ImportParts,
  configBytes: Buffer,
  manifest: { digest: string; bytes: Buffer } | null,
  layers: readonly LayerToBuild[],
  what: string,
  aside: Aside,
): Promise<PreparedImage> {
  const digest = digestOf(configBytes);
  const there = await unlessDamaged(op, () => openImage(op, host, paths, digest));
  if (there !== null) {
    await Promise.all(layers.map(({ file }) => file)); // they are kept all the same
    return there;
  }
  const config = runConfig(op, parseConfig(op, configBytes, what), what);
  return await buildImage(
    op,
    host,
    paths,
    blobs,
    { what, name: null, digest, configBytes, config, createdAtMs: host.nowMs(), manifest, layers, step: IMPORT_STEP, aside },
    limits,
  );
}

type LayerInArchive = {
  readonly path: string;
  readonly diffId: string;
  /** That it must have; null: docker save says only what it is unpacked. */
  readonly digest: string | null;
  /** The image that it belongs to, for people. */
  readonly what: string;
};

/** Layers on their way out of the archive into the blobs: one after the other, while those before are packed. */
class KeptLayers implements AsyncDisposable {
  readonly layers: LayerToBuild[] = [];
  readonly #op: Operation;
  readonly #parts: ImportParts;
  readonly #archive: Archive;
  #last: Promise<unknown> = Promise.resolve();
  #isOver = false;

  constructor(op: Operation, parts: ImportParts, archive: Archive) {
    this.#op = op;
    this.#parts = parts;
    this.#archive = archive;
  }

  async add(layer: LayerInArchive): Promise<void> {
    const { host } = this.#parts;
    const place = partOf(this.#archive, layer.path);
    const mediaType = mediaTypeOf(await host.readRange(this.#op, place.file, place.offset, Math.min(MAGIC_BYTES, place.length)));
    // One that is not packed is what it is unpacked.
    const digest = layer.digest ?? (mediaType === TAR_TYPE ? layer.diffId : `sha256:${place.sha256 ?? (await this.#sha256Of(place))}`);
    let hashedNow = false;
    const file = this.#last.then(() =>
      this.#keep(layer, digest, place, () => {
        hashedNow = mediaType === TAR_TYPE;
      }),
    );
    file.catch(() => {}); // heard where it is used
    this.#last = file;
    const packed = layer.diffId === `sha256:${place.sha256}` ? place.packed : undefined;
    this.layers.push({
      ...{ digest, sizeBytes: place.length, diffId: layer.diffId, mediaType, file, hashedNow: () => hashedNow },
      ...(packed === undefined ? {} : { packed }),
    });
  }

  async #sha256Of({ file, offset, length }: Place): Promise<string> {
    const hash = createHash('sha256');
    for await (const chunk of range(this.#op, this.#parts.host, file, offset, length)) hash.update(chunk);
    return hash.digest('hex');
  }

  async #keep({ path, what, digest: said }: LayerInArchive, digest: string, place: Place, onHashed: () => void): Promise<string> {
    if (this.#isOver) throw new Error('the image is not made any more');
    const { host, blobs } = this.#parts;
    return await blobs.get(this.#op, digest, place.length, async (shared, staged) => {
      const found = `sha256:${place.sha256 ?? (await copied(shared, host, place, staged))}`;
      if (found !== digest)
        throw new ArchiveError(
          said === null
            ? `its layer ${shown(path)} is not what ${shown(what)} says: its content is ${found}`
            : `${shown(path)} is not what its name says: its digest is ${found}`,
        );
      // It has a file to itself already.
      if (place.sha256 !== null) await host.link(shared, place.file, staged);
      onHashed();
    });
  }

  /** Nothing is read out of the archive any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOver = true;
    await this.#last.catch(() => {});
  }
}

/** Gives what it has copied, in hexadecimal. */
async function copied(op: Operation, host: Host, { file, offset, length }: Place, to: string): Promise<string> {
  const hash = createHash('sha256');
  await host.appendStream(op, to, hashed(range(op, host, file, offset, length), hash));
  return hash.digest('hex');
}

/** Those that are names, in the short form. */
function namesOf(tags: readonly string[]): readonly string[] {
  return tags.flatMap((tag) => {
    const reference = parseImageReference(tag);
    // A bare word is a tag of nothing that is known here.
    return reference === null || reference.digest !== null || !/[:/]/.test(tag) ? [] : [shownReference(reference)];
  });
}
