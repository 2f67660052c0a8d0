// Images of files that lie on this machine already: a root file system, and with it a kernel's initrd. Registered, the
// files stay the user's and where they are; promoted, the image has copies of its own. It is the same image then:
// its digest is over what it is made of.
import { join } from 'node:path';
import { ArchiveError } from '../domain/archive-error.ts';
import { imageConfigOf } from '../domain/image.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { mediaTypeOf, scan } from './archive-parts.ts';
import type { Blobs } from './blobs.ts';
import { BUILD_LIMITS, type BuildLimits, buildImage, named, publishing } from './build.ts';
import { describe, parseDescription } from './description.ts';
import { digestOf } from './digest.ts';
import { tarOfDisk } from './disk/import.ts';
import { type GivenFile, given, resolved, tarOfDirectory } from './given.ts';
import {
  changeManifest,
  commitImage,
  type ImageManifest,
  INITRD,
  INITRD_BYTES_MAX,
  imageDir,
  listImages,
  OCI_CONFIG,
  openImage,
  type PreparedImage,
  ROOTFS,
  requireUnchanged,
} from './image.ts';
import { TREE_LIMITS } from './layers/tree.ts';
import { unpacked } from './layers/unpack.ts';
import { type ImagePaths, SHARED_DIR_MODE, SHARED_FILE_MODE } from './layout.ts';
import { CONFIG_BYTES_MAX } from './oci/manifest.ts';
import { unpackedOutside } from './outside-reader.ts';
import { keepRunOfSquashfs } from './run-directory.ts';

const STEP = 'register';
const MAGIC_BYTES = 6;
const SQUASHFS = 'hsqs';
/** Byte 20 of its head: how it is packed. LZMA is what no distribution's kernel reads. */
const PACKED_AT = 20;
const LZMA = 2;
const AS_NOBODY = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--'];
/** What a kernel unpacks: cpio, and what that may be packed with. */
const INITRD_START = /^(30373037303[12]|1f8b|28b52ffd|fd377a585a00|02214c18|894c5a4f|425a68|5d0000)/;

export type RegisterParts = { readonly host: Host; readonly paths: ImagePaths; readonly blobs: Blobs; readonly limits?: BuildLimits };

export type ToRegister = {
  /** A directory, a squashfs or ext2/3/4 file system, a disk image, or a tar archive. */
  readonly rootfs: string;
  readonly initrd: string | null;
  /** The kernel that it boots, and the files of the user's that it was taken from. */
  readonly kernel: { readonly digest: string; readonly files: readonly GivenFile[] } | null;
};

/** Registering the same content again says anew where it lies. @throws HutchError `failed_precondition` for what no sandbox starts from. */
export async function registerImage(op: Operation, parts: RegisterParts, { rootfs, initrd, kernel }: ToRegister): Promise<PreparedImage> {
  const { host, blobs } = parts;
  const root = await resolved(op, host, rootfs);
  const initrdFile = initrd === null ? null : await lookAtInitrd(op, host, initrd);
  await using staged = await blobs.stage(op, `make-register-${op.id}`);
  await host.makeDir(op, staged.path, SHARED_DIR_MODE);
  op.progress({ step: STEP, detail: `reading ${rootfs}` });
  const rest = { kernel, initrd: initrdFile };
  if (root.type === 'file' && Buffer.from(await host.readRange(op, root.path, 0, MAGIC_BYTES)).toString('latin1', 0, 4) === SQUASHFS) {
    return await registerInPlace(op, parts, await squashfsFile(op, host, root), rest, staged.path);
  }
  return await named(op, rootfs, () => registerPacked(op, parts, root, rest, staged.path));
}

type Rest = { readonly kernel: ToRegister['kernel']; readonly initrd: GivenFile | null };

async function squashfsFile(
  op: Operation,
  host: Host,
  root: { readonly path: string; readonly type: 'file' | 'directory' },
): Promise<GivenFile> {
  const head = Buffer.from(await host.readRange(op, root.path, 0, 96));
  if (head.byteLength === 96 && head.readUInt16LE(PACKED_AT) !== LZMA && head.readUInt16LE(28) === 4)
    return await given(op, host, 'rootfs', root);
  throw op.error('failed_precondition', `${root.path} is a squashfs file system in a form that guests do not read`);
}

/** Virtual machines run as users of their own, who open it where it lies. */
async function mustBeReadable(op: Operation, host: Host, path: string): Promise<void> {
  if (host.uid !== 0) return; // they run as this user
  const { exitCode } = await host.run(op, [...AS_NOBODY, 'test', '-r', path]);
  if (exitCode === 0) return;
  throw op.error('failed_precondition', `${path} cannot be read by the users that virtual machines run as, and it is used where it lies`, {
    hint: `let others read it, and pass through its directories: chmod o+r ${path}`,
  });
}

async function registerInPlace(op: Operation, parts: RegisterParts, root: GivenFile, rest: Rest, staging: string): Promise<PreparedImage> {
  const { host, paths } = parts;
  await mustBeReadable(op, host, root.path);
  const more = moreOf(root, rest);
  const there = await again(op, parts, root, rest, more);
  if (there !== null) return there;
  const out = join(staging, 'out');
  await host.makeDir(op, out, SHARED_DIR_MODE);
  const configBytes = describedAs(root, rest, root.sha256);
  await host.writeFileAtomic(op, join(out, OCI_CONFIG), configBytes, SHARED_FILE_MODE);
  await keepRunOfSquashfs(op, host, out, root.path);
  await using _publishing = await publishing(op, host, paths);
  return await commitImage(op, host, paths, out, {
    name: null,
    architecture: 'x86_64',
    fileSystem: 'squashfs',
    sha256: root.sha256,
    digest: digestOf(configBytes).slice('sha256:'.length),
    sizeBytes: (await host.stat(op, root.path))?.sizeBytes ?? 0,
    config: EMPTY,
    createdAtMs: host.nowMs(),
    ...more,
    inPlace: true,
  });
}

/** Guests boot a file system of their own kind: what is none is packed once, and belongs to the image. */
async function registerPacked(
  op: Operation,
  parts: RegisterParts,
  from: { readonly path: string; readonly type: 'file' | 'directory' },
  rest: Rest,
  staging: string,
): Promise<PreparedImage> {
  const { host, paths, blobs, limits = BUILD_LIMITS } = parts;
  let tar = from.path;
  if (from.type === 'directory') {
    tar = join(staging, 'root.tar');
    await tarOfDirectory(op, host, from.path, tar);
  } else {
    const outside = { from: from.path, to: join(staging, 'outside'), bytesMax: limits.layerBytesMax, what: from.path };
    if (await unpackedOutside(op, host, outside)) tar = outside.to;
    tar = (await tarOfDisk(op, host, tar, staging, limits.layerBytesMax)) ?? tar;
  }
  const { diffId, found } = await scan(unpacked(op, host, tar, limits.layerBytesMax));
  if (tar === from.path && (found.has('manifest.json') || found.has('index.json'))) {
    throw new ArchiveError('it is an archive of images, and no root file system: hutch image import');
  }
  const root = await given(op, host, 'rootfs', from, from.type === 'directory' ? diffId.slice('sha256:'.length) : undefined);
  const more = moreOf(root, rest);
  const there = await again(op, parts, root, rest, more);
  if (there !== null) return there;
  const sizeBytes = (await host.stat(op, tar))?.sizeBytes ?? 0;
  const mediaType = mediaTypeOf(await host.readRange(op, tar, 0, MAGIC_BYTES));
  const layers = [{ digest: diffId, sizeBytes, diffId, mediaType, file: Promise.resolve(tar) }];
  const image = {
    what: from.path,
    name: null,
    // Of what it is made of; its own is known when it is packed.
    digest: diffId,
    configBytes: Buffer.alloc(0),
    describedBy: (rootSha256: string) => describedAs(root, rest, rootSha256),
    config: EMPTY,
    createdAtMs: host.nowMs(),
    manifest: null,
    layers,
    more,
    step: STEP,
  };
  return await buildImage(op, host, paths, blobs, image, { ...TREE_LIMITS, ...limits });
}

type More = Required<Pick<ImageManifest, 'source' | 'given'>> & Pick<ImageManifest, 'own'>;

const EMPTY = { ...imageConfigOf({}), env: {}, entrypoint: [], command: [], exposedPorts: [] };

function describedAs(root: GivenFile, { kernel, initrd }: Rest, rootSha256: string): Buffer {
  return describe({ rootSha256, givenSha256: root.sha256, kernel: kernel?.digest ?? null, initrdSha256: initrd?.sha256 ?? null });
}

function moreOf(root: GivenFile, { kernel, initrd }: Rest): More {
  return {
    source: { kind: 'file' },
    given: [root, ...(kernel?.files ?? []), ...(initrd === null ? [] : [initrd])],
    ...(kernel === null ? {} : { own: { kernel: kernel.digest, initrd: initrd?.sha256 ?? null } }),
  };
}

/** The same content as an image that is here: that one, which learns where the files lie now. One that is Hutch's own stays so. */
async function again(op: Operation, parts: RegisterParts, root: GivenFile, rest: Rest, more: More): Promise<PreparedImage | null> {
  const { host, paths } = parts;
  for (const there of await listImages(op, host, paths)) {
    if (there.source.kind !== 'file') continue;
    const { digest } = there.record;
    const path = join(imageDir(paths, digest), OCI_CONFIG);
    const said = (await host.stat(op, path)) === null ? null : parseDescription(await host.readFile(op, path, CONFIG_BYTES_MAX));
    const isSame =
      said?.givenSha256 === root.sha256 &&
      said.kernel === (rest.kernel?.digest ?? null) &&
      said.initrdSha256 === (rest.initrd?.sha256 ?? null);
    if (!isSame) continue;
    return there.given.length === 0 ? there : await changeManifest(op, host, paths, digest, (manifest) => ({ ...manifest, ...more }));
  }
  return null;
}

async function lookAtInitrd(op: Operation, host: Host, path: string): Promise<GivenFile> {
  const file = await resolved(op, host, path);
  const info = await host.stat(op, file.path);
  const start = Buffer.from(file.type === 'file' ? await host.readRange(op, file.path, 0, MAGIC_BYTES) : []).toString('hex');
  if (!INITRD_START.test(start)) {
    throw op.error('failed_precondition', `${path} is no initrd: it is neither a cpio archive nor one that is packed as kernels unpack it`);
  }
  if ((info?.sizeBytes ?? 0) > INITRD_BYTES_MAX) {
    throw op.error('failed_precondition', `${path} has ${info?.sizeBytes} bytes; an initrd may have ${INITRD_BYTES_MAX}`);
  }
  return await given(op, host, 'initrd', file);
}

/**
 * Makes it Hutch's own: what it is made of is copied, and checked while it is. One that is already stays as it is.
 * @throws HutchError `failed_precondition` when a file is not what it was.
 */
export async function promoteImage(op: Operation, parts: RegisterParts, digest: string): Promise<PreparedImage> {
  const { host, paths, blobs } = parts;
  const image = await openImage(op, host, paths, digest);
  if (image === null) throw op.error('failed_precondition', `image ${digest} does not lie in ${paths.images}`);
  if (image.given.length === 0) return image;
  await requireUnchanged(op, host, paths, image);
  const dir = imageDir(paths, digest);
  await using staged = await blobs.stage(op, `make-promote-${op.id}`);
  await host.makeDir(op, staged.path, SHARED_DIR_MODE);
  const copies = [
    ...(image.path === image.given[0]?.path ? [{ from: image.path, name: ROOTFS, sha256: image.rootDigest.slice('sha256:'.length) }] : []),
    ...(image.own?.initrd == null ? [] : [{ from: image.own.initrd.path, name: INITRD, sha256: image.own.initrd.sha256 }]),
  ];
  for (const copy of copies) await copied(op, host, copy, staged.path);
  await using _publishing = await publishing(op, host, paths);
  // The manifest last: until it says so, nobody looks at the copies.
  for (const { name } of copies) await host.rename(op, join(staged.path, name), join(dir, name));
  return await changeManifest(op, host, paths, digest, ({ given: _given, inPlace: _inPlace, ...manifest }) => manifest);
}

async function copied(
  op: Operation,
  host: Host,
  { from, name, sha256 }: { readonly from: string; readonly name: string; readonly sha256: string },
  dir: string,
): Promise<void> {
  op.progress({ step: 'promote', detail: `copying ${from}` });
  const to = join(dir, name);
  await host.cloneFile(op, from, to);
  if ((await host.sha256(op, to)) !== sha256) throw op.error('failed_precondition', `${from} changed while it was copied`);
  await host.chmod(op, to, SHARED_FILE_MODE);
  await host.sync(op, to);
}
