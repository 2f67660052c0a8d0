// From a registry to an image of ours: manifest, configuration, layers three at a time, and the image is
// made while they come.
import type { ImageReference } from '../domain/image-reference.ts';
import { shownReference } from '../domain/image-reference.ts';
import type { Host } from '../host/host.ts';
import { newOperation, type Operation } from '../host/operation.ts';
import type { Blobs } from './blobs.ts';
import { type BuildLimits, buildImage, type LayerToBuild, STEP } from './build.ts';
import { openImage, type PreparedImage } from './image.ts';
import { type ImagePaths, unlessDamaged } from './layout.ts';
import { CONFIG_BYTES_MAX, INDEX_DEPTH_MAX, type Manifest, ownPlatform, parseConfig, parseManifest, runConfig } from './oci/manifest.ts';
import type { Fetched, Registry } from './registry/client.ts';
import type { Shared } from './shared.ts';
import { keepSignatures } from './trust/kept.ts';
import { type Doing, type ImagePolicy, keysFor, refusalOfName } from './trust/policy.ts';
import { requireSigned, type Signature, signaturesOf } from './trust/signature.ts';

const LAYERS_AT_ONCE = 3;
/** All layers as they come. */
const DOWNLOAD_BYTES_MAX = 64 * 1024 ** 3;

export type PullParts = {
  readonly host: Host;
  readonly paths: ImagePaths;
  readonly blobs: Blobs;
  readonly registry: Registry;
  readonly making: Shared<PreparedImage>;
  readonly limits?: BuildLimits;
  /** Of who asks. */
  readonly policyOf: (op: Operation) => Promise<ImagePolicy>;
};

/** The image; made when it is not there. A name that has moved on is another image. */
export async function pullImage(op: Operation, parts: PullParts, reference: ImageReference): Promise<PreparedImage> {
  const { host, paths, registry, making } = parts;
  const what = shownReference(reference);
  const policy = await parts.policyOf(op);
  requireAllowed(op, policy, reference, 'pulled');
  op.progress({ step: STEP, detail: what });
  const { fetched, manifest, documents } = await resolve(op, registry, reference, what);
  const keyPaths = keysFor(policy, reference);
  const signatures: Signature[] = [];
  if (keyPaths !== null) {
    const digests = documents.map(({ digest }) => digest);
    for (const digest of digests) signatures.push(...(await signaturesOf(op, registry, reference, digest)));
    await requireSigned(op, host, { what, doing: 'pulled', digests, signatures }, { keyPaths, rule: policy.names.signed });
  }
  checkSizes(op, manifest, what);
  const { digest } = manifest.config;
  const there = await unlessDamaged(op, () => openImage(op, host, paths, digest));
  const image = there ?? (await making.join(op, digest, (shared) => make(shared, parts, { reference, what, fetched, manifest })));
  if (signatures.length > 0) await keepSignatures(op, host, paths, digest, { signatures, documents: documents.map(({ bytes }) => bytes) });
  return image;
}

/** The manifest of what is no image, under the same rules as of one. */
export async function fetchArtifact(op: Operation, parts: PullParts, reference: ImageReference): Promise<Fetched> {
  const { host, registry } = parts;
  const what = shownReference(reference);
  const policy = await parts.policyOf(op);
  requireAllowed(op, policy, reference, 'pulled');
  const fetched = await registry.manifest(op, reference, reference.digest ?? reference.tag ?? 'latest');
  const keyPaths = keysFor(policy, reference);
  if (keyPaths !== null) {
    const digests = [fetched.digest];
    const signatures = await signaturesOf(op, registry, reference, fetched.digest);
    await requireSigned(op, host, { what, doing: 'pulled', digests, signatures }, { keyPaths, rule: policy.names.signed });
  }
  return fetched;
}

/** @throws HutchError `permission_denied` naming the rule that does not let it come here. */
export function requireAllowed(op: Operation, policy: ImagePolicy, reference: ImageReference, doing: Doing): void {
  const refusal = refusalOfName(policy, reference, doing);
  if (refusal !== null) throw op.error('permission_denied', refusal.message, { hint: refusal.hint });
}

/** `documents`: the manifest and the indexes that led to it, from the top down. */
type Found = { readonly fetched: Fetched; readonly manifest: Manifest; readonly documents: readonly Fetched[] };

async function resolve(op: Operation, registry: Registry, reference: ImageReference, what: string): Promise<Found> {
  let wanted = reference.digest ?? reference.tag ?? 'latest';
  const documents: Fetched[] = [];
  for (let depth = 0; depth < INDEX_DEPTH_MAX; depth += 1) {
    const fetched = await registry.manifest(op, reference, wanted);
    documents.push(fetched);
    const parsed = parseManifest(op, fetched.bytes, fetched.mediaType, what);
    if ('manifest' in parsed) return { fetched, manifest: parsed.manifest, documents };
    wanted = ownPlatform(op, parsed.index, what).digest;
  }
  throw op.error('failed_precondition', `${what} is an index of indexes, more than ${INDEX_DEPTH_MAX} deep`);
}

function checkSizes(op: Operation, { config, layers }: Manifest, what: string): void {
  const total = layers.reduce((sum, { size }) => sum + size, config.size);
  if (total > DOWNLOAD_BYTES_MAX)
    throw op.error('failed_precondition', `${what} has ${total} bytes; at most ${DOWNLOAD_BYTES_MAX} are pulled`);
}

async function make(
  op: Operation,
  { host, paths, blobs, registry, limits }: PullParts,
  { reference, what, fetched, manifest }: Omit<Found, 'documents'> & { readonly reference: ImageReference; readonly what: string },
): Promise<PreparedImage> {
  const digest = manifest.config.digest;
  const configBytes = await registry.smallBlob(op, reference, { digest, sizeBytes: manifest.config.size }, CONFIG_BYTES_MAX);
  const config = parseConfig(op, configBytes, what);
  const { diff_ids: diffIds } = config.rootfs;
  if (diffIds.length !== manifest.layers.length) {
    throw op.error(
      'failed_precondition',
      `the manifest of ${what} has ${manifest.layers.length} layers, and its configuration ${diffIds.length}`,
    );
  }
  const free = await host.fileSystem(op, paths.staging).catch(() => null);
  const needs = manifest.layers.reduce((sum, { size }) => sum + size, 0);
  if (free !== null && free.freeBytes < needs) {
    throw op.error('resource_exhausted', `${what} needs ${needs} bytes to be pulled, and ${free.freeBytes} are free in ${paths.blobs}`);
  }
  using _held = blobs.hold(manifest.layers.map((layer) => layer.digest));
  await using downloads = newDownloads(op);
  const layers = manifest.layers.map((layer, at): LayerToBuild => {
    const shown = `layer ${at + 1} of ${manifest.layers.length}, ${layer.digest.slice(7, 19)}`;
    const file = downloads.add((own) =>
      blobs.get(own, layer.digest, layer.size, (shared, path) =>
        registry.blob(shared, reference, { digest: layer.digest, sizeBytes: layer.size }, path, (done) =>
          shared.progress({ step: STEP, detail: shown, done, total: layer.size, unit: 'bytes' }),
        ),
      ),
    );
    return { digest: layer.digest, sizeBytes: layer.size, diffId: diffIds[at] ?? '', mediaType: layer.mediaType, file };
  });
  return await buildImage(
    op,
    host,
    paths,
    blobs,
    {
      what,
      name: what,
      digest,
      configBytes,
      config: runConfig(op, config, what),
      createdAtMs: host.nowMs(),
      manifest: { digest: fetched.digest, bytes: fetched.bytes },
      layers,
    },
    limits,
  );
}

/** Several at once, in order; when it is disposed, what is under way ends first. */
function newDownloads(op: Operation): AsyncDisposable & { add(work: (op: Operation) => Promise<string>): Promise<string> } {
  const abort = new AbortController();
  const { id, actor, verb, log } = op;
  const own = newOperation({
    id,
    actor,
    log,
    ...(verb === undefined ? {} : { verb }),
    signal: AbortSignal.any([op.signal, abort.signal]),
    onProgress: (progress) => op.progress(progress),
  });
  const all: Promise<string>[] = [];
  return {
    add(work) {
      const before = all[all.length - LAYERS_AT_ONCE];
      const begun = (async () => {
        await before;
        return await work(own);
      })();
      begun.catch(() => {}); // whoever waits for it hears of it
      all.push(begun);
      return begun;
    },
    async [Symbol.asyncDispose]() {
      abort.abort();
      await Promise.allSettled(all);
    },
  };
}
