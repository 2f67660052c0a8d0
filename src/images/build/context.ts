// The context of a build as it comes: one tar stream. What belongs to the build itself (`.hutch-build/`: the Dockerfile, secrets)
// stays in memory, and all else becomes one archive, whose entries are known by name, place and content: in memory as well where it is
// small, else a file in staging.
import { createHash } from 'node:crypto';
import { ArchiveError, shown } from '../../domain/archive-error.ts';
import { Ignored } from '../../domain/dockerignore.ts';
import type { PackageSettings } from '../../domain/package-settings.ts';
import { padding } from '../../domain/tar/entry.ts';
import { TAR_END, tarHeader } from '../../domain/tar/header.ts';
import { TarReader } from '../../domain/tar/reader.ts';
import type { Operation } from '../../host/operation.ts';
import { gathered, oneChunk } from '../chunks.ts';
import { type Inode, TREE_LIMITS, Tree } from '../layers/tree.ts';
import type { LayerSource } from './flatten.ts';
import { DOCKERFILE_BYTES_MAX } from './lines.ts';
import { lookUp } from './look.ts';
import { OWN_DOCKERFILE, OWN_IGNORE, OwnEntries, ownPath, SECRETS_PREFIX } from './own.ts';
import type { BuildStaging } from './staging.ts';

export const CONTEXT_BYTES_MAX = 8 * 1024 ** 3;
const CONTEXT_ENTRIES_MAX = 300_000;
/** Of the archive: a larger one goes to the disk. */
const IN_MEMORY_BYTES_MAX = 1024 * 1024;

export type BuildContext = {
  readonly tree: Tree;
  readonly layer: LayerSource;
  /** SHA-256 of the content of each file that is not empty, by its place. */
  readonly hashes: ReadonlyMap<number, string>;
  /** By id. In memory only. */
  readonly secrets: ReadonlyMap<string, Buffer>;
  /** In memory only. */
  readonly settings: PackageSettings;
  readonly ignored: Ignored;
  readonly dockerfile: { readonly name: string; readonly text: string };
};

export type Received = BuildContext & { readonly sizeBytes: number };

/** @throws ArchiveError for what is no context. */
export async function receiveContext(
  op: Operation,
  staging: BuildStaging,
  source: AsyncIterable<Uint8Array>,
  dockerfileName: string | null,
): Promise<Received> {
  const tree = new Tree({ ...TREE_LIMITS, entriesMax: CONTEXT_ENTRIES_MAX, contentBytesMax: CONTEXT_BYTES_MAX });
  const hashes = new Map<number, string>();
  const own = new OwnEntries();
  let sizeBytes = 0;
  async function* kept(): AsyncGenerator<Uint8Array> {
    await using reader = new TarReader(source);
    let ordinal = 0;
    for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
      const path = ownPath(entry);
      if (await own.take(path, entry, reader)) continue;
      // Whoever sends it is nobody in the image.
      const plain = { ...entry, path, uid: 0, gid: 0, xattrs: null };
      if (path === '' && entry.type !== 'directory') throw new ArchiveError(`${shown(entry.path)} has no name`);
      tree.apply(0, ordinal, path === '' ? { ...plain, path: './' } : plain);
      yield tarHeader({ ...plain, path: path === '' ? './' : path, sizeBytes: entry.type === 'file' ? entry.sizeBytes : 0 });
      if (entry.type === 'file' && entry.sizeBytes > 0) {
        const hash = createHash('sha256');
        for await (const piece of reader.content()) {
          hash.update(piece);
          yield piece;
        }
        hashes.set(ordinal, hash.digest('hex'));
        sizeBytes += entry.sizeBytes;
        yield Buffer.alloc(padding(entry.sizeBytes));
      }
      ordinal += 1;
    }
    await reader.drain();
    yield TAR_END;
  }
  op.progress({ step: 'context', detail: 'receiving' });
  const layer = await taken(op, staging, gathered(kept()));
  const read = (path: string, bytesMax: number) => readSmall({ tree, layer }, path, bytesMax);
  const name = dockerfileName ?? 'Dockerfile';
  const given = own.get(OWN_DOCKERFILE);
  const text =
    given ?? (await read(name, DOCKERFILE_BYTES_MAX)) ?? (dockerfileName === null ? await read('dockerfile', DOCKERFILE_BYTES_MAX) : null);
  if (text === null) throw new ArchiveError(`there is no ${shown(name)} in it`);
  const ignore =
    own.get(OWN_IGNORE) ??
    (await read(`${name}.dockerignore`, DOCKERFILE_BYTES_MAX)) ??
    (await read('.dockerignore', DOCKERFILE_BYTES_MAX));
  return {
    ...{
      tree,
      layer,
      hashes,
      sizeBytes,
      secrets: own.below(SECRETS_PREFIX),
      settings: own.settings(),
    },
    ignored: Ignored.parse(ignore?.toString() ?? ''),
    dockerfile: { name, text: text.toString() },
  };
}

/** To be read again as often as somebody likes. */
async function taken(op: Operation, staging: BuildStaging, chunks: AsyncGenerator<Uint8Array>): Promise<LayerSource> {
  const { host } = staging;
  const first: Uint8Array[] = [];
  try {
    for (let bytes = 0; bytes <= IN_MEMORY_BYTES_MAX; ) {
      const { done, value } = await chunks.next();
      op.signal.throwIfAborted();
      if (done === true) {
        const whole = Buffer.concat(first);
        return () => oneChunk(whole);
      }
      first.push(value);
      bytes += value.byteLength;
    }
    async function* all(): AsyncGenerator<Uint8Array> {
      for (let piece = first.shift(); piece !== undefined; piece = first.shift()) yield piece;
      yield* chunks;
    }
    const file = await staging.file(op, 'context.tar');
    await host.appendStream(op, file, all());
    return () => host.readStream(op, file);
  } finally {
    await chunks.return(undefined);
  }
}

/** The content of one file; null: it is not there. */
export async function readSmall(
  root: { readonly tree: Tree; readonly layer: LayerSource },
  path: string,
  bytesMax: number,
): Promise<Buffer | null> {
  const { inode } = lookUp(root.tree, path, 'follow');
  if (inode?.type !== 'file') return null;
  if (inode.sizeBytes > bytesMax) throw new ArchiveError(`${shown(path)} has ${inode.sizeBytes} bytes; at most ${bytesMax} are read`);
  return inode.place === null ? Buffer.alloc(0) : await readPlace(root.layer, inode);
}

export async function readPlace(layer: LayerSource, inode: Inode): Promise<Buffer> {
  await using reader = new TarReader(layer());
  for (let ordinal = 0; ; ordinal += 1) {
    if ((await reader.next()) === null) throw new ArchiveError('a layer is not what it was a moment ago');
    if (ordinal !== inode.place?.ordinal) continue;
    const pieces: Buffer[] = [];
    for await (const piece of reader.content()) pieces.push(Buffer.from(piece));
    return Buffer.concat(pieces);
  }
}
