// What came along with a snapshot: its image and its kernel, where they are not here. They go on record with the snapshot, in one commit, without a name; what
// is of no use to it is not taken up.

import { ArchiveError, shown } from '../domain/archive-error.ts';
import type { KernelId } from '../domain/ids.ts';
import { parseImageReference, shownReference } from '../domain/image-reference.ts';
import type { SandboxSpec } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { saidOf } from '../images/brought.ts';
import { idOfDigest } from '../images/digest.ts';
import type { PreparedImage } from '../images/image.ts';
import type { PreparedKernel } from '../images/kernel.ts';
import { ARCHIVE_PART, ROOTFS_PART, type SnapshotConfig } from '../images/snapshot/artifact.ts';
import type { Change } from '../store/contract.ts';
import type { Core } from './core.ts';
import { backendOf } from './deps.ts';
import { imageLibrary } from './images.ts';

const BYTES_MAX = 72 * 1024 ** 3;
/** Its reader has no rights, and the directory lets nobody in. */
const MODE = 0o444;
const RELEASE_MS = 60_000;

/** What it stands on, and what of that has to be taken up. */
export type Standing = Pick<SandboxSpec, 'imageId' | 'kernelId'> & {
  readonly lacks: { readonly image: boolean; readonly kernel: boolean };
};

/** @throws HutchError `failed_precondition` where something is neither here nor brought, with how to bring it. */
export async function standingOf(core: Core, op: Operation, { image, kernel, backend, brings }: SnapshotConfig): Promise<Standing> {
  const { store, kernels } = core.deps;
  const imageId = idOfDigest('img', image.digest);
  const here = await store.query('image', { id: imageId });
  const hasImage = here?.digest === image.digest;
  const kernelId: KernelId | null = kernel === null ? null : idOfDigest('krn', kernel.digest);
  const hasKernel = kernel === null || (await kernels?.here(op))?.some(({ record }) => record.digest === kernel.digest) === true;
  if ((backendOf(core.deps, op, backend).needs === 'machine') !== (kernel !== null))
    throw new ArchiveError('it names no kernel where it needs one, or one where none is booted');
  if (hasImage && brings?.rootfs != null) await refuseOther(core, op, image.digest, brings.rootfs);
  const bringsImage = brings !== undefined && (brings.rootfs !== null || brings.archive?.image === true);
  const lacks = { image: !hasImage, kernel: !hasKernel };
  const missing = { image: lacks.image && !bringsImage, kernel: lacks.kernel && brings?.archive?.kernel !== true };
  if (!missing.image && !missing.kernel) return { imageId, kernelId, lacks };
  const named = [
    ...(missing.image ? [`image ${image.digest}${image.names.length === 0 ? '' : ` (${image.names.map(plain).join(', ')})`}`] : []),
    ...(missing.kernel ? [`kernel ${kernel?.digest} (${plain(kernel?.version ?? '')})`] : []),
  ];
  const wanted = [...(missing.kernel ? [`--kernel ${kernel?.digest}`] : []), ...(missing.image ? [image.digest] : [])].join(' ');
  const [name] = missing.image ? image.names.flatMap((text) => parseImageReference(text) ?? []) : [];
  const pullable = name === undefined ? '' : `where its registry has it: hutch image pull ${shownReference(name)}; else `;
  throw op.error('failed_precondition', `the snapshot needs what is not here: ${named.join(' and ')}`, {
    hint:
      missing.image && !image.travels
        ? 'no other machine has that image: export or push the snapshot without --without-image, and it comes along'
        : `${pullable}where it was made: hutch image export -o needed.tar ${wanted}; here: hutch image import needed.tar`,
  });
}

/** Nobody can say which of them is right: the one that is here came with another snapshot. */
async function refuseOther(
  core: Core,
  op: Operation,
  digest: string,
  said: NonNullable<NonNullable<SnapshotConfig['brings']>['rootfs']>,
): Promise<void> {
  const here = await imageLibrary(core, op).open(op, digest);
  if (here === null || here.source.kind !== 'snapshot' || saidOf(here.record) === saidOf(said)) return;
  throw op.error(
    'failed_precondition',
    `image ${digest} came here with another snapshot, and says other things of its environment or its command`,
    {
      hint: `if what is here is wrong, remove it and what stands on it: hutch image rm ${digest}`,
    },
  );
}

/** The digest of the bytes that its memory knows; null for an image that is packed on each machine: whether they are the same shows when it is here. */
export async function bytesOfImage(core: Core, op: Operation, { image, brings }: SnapshotConfig): Promise<string | null> {
  if (brings?.rootfs != null) return image.digest;
  const here = await imageLibrary(core, op).open(op, image.digest);
  return here?.rootDigest === image.digest ? image.digest : null;
}

/** As it may be shown in a sentence. */
export function plain(text: string): string {
  return shown(text).slice(1, -1);
}

export type Target = { readonly name: string; readonly path: string; readonly bytesMax: number; readonly mode: number };

/** Where the parts go that come along; null: it is here already, and not read. */
export function targetsOf(
  { brings }: SnapshotConfig,
  { lacks }: Standing,
  dir: string,
): readonly { readonly name: string; readonly to: Target | null }[] {
  if (brings === undefined) return [];
  const { rootfs, archive } = brings;
  const of = (name: string, isWanted: boolean) => ({
    name,
    to: isWanted ? { name, path: `${dir}/${name}`, bytesMax: BYTES_MAX, mode: MODE } : null,
  });
  return [
    ...(rootfs === null ? [] : [of(ROOTFS_PART, lacks.image)]),
    ...(archive === null ? [] : [of(ARCHIVE_PART, (lacks.image && archive.image) || (lacks.kernel && archive.kernel))]),
  ];
}

type Record<T> = (also: readonly Change[]) => Promise<T>;

/** Takes up what is lacking, and puts it on record with what `record` commits. On failure none of it is left. */
export async function takeAlong<T>(
  core: Core,
  op: Operation,
  config: SnapshotConfig,
  { lacks }: Standing,
  { dir, bytesMax }: { readonly dir: string; readonly bytesMax: number },
  record: Record<T>,
): Promise<T> {
  const { brings, image } = config;
  if (brings === undefined || (!lacks.image && !lacks.kernel)) return await record([]);
  op.progress({ step: 'taking up its image and kernel' });
  await using undo = new AsyncDisposableStack();
  const kernel = lacks.kernel ? await takeKernel(core, op, config, dir, undo) : null;
  const also = kernel === null ? [] : ([{ change: 'putKernel', kernel: kernel.record }] as const);
  if (!lacks.image) return await record(also);
  const library = imageLibrary(core, op);
  const { rootfs } = brings;
  const take = async (): Promise<PreparedImage> =>
    rootfs === null
      ? await takeImage(core, op, config, dir)
      : await library.takeRootfs(op, { path: `${dir}/${ROOTFS_PART}`, digest: image.digest, said: rootfs, bytesMax });
  return await library.record(op, take, {
    put: async ({ record: one }) => {
      const done = await record([{ change: 'putImage', image: { ...one, name: null } }, ...also]);
      core.presenter.forgetImages();
      return done;
    },
    isOnRecord: async (id) => (await core.deps.store.query('image', { id })) !== null,
  });
}

async function takeKernel(
  core: Core,
  op: Operation,
  config: SnapshotConfig,
  dir: string,
  undo: AsyncDisposableStack,
): Promise<PreparedKernel> {
  const { store, kernels } = core.deps;
  const digest = config.kernel?.digest ?? '';
  undo.defer(async () => {
    if ((await store.query('kernel', { id: idOfDigest('krn', digest) })) !== null) return;
    using late = op.releasing(RELEASE_MS);
    await kernels?.remove(late, digest).catch((cause: unknown) => op.log.warn({ cause }, 'a kernel that came with a snapshot stays'));
  });
  const kernel = (await openArchive(core, op, config, dir)).kernels.find(({ record }) => record.digest === digest);
  if (kernel === undefined) throw new ArchiveError('the kernel that it names is not in it');
  return kernel;
}

async function takeImage(core: Core, op: Operation, config: SnapshotConfig, dir: string): Promise<PreparedImage> {
  const found = (await openArchive(core, op, config, dir)).images.find((one) => one.record.digest === config.image.digest);
  if (found === undefined) throw new ArchiveError('the image that it names is not in it');
  return found;
}

/** All that is in it; images that it does not name are not kept. */
async function openArchive(core: Core, op: Operation, { image, kernel }: SnapshotConfig, dir: string) {
  const library = imageLibrary(core, op);
  const source = core.deps.host.readStream(op, `${dir}/${ARCHIVE_PART}`);
  const { images, kernels } = await library.import(op, source, null, { by: 'snapshot', only: kernel?.digest ?? null });
  const found = images.map((one) => one.image);
  for (const { record } of found) {
    if (record.digest === image.digest || (await core.deps.store.query('image', { id: record.id })) !== null) continue;
    using late = op.releasing(RELEASE_MS);
    await library.remove(late, record.digest);
  }
  return { images: found, kernels };
}
