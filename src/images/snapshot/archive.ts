// A snapshot in one file: an OCI layout in a tar archive, in an order in which it can be taken up as it comes: what it says of itself,
// then its parts, each once. Nothing in it names a place here: a part goes where its number says.
import { createHash } from 'node:crypto';
import * as z from 'zod';
import { ArchiveError, shown } from '../../domain/archive-error.ts';
import { hashed } from '../../domain/hashed.ts';
import { padding } from '../../domain/tar/entry.ts';
import { TAR_END } from '../../domain/tar/header.ts';
import { TarReader } from '../../domain/tar/reader.ts';
import { digestOf } from '../digest.ts';
import { blobPath, file, header, LAYOUT } from '../oci/layout-tar.ts';
import { INDEX_TYPE, MANIFEST_TYPE } from '../oci/manifest.ts';
import {
  type Artifact,
  CONFIG_BYTES_MAX,
  type Described,
  jsonOf,
  MANIFEST_BYTES_MAX,
  type Packed,
  parseManifest,
  parseSnapshotConfig,
  type SnapshotConfig,
} from './artifact.ts';

const NOTE_BYTES_MAX = 64 * 1024;
const indexSchema = z.object({
  schemaVersion: z.literal(2),
  manifests: z
    .array(z.object({ digest: z.string().regex(/^sha256:[0-9a-f]{64}$/), size: z.int().positive(), artifactType: z.string().optional() }))
    .length(1),
});

/** `open`: its bytes, from there on. */
export type PackedPart = Packed & { readonly open: (offset?: number) => AsyncIterable<Uint8Array> };

export async function* writeArchive(
  { manifest, config, configDigest, manifestDigest, type }: Artifact,
  parts: readonly PackedPart[],
): AsyncGenerator<Uint8Array> {
  yield* file('oci-layout', LAYOUT);
  yield* file('index.json', indexOf(manifestDigest, manifest, type));
  yield* file(blobPath(manifestDigest), manifest);
  yield* file(blobPath(configDigest), config);
  for (const {
    part: { digest, sizeBytes, open },
  } of eachOnce(parts)) {
    yield header(blobPath(digest), sizeBytes);
    yield* open();
    yield Buffer.alloc(padding(sizeBytes));
  }
  yield TAR_END;
}

function indexOf(digest: string, { byteLength: size }: Buffer, artifactType: string): Buffer {
  const manifests = [{ mediaType: MANIFEST_TYPE, artifactType, digest, size }];
  return Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: INDEX_TYPE, manifests }));
}

/** How long the archive is. */
export function archiveBytes({ manifest, config, manifestDigest, type }: Artifact, parts: readonly Packed[]): number {
  const small = [LAYOUT, indexOf(manifestDigest, manifest, type), manifest, config].map(({ byteLength }) => byteLength);
  const all = [...small, ...eachOnce(parts).map(({ part }) => part.sizeBytes)];
  return all.reduce((sum, bytes) => sum + header('', bytes).byteLength + bytes + padding(bytes), TAR_END.byteLength);
}

/** Takes a snapshot up: all that is said of it first, then each part, by its number. */
export type Receiver<T> = {
  begin(config: SnapshotConfig, described: Described): Promise<T>;
  /** False: what it has is here already. */
  wants(place: T, at: number): boolean;
  /** Reads it, to its end where it is wanted. `also`: parts that have the same bytes. */
  part(place: T, at: number, bytes: AsyncIterable<Uint8Array>, also: readonly number[]): Promise<void>;
};

/** Gives what `begin` gave, with every part taken up and its digest right. @throws ArchiveError for all that is not whole. */
export async function readArchive<T>(source: AsyncIterable<Uint8Array>, receiver: Receiver<T>): Promise<T> {
  await using reader = new TarReader(source);
  const small = async (path: string, bytesMax: number): Promise<Buffer> => {
    const size = await enter(reader, path);
    if (size > bytesMax) throw new ArchiveError(`${shown(path)} has ${size} bytes; at most ${bytesMax} are read`);
    const parts: Uint8Array[] = [];
    for await (const part of reader.content()) parts.push(Buffer.from(part));
    return Buffer.concat(parts);
  };
  const named = async (digest: string, bytesMax: number): Promise<Buffer> => {
    const bytes = await small(blobPath(digest), bytesMax);
    if (digestOf(bytes) !== digest) throw damaged(digest);
    return bytes;
  };
  if (!(await small('oci-layout', NOTE_BYTES_MAX)).equals(LAYOUT)) throw new ArchiveError('it is an OCI layout of another version');
  const index = indexSchema.safeParse(jsonOf(await small('index.json', NOTE_BYTES_MAX), 'its index'));
  const [listed] = index.success ? index.data.manifests : [];
  if (listed === undefined) throw new ArchiveError('it has no snapshot, or more than one');
  const described = parseManifest(await named(listed.digest, MANIFEST_BYTES_MAX));
  const config = parseSnapshotConfig(await named(described.config.digest, CONFIG_BYTES_MAX), described);
  const place = await receiver.begin(config, described);
  for (const { part: one, at, also } of eachOnce(described.parts)) {
    const size = await enter(reader, blobPath(one.digest));
    if (size !== one.sizeBytes) throw new ArchiveError(`a part of it has ${size} bytes, and its manifest says ${one.sizeBytes}`);
    const hash = createHash('sha256');
    const content = hashed(reader.content(), hash);
    if (receiver.wants(place, at)) await receiver.part(place, at, content, also);
    for await (const _ of content); // what an unpacker left, as it is a part of the digest
    if (`sha256:${hash.digest('hex')}` !== one.digest) throw damaged(one.digest);
  }
  const more = await reader.next();
  if (more !== null) throw new ArchiveError(`there is something else in it: ${shown(more.path)}`);
  await reader.finish();
  return place;
}

/** Gives its length. */
async function enter(reader: TarReader, path: string): Promise<number> {
  const entry = await reader.next();
  if (entry === null) throw new ArchiveError('it is cut off: parts of it are missing');
  if (entry.type === 'file' && entry.sparse === null && entry.path === path) return entry.sizeBytes;
  throw new ArchiveError(
    path === 'oci-layout' ? 'it is no archive of a snapshot' : `there is ${shown(entry.path)} where ${shown(path)} should be`,
  );
}

function damaged(digest: string): ArchiveError {
  return new ArchiveError(`it is damaged: what is called ${digest} has another digest`);
}

/** Parts that have the same bytes are one; `also`: the numbers of the others. */
export function eachOnce<T extends Packed>(
  parts: readonly T[],
): readonly { readonly part: T; readonly at: number; readonly also: readonly number[] }[] {
  const byDigest = new Map<string, { readonly part: T; readonly at: number; readonly also: number[] }>();
  for (const [at, part] of parts.entries()) {
    const known = byDigest.get(part.digest);
    if (known === undefined) byDigest.set(part.digest, { part, at, also: [] });
    else known.also.push(at);
  }
  return [...byDigest.values()];
}
