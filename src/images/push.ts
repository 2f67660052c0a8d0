// From an image of ours to a registry: its layers as they came, those that are bare archives compressed, or all of it as one, then its configuration
// and its manifest.
import { createHash } from 'node:crypto';
import { Readable } from 'node:stream';
import type { ImageReference } from '../domain/image-reference.ts';
import type { Operation } from '../host/operation.ts';
import { contentOf, type ExportParts, typeOf } from './export.ts';
import type { PreparedImage } from './image.ts';
import type { Registry } from './registry/client.ts';
import type { BlobToPush, PushResult } from './registry/upload.ts';

const STEP = 'push';

export type PushParts = ExportParts & { readonly registry: Registry };
export type PushedImage = PushResult & { readonly sizes: ReadonlyMap<string, number> };

/** `known`: by layer, other repositories of that registry that may have it. */
export async function pushImage(
  op: Operation,
  parts: PushParts,
  image: PreparedImage,
  to: ImageReference,
  known: ReadonlyMap<string, readonly string[]>,
): Promise<PushedImage> {
  const { registry } = parts;
  op.progress({ step: STEP, detail: 'preparing' });
  await using content = await contentOf(op, parts, image, true);
  const { config, manifest, layers } = content;
  const configDigest = `sha256:${createHash('sha256').update(config).digest('hex')}`;
  const ofLayers = layers.map(
    ({ digest, sizeBytes, open }): BlobToPush => ({
      digest,
      sizeBytes,
      open: (offset) => open(op, offset),
      mayBeIn: known.get(digest) ?? [],
    }),
  );
  const ofConfig: BlobToPush = {
    digest: configDigest,
    sizeBytes: config.byteLength,
    open: (offset) => Readable.from([config.subarray(offset)]),
  };
  const blobs = [...ofLayers, ofConfig];
  const result = await registry.push(
    op,
    to,
    to.tag ?? to.digest ?? 'latest',
    { manifest, mediaType: typeOf(manifest), blobs },
    (blob, done) => {
      const { digest, sizeBytes } = blobs[blob] ?? ofConfig;
      const what = blob < layers.length ? `layer ${blob + 1} of ${layers.length}` : 'configuration';
      op.progress({ step: STEP, detail: `${what}, ${digest.slice(7, 19)}`, done, total: sizeBytes, unit: 'bytes' });
    },
  );
  return { ...result, sizes: new Map(blobs.map(({ digest, sizeBytes }) => [digest, sizeBytes])) };
}
