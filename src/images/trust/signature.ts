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

const descriptor = { digest: z.string().regex(/^sha256:[0-9a-f]{64}$/), size: z.int().nonnegative() };
const signaturesSchema = z.object({
  config: z.object(descriptor).optional(),
  layers: z
    .array(
      z.object({
        ...descriptor,
        mediaType: z.string().max(255),
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

/** One such manifest, with what it names: documents, and its configuration where that is there. */
export type Signature = { readonly manifest: Buffer; readonly blobs: ReadonlyMap<string, Buffer> };

/** What somebody wants to have here, and what must be signed of it. */
export type ToBeSigned = {
  readonly what: string;
  readonly doing: 'pulled' | 'imported';
  /** Of the manifest and of the indexes that led to it: one of them must be signed. */
  readonly digests: readonly string[];
  readonly signatures: readonly Signature[];
};

/** @throws HutchError `permission_denied` when none of the keys has signed one of the digests. */
export async function requireSigned(
  op: Operation,
  host: Host,
  { what, doing, digests, signatures }: ToBeSigned,
  { keyPaths, rule }: { readonly keyPaths: readonly string[]; readonly rule: string },
): Promise<void> {
  const keys: KeyObject[] = [];
  for (const path of keyPaths) keys.push(await readKey(op, host, path, rule));
  const all = signatures.flatMap(signedIn);
  if (
    all.some(
      ({ payload, signature }) => digests.includes(signedDigest(payload) ?? '') && keys.some((key) => isSignedBy(key, payload, signature)),
    )
  )
    return;
  const why =
    all.length === 0 ? 'it has no signature' : `of its ${all.length} ${all.length === 1 ? 'signature' : 'signatures'} none is by that key`;
  const [digest] = digests;
  throw op.error('permission_denied', `${what} may not be ${doing}: ${rule} wants a signature by ${keyPaths.join(' or ')}, and ${why}`, {
    hint:
      doing === 'pulled'
        ? `sign it: cosign sign --key KEY ${what.replace(/[:@][^/]*$/, '')}@${digest}`
        : 'export it anew where it was pulled under such a rule: its signatures go along then',
  });
}

const KEY_HINT = 'put it there, as cosign generate-key-pair writes it to cosign.pub: PEM, from -----BEGIN PUBLIC KEY-----';

async function readKey(op: Operation, host: Host, path: string, rule: string): Promise<KeyObject> {
  const pem = Buffer.from(
    await host.readFile(op, path, KEY_BYTES_MAX).catch((cause: unknown) => {
      const isGone = cause instanceof HutchError && cause.code === 'not_found';
      const why = isGone ? 'is not there' : `cannot be read: ${cause instanceof HutchError ? cause.message : String(cause)}`;
      throw op.error('failed_precondition', `${rule}: the public key ${path} ${why}`, { hint: KEY_HINT, cause });
    }),
  );
  try {
    return createPublicKey(pem);
  } catch (cause) {
    throw op.error('failed_precondition', `${path}, which ${rule} names, is no public key`, { hint: KEY_HINT, cause });
  }
}

/** Those of a digest that lie beside it in the registry. */
export async function signaturesOf(
  op: Operation,
  registry: Registry,
  reference: ImageReference,
  digest: string,
): Promise<readonly Signature[]> {
  let manifest: Buffer;
  try {
    ({ bytes: manifest } = await registry.manifest(op, reference, `${digest.replace(':', '-')}.sig`));
  } catch (error) {
    if (error instanceof HutchError && error.code === 'not_found') return [];
    throw error;
  }
  const blobs = new Map<string, Buffer>();
  for (const { digest: blob, sizeBytes } of blobsOf(manifest)) {
    blobs.set(blob, await registry.smallBlob(op, reference, { digest: blob, sizeBytes }, PAYLOAD_BYTES_MAX));
  }
  return [{ manifest, blobs }];
}

/** What a manifest of signatures names; nothing of what is too large to be one. */
export function blobsOf(manifest: Buffer): readonly { readonly digest: string; readonly sizeBytes: number }[] {
  const parsed = signaturesSchema.safeParse(jsonOf(manifest));
  if (!parsed.success) return [];
  const { config, layers } = parsed.data;
  const wanted = [...layers.filter(({ mediaType }) => mediaType === PAYLOAD_TYPE), ...(config === undefined ? [] : [config])];
  return wanted.flatMap(({ digest, size }) => (size > PAYLOAD_BYTES_MAX ? [] : [{ digest, sizeBytes: size }]));
}

/** The digests that it says it is about, whether or not that is true. */
export function digestsIn(signature: Signature): readonly string[] {
  return signedIn(signature).flatMap(({ payload }) => signedDigest(payload) ?? []);
}

function signedIn({ manifest, blobs }: Signature): readonly { readonly payload: Buffer; readonly signature: Buffer }[] {
  const parsed = signaturesSchema.safeParse(jsonOf(manifest));
  if (!parsed.success) return [];
  return parsed.data.layers.flatMap(({ mediaType, digest, annotations }) => {
    const [payload, signature] = [blobs.get(digest), annotations?.[SIGNATURE]];
    return mediaType !== PAYLOAD_TYPE || payload === undefined || signature === undefined
      ? []
      : [{ payload, signature: Buffer.from(signature, 'base64') }];
  });
}

/** Whatever else is signed with that key is no word on an image. */
function signedDigest(payload: Buffer): string | null {
  const parsed = payloadSchema.safeParse(jsonOf(payload));
  return parsed.success ? parsed.data.critical.image['docker-manifest-digest'] : null;
}

function isSignedBy(key: KeyObject, payload: Buffer, signature: Buffer): boolean {
  try {
    return hashesOf(key).some((hash) => verify(hash, payload, key, signature));
  } catch {
    return false; // of another kind of key
  }
}

/** Older releases of cosign take SHA-256 for all keys, newer ones a hash as wide as the curve. */
function hashesOf({ asymmetricKeyType, asymmetricKeyDetails }: KeyObject): readonly (string | null)[] {
  if (asymmetricKeyType === 'ed25519') return [null];
  const wide = { secp384r1: 'sha384', secp521r1: 'sha512' }[asymmetricKeyDetails?.namedCurve ?? ''];
  return wide === undefined ? ['sha256'] : ['sha256', wide];
}

function jsonOf(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    return null;
  }
}
