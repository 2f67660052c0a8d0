// Signatures as cosign makes them with a key: under the tag `sha256-DIGEST.sig` of the image's repository lies a manifest
// whose layers are small documents that name the digest, each with a signature in an annotation. Nothing else is asked
// than the registry: no log, no authority, only the public key that the configuration names.
import { createPublicKey, type KeyObject, verify } from 'node:crypto';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { ImageReference } from '../../domain/image-reference.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Registry } from '../registry/client.ts';

const SIGNATURES_MAX = 64;
const PAYLOAD_BYTES_MAX = 64 * 1024;
const KEY_BYTES_MAX = 64 * 1024;
const PAYLOAD_TYPE = 'application/vnd.dev.cosign.simplesigning.v1+json';
const SIGNATURE = 'dev.cosignproject.cosign/signature';

const signaturesSchema = z.object({
  layers: z
    .array(
      z.object({
        mediaType: z.string().max(255),
        digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
        size: z.int().nonnegative(),
        annotations: z.record(z.string().max(255), z.string().max(PAYLOAD_BYTES_MAX)).optional(),
      }),
    )
    .max(SIGNATURES_MAX),
});
const payloadSchema = z.object({
  critical: z.object({
    image: z.object({ 'docker-manifest-digest': z.string() }),
    type: z.literal('cosign container image signature'),
  }),
});

/** @throws HutchError `permission_denied` when none of the keys has signed one of the digests. */
export async function requireSignature(
  op: Operation,
  { host, registry }: { readonly host: Host; readonly registry: Registry },
  reference: ImageReference,
  what: string,
  digests: readonly string[],
  { keyPaths, rule }: { readonly keyPaths: readonly string[]; readonly rule: string },
): Promise<void> {
  const keys: KeyObject[] = [];
  for (const path of keyPaths) keys.push(await readKey(op, host, path, rule));
  let found = 0;
  for (const digest of digests) {
    for (const { payload, signature } of await signaturesOf(op, registry, reference, digest)) {
      found += 1;
      if (says(payload, digest) && keys.some((key) => isSignedBy(key, payload, signature))) return;
    }
  }
  const why = found === 0 ? 'it has no signature' : `of its ${found} ${found === 1 ? 'signature' : 'signatures'} none is by that key`;
  throw op.error('permission_denied', `${what} may not be pulled: ${rule} wants a signature by ${keyPaths.join(' or ')}, and ${why}`, {
    hint: `sign it: cosign sign --key KEY ${what.replace(/[:@][^/]*$/, '')}@${digests[0]}`,
  });
}

async function readKey(op: Operation, host: Host, path: string, rule: string): Promise<KeyObject> {
  const pem = Buffer.from(await host.readFile(op, path, KEY_BYTES_MAX));
  try {
    return createPublicKey(pem);
  } catch (cause) {
    throw op.error('failed_precondition', `${path}, which ${rule} names, is no public key`, { cause });
  }
}

type Signed = { readonly payload: Buffer; readonly signature: Buffer };

async function signaturesOf(op: Operation, registry: Registry, reference: ImageReference, digest: string): Promise<readonly Signed[]> {
  let bytes: Buffer;
  try {
    ({ bytes } = await registry.manifest(op, reference, `${digest.replace(':', '-')}.sig`));
  } catch (error) {
    if (error instanceof HutchError && error.code === 'not_found') return [];
    throw error;
  }
  const parsed = signaturesSchema.safeParse(jsonOf(bytes));
  if (!parsed.success) return [];
  const found: Signed[] = [];
  for (const { mediaType, digest: layer, size, annotations } of parsed.data.layers) {
    const signature = annotations?.[SIGNATURE];
    if (mediaType !== PAYLOAD_TYPE || signature === undefined || size > PAYLOAD_BYTES_MAX) continue;
    const payload = await registry.smallBlob(op, reference, { digest: layer, sizeBytes: size }, PAYLOAD_BYTES_MAX);
    found.push({ payload, signature: Buffer.from(signature, 'base64') });
  }
  return found;
}

/** Whatever else is signed with that key is no word on this image. */
function says(payload: Buffer, digest: string): boolean {
  const parsed = payloadSchema.safeParse(jsonOf(payload));
  return parsed.success && parsed.data.critical.image['docker-manifest-digest'] === digest;
}

function isSignedBy(key: KeyObject, payload: Buffer, signature: Buffer): boolean {
  const hash = key.asymmetricKeyType === 'ed25519' ? null : 'sha256';
  try {
    return verify(hash, payload, key, signature);
  } catch {
    return false; // of another kind of key
  }
}

function jsonOf(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    return null;
  }
}
