// A kernel as part of an archive of images: an OCI artifact whose configuration is the kernel's own manifest, and whose
// layers are its files as they lie here. It comes back under the same digest, which is over those files.
import { join } from 'node:path';
import * as z from 'zod';
import { ArchiveError } from '../domain/archive-error.ts';
import type { KernelFrom } from '../domain/image.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Blobs } from './blobs.ts';
import { unpackKernel, VMLINUX_BYTES_MAX } from './bzimage.ts';
import { digestOf } from './digest.ts';
import {
  KERNEL_MANIFEST,
  type KernelManifest,
  kernelDigest,
  kernelFiles,
  MODULE_BYTES_MAX,
  openKernel,
  type PreparedKernel,
  parseKernelManifest,
} from './kernel.ts';
import { commit, type ImagePaths, SHARED_DIR_MODE, SHARED_FILE_MODE, unlessDamaged } from './layout.ts';
import { MANIFEST_TYPE } from './oci/manifest.ts';
import { DamagedPayload } from './payload-error.ts';

export const KERNEL_ARTIFACT = 'application/vnd.hutch.kernel.v1+json';
const KERNEL_FILE = 'application/vnd.hutch.kernel.file.v1';
const TITLE = 'org.opencontainers.image.title';
const MANIFEST_BYTES_MAX = 64 * 1024;

const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/);
const artifactSchema = z.object({
  artifactType: z.literal(KERNEL_ARTIFACT),
  config: z.object({ digest, size: z.int().nonnegative().max(MANIFEST_BYTES_MAX) }),
});
const listSchema = z.object({ manifests: z.array(z.object({ digest, artifactType: z.string().max(255).optional() })).max(1_024) });

export type KernelContent = {
  readonly manifest: Buffer;
  readonly config: Buffer;
  readonly files: readonly { readonly digest: string; readonly sizeBytes: number; readonly path: string }[];
};

/** What of it goes into an archive. */
export async function kernelContent(op: Operation, host: Host, kernel: PreparedKernel): Promise<KernelContent> {
  const dir = join(kernel.vmlinuxPath, '..');
  const config = Buffer.from(await host.readFile(op, join(dir, KERNEL_MANIFEST), MANIFEST_BYTES_MAX));
  const files = [];
  for (const { path, sha256 } of kernelFiles(manifestOf(config))) {
    const info = await host.stat(op, join(dir, path));
    files.push({ digest: `sha256:${sha256}`, sizeBytes: info?.sizeBytes ?? 0, path: join(dir, path), title: path });
  }
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MANIFEST_TYPE,
      artifactType: KERNEL_ARTIFACT,
      config: { mediaType: KERNEL_ARTIFACT, digest: digestOf(config), size: config.byteLength },
      layers: files.map(({ title, digest: file, sizeBytes }) => ({
        mediaType: KERNEL_FILE,
        digest: file,
        size: sizeBytes,
        annotations: { [TITLE]: title },
      })),
    }),
  );
  return { manifest, config, files };
}

/** The manifests of kernels that an index lists. */
export function kernelsListed(index: Buffer): readonly string[] {
  const listed = listSchema.safeParse(jsonOf(index));
  return listed.success ? listed.data.manifests.flatMap((one) => (one.artifactType === KERNEL_ARTIFACT ? [one.digest] : [])) : [];
}

/** Reads a blob of the archive, checked; at most that many bytes. */
export type ReadBlob = (digest: string, bytesMax: number) => Promise<Buffer>;

/** From where it comes; `only`: no other than this one is wanted. */
export type KernelTaken = { readonly by: KernelFrom; readonly only?: string | null };

/** Into place, under the digest of its files. @throws ArchiveError for what is no kernel that guests boot. */
export async function takeKernel(
  op: Operation,
  { host, paths, blobs }: { readonly host: Host; readonly paths: ImagePaths; readonly blobs: Blobs },
  manifestDigest: string,
  read: ReadBlob,
  { by, only = null }: KernelTaken,
): Promise<PreparedKernel> {
  const artifact = artifactSchema.safeParse(jsonOf(await read(manifestDigest, MANIFEST_BYTES_MAX)));
  if (!artifact.success) throw new ArchiveError('the manifest of a kernel in it is damaged');
  const said = manifestOf(await read(artifact.data.config.digest, MANIFEST_BYTES_MAX));
  const own = kernelDigest(said);
  if (only !== null && only !== own) throw new ArchiveError(`there is a kernel ${own} in it, where ${only} should be`);
  const there = await unlessDamaged(op, () => openKernel(op, host, paths, own));
  if (there !== null) return there;
  await using staged = await blobs.stage(op, `import-kernel-${op.id}-${own.slice(7, 19)}`);
  await host.makeDir(op, join(staged.path, 'modules'), SHARED_DIR_MODE);
  for (const { path, sha256 } of kernelFiles(said)) {
    const bytes = await read(`sha256:${sha256}`, path === 'vmlinux' ? VMLINUX_BYTES_MAX : MODULE_BYTES_MAX);
    if (path === 'vmlinux') await mustBoot(bytes);
    await host.writeFileAtomic(op, join(staged.path, path), bytes, SHARED_FILE_MODE);
  }
  const manifest = { ...said, createdAtMs: host.nowMs(), by };
  await host.writeFileAtomic(op, join(staged.path, KERNEL_MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`, SHARED_FILE_MODE);
  await commit(
    op,
    host,
    staged.path,
    join(paths.kernels, own.slice('sha256:'.length)),
    kernelFiles(said).map(({ path }) => path),
  );
  const kernel = await openKernel(op, host, paths, own);
  if (kernel === null) throw op.error('internal', 'the kernel was moved into place but is not there');
  return kernel;
}

async function mustBoot(vmlinux: Buffer): Promise<void> {
  try {
    await unpackKernel(vmlinux, async () => {
      throw new DamagedPayload('it is packed');
    });
  } catch (error) {
    if (error instanceof DamagedPayload) throw new ArchiveError(`a kernel in it is none that sandboxes can boot: ${error.message}`);
    throw error;
  }
}

function manifestOf(bytes: Buffer): KernelManifest {
  const manifest = parseKernelManifest(jsonOf(bytes));
  if (manifest === null) throw new ArchiveError('the description of a kernel in it is damaged');
  return manifest;
}

function jsonOf(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    return null;
  }
}
