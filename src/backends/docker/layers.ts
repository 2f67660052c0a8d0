// The layers of an image of the Engine as files of ours, each by the digest of its bytes, and back: what the Engine has already is
// neither written nor sent.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { ArchiveError, CutOffError } from '../../domain/archive-error.ts';
import { hashed } from '../../domain/hashed.ts';
import { padding } from '../../domain/tar/entry.ts';
import { TAR_END, tarHeader } from '../../domain/tar/header.ts';
import { TarReader } from '../../domain/tar/reader.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { IMAGE_MS } from './config.ts';
import type { Engine } from './engine.ts';
import { follow } from './image.ts';

const BLOB = /^blobs\/sha256\/([0-9a-f]{64})$/;
const LAYER = /(^|\/)layer\.tar$/;

export type LayerFile = { readonly digest: string; readonly path: string; readonly bytes: number };

/**
 * Reads all that the Engine has of the image, and gives the layers of these digests. `dir`: where they are written, each under its
 * digest; null: they are compared alone.
 * @throws HutchError `failed_precondition` when the Engine gives something else than what was written.
 */
export async function readLayers(
  op: Operation,
  { host, engine }: { readonly host: Host; readonly engine: Engine },
  imageId: string,
  wanted: readonly string[],
  dir: string | null,
): Promise<ReadonlyMap<string, LayerFile>> {
  using limited = op.within(IMAGE_MS, 'reading an image of the Docker Engine');
  const found = new Map<string, LayerFile>();
  const answer = await engine.stream(limited, { method: 'GET', path: `/images/${imageId}/get` });
  await using archive = new TarReader(answer);
  try {
    for (let file = await archive.next(); file !== null; file = await archive.next()) {
      const said = BLOB.exec(file.path)?.[1];
      // Older Engines do not say which layer it is.
      const isWanted = said === undefined ? LAYER.test(file.path) : wanted.includes(`sha256:${said}`);
      if (file.type !== 'file' || !isWanted) continue;
      const part = dir === null ? null : join(dir, 'layer.part');
      const { digest, bytes } = await written(limited, host, archive.content(), part);
      const path = layerPath(dir ?? '', digest);
      if (wanted.includes(digest)) found.set(digest, { digest, path, bytes });
      if (part !== null && wanted.includes(digest)) await host.rename(limited, part, path);
    }
    await archive.finish();
  } catch (cause) {
    if (cause instanceof CutOffError) throw op.error('unavailable', 'the Docker Engine hung up in the middle of an archive', { cause });
    if (cause instanceof ArchiveError)
      throw op.error('internal', `what the Docker Engine gives is not understood: ${cause.message}`, { cause });
    throw cause;
  }
  if (dir !== null) await host.remove(op, join(dir, 'layer.part'));
  const missing = wanted.filter((digest) => !found.has(digest));
  if (missing.length === 0) return found;
  throw op.error('failed_precondition', `what the Docker Engine has of it is not what was written: ${missing.join(', ')}`, {
    hint: 'its storage is damaged: docker info names where it lies',
  });
}

/** Digest and length of what comes, also written to `path`, in place of what is there, where one is given. */
async function written(op: Operation, host: Host, content: AsyncIterable<Uint8Array>, path: string | null) {
  const hash = createHash('sha256');
  const pieces = hashed(content, hash);
  let bytes = 0;
  if (path === null) for await (const { byteLength } of pieces) bytes += byteLength;
  else {
    await host.remove(op, path);
    bytes = await host.appendStream(op, path, pieces);
  }
  return { digest: `sha256:${hash.digest('hex')}`, bytes };
}

export function layerPath(dir: string, digest: string): string {
  return join(dir, `layer-${digest.replace('sha256:', '').slice(0, 16)}.tar`);
}

type Loaded = {
  /** How it is called in the Engine. */
  readonly name: string;
  readonly architecture: string;
  readonly labels: Readonly<Record<string, string>>;
  /** Layers that the Engine has, one above the other. */
  readonly below: readonly string[];
  readonly above: readonly LayerFile[];
};

/** An image of layers that the Engine has and of files that it has not. It looks itself whether each is what its digest says. */
export async function loadImage(op: Operation, { host, engine }: { readonly host: Host; readonly engine: Engine }, of: Loaded) {
  const digests = [...of.below, ...of.above.map(({ digest }) => digest)];
  const config = Buffer.from(
    JSON.stringify({
      ...{ architecture: of.architecture, os: 'linux', config: { Labels: of.labels } },
      rootfs: { type: 'layers', diff_ids: digests },
      history: digests.map(() => ({ created_by: 'hutch' })),
    }),
  );
  const configName = `${createHash('sha256').update(config).digest('hex')}.json`;
  const nameOf = (digest: string): string => `${digest.replace('sha256:', '')}/layer.tar`;
  const manifest = Buffer.from(JSON.stringify([{ Config: configName, RepoTags: [of.name], Layers: digests.map(nameOf) }]));
  const chunks = async function* (): AsyncGenerator<Uint8Array> {
    const entry = { type: 'file', link: '', mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, devMajor: 0, devMinor: 0, xattrs: null } as const;
    const files = [
      ...[...new Map(of.above.map((file) => [file.digest, file])).values()].map(({ digest, path, bytes }) => ({
        ...{ name: nameOf(digest), bytes, content: () => host.readStream(op, path) },
      })),
      { name: configName, bytes: config.byteLength, content: () => [config] },
      { name: 'manifest.json', bytes: manifest.byteLength, content: () => [manifest] },
    ];
    for (const { name, bytes, content } of files) {
      yield tarHeader({ ...entry, path: name, sizeBytes: bytes });
      yield* content();
      yield Buffer.alloc(padding(bytes));
    }
    yield TAR_END;
  };
  using limited = op.within(IMAGE_MS, 'bringing a disk into the Docker Engine');
  const content = { type: 'application/x-tar', chunks: chunks() };
  const answer = await engine.stream(limited, { method: 'POST', path: '/images/load', query: { quiet: true }, content });
  await follow(limited, answer, 'load', (cause) =>
    limited.error('failed_precondition', `the Docker Engine does not take the disk: ${cause.message}`, { cause }),
  );
}
