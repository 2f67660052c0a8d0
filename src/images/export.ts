// An image as one file that `docker load`, podman, skopeo and we ourselves take: an OCI layout with the
// list that `docker save` writes. Its layers as they came, byte for byte; where they are not kept, and for an
// image that has none, the whole file system as one layer. What has none lies beside that as it is (image-bundle.ts).
import { join } from 'node:path';
import type { ImageConfig } from '../domain/image.ts';
import { parseImageReference, shownReference } from '../domain/image-reference.ts';
import { padding } from '../domain/tar/entry.ts';
import { TAR_END } from '../domain/tar/header.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { mediaTypeOf, TAR_TYPE } from './archive-parts.ts';
import type { Blobs } from './blobs.ts';
import { digestOf } from './digest.ts';
import { imageDir, OCI_CONFIG, OCI_MANIFEST, type PreparedImage } from './image.ts';
import { OWN_LIST, type OwnContent, ownContent, ownList } from './image-bundle.ts';
import type { PreparedKernel } from './kernel.ts';
import { KERNEL_ARTIFACT, type KernelContent, kernelContent } from './kernel-bundle.ts';
import { type ImagePaths, SHARED_DIR_MODE } from './layout.ts';
import { blobPath, file, header, LAYOUT } from './oci/layout-tar.ts';
import { CONFIG_BYTES_MAX, CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE } from './oci/manifest.ts';
import { type Layer, packedLayer, packLayer } from './packed.ts';
import { SIGNATURES_SAID } from './trust/archived.ts';
import { blobsOfKept, keptSignatures } from './trust/kept.ts';

const MANIFEST_BYTES_MAX = 4 * 1024 * 1024;
const MAGIC_BYTES = 6;

export type ExportParts = { readonly host: Host; readonly paths: ImagePaths; readonly blobs: Blobs };

export type Content = { readonly config: Buffer; readonly manifest: Buffer; readonly layers: readonly Layer[] };
/** What an image goes out as; as long as it is not disposed, its layers are there. */
export type HeldContent = Content & AsyncDisposable;

export type Named = { readonly image: PreparedImage; readonly names: readonly string[] };

/** A tar archive of images, and of kernels where there are any. For `hutch` alone it lacks what others read of images without layers. The same ones give the same bytes as long as their layers are kept. */
export async function* exportImages(
  op: Operation,
  parts: ExportParts,
  images: readonly Named[],
  kernels: readonly PreparedKernel[] = [],
  forWhom: 'all' | 'hutch' = 'all',
): AsyncGenerator<Uint8Array> {
  const { host } = parts;
  await using held = new AsyncDisposableStack();
  const contents: (HeldContent & Pick<Named, 'names'>)[] = [];
  const own: OwnContent[] = [];
  const ofSignatures = new Map<string, Buffer>();
  const signatures = new Map<string, Buffer>();
  for (const { image, names } of images) {
    const alone = forWhom === 'hutch' ? await ownContent(op, parts, image, names, null) : null;
    if (alone !== null) {
      own.push(alone);
      continue;
    }
    const content = held.use(await contentOf(op, parts, image));
    contents.push({ ...content, names });
    const asIs = await ownContent(op, parts, image, names, { config: digestOf(content.config), manifest: digestOf(content.manifest) });
    if (asIs !== null) own.push(asIs);
    if (digestOf(content.config) !== image.record.digest) continue; // packed anew it is another image, which nobody signed
    const kept = await keptSignatures(op, host, parts.paths, image.record.digest);
    for (const { manifest } of kept.signatures) signatures.set(digestOf(manifest), manifest);
    for (const bytes of blobsOfKept(kept)) ofSignatures.set(digestOf(bytes), bytes);
  }
  const ofKernels: KernelContent[] = [];
  for (const kernel of kernels) ofKernels.push(await kernelContent(op, host, kernel));
  const listed = [
    ...contents.flatMap(({ manifest, names }) => {
      const descriptor = { mediaType: typeOf(manifest), digest: digestOf(manifest), size: manifest.byteLength };
      return names.length === 0 ? [descriptor] : names.map((name) => ({ ...descriptor, annotations: annotationsOf(name) }));
    }),
    ...ofKernels.map(({ manifest }) => ({
      mediaType: MANIFEST_TYPE,
      artifactType: KERNEL_ARTIFACT,
      digest: digestOf(manifest),
      size: manifest.byteLength,
    })),
    ...[...signatures].map(([digest, manifest]) => ({
      mediaType: MANIFEST_TYPE,
      digest,
      size: manifest.byteLength,
      annotations: SIGNATURES_SAID,
    })),
  ];
  const files = [...ofKernels, ...own].flatMap((content) => content.files);
  for (const { path, digest } of files) await requireWhole(op, host, path, digest);
  yield* file('oci-layout', LAYOUT);
  yield* file('index.json', json({ schemaVersion: 2, mediaType: INDEX_TYPE, manifests: listed }));
  if (contents.length > 0) yield* file('manifest.json', json(contents.map(savedOf)));
  if (own.length > 0) yield* file(OWN_LIST, ownList(own.map(({ said }) => said)));
  const given = new Set<string>();
  const small = [
    ...[...contents, ...ofKernels].flatMap(({ manifest, config }) => [manifest, config]),
    ...ofSignatures.values(),
    ...own.flatMap(({ description }) => description ?? []),
  ];
  for (const bytes of small) {
    if (given.has(digestOf(bytes))) continue;
    given.add(digestOf(bytes));
    yield* file(blobPath(digestOf(bytes)), bytes);
  }
  const large = [
    ...contents.flatMap(({ layers }) => layers),
    ...files.map(({ path, ...file }) => ({ ...file, open: (opening: Operation) => host.readStream(opening, path) })),
  ];
  for (const { digest, sizeBytes, open } of large) {
    if (given.has(digest)) continue;
    given.add(digest);
    yield header(blobPath(digest), sizeBytes);
    yield* open(op, 0);
    yield Buffer.alloc(padding(sizeBytes));
  }
  yield TAR_END;
}

/** As the list of docker save has it. */
function savedOf({ config, layers, names }: Content & Pick<Named, 'names'>): object {
  return { Config: blobPath(digestOf(config)), RepoTags: names.flatMap(taggedOf), Layers: layers.map(({ digest }) => blobPath(digest)) };
}

/** As it came, else as one layer. `packed`: for a registry, layers that are bare archives compressed; else as they are, which is sooner there. */
export async function contentOf(op: Operation, parts: ExportParts, image: PreparedImage, packed = false): Promise<HeldContent> {
  await using undo = new AsyncDisposableStack();
  const { source } = image;
  const { blobs } = parts;
  const staged = undo.use(await blobs.stage(op, `export-${op.id}-${image.record.digest.slice(7, 19)}`));
  undo.use(blobs.hold(source.kind === 'oci' ? source.layers.map(({ digest }) => digest) : []));
  const content = (await asItCame(op, parts, image, staged.path, packed)) ?? (await asOneLayer(op, parts, image, staged.path, packed));
  const owned = undo.move();
  return { ...content, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** Null when a layer is not kept. */
async function asItCame(
  op: Operation,
  { host, paths, blobs }: ExportParts,
  { record, source }: PreparedImage,
  staging: string,
  packed: boolean,
): Promise<Content | null> {
  if (source.kind !== 'oci') return null;
  for (const { digest, sizeBytes } of source.layers) if (!(await blobs.has(op, digest, sizeBytes))) return null;
  const dir = imageDir(paths, record.digest);
  const config = Buffer.from(await host.readFile(op, join(dir, OCI_CONFIG), CONFIG_BYTES_MAX));
  const layers: Layer[] = [];
  for (const { digest, sizeBytes } of source.layers) {
    const file = { digest, sizeBytes, path: blobs.path(digest) };
    const mediaType = mediaTypeOf(await host.readRange(op, file.path, 0, MAGIC_BYTES));
    const isBare = mediaType === TAR_TYPE && source.manifest === null;
    if (!packed) await requireWhole(op, host, file.path, digest); // a push compares what it sends
    layers.push(packed && isBare ? await packedLayer(op, host, blobs, file, staging) : asItIs(host, file, mediaType));
  }
  if (source.manifest === null) return { config, layers, manifest: manifestOf(config, layers) };
  return { config, layers, manifest: Buffer.from(await host.readFile(op, join(dir, OCI_MANIFEST), MANIFEST_BYTES_MAX)) };
}

/** Before the first byte is out: an archive that lies would be found out where it comes out, on a machine that cannot mend it. */
async function requireWhole(op: Operation, host: Host, path: string, digest: string): Promise<void> {
  op.progress({ step: 'export', detail: `reading ${digest.slice(7, 19)}` });
  if (`sha256:${await host.sha256(op, path)}` === digest) return;
  throw op.error('failed_precondition', `${path} has changed on disk: it is not ${digest} any more`, {
    hint: 'hutch image verify, or hutch kernel verify, says what to do',
  });
}

function asItIs(
  host: Host,
  { path, ...file }: { readonly digest: string; readonly sizeBytes: number; readonly path: string },
  mediaType: string,
): Layer {
  return { ...file, mediaType, open: (op, offset) => host.readStream(op, path, offset) };
}

async function asOneLayer(
  op: Operation,
  { host, paths }: ExportParts,
  image: PreparedImage,
  staging: string,
  packed: boolean,
): Promise<Content> {
  await host.makeDir(op, staging, SHARED_DIR_MODE);
  const plain = join(staging, 'layer.tar');
  op.progress({ step: 'export', detail: 'unpacking' });
  await unpackedTo(op, host, image.path, plain);
  const diffId = `sha256:${await host.sha256(op, plain)}`;
  const file = { digest: diffId, sizeBytes: (await host.stat(op, plain))?.sizeBytes ?? 0, path: plain };
  const layer = packed ? await packLayer(op, host, file, staging) : asItIs(host, file, TAR_TYPE);
  if (packed) await host.remove(op, plain);
  const own = join(imageDir(paths, image.record.digest), OCI_CONFIG);
  const said: unknown =
    image.source.kind === 'oci'
      ? JSON.parse(Buffer.from(await host.readFile(op, own, CONFIG_BYTES_MAX)).toString())
      : { architecture: 'amd64', os: 'linux', config: saidBy(image.record.config) };
  const config = json({
    ...(said as object),
    rootfs: { type: 'layers', diff_ids: [diffId] },
    history: [{ created_by: 'hutch image export' }],
  });
  return { config, layers: [layer], manifest: manifestOf(config, [layer]) };
}

/** A root file system as a tar archive. */
export async function unpackedTo(op: Operation, host: Host, path: string, tar: string): Promise<void> {
  await written(op, host, 'exec sqfs2tar "$0" > "$1"', path, tar);
}

/** The shell only opens the files; all names are arguments of its own, never part of the command. */
async function written(op: Operation, host: Host, command: string, from: string, to: string): Promise<void> {
  const { exitCode, stderr } = await host.run(op, ['sh', '-c', command, from, to]);
  if (exitCode === 0) return;
  const said = new TextDecoder().decode(stderr).trim().slice(0, 300);
  if (/No space left/.test(said)) throw op.error('resource_exhausted', 'the image cannot be unpacked: the disk is full');
  throw op.error('internal', `the image cannot be unpacked: ${said}`);
}

function manifestOf(config: Buffer, layers: readonly Layer[]): Buffer {
  return json({
    schemaVersion: 2,
    mediaType: MANIFEST_TYPE,
    config: { mediaType: CONFIG_TYPE, digest: digestOf(config), size: config.byteLength },
    layers: layers.map(({ mediaType, digest, sizeBytes }) => ({ mediaType, digest, size: sizeBytes })),
  });
}

export function saidBy({ env, entrypoint, command, workdir, user, stopSignal, exposedPorts }: ImageConfig): object {
  return {
    Env: Object.entries(env).map(([name, value]) => `${name}=${value}`),
    ...(entrypoint.length === 0 ? {} : { Entrypoint: entrypoint }),
    ...(command.length === 0 ? {} : { Cmd: command }),
    ...(workdir === null ? {} : { WorkingDir: workdir }),
    ...(user === null ? {} : { User: user }),
    ...(stopSignal === null ? {} : { StopSignal: stopSignal }),
    ...(exposedPorts.length === 0 ? {} : { ExposedPorts: Object.fromEntries(exposedPorts.map((port) => [port, {}])) }),
  };
}

/** As docker load wants it: with a tag, which a name that Hutch gave has not, nor one that is a digest. */
function taggedOf(name: string): readonly string[] {
  const reference = parseImageReference(name);
  return reference === null || reference.digest !== null ? [] : [shownReference(reference)];
}

/** As docker save has them, with the whole name. A bare word stays one, which is a name of this machine alone. */
function annotationsOf(name: string): Record<string, string> {
  const reference = /[:/]/.test(name) ? parseImageReference(name) : null;
  if (reference === null || reference.tag === null) return { 'io.containerd.image.name': name, 'org.opencontainers.image.ref.name': name };
  const { registry, repository, tag } = reference;
  return { 'io.containerd.image.name': `${registry}/${repository}:${tag}`, 'org.opencontainers.image.ref.name': tag };
}

/** A registry may have given one in Docker's form; it stays what it is. */
export function typeOf(manifest: Buffer): string {
  const { mediaType } = JSON.parse(manifest.toString()) as { mediaType?: unknown };
  return typeof mediaType === 'string' ? mediaType : MANIFEST_TYPE;
}

function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}
