// The images of this machine that came from elsewhere: pulled, imported, exported, looked after. It
// knows files, not names: those are the store's, and so is who uses what.
import { join } from 'node:path';
import type { ImageId } from '../domain/ids.ts';
import { type ImageReference, shownReference } from '../domain/image-reference.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { type Brought, importImages } from './archive.ts';
import { Blobs } from './blobs.ts';
import { takeRootfs } from './brought.ts';
import type { BuildLimits } from './build.ts';
import { exportImages, type Named } from './export.ts';
import { imageDir, listImages, OCI_CONFIG, openImage, type PreparedImage, requireUnchanged, verifyImage } from './image.ts';
import { ownContent } from './image-bundle.ts';
import { openKernel, type PreparedKernel } from './kernel.ts';
import type { KernelTaken } from './kernel-bundle.ts';
import { type ImagePaths, unlessDamaged } from './layout.ts';
import { ManifestsRead } from './manifests-read.ts';
import { CONFIG_BYTES_MAX, type OciConfig, parseConfig } from './oci/manifest.ts';
import { fetchArtifact, type PullParts, pullImage, requireAllowed } from './pull.ts';
import { type PushedImage, pushImage } from './push.ts';
import { promoteImage, registerImage, type ToRegister } from './register.ts';
import type { Fetched, Registry } from './registry/client.ts';
import type { Credentials } from './registry/credentials.ts';
import { type Spdx, sbomOf } from './sbom/sbom.ts';
import { Shared } from './shared.ts';
import { keysFor, NO_POLICY } from './trust/policy.ts';

export type LibraryOptions = {
  readonly host: Host;
  readonly paths: ImagePaths;
  readonly registry: Registry;
  readonly credentials: Credentials;
  readonly limits?: BuildLimits;
  readonly policyOf?: PullParts['policyOf'];
};

/** Tries to put on record what somebody removed between its making and that. */
const TRIES_MAX = 3;
const RELEASE_MS = 60_000;

export type LayerUse = { readonly digest: string; readonly sizeBytes: number; readonly isHere: boolean };

export class ImageLibrary {
  readonly host: Host;
  readonly paths: ImagePaths;
  readonly registry: Registry;
  readonly credentials: Credentials;
  readonly blobs: Blobs;
  readonly #parts: PullParts;
  readonly #read = new ManifestsRead();
  #last: Promise<unknown> = Promise.resolve();

  constructor({ host, paths, registry, credentials, limits, policyOf = async () => NO_POLICY }: LibraryOptions) {
    this.host = host;
    this.paths = paths;
    this.registry = registry;
    this.credentials = credentials;
    this.blobs = new Blobs(host, paths);
    this.#parts = { host, paths, registry, blobs: this.blobs, making: new Shared(), policyOf, ...(limits === undefined ? {} : { limits }) };
  }

  /** @throws HutchError `not_found`, `permission_denied`, `unavailable`, and `failed_precondition` for what is no image that runs here. */
  async pull(op: Operation, reference: ImageReference): Promise<PreparedImage> {
    return await pullImage(op, this.#parts, reference);
  }

  /** The manifest of what is no image. @throws HutchError `not_found`, `permission_denied`, `unavailable`. */
  async artifact(op: Operation, reference: ImageReference): Promise<Fetched> {
    return await fetchArtifact(op, this.#parts, reference);
  }

  /** For one that an Engine is to pull, whose signatures nobody here can check. @throws HutchError `permission_denied`. */
  async requireAllowedElsewhere(op: Operation, reference: ImageReference): Promise<void> {
    const policy = await this.#parts.policyOf(op);
    requireAllowed(op, policy, reference, 'pulled');
    if (keysFor(policy, reference) === null) return;
    throw op.error(
      'permission_denied',
      `${shownReference(reference)} must be signed (${policy.names.signed}), which an Engine does not check`,
      {
        hint: 'let Hutch pull it: without docker:// it runs on every backend',
      },
    );
  }

  /**
   * All images and kernels of an archive. `name`: in place of those that it has in it.
   * @throws HutchError `failed_precondition` for what is none, `permission_denied` for what may not have its name.
   */
  async import(op: Operation, source: AsyncIterable<Uint8Array>, name: string | null = null, taken?: KernelTaken): Promise<Brought> {
    return await importImages(op, this.#parts, source, name, taken);
  }

  /** What came with a snapshot. @throws ArchiveError for what is not that image. */
  async takeRootfs(op: Operation, rootfs: Parameters<typeof takeRootfs>[2]): Promise<PreparedImage> {
    return await takeRootfs(op, this.#parts, rootfs);
  }

  /**
   * Kernels that images bring go along. `forWhom`: `hutch` leaves out what only others read.
   * @throws HutchError `failed_precondition` for one that lies elsewhere, in an Engine's store.
   */
  async export(
    op: Operation,
    wanted: readonly { readonly digest: string; readonly names: readonly string[] }[],
    kernels: readonly PreparedKernel[] = [],
    forWhom: 'all' | 'hutch' = 'all',
  ): Promise<AsyncIterable<Uint8Array>> {
    const images: Named[] = [];
    for (const { digest, names } of wanted) images.push({ image: await this.#usable(op, digest, 'exported'), names });
    const along = new Map(kernels.map((kernel) => [kernel.record.digest, kernel]));
    for (const { image } of images) {
      const kernel = image.own === null ? null : await openKernel(op, this.host, this.paths, image.own.kernelDigest);
      if (kernel !== null) along.set(kernel.record.digest, kernel);
    }
    return exportImages(op, this.#parts, images, [...along.values()], forWhom);
  }

  /** Whether one that has no layers comes out of an archive under the digest that it has. */
  async keepsDigest(op: Operation, image: PreparedImage): Promise<boolean> {
    return (await ownContent(op, this, image, [], null)) !== null;
  }

  /**
   * `known`: by layer, other repositories of that registry that may have it.
   * @throws HutchError `permission_denied`, `unavailable`, and `failed_precondition` for one that lies elsewhere.
   */
  async push(
    op: Operation,
    digest: string,
    to: ImageReference,
    known: ReadonlyMap<string, readonly string[]> = new Map(),
  ): Promise<PushedImage> {
    const image = await this.#usable(op, digest, 'pushed');
    return await pushImage(op, this.#parts, image, to, known);
  }

  /** An image of files that lie here already and stay the user's. @throws HutchError `failed_precondition`, `not_found`. */
  async register(op: Operation, files: ToRegister): Promise<PreparedImage> {
    return await registerImage(op, this.#parts, files);
  }

  /** It gets copies of its own of the files that it was registered with. @throws HutchError `failed_precondition`. */
  async promote(op: Operation, digest: string): Promise<PreparedImage> {
    return await promoteImage(op, this.#parts, digest);
  }

  async #usable(op: Operation, digest: string, forWhat: 'exported' | 'pushed' | 'read'): Promise<PreparedImage> {
    const image = await this.find(op, digest);
    if (image === null) {
      throw op.error('failed_precondition', `image ${digest} does not lie in ${this.paths.images}: it cannot be ${forWhat}`);
    }
    await requireUnchanged(op, this.host, this.paths, image);
    return image;
  }

  /** Null: it is not here, or it is damaged. */
  async open(op: Operation, digest: string): Promise<PreparedImage | null> {
    return await unlessDamaged(op, () => this.find(op, digest));
  }

  /** Null: it is not here. @throws HutchError `failed_precondition` for one that is damaged. */
  async find(op: Operation, digest: string): Promise<PreparedImage | null> {
    return await openImage(op, this.host, this.paths, digest, this.#read);
  }

  /** In SPDX 2.3, from the databases of package managers in it. @throws HutchError `failed_precondition` for one that lies elsewhere. */
  async sbom(op: Operation, digest: string, name: string, tool: string): Promise<Spdx> {
    const image = await this.#usable(op, digest, 'read');
    return await sbomOf(op, { host: this.host, blobs: this.blobs }, image, name, tool);
  }

  /** What it says of itself; null for one that was made here. */
  async config(op: Operation, digest: string): Promise<OciConfig | null> {
    const path = join(imageDir(this.paths, digest), OCI_CONFIG);
    if ((await this.host.stat(op, path)) === null) return null;
    return parseConfig(op, Buffer.from(await this.host.readFile(op, path, CONFIG_BYTES_MAX)), digest);
  }

  /** From the lowest up; none of one that was made here. */
  async layers(op: Operation, digest: string): Promise<readonly LayerUse[]> {
    const image = await this.find(op, digest);
    if (image?.source.kind !== 'oci') return [];
    const found: LayerUse[] = [];
    for (const layer of image.source.layers) {
      found.push({ digest: layer.digest, sizeBytes: layer.sizeBytes, isHere: await this.blobs.has(op, layer.digest, layer.sizeBytes) });
    }
    return found;
  }

  /** Reads all of it, the layers that are kept too. @throws HutchError `failed_precondition` naming what is not what it was. */
  async verify(op: Operation, digest: string): Promise<number> {
    await verifyImage(op, this.host, this.paths, digest);
    let files = 1;
    for (const layer of await this.layers(op, digest)) {
      if (!layer.isHere) continue;
      files += 1;
      if (`sha256:${await this.host.sha256(op, this.blobs.path(layer.digest))}` === layer.digest) continue;
      throw op.error('failed_precondition', `the layer ${layer.digest} has changed on disk`, {
        hint: `remove it: rm ${this.blobs.path(layer.digest)}; sandboxes do not need it, and a pull brings it again`,
      });
    }
    return files;
  }

  /**
   * Puts on record what `make` brings here. What does and what takes an image off the record take turns, so that what is on
   * record is there: one that somebody removed in between is made again, and one that is not let onto it goes.
   */
  async record<T>(
    op: Operation,
    make: () => Promise<PreparedImage>,
    { put, isOnRecord }: { readonly put: (image: PreparedImage) => Promise<T>; readonly isOnRecord: (id: ImageId) => Promise<boolean> },
  ): Promise<T> {
    for (let tries = 1; ; tries += 1) {
      const image = await make();
      const { id, digest } = image.record;
      const done = await this.#inTurn(async () => {
        if ((await this.open(op, digest)) === null) return null;
        try {
          return { value: await put(image) };
        } catch (error) {
          using late = op.releasing(RELEASE_MS);
          if (!(await isOnRecord(id))) await this.remove(late, digest);
          throw error;
        }
      });
      if (done !== null) return done.value;
      if (tries === TRIES_MAX) throw op.error('conflict', `image ${id} is removed again and again while it is brought here`);
    }
  }

  /** Takes an image off the record with `unrecord`, and then away. */
  async unrecord(op: Operation, digest: string, unrecord: () => Promise<void>): Promise<void> {
    await this.#inTurn(async () => {
      await unrecord();
      await this.remove(op, digest);
    });
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(work, work);
    this.#last = mine.catch(() => {});
    return await mine;
  }

  /** Its file system and what it says; its layers stay for others until `dropLayers`. */
  async remove(op: Operation, digest: string): Promise<void> {
    const dir = imageDir(this.paths, digest);
    if ((await this.host.stat(op, dir)) === null) return;
    // Out of its place at once: who dies in the middle leaves no half of an image there.
    await using staged = await this.blobs.stage(op, `gone-${op.id}-${digest.slice(7, 19)}`);
    await this.host.rename(op, dir, staged.path);
  }

  /** Removes layers that are in none of the given lists. Gives those that went, or would. */
  async dropLayers(
    op: Operation,
    keep: ReadonlySet<string>,
    really: boolean,
  ): Promise<readonly { readonly digest: string; readonly sizeBytes: number }[]> {
    const dropped: { readonly digest: string; readonly sizeBytes: number }[] = [];
    for (const blob of await this.blobs.list(op)) {
      if (keep.has(blob.digest)) continue;
      if (!really || (await this.blobs.remove(op, blob.digest))) dropped.push(blob);
    }
    return dropped;
  }

  /**
   * What a crash left: in staging, and images that came from elsewhere and are not `onRecord`: their daemon died between the
   * one and the other. At the start of a daemon, before anything is pulled.
   */
  async sweep(op: Operation, onRecord?: ReadonlySet<string>): Promise<void> {
    await this.blobs.sweep(op);
    if (onRecord === undefined) return;
    for (const { record, source } of await listImages(op, this.host, this.paths)) {
      // What Hutch made takes minutes, and is put on record when it is wanted.
      if (source.kind === 'mmdebstrap' || onRecord.has(record.digest)) continue;
      op.log.info({ image: record.digest }, 'an image that is on no record is removed');
      await this.remove(op, record.digest);
    }
  }
}
