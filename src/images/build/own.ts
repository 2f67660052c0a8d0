// What a client sends with a context and is no part of it: the Dockerfile, secrets, package settings. It stays in memory.
import * as z from 'zod';
import { ArchiveError } from '../../domain/archive-error.ts';
import { APT_ARCHIVES, type AptMirror, NO_PACKAGE_SETTINGS, type PackageSettings } from '../../domain/package-settings.ts';
import type { TarEntry } from '../../domain/tar/entry.ts';
import { TarReader } from '../../domain/tar/reader.ts';

export const OWN_PREFIX = '.hutch-build/';
export const OWN_DOCKERFILE = `${OWN_PREFIX}Dockerfile`;
export const OWN_IGNORE = `${OWN_PREFIX}dockerignore`;
export const SECRETS_PREFIX = `${OWN_PREFIX}secrets/`;
/** Package settings of the machine of whoever builds: variables and mirrors in one file, the rest by name. */
const OWN_SETTINGS = `${OWN_PREFIX}settings.json`;
const SETTINGS_PREFIX = `${OWN_PREFIX}settings/`;

const SECRET_BYTES_MAX = 512 * 1024;
const SECRETS_MAX = 100;
const SETTINGS_MAX = 16;
const OWN_BYTES_MAX = 8 * 1024 * 1024;

export class OwnEntries {
  readonly #contents = new Map<string, Buffer>();
  #bytes = 0;

  /** `path`: of the entry that the reader is at, as it is meant. False: it is part of the context. @throws ArchiveError past a bound. */
  async take(path: string, entry: TarEntry, reader: TarReader): Promise<boolean> {
    if (!path.startsWith(OWN_PREFIX)) return false;
    if (entry.type !== 'file') return true;
    this.#bytes += entry.sizeBytes;
    if (
      this.#bytes > OWN_BYTES_MAX ||
      (path.startsWith(SECRETS_PREFIX) && entry.sizeBytes > SECRET_BYTES_MAX) ||
      this.#contents.size > SECRETS_MAX + SETTINGS_MAX + 3
    ) {
      throw new ArchiveError(`its secrets are too large: at most ${SECRETS_MAX}, and ${SECRET_BYTES_MAX} bytes each`);
    }
    const pieces: Buffer[] = [];
    for await (const piece of reader.content()) pieces.push(Buffer.from(piece));
    this.#contents.set(path, Buffer.concat(pieces));
    return true;
  }

  get(path: string): Buffer | undefined {
    return this.#contents.get(path);
  }

  /** By the names that they have below it. */
  below(prefix: string): ReadonlyMap<string, Buffer> {
    const found = [...this.#contents].filter(([path]) => path.startsWith(prefix));
    return new Map(found.map(([path, value]) => [path.slice(prefix.length), value] as const));
  }

  /** @throws ArchiveError */
  settings(): PackageSettings {
    return settingsOf(this.get(OWN_SETTINGS), this.below(SETTINGS_PREFIX));
  }
}

/** Of an archive that has nothing else. @throws ArchiveError */
export async function receiveSettings(source: AsyncIterable<Uint8Array>): Promise<PackageSettings> {
  const own = new OwnEntries();
  await using reader = new TarReader(source);
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    if (!(await own.take(ownPath(entry), entry, reader))) throw new ArchiveError('there is more in it than package settings');
  }
  await reader.drain();
  return own.settings();
}

/** Without what names of archives may begin with. */
export function ownPath({ path }: Pick<TarEntry, 'path'>): string {
  return path.replace(/^(\.?\/)+/, '');
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
