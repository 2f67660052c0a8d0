// The parts of an archive of images: where they lie in it, and how they are read, each within its bound.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { ArchiveError, shown } from '../domain/archive-error.ts';
import { hashed } from '../domain/hashed.ts';
import { TarReader } from '../domain/tar/reader.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { digestOf } from './digest.ts';
import type { KnownLayer } from './layers/map.ts';
import { packingOf } from './layers/unpack.ts';
import { blobPath } from './oci/layout-tar.ts';

/** Of an archive of images; a root file system has more, and none of them is looked for. */
const PARTS_MAX = 20_000;
/** What of an archive may be a part of an image. */
const PART =
  /^(manifest\.json|index\.json|oci-layout|hutch\.json|blobs\/sha256\/[0-9a-f]{64}|[0-9a-f]{64}\.json|[0-9a-f]{64}\/layer\.tar|[0-9a-f]{64}\.tar)$/;
/** Of a part whose name says what it is: of others it is a number that Docker made up. */
const DIGEST = /^(?:blobs\/sha256\/)?([0-9a-f]{64})(?:\.tar)?$/;
export const TAR_TYPE = 'application/vnd.oci.image.layer.v1.tar';

export type Place = {
  readonly file: string;
  readonly offset: number;
  readonly length: number;
  /** What its bytes were when they came, in hexadecimal; null for one that has no file to itself. */
  readonly sha256: string | null;
  /** What was packed of it as a layer, for whoever asks first. */
  readonly packed?: () => Promise<KnownLayer | null>;
};
export type Part = Place | { readonly link: string };
export type ArchiveParts = { readonly parts: ReadonlyMap<string, Part> };

/** Where the parts of images lie in it once it is unpacked as `file`, and the digest of the whole, unpacked. */
export async function scan(chunks: AsyncIterable<Uint8Array>, file = ''): Promise<{ found: ReadonlyMap<string, Part>; diffId: string }> {
  const hash = createHash('sha256');
  await using reader = new TarReader(hashed(chunks, hash));
  const found = await partsOfArchive(reader, (offset, length) => ({ file, offset, length, sha256: null }));
  await reader.drain();
  return { found, diffId: `sha256:${hash.digest('hex')}` };
}

/** As `scan`, of a file that is not packed: the content of its parts is passed over. */
export async function partsIn(op: Operation, host: Host, file: string, sizeBytes: number): Promise<ReadonlyMap<string, Part>> {
  await using reader = new TarReader({ sizeBytes, from: (offset) => host.readStream(op, file, offset, 'in-place') });
  return await partsOfArchive(reader, (offset, length) => ({ file, offset, length, sha256: null }));
}

/**
 * `placed` is asked for each part before its content is read; `said`: the digest that its name says, in hexadecimal, or null. @throws ArchiveError for what is no archive, or an empty one.
 */
export async function partsOfArchive(
  reader: TarReader,
  placed: (offset: number, length: number, said: string | null) => Place,
): Promise<ReadonlyMap<string, Part>> {
  const found = new Map<string, Part>();
  let entries = 0;
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    entries += 1;
    const path = entry.path.replace(/^(\.?\/)+/, '');
    if (!PART.test(path) || found.size >= PARTS_MAX) continue;
    if (entry.type === 'file' && entry.sparse === null)
      found.set(path, placed(reader.offset, entry.sizeBytes, DIGEST.exec(path)?.[1] ?? null));
    // An older `docker save` writes a layer that two images share once.
    if (entry.type === 'symlink') found.set(path, { link: join('/', path, '..', entry.link).slice(1) });
  }
  if (entries === 0) throw new ArchiveError('there is nothing in it');
  return found;
}

/** A blob of it, checked. @throws ArchiveError for one that is not there, larger than `bytesMax`, or not what its name says. */
export async function readBlob(op: Operation, host: Host, archive: ArchiveParts, digest: string, bytesMax: number): Promise<Buffer> {
  const bytes = await readPart(op, host, archive, blobPath(digest), bytesMax);
  if (digestOf(bytes) === digest) return bytes;
  throw new ArchiveError(`the blob ${digest} is not what its name says`);
}

/** @throws ArchiveError for one that is not there, or larger than `bytesMax`. */
export async function readPart(op: Operation, host: Host, archive: ArchiveParts, path: string, bytesMax: number): Promise<Buffer> {
  const { file, offset, length } = partOf(archive, path);
  if (length > bytesMax) throw new ArchiveError(`${shown(path)} in it has ${length} bytes; at most ${bytesMax} are read`);
  return Buffer.from(await host.readRange(op, file, offset, length));
}

/** @throws ArchiveError for what is no JSON, too. */
export async function readJson(op: Operation, host: Host, archive: ArchiveParts, path: string, bytesMax: number): Promise<unknown> {
  const bytes = await readPart(op, host, archive, path, bytesMax);
  try {
    return JSON.parse(bytes.toString());
  } catch {
    throw new ArchiveError(`its ${path} is no JSON`);
  }
}

/** @throws ArchiveError for one that is not there. */
export function partOf({ parts }: ArchiveParts, path: string): Place {
  let part = parts.get(path.replace(/^\.\//, ''));
  if (part !== undefined && 'link' in part) part = parts.get(part.link);
  if (part === undefined || 'link' in part) throw new ArchiveError(`${shown(path)} is not in it`);
  return part;
}

/** Bytes of a file. What it yields is valid until the next step. */
export async function* range(op: Operation, host: Host, path: string, offset: number, length: number): AsyncGenerator<Uint8Array> {
  let left = length;
  if (left === 0) return;
  for await (const chunk of host.readStream(op, path, offset, 'in-place')) {
    yield chunk.subarray(0, left);
    left -= Math.min(left, chunk.byteLength);
    if (left === 0) return;
  }
}

/** Of a layer that begins so. */
export function mediaTypeOf(start: Uint8Array): string {
  const packing = packingOf(start);
  return packing === 'none' ? TAR_TYPE : `${TAR_TYPE}+${packing}`;
}
