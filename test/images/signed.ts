// Signatures as cosign makes them with a key, in a registry of ours.
import { type KeyObject, sign } from 'node:crypto';
import { digestOf, type MadeImage, TYPES } from './archives.ts';
import type { FakeRegistry } from './registry.ts';

/** As `cosign sign --key` puts it there. */
export function signed(
  registry: FakeRegistry,
  repository: string,
  about: string,
  key: KeyObject,
  said: { readonly digest?: string; readonly type?: string; readonly hash?: string } = {},
) {
  const payload = Buffer.from(
    JSON.stringify({
      critical: {
        identity: { 'docker-reference': `${registry.name}/${repository}` },
        image: { 'docker-manifest-digest': said.digest ?? about },
        type: said.type ?? 'cosign container image signature',
      },
      optional: null,
    }),
  );
  const signature = sign(key.asymmetricKeyType === 'ed25519' ? null : (said.hash ?? 'sha256'), payload, key).toString('base64');
  const config = Buffer.from('{}');
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: TYPES.manifest,
      config: { mediaType: TYPES.config, digest: digestOf(config), size: config.byteLength },
      layers: [
        {
          mediaType: 'application/vnd.dev.cosign.simplesigning.v1+json',
          digest: digestOf(payload),
          size: payload.byteLength,
          annotations: { 'dev.cosignproject.cosign/signature': signature },
        },
      ],
    }),
  );
  const blobs: MadeImage = { manifest, config, blobs: new Map([config, payload].map((bytes) => [digestOf(bytes), bytes])) };
  registry.put(repository, `${about.replace(':', '-')}.sig`, blobs);
}
