// What sandboxes boot from, out of src/images: the default image, the guest's kernel and the initramfs
// with our agent. Made once on this machine, with progress; remembered as long as this daemon runs.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { DEFAULT_IMAGE, prepareDefaultImage } from '../images/default-image.ts';
import { openImage, type PreparedImage } from '../images/image.ts';
import { prepareInitramfs } from '../images/initramfs.ts';
import { findKernel, openKernel, type PreparedKernel, prepareKernel } from '../images/kernel.ts';
import { type ImagePaths, imagePaths, MADE, removeLeftovers } from '../images/layout.ts';
import type { Boot, BootSource } from '../services/deps.ts';
import type { Store } from '../store/contract.ts';

export type BootsOptions = { readonly host: Host; readonly store: Store; readonly dataDir: string; readonly agentPath: string };

export function bootSource({ host, store, dataDir, agentPath }: BootsOptions): BootSource {
  const paths = imagePaths(dataDir);
  const known = new Map<string, Boot>();

  async function remember(op: Operation, image: PreparedImage, kernel: PreparedKernel): Promise<Boot> {
    const initramfs = await prepareInitramfs(op, host, paths, { kernel, agentPath });
    const boot = {
      image: image.record,
      kernelId: kernel.record.id,
      files: {
        imagePath: image.path,
        imageDigest: image.record.digest,
        kernelPath: kernel.vmlinuxPath,
        kernelDigest: kernel.record.digest,
        initramfsPath: initramfs.path,
        initramfsDigest: initramfs.digest,
      },
    };
    known.set(image.record.id, boot);
    return boot;
  }

  /** One at a time: two first sandboxes need one image. */
  let making: Promise<Boot> | null = null;

  async function make(op: Operation): Promise<Boot> {
    const [image, kernel] = await both(prepareDefaultImage(op, host, paths), prepareKernel(op, host, paths));
    await removeLeftovers(op, host, paths, new Set(MADE));
    await store.commit(op, [
      { change: 'putImage', image: image.record },
      { change: 'putKernel', kernel: kernel.record },
    ]);
    const boot = await remember(op, image, kernel);
    known.set(DEFAULT_IMAGE, boot);
    return boot;
  }

  return {
    async prepare(op, name) {
      const remembered = known.get(name);
      if (remembered !== undefined && (await isThere(op, host, remembered))) return remembered;
      if (name === DEFAULT_IMAGE) {
        // Whoever comes second waits for the first, and tries itself when the first was cancelled.
        while (making !== null) await making.catch(() => {});
        making = make(op).finally(() => {
          making = null;
        });
        return await making;
      }
      const image = (await store.query('images', {})).find((candidate) => candidate.id === name || candidate.digest === name);
      if (image === undefined)
        throw op.error('not_found', `there is no image '${name.slice(0, 128)}'`, { hint: `the one that there is: ${DEFAULT_IMAGE}` });
      return await open(op, paths, image.digest, null);
    },

    async of(op, { imageId, kernelId }) {
      const remembered = known.get(imageId);
      if (remembered !== undefined && remembered.kernelId === kernelId) return remembered;
      const image = await store.query('image', { id: imageId });
      if (image === null) throw op.error('failed_precondition', `image ${imageId} is gone`);
      const kernel = kernelId === null ? null : await store.query('kernel', { id: kernelId });
      return await open(op, paths, image.digest, kernel?.digest ?? null);
    },
  };

  async function open(op: Operation, where: ImagePaths, imageDigest: string, kernelDigest: string | null): Promise<Boot> {
    const image = await openImage(op, host, where, imageDigest);
    if (image === null)
      throw op.error('failed_precondition', `image ${imageDigest} is not there any more`, { hint: `look into ${where.images}` });
    // A disk does not depend on the kernel: where the old one is gone, the current one does.
    const own = kernelDigest === null ? null : await openKernel(op, host, where, kernelDigest);
    const kernel = own ?? (await findKernel(op, host, where));
    if (kernel === null) throw op.error('failed_precondition', 'there is no guest kernel', { hint: 'make a sandbox; that makes one' });
    return await remember(op, image, kernel);
  }
}

/** At the same time; when one fails the other is still waited for, so that nothing goes on unseen. */
async function both<A, B>(a: Promise<A>, b: Promise<B>): Promise<[A, B]> {
  await Promise.allSettled([a, b]);
  return [await a, await b];
}

/** Somebody may have removed it to have it made anew. */
async function isThere(op: Operation, host: Host, boot: Boot): Promise<boolean> {
  return (await host.stat(op, boot.files.imagePath)) !== null && (await host.stat(op, boot.files.kernelPath)) !== null;
}
