// What a snapshot stands on and what goes with it to another machine: the image that Hutch made, which no other machine has, as it is; in an archive, as
// `hutch image export` writes it, the kernel, an image of a user's files, and where that is asked for one of a registry.
import type { SnapshotPart } from '../backends/snapshots.ts';
import { ENGINE_REFERENCE } from '../domain/image.ts';
import type { Carry, Snapshot } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import type { PreparedImage } from '../images/image.ts';
import type { PreparedKernel } from '../images/kernel.ts';
import { ARCHIVE_PART, type Brings, ROOTFS_PART } from '../images/snapshot/artifact.ts';
import type { Core } from './core.ts';
import { imageLibrary } from './images.ts';

export type Carried = { readonly brings: Brings; readonly parts: readonly SnapshotPart[] };

/** Files in `dir` are the caller's. @throws HutchError `failed_precondition` where all of it is asked for and cannot go. */
export async function carried(core: Core, op: Operation, { spec }: Snapshot, carry: Carry, dir: string): Promise<Carried | null> {
  if (carry === 'nothing') return null;
  const kernel = spec.kernelId === null ? null : await kernelOf(core, op, spec.kernelId);
  const image = await imageOf(core, op, spec.imageId, carry, kernel);
  const isOwn = image !== null && isOurs(image);
  const asArchive = image !== null && !isOwn && (carry === 'all' || image.source.kind === 'file') ? image : null;
  const hasArchive = asArchive !== null || kernel !== null;
  if (!isOwn && !hasArchive) return null;
  const parts: SnapshotPart[] = [];
  if (isOwn) parts.push(await partOf(core, op, ROOTFS_PART, image.guestPath));
  if (hasArchive) {
    const path = `${dir}/${ARCHIVE_PART}`;
    const images = asArchive === null ? [] : [{ digest: asArchive.record.digest, names: [] }];
    await core.deps.host.appendStream(op, path, await imageLibrary(core, op).export(op, images, kernel === null ? [] : [kernel], 'hutch'));
    parts.push(await partOf(core, op, ARCHIVE_PART, path));
  }
  const { config, createdAtMs } = image?.record ?? { config: null, createdAtMs: 0 };
  const rootfs =
    isOwn && config !== null ? { config: structuredClone(config) as NonNullable<Brings['rootfs']>['config'], createdAtMs } : null;
  return { brings: { rootfs, archive: hasArchive ? { image: asArchive !== null, kernel: kernel !== null } : null }, parts };
}

/** Of the same bytes nowhere but where one has brought them. */
function isOurs({ source }: PreparedImage): boolean {
  return source.kind === 'mmdebstrap' || source.kind === 'snapshot';
}

/** Null: it goes alone. */
async function imageOf(
  core: Core,
  op: Operation,
  id: Snapshot['spec']['imageId'],
  carry: Carry,
  kernel: PreparedKernel | null,
): Promise<PreparedImage | null> {
  const record = await core.deps.store.query('image', { id });
  const here = record === null || ENGINE_REFERENCE in record.detail ? null : await imageLibrary(core, op).open(op, record.digest);
  if (here !== null && (here.source.kind !== 'file' || (await goesAlong(core, op, here, kernel)))) return here;
  if (carry !== 'all') return null;
  throw op.error(
    'failed_precondition',
    here === null ? 'the image of the snapshot does not lie here' : 'the image of the snapshot is made of files of yours',
    {
      hint:
        here === null
          ? 'without --with-image it goes alone'
          : 'the same files give the same image elsewhere: hutch image register; without --with-image the snapshot goes alone',
    },
  );
}

/** One kernel goes with a snapshot: that of its machine. */
async function goesAlong(core: Core, op: Operation, image: PreparedImage, kernel: PreparedKernel | null): Promise<boolean> {
  if (image.own !== null && image.own.kernelDigest !== kernel?.record.digest) return false;
  return await imageLibrary(core, op).keepsDigest(op, image);
}

async function kernelOf(core: Core, op: Operation, id: NonNullable<Snapshot['spec']['kernelId']>): Promise<PreparedKernel | null> {
  return (await core.deps.kernels?.here(op))?.find(({ record }) => record.id === id) ?? null;
}

async function partOf({ deps: { host } }: Core, op: Operation, name: string, path: string): Promise<SnapshotPart> {
  const bytes = (await host.stat(op, path))?.sizeBytes ?? 0;
  return { name, path, bytes, places: [[0, bytes]] };
}
