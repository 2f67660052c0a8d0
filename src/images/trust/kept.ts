// Signatures that came with an image, beside it: what was signed, and the documents that lead from there to the image, its
// manifest and the index that lists that. They go with it into an archive, and are judged anew where it comes out.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { imageDir } from '../image.ts';
import { type ImagePaths, SHARED_FILE_MODE } from '../layout.ts';
import type { Signature } from './signature.ts';

export type KeptSignatures = { readonly signatures: readonly Signature[]; readonly documents: readonly Buffer[] };

const NONE: KeptSignatures = { signatures: [], documents: [] };
const SIGNATURES = 'signatures.json';
/** Manifests of signatures of one image. */
const KEPT_MAX = 64;
const FILE_BYTES_MAX = 64 * 1024 * 1024;

const bytes = z.base64().transform((text) => Buffer.from(text, 'base64'));
const keptSchema = z.strictObject({
  signatures: z.array(z.strictObject({ manifest: bytes, blobs: z.array(bytes).max(1_000) })).max(KEPT_MAX),
  documents: z.array(bytes).max(1_000),
});

/** Adds them to those that are kept. An image that somebody removes meanwhile takes them along. */
export async function keepSignatures(op: Operation, host: Host, paths: ImagePaths, digest: string, more: KeptSignatures): Promise<void> {
  const before = await keptSignatures(op, host, paths, digest);
  const signatures = distinct([...more.signatures, ...before.signatures], ({ manifest }) => manifest).slice(0, KEPT_MAX);
  const documents = distinct([...more.documents, ...before.documents], (document) => document);
  if (signatures.length === before.signatures.length && documents.length === before.documents.length) return;
  const text = JSON.stringify({
    signatures: signatures.map(({ manifest, blobs }) => ({ manifest: base64(manifest), blobs: [...blobs.values()].map(base64) })),
    documents: documents.map(base64),
  });
  try {
    if (text.length > FILE_BYTES_MAX) throw op.error('failed_precondition', `its signatures would take ${text.length} bytes`);
    await host.writeFileAtomic(op, join(imageDir(paths, digest), SIGNATURES), text, SHARED_FILE_MODE);
  } catch (error) {
    if (!(error instanceof HutchError) || !['not_found', 'failed_precondition'].includes(error.code)) throw error;
    op.log.warn({ image: digest, cause: error.message }, 'signatures of an image are not kept');
  }
}

/** None of an image that came without, or that is not here. What cannot be read is as good as none. */
export async function keptSignatures(op: Operation, host: Host, paths: ImagePaths, digest: string): Promise<KeptSignatures> {
  const path = join(imageDir(paths, digest), SIGNATURES);
  if ((await host.stat(op, path)) === null) return NONE;
  try {
    const { signatures, documents } = keptSchema.parse(JSON.parse(Buffer.from(await host.readFile(op, path, FILE_BYTES_MAX)).toString()));
    const byDigest = (blobs: readonly Buffer[]) => new Map(blobs.map((blob) => [digestOf(blob), blob]));
    return { signatures: signatures.map(({ manifest, blobs }) => ({ manifest, blobs: byDigest(blobs) })), documents };
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof z.ZodError)) throw error;
    op.log.warn({ path, cause: error.message }, 'kept signatures cannot be read');
    return NONE;
  }
}

/** All bytes of them. */
export function blobsOfKept({ signatures, documents }: KeptSignatures): readonly Buffer[] {
  return [...documents, ...signatures.flatMap(({ manifest, blobs }) => [manifest, ...blobs.values()])];
}

function distinct<T>(all: readonly T[], of: (one: T) => Buffer): readonly T[] {
  return [...new Map(all.map((one) => [digestOf(of(one)), one])).values()];
}

function base64(blob: Buffer): string {
  return blob.toString('base64');
}

function digestOf(blob: Buffer): string {
  return `sha256:${createHash('sha256').update(blob).digest('hex')}`;
}
