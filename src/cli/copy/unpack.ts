// A tar stream from a sandbox becomes files of ours. The archive is hostile. Always true:
//   1. Nothing is written outside the directory: a name has no `..` and is not absolute, and every
//      directory on the way to it is looked at (never followed if it is a link) before it is used.
//   2. Links are made as they are and never written through; a file replaces what stood in its place.
//   3. Devices and pipes are never made; set-user-id bits are kept only of plain modes up to 0o777.
// Nobody but us changes the directory meanwhile, so looking before using is enough.
import { chmod, link, lstat, lutimes, mkdir, open, rm, symlink, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { extract, type Header } from 'tar-stream';
import { HutchError } from '../../domain/errors.ts';

export type Unpack = {
  /** Exists. */
  readonly dir: string;
  /** From a name in the archive to one below `dir`; null: this entry is left out. */
  readonly rename: (name: string) => string | null;
  readonly onSkipped: (name: string, why: string) => void;
};

const DEPTH_MAX = 512;
const NAME_BYTES_MAX = 4_096;
const DIRECTORIES_MAX = 1_000_000;

type Delayed = { readonly path: string; readonly mode: number; readonly mtimeMs: number };

/** @throws HutchError when the stream is no archive, or wants to be outside. */
export async function unpackTree(tar: AsyncIterable<Uint8Array>, options: Unpack): Promise<{ readonly entries: number }> {
  const reader = extract();
  const source = Readable.from(tar, { objectMode: false });
  const fed = pipeline(source, reader as unknown as NodeJS.WritableStream).then(
    () => null,
    (error: unknown) => error,
  );
  const unpacker = new Unpacker(options);
  let entries = 0;
  try {
    for await (const entry of reader) {
      await unpacker.entry(entry.header, entry as AsyncIterable<Uint8Array>);
      entry.resume();
      entries += 1;
    }
  } catch (error) {
    source.destroy();
    const broken = await fed;
    if (broken instanceof HutchError) throw broken;
    // The system's word about our own files is for the user; a stream's about itself is not.
    throw error instanceof HutchError || (error as NodeJS.ErrnoException).errno !== undefined ? error : noArchive(error);
  }
  const broken = await fed;
  if (broken !== null) throw broken instanceof HutchError ? broken : noArchive(broken);
  await unpacker.finish();
  return { entries };
}

function noArchive(cause: unknown): HutchError {
  return new HutchError({ code: 'unavailable', message: 'the archive from the sandbox is broken off, or is none', cause });
}

class Unpacker {
  readonly #options: Unpack;
  /** Directories below `dir` that were looked at and are no links. */
  readonly #real = new Set<string>(['']);
  /** Modes and times of directories come last: writing into them would change them, or be forbidden. */
  readonly #directories: Delayed[] = [];

  constructor(options: Unpack) {
    this.#options = options;
  }

  async entry(header: Header, content: AsyncIterable<Uint8Array>): Promise<void> {
    const name = header.type === 'directory' ? header.name.replace(/\/+$/, '') : header.name;
    const renamed = this.#options.rename(name === '' ? '.' : name);
    if (renamed === null) return;
    const parts = safeParts(renamed);
    if (parts.length === 0) return; // the directory itself
    const path = join(this.#options.dir, ...parts);
    await this.#ensureParents(parts, name);
    switch (header.type) {
      case 'directory':
        return await this.#directory(parts, path, header);
      case 'file':
      case 'contiguous-file':
        await this.#clear(path, name);
        await writeNew(path, content);
        return await this.#finishFile(path, header);
      case 'symlink':
        await this.#clear(path, name);
        await symlink(header.linkname, path);
        return await lutimes(path, seconds(header), seconds(header));
      case 'link':
        return await this.#hardLink(path, name, header.linkname);
      default:
        return this.#options.onSkipped(name, `it is a ${String(header.type).replace('-', ' ')}`);
    }
  }

  async finish(): Promise<void> {
    // The innermost first.
    for (const { path, mode, mtimeMs } of this.#directories.reverse()) {
      await chmod(path, mode);
      await utimes(path, mtimeMs / 1_000, mtimeMs / 1_000);
    }
  }

  async #directory(parts: readonly string[], path: string, header: Header): Promise<void> {
    const found = await lookAt(path);
    if (found !== null && !found.isDirectory()) throw outside(header.name, 'there is something else in the place of a directory');
    if (found === null) await mkdir(path, { mode: 0o700 });
    else if (this.#directories.length < DIRECTORIES_MAX) await chmod(path, 0o700 | (found.mode & 0o777));
    this.#real.add(parts.join('/'));
    if (this.#directories.length < DIRECTORIES_MAX) this.#directories.push({ path, mode: header.mode & 0o777, mtimeMs: mtimeMs(header) });
  }

  async #hardLink(path: string, name: string, linkname: string): Promise<void> {
    const renamed = this.#options.rename(linkname);
    if (renamed === null) throw outside(name, 'it is a link to something outside of the archive');
    const parts = safeParts(renamed);
    await this.#ensureParents(parts, name);
    const target = join(this.#options.dir, ...parts);
    const found = await lookAt(target);
    if (found === null || !found.isFile()) throw outside(name, 'it is a link to what is no file of the archive');
    await this.#clear(path, name);
    await link(target, path);
  }

  /** Makes the directories above where they are missing; a link among them is refused. */
  async #ensureParents(parts: readonly string[], name: string): Promise<void> {
    for (let depth = 1; depth < parts.length; depth += 1) {
      const key = parts.slice(0, depth).join('/');
      if (this.#real.has(key)) continue;
      const path = join(this.#options.dir, key);
      const found = await lookAt(path);
      if (found === null) await mkdir(path, { mode: 0o755 });
      else if (!found.isDirectory()) throw outside(name, `${path} is ${found.isSymbolicLink() ? 'a symbolic link' : 'no directory'}`);
      this.#real.add(key);
    }
  }

  /** What stands in the place of a file or link goes; a directory does not. */
  async #clear(path: string, name: string): Promise<void> {
    const found = await lookAt(path);
    if (found === null) return;
    if (found.isDirectory())
      throw new HutchError({ code: 'conflict', message: `${path} is a directory; ${JSON.stringify(name)} of the archive is none` });
    await rm(path);
  }

  async #finishFile(path: string, header: Header): Promise<void> {
    await chmod(path, header.mode & 0o777);
    await utimes(path, seconds(header), seconds(header));
  }
}

/** By its own loop: a stream of the archive that breaks off must end it, whatever kind of stream it is. */
async function writeNew(path: string, content: AsyncIterable<Uint8Array>): Promise<void> {
  await using file = await open(path, 'wx', 0o600);
  for await (const chunk of content) await file.writeFile(chunk);
}

/** @throws HutchError when a name would lead out. */
function safeParts(name: string): readonly string[] {
  if (name.includes('\0') || Buffer.byteLength(name) > NAME_BYTES_MAX) throw outside(name.slice(0, 100), 'it is no name of a file');
  if (name.startsWith('/')) throw outside(name, 'it is absolute');
  const parts = name.split('/').filter((part) => part !== '' && part !== '.');
  if (parts.includes('..')) throw outside(name, 'it leads out of the directory');
  if (parts.length > DEPTH_MAX) throw outside(name.slice(0, 100), `it is more than ${DEPTH_MAX} levels deep`);
  return parts;
}

function outside(name: string, why: string): HutchError {
  return new HutchError({
    code: 'permission_denied',
    message: `the archive from the sandbox has an entry that is refused: ${JSON.stringify(name)}: ${why}`,
  });
}

async function lookAt(path: string) {
  try {
    return await lstat(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

/** A PAX record has the part of a second. */
function mtimeMs(header: Header): number {
  const exact = Number((header.pax as Record<string, string> | null | undefined)?.['mtime']);
  if (Number.isFinite(exact)) return exact * 1_000;
  return header.mtime.getTime();
}

function seconds(header: Header): number {
  return mtimeMs(header) / 1_000;
}
