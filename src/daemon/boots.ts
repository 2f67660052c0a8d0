// What sandboxes boot from, out of src/images: the default image, the guest's kernel and the initramfs
// with our agent. Made once on this machine, with progress; remembered as long as this daemon runs.
import type { Backend, BootNeed } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import { ENGINE_REFERENCE, type Image, type Kernel, OWN_KERNEL, REGISTERED } from '../domain/image.ts';
import { parseImageReference, shownReference } from '../domain/image-reference.ts';
import { resolveDigest } from '../domain/reference.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { DownloadEnv } from '../images/apt.ts';
import { DEFAULT_IMAGE, prepareDefaultImage } from '../images/default-image.ts';
import { idOfDigest } from '../images/digest.ts';
import { type PreparedImage, requireUnchanged } from '../images/image.ts';
import { type Initramfs, prepareInitramfs } from '../images/initramfs.ts';
import { findKernel, openKernel, type PreparedKernel, prepareKernel } from '../images/kernel.ts';
import { imagePaths, MADE, removeLeftovers } from '../images/layout.ts';
import type { ImageLibrary } from '../images/library.ts';
import { runArchive } from '../images/run-directory.ts';
import type { Boot, BootSource, KernelChoice } from '../services/deps.ts';
import type { Store } from '../store/contract.ts';
import { type ImageRules, isOfHutch } from './image-rules.ts';

export type BootsOptions = {
  readonly host: Host;
  readonly store: Store;
  readonly dataDir: string;
  readonly agentPath: string;
  readonly downloadEnv: DownloadEnv;
  readonly library: ImageLibrary;
  readonly rules: Pick<ImageRules, 'mayUse'>;
};

export function bootSource({ host, store, dataDir, agentPath, downloadEnv, library, rules }: BootsOptions): BootSource {
  const paths = imagePaths(dataDir);
  /** By what is needed, image and the kernel that was asked for: what was put together before. */
  const known = new Map<string, Boot>();
  const initrds = new Set<string>();
  const initramfsByKernel = new Map<string, { readonly made: Initramfs; readonly agent: string | null; readonly file: string | null }>();

  async function machine(op: Operation, image: PreparedImage, kernel: PreparedKernel): Promise<Boot> {
    // An initrd belongs to the kernel that it came with.
    const first = image.own?.kernelDigest === kernel.record.digest ? image.own.initrd?.path : undefined;
    const initramfs =
      first === undefined ? await initramfsOf(op, kernel) : await prepareInitramfs(op, host, paths, { kernel, agentPath, first });
    initrds.add(initramfs.path);
    const boot = {
      image: image.record,
      kernelId: kernel.record.id,
      files: {
        kind: 'machine',
        imagePath: image.guestPath,
        imageDigest: image.rootDigest,
        kernelPath: kernel.vmlinuxPath,
        kernelDigest: kernel.record.digest,
        initramfsPath: initramfs.path,
        initramfsDigest: initramfs.digest,
      },
      runArchive: runArchive(paths, image.record.digest),
    } as const;
    return boot;
  }

  /** As it was put together and compared before, where neither the agent nor that file has been touched since. */
  async function initramfsOf(op: Operation, kernel: PreparedKernel): Promise<Initramfs> {
    const agent = await touched(op, host, agentPath);
    const before = initramfsByKernel.get(kernel.record.digest);
    if (before !== undefined && before.agent === agent && before.file === (await touched(op, host, before.made.path))) return before.made;
    const made = await prepareInitramfs(op, host, paths, { kernel, agentPath });
    initramfsByKernel.set(kernel.record.digest, { made, agent, file: await touched(op, host, made.path) });
    return made;
  }

  function root(image: PreparedImage): Boot {
    return {
      image: image.record,
      kernelId: null,
      files: { kind: 'root', imagePath: image.path, imageDigest: image.rootDigest, isPackedHere: image.isPackedHere },
      runArchive: runArchive(paths, image.record.digest),
    };
  }

  /** One at a time: two first sandboxes need one image. */
  let making: Promise<Boot> | null = null;

  async function make(op: Operation, needs: BootNeed, asked: Kernel | null): Promise<Boot> {
    const wantsKernel = needs === 'machine';
    const [image, kernel] = await both(
      prepareDefaultImage(op, host, paths, downloadEnv),
      wantsKernel ? ((asked && openAsked(op, asked)) ?? prepareKernel(op, host, paths, downloadEnv)) : null,
    );
    await removeLeftovers(op, host, paths, new Set(wantsKernel ? MADE : (['image'] as const)));
    await store.commit(op, [
      { change: 'putImage', image: image.record },
      ...(kernel === null ? [] : [{ change: 'putKernel', kernel: kernel.record } as const]),
    ]);
    return kernel === null ? root(image) : await machine(op, image, kernel);
  }

  async function openAsked(op: Operation, { id, digest }: Kernel): Promise<PreparedKernel> {
    const kernel = await openKernel(op, host, paths, digest);
    if (kernel !== null) return kernel;
    throw op.error('failed_precondition', `kernel ${id} is not there any more`, { hint: 'see what there is: hutch kernel ls' });
  }

  return {
    initrds: () => initrds,

    async ownKernel(name) {
      return (await onRecord(name))?.detail[OWN_KERNEL] !== undefined;
    },

    async prepare(op, name, backend, choice) {
      const { needs } = backend;
      const kernel = choice?.kernel ?? null;
      if (name.includes('://')) return await fetched(op, name, backend);
      const remembered = known.get(keyOf(needs, name, kernel?.id ?? null));
      const isOpen = remembered === undefined || (await mayUse(op, remembered.image, name));
      if (remembered !== undefined && isOpen && (await isThere(op, host, remembered))) return remembered;
      if (name === DEFAULT_IMAGE) {
        // Whoever comes second waits for the first, and tries itself when the first was cancelled.
        while (making !== null) await making.catch(() => {});
        const come = await broughtDefault(op);
        if (come !== undefined) return await opened(op, come, needs, choice);
        making = make(op, needs, kernel).finally(() => {
          making = null;
        });
        const boot = await making;
        known.set(keyOf(needs, DEFAULT_IMAGE, kernel?.id ?? null), boot);
        return boot;
      }
      const here = await onRecord(name);
      const record = here === undefined ? await pulled(op, name) : (await mayUse(op, here, name)) ? here : await brought(op, name, here);
      return await opened(op, record, needs, choice);
    },

    async renew(op, name) {
      const here = await onRecord(name);
      if (here !== undefined && (isItself(name, here) || isOfHutch(here))) return;
      if (parseImageReference(name)?.digest != null || name === DEFAULT_IMAGE) return; // what it is comes, or is made, on first use
      if (here === undefined) await pulled(op, name);
      else await pulled(op, name, 'is here, and cannot be pulled anew', 'without --pull it is built upon as it is');
    },

    async of(op, { imageId, kernelId }, needs) {
      const remembered = known.get(keyOf(needs, imageId, kernelId));
      if (remembered !== undefined && remembered.kernelId === kernelId) return remembered;
      const image = await store.query('image', { id: imageId });
      if (image === null) throw op.error('failed_precondition', `image ${imageId} is gone`);
      const kernel = kernelId === null ? null : await store.query('kernel', { id: kernelId });
      const boot = await open(op, image, kernel?.digest ?? null, 'asked', needs, 'look');
      remember(keyOf(needs, imageId, kernelId), boot);
      return boot;
    },
  };

  /** For a sandbox that is to be. */
  async function opened(op: Operation, record: Image, needs: BootNeed, choice: KernelChoice | null): Promise<Boot> {
    const boot = await open(op, record, choice?.kernel.digest ?? null, choice?.by ?? 'default', needs, 'get');
    // By its id only: names move.
    remember(keyOf(needs, boot.image.id, choice?.kernel.id ?? null), boot);
    return boot;
  }

  /** The default image of another machine, which an archive brought: then none is made of packages here. */
  async function broughtDefault(op: Operation): Promise<Image | undefined> {
    const image = (await store.query('images', {})).find(({ names }) => names.includes(DEFAULT_IMAGE));
    return image !== undefined && !isOfHutch(image) && (await mayUse(op, image, DEFAULT_IMAGE)) ? image : undefined;
  }

  /** Files of a user's are looked at before each start; and what an Engine has, it may have no more. */
  function remember(key: string, boot: Boot): void {
    if (boot.files.kind !== 'engine' && boot.image.detail[REGISTERED] === undefined) known.set(key, boot);
  }

  /** By id, name, or digest as lists show it; the name as it was written, or in the short form. */
  async function onRecord(name: string): Promise<Image | undefined> {
    const reference = parseImageReference(name);
    const short = reference === null ? name : shownReference(reference);
    const images = await store.query('images', {});
    return (
      images.find(({ id, names }) => id === name || names.includes(name) || names.includes(short)) ??
      resolveDigest(name, images) ??
      undefined
    );
  }

  async function mayUse(op: Operation, image: Image, name: string): Promise<boolean> {
    return await rules.mayUse(op, image, isItself(name, image) ? 'digest' : 'name');
  }

  /** What is here by another project: it is asked of its registry as if it were not, under the rules of who asks. */
  async function brought(op: Operation, name: string, image: Image): Promise<Image> {
    if (isItself(name, image)) {
      throw op.error('permission_denied', `image ${name} was brought here by another project`, {
        hint: 'bring it for yours, by its name: hutch image pull NAME',
      });
    }
    return await pulled(op, name, 'is here by another project, and cannot be pulled for yours');
  }

  async function pulled(op: Operation, name: string, why?: string, instead: string | null = null): Promise<Image> {
    const said = name.slice(0, 128);
    const reference = parseImageReference(name);
    if (reference === null) {
      throw op.error('not_found', `there is no image '${said}', and it is no name that can be pulled`, {
        hint: 'see what there is: hutch image ls; write others like python:3.13-slim or ghcr.io/owner/name:tag',
      });
    }
    try {
      return await library.record(op, () => library.pull(op, reference), {
        put: async ({ record }) =>
          (await store.commit(op, [{ change: 'putImage', image: { ...record, name: shownReference(reference) } }]))[0],
        isOnRecord: async (id) => (await store.query('image', { id })) !== null,
      });
    } catch (error) {
      if (!(error instanceof HutchError) || !NOT_HAD.has(error.code)) throw error;
      const hint = instead ?? error.hint;
      throw op.error(
        error.code,
        `${why === undefined ? `there is no image '${said}' here, and it cannot be pulled` : `image '${said}' ${why}`}: ${error.message}`,
        {
          ...(hint === null ? {} : { hint }),
          cause: error,
        },
      );
    }
  }

  /** An image that lies in a backend's own store; here it is only on record. */
  async function fetched(op: Operation, reference: string, backend: Pick<Backend, 'name' | 'fetchImage'>): Promise<Boot> {
    const shown = reference.slice(0, 256);
    if (backend.fetchImage === undefined) {
      throw op.error('failed_precondition', `the backend ${backend.name} cannot run ${shown}: it has no images of its own`, {
        hint: `without docker:// Hutch pulls the image itself, for every backend: --image ${shown.replace(/^docker:\/\//, '')}`,
      });
    }
    const named = parseImageReference(reference.replace(/^docker:\/\//, ''));
    if (named !== null) await library.requireAllowedElsewhere(op, named);
    const image = await backend.fetchImage(op, reference);
    const record = {
      ...image,
      id: idOfDigest('img', image.digest),
      name: null,
      createdAtMs: host.nowMs(),
      detail: { ...image.detail, [ENGINE_REFERENCE]: reference },
    };
    const [stored] = await store.commit(op, [{ change: 'putImage', image: record }]);
    return engineBoot(stored, reference);
  }

  /** `by`: whether somebody wants this kernel, or it is what those have that bring none. */
  async function open(
    op: Operation,
    record: Image,
    kernelDigest: string | null,
    by: 'asked' | 'default',
    needs: BootNeed,
    kernels: 'get' | 'look',
  ): Promise<Boot> {
    const reference = record.detail[ENGINE_REFERENCE];
    if (typeof reference === 'string') return engineBoot(record, reference);
    const image = await library.find(op, record.digest);
    if (image === null)
      throw op.error('failed_precondition', `image ${record.digest} is not there any more`, {
        hint: `bring it again as it came: pull, import, build or register it; it was in ${paths.images}`,
      });
    await requireUnchanged(op, host, paths, image);
    if (needs === 'root') return root(image);
    const wanted = by === 'asked' ? kernelDigest : (image.own?.kernelDigest ?? kernelDigest);
    // A disk does not depend on the kernel: where the old one is gone, the current one does.
    const own = wanted === null ? null : await openKernel(op, host, paths, wanted);
    if (own === null && wanted !== null && wanted === image.own?.kernelDigest) throw ownKernelGone(op, record);
    const kernel =
      own ?? (await findKernel(op, host, paths)) ?? (kernels === 'get' ? await prepareKernel(op, host, paths, downloadEnv) : null);
    if (kernel === null) throw op.error('failed_precondition', 'there is no guest kernel', { hint: 'make a sandbox; that makes one' });
    if (kernels === 'get') await store.commit(op, [{ change: 'putKernel', kernel: kernel.record }]);
    return await machine(op, image, kernel);
  }
}

function isItself(name: string, { id, digest }: Image): boolean {
  return name === id || resolveDigest(name, [{ digest }]) !== null;
}

function keyOf(needs: BootNeed, image: string, kernelId: string | null): string {
  return `${needs} ${image} ${kernelId ?? ''}`;
}

function ownKernelGone(op: Operation, { id }: Image): HutchError {
  return op.error('failed_precondition', `the kernel that image ${id} was registered with is not there any more`, {
    hint: 'register it again: hutch image register',
  });
}

/** With which a registry says that it has not got it, or not for us. */
const NOT_HAD: ReadonlySet<string> = new Set(['not_found', 'permission_denied', 'unavailable']);

function engineBoot(image: Image, reference: string): Boot {
  return { image, kernelId: null, files: { kind: 'engine', reference, imageDigest: image.digest }, runArchive: null };
}

/** At the same time; when one fails the other is still waited for, so that nothing goes on unseen. */
async function both<A, B>(a: Promise<A>, b: Promise<B> | null): Promise<[A, B | null]> {
  await Promise.allSettled([a, b]);
  return [await a, await b];
}

/** Somebody may have removed it to have it made anew. */
/** Another one when a file was written or exchanged. */
async function touched(op: Operation, host: Host, path: string): Promise<string | null> {
  const info = await host.stat(op, path);
  return info === null ? null : `${info.device}.${info.inode}.${info.sizeBytes}.${info.changedNs}`;
}

async function isThere(op: Operation, host: Host, { files }: Boot): Promise<boolean> {
  const paths =
    files.kind === 'machine' ? [files.imagePath, files.kernelPath, files.initramfsPath] : files.kind === 'root' ? [files.imagePath] : [];
  return !(await Promise.all(paths.map((path) => host.stat(op, path)))).includes(null);
}
