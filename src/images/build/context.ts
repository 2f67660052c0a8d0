// The context of a build as it comes: one tar stream. What belongs to the build itself (`.hutch-build/`: the Dockerfile, secrets)
// stays in memory, and all else becomes one file in staging, whose entries are known by name, place and content.

import { createHash } from 'node:crypto';
import { join } from 'node:path';
import * as z from 'zod';
import { Ignored } from '../../domain/dockerignore.ts';
import { APT_ARCHIVES, type AptMirror, NO_PACKAGE_SETTINGS, type PackageSettings } from '../../domain/package-settings.ts';
import { padding } from '../../domain/tar-entry.ts';
import { TAR_END, tarHeader } from '../../domain/tar-header.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { ArchiveError, shown } from '../archive-error.ts';
import { gathered } from '../chunks.ts';
import { type Inode, TREE_LIMITS, Tree } from '../layers/tree.ts';
import { TarReader } from '../tar/reader.ts';
import type { LayerSource } from './flatten.ts';
import { DOCKERFILE_BYTES_MAX } from './lines.ts';
import { lookUp } from './look.ts';

/** What a client sends beside the context: never part of it. */
export const OWN_PREFIX = '.hutch-build/';
export const OWN_DOCKERFILE = `${OWN_PREFIX}Dockerfile`;
export const OWN_IGNORE = `${OWN_PREFIX}dockerignore`;
export const SECRETS_PREFIX = `${OWN_PREFIX}secrets/`;
/** Package settings of the machine of whoever builds: variables and mirrors in one file, the rest by name. */
export const OWN_SETTINGS = `${OWN_PREFIX}settings.json`;
export const SETTINGS_PREFIX = `${OWN_PREFIX}settings/`;

export const CONTEXT_BYTES_MAX = 8 * 1024 ** 3;
const CONTEXT_ENTRIES_MAX = 300_000;
const SECRET_BYTES_MAX = 512 * 1024;
const SECRETS_MAX = 100;
const SETTINGS_MAX = 16;
const OWN_BYTES_MAX = 8 * 1024 * 1024;

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
  host: Host,
  dir: string,
  source: AsyncIterable<Uint8Array>,
  dockerfileName: string | null,
): Promise<Received> {
  const file = join(dir, 'context.tar');
  const tree = new Tree({ ...TREE_LIMITS, entriesMax: CONTEXT_ENTRIES_MAX, contentBytesMax: CONTEXT_BYTES_MAX });
  const hashes = new Map<number, string>();
  const own = new Map<string, Buffer>();
  let sizeBytes = 0;
  async function* kept(): AsyncGenerator<Uint8Array> {
    await using reader = new TarReader(source);
    let ordinal = 0;
    let ownBytes = 0;
    for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
      const path = entry.path.replace(/^(\.?\/)+/, '');
      if (path.startsWith(OWN_PREFIX)) {
        if (entry.type !== 'file') continue;
        ownBytes += entry.sizeBytes;
        if (
          ownBytes > OWN_BYTES_MAX ||
          (path.startsWith(SECRETS_PREFIX) && entry.sizeBytes > SECRET_BYTES_MAX) ||
          own.size > SECRETS_MAX + SETTINGS_MAX + 3
        ) {
          throw new ArchiveError(`its secrets are too large: at most ${SECRETS_MAX}, and ${SECRET_BYTES_MAX} bytes each`);
        }
        const pieces: Buffer[] = [];
        for await (const piece of reader.content()) pieces.push(Buffer.from(piece));
        own.set(path, Buffer.concat(pieces));
        continue;
      }
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
  await host.appendStream(op, file, gathered(kept()));
  const layer: LayerSource = () => host.readStream(op, file);
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
  const below = (prefix: string) =>
    new Map([...own].filter(([path]) => path.startsWith(prefix)).map(([path, value]) => [path.slice(prefix.length), value] as const));
  return {
    ...{
      tree,
      layer,
      hashes,
      sizeBytes,
      secrets: below(SECRETS_PREFIX),
      settings: settingsOf(own.get(OWN_SETTINGS), below(SETTINGS_PREFIX)),
    },
    ignored: Ignored.parse(ignore?.toString() ?? ''),
    dockerfile: { name, text: text.toString() },
  };
}

const settingsText = z.strictObject({
  env: z.record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,63}$/), z.string().max(8_192)),
  aptMirrors: z.array(z.strictObject({ of: z.enum(Object.keys(APT_ARCHIVES) as [AptMirror['of']]), uri: z.url().max(2_048) })).max(16),
});

function settingsOf(text: Buffer | undefined, files: ReadonlyMap<string, Buffer>): PackageSettings {
  if (text === undefined) return NO_PACKAGE_SETTINGS;
  try {
    const { env, aptMirrors } = settingsText.parse(JSON.parse(text.toString()));
    if (![...files.keys()].every((name) => /^[a-z][a-z.]{0,31}$/.test(name))) throw new Error('a name');
    return { env, files, aptMirrors };
  } catch (cause) {
    throw new ArchiveError(`${OWN_SETTINGS} in it is none that this daemon knows`, { cause });
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
