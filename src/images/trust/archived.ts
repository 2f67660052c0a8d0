// Signatures in archives of images, as `cosign save` writes them and `hutch image export` does: a manifest of signatures is
// listed in the index beside the images. Which image one is about is not what the archive says, but what was signed.
import * as z from 'zod';
import { ArchiveError } from '../../domain/archive-error.ts';
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { ReadBlob } from '../kernel-bundle.ts';
import { INDEX_DEPTH_MAX, type Manifest, ownPlatform, parseManifest } from '../oci/manifest.ts';
import type { KeptSignatures } from './kept.ts';
import { blobsOf, digestsIn, type Signature } from './signature.ts';

const KIND = 'kind';
const SIGNATURES = 'dev.cosignproject.cosign/sigs';
/** Of whatever else cosign says of an image: no images either. */
const BESIDE = /^dev\.cosignproject\.cosign\/(sigs|atts|sboms)$/;
const LISTED_MAX = 1_024;
const MANIFEST_BYTES_MAX = 4 * 1024 * 1024;

/** What an index says of a manifest of signatures. */
export const SIGNATURES_SAID = { [KIND]: SIGNATURES };

const listSchema = z.object({
  manifests: z
    .array(z.object({ digest: z.string().regex(/^sha256:[0-9a-f]{64}$/), annotations: z.record(z.string(), z.string()).optional() }))
    .max(LISTED_MAX),
});

/** Manifests that an index lists beside images: `signatures` of them, and `all` that are no images. */
export function besideImages(index: Buffer): { readonly signatures: readonly string[]; readonly all: readonly string[] } {
  const parsed = listSchema.safeParse(jsonOf(index));
  const listed = parsed.success ? parsed.data.manifests : [];
  const of = (is: (kind: string) => boolean) => listed.flatMap((one) => (is(one.annotations?.[KIND] ?? '') ? [one.digest] : []));
  return { signatures: of((kind) => kind === SIGNATURES), all: of((kind) => BESIDE.test(kind)) };
}

/** All that an index lists, once. */
export function manifestsListed(index: Buffer): readonly string[] {
  const parsed = listSchema.safeParse(jsonOf(index));
  return parsed.success ? [...new Set(parsed.data.manifests.map(({ digest }) => digest))] : [];
}

/** What a manifest of an image names; null for what is none. */
export function imageIn(op: Operation, bytes: Buffer): Manifest | null {
  try {
    const parsed = parseManifest(op, bytes, '', 'the archive');
    return 'manifest' in parsed ? parsed.manifest : null;
  } catch (error) {
    if (error instanceof HutchError && error.code === 'failed_precondition') return null;
    throw error;
  }
}

/** @throws ArchiveError where one is listed and not there. */
export async function readSignatures(read: ReadBlob, listed: readonly string[]): Promise<readonly Signature[]> {
  const found: Signature[] = [];
  for (const digest of listed) {
    const manifest = await read(digest, MANIFEST_BYTES_MAX);
    const blobs = new Map<string, Buffer>();
    for (const { digest: blob, sizeBytes } of blobsOf(manifest)) blobs.set(blob, await read(blob, sizeBytes));
    found.push({ manifest, blobs });
  }
  return found;
}

/** Of these the signatures that are about the image with this configuration, with the documents that lead there. */
export async function signaturesFor(
  op: Operation,
  read: ReadBlob,
  signatures: readonly Signature[],
  config: string,
): Promise<KeptSignatures & { readonly digests: readonly string[] }> {
  const documents = new Map<string, Buffer>();
  const own: Signature[] = [];
  const digests: string[] = [];
  for (const signature of signatures) {
    for (const digest of new Set(digestsIn(signature))) {
      const way = await wayTo(op, read, digest, config);
      if (way === null) continue;
      for (const [at, document] of way) documents.set(at, document);
      digests.push(digest);
      own.push(signature);
    }
  }
  return { signatures: [...new Set(own)], documents: [...documents.values()], digests };
}

/** From a manifest or an index in the archive to that configuration; null where it leads elsewhere, or is not there. */
async function wayTo(op: Operation, read: ReadBlob, from: string, config: string): Promise<ReadonlyMap<string, Buffer> | null> {
  const way = new Map<string, Buffer>();
  try {
    for (let digest = from; way.size <= INDEX_DEPTH_MAX; ) {
      const bytes = await read(digest, MANIFEST_BYTES_MAX);
      way.set(digest, bytes);
      const parsed = parseManifest(op, bytes, '', digest);
      if ('manifest' in parsed) return parsed.manifest.config.digest === config ? way : null;
      digest = ownPlatform(op, parsed.index, digest).digest;
    }
  } catch (error) {
    if (!(error instanceof ArchiveError) && !(error instanceof HutchError && error.code === 'failed_precondition')) throw error;
  }
  return null;
}

function jsonOf(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    return null;
  }
}
