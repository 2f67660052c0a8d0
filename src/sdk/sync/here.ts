// The directory on this machine. Always true: each name is looked up in a directory that is open and was opened without
// following a link, so that nothing is read or written outside, whoever changes what lies there meanwhile.
import { randomBytes } from 'node:crypto';
import { constants, existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import { TEMP_PREFIX } from './ignore.ts';
import { isSame, type Node, parentOf, pathRefusal, type Tree } from './tree.ts';

const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = constants;
/** What `file.list` goes down to, less one that it may be asked for. */
export const DEPTH_MAX = 60;
const CHUNK_BYTES = 256 * 1024;
const OPEN_DIR = O_RDONLY | O_DIRECTORY | O_NOFOLLOW;

/** It is not what it was when it was looked at: look again. */
export class Changed extends Error {}

type Opened = AsyncDisposable & { readonly at: (name: string) => string };

export class Here implements AsyncDisposable {
  readonly path: string;
  readonly #root: fs.FileHandle;
  readonly #isIgnored: (path: string) => boolean;
  readonly #onSkipped: (path: string, why: string) => void;

  private constructor(
    path: string,
    root: fs.FileHandle,
    isIgnored: (path: string) => boolean,
    onSkipped: (path: string, why: string) => void,
  ) {
    this.path = path;
    this.#root = root;
    this.#isIgnored = isIgnored;
    this.#onSkipped = onSkipped;
  }

  /** `path` may be a link itself: it was typed by whoever owns it. */
  static async open(
    path: string,
    options: { readonly isIgnored: (path: string) => boolean; readonly onSkipped: (path: string, why: string) => void },
  ): Promise<Here> {
    const real = await fs.realpath(path).catch((cause: NodeJS.ErrnoException) => {
      throw cause.code === 'ENOENT' ? new HutchError({ code: 'not_found', message: `there is no directory ${path}`, cause }) : cause;
    });
    const root = await fs.open(real, OPEN_DIR).catch((cause: NodeJS.ErrnoException) => {
      throw cause.code === 'ENOTDIR' ? new HutchError({ code: 'invalid_argument', message: `${path} is no directory`, cause }) : cause;
    });
    return new Here(real, root, options.isIgnored, options.onSkipped);
  }

  /** What is at a path and below it. `onDirectory` hears of each directory, before it is read. */
  async scan(path: string, tree: Tree, onDirectory: (path: string) => void = () => {}): Promise<void> {
    if (path === '') await this.#requireThere();
    else {
      const node = await this.look(path);
      if (node === null || this.#isIgnored(path)) return;
      tree.set(path, node);
      if (node.type !== 'directory') return;
    }
    if (path.split('/').length > DEPTH_MAX) return this.#onSkipped(path, `what is below is more than ${DEPTH_MAX} levels deep`);
    onDirectory(path);
    await using directory = await this.#directory(path, 'as it is').catch(gone);
    if (directory === null) return;
    for (const raw of await fs.readdir(directory.at('.'), { encoding: 'buffer' })) {
      const name = raw.toString('utf8');
      const child = path === '' ? name : `${path}/${name}`;
      if (this.#isIgnored(child)) continue;
      if (!Buffer.from(name, 'utf8').equals(raw) || pathRefusal(child) !== null) {
        this.#onSkipped(child, pathRefusal(child) ?? 'its name is no UTF-8');
        continue;
      }
      const node = await lookAt(directory.at(name));
      if (node === undefined) this.#onSkipped(child, 'it is neither a file nor a directory nor a link');
      else if (node?.type === 'directory') await this.scan(child, tree, onDirectory);
      else if (node !== null) tree.set(child, node);
    }
  }

  /** Null: nothing that could be synchronized. */
  async look(path: string): Promise<Node | null> {
    await using directory = await this.#directory(parentOf(path), 'as it is').catch(gone);
    return directory === null ? null : ((await lookAt(directory.at(baseOf(path)))) ?? null);
  }

  /** The bytes of a file, no more than it had when it was opened. Null: it is none any more. */
  async read(
    path: string,
  ): Promise<
    | (AsyncDisposable & { readonly node: Extract<Node, { type: 'file' }>; readonly mtimeNs: bigint; bytes(): AsyncGenerator<Uint8Array> })
    | null
  > {
    await using directory = await this.#directory(parentOf(path), 'as it is').catch(gone);
    const file = directory === null ? null : await fs.open(directory.at(baseOf(path)), O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch(gone);
    if (file === null) return null;
    const info = await file.stat({ bigint: true });
    if (!info.isFile()) {
      await file.close();
      return null;
    }
    const size = Number(info.size);
    return {
      node: fileNode(info),
      mtimeNs: info.mtimeNs,
      async *bytes() {
        for (let at = 0; at < size; ) {
          const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(Math.min(CHUNK_BYTES, size - at)), 0, undefined, at);
          if (bytesRead === 0) throw new Changed(`${path} became shorter while it was read`);
          at += bytesRead;
          yield buffer.subarray(0, bytesRead);
        }
      },
      [Symbol.asyncDispose]: () => file.close(),
    };
  }

  /**
   * Whole, in place of what is `expected` to be there. Gives what was put there, whatever it has become since.
   * @throws Changed when something else is there.
   */
  async write(path: string, expected: Node | null, node: Extract<Node, { type: 'file' }>, bytes: AsyncIterable<Uint8Array>): Promise<Node> {
    await using directory = await this.#directory(parentOf(path), 'make it');
    const temp = directory.at(`${TEMP_PREFIX}${randomBytes(8).toString('hex')}.tmp`);
    const target = directory.at(baseOf(path));
    let written: Node;
    try {
      {
        await using file = await fs.open(temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
        let left = node.size;
        for await (const chunk of bytes) {
          left -= chunk.byteLength;
          // A file that grows as fast as it is read would never end.
          if (left < 0) throw new Changed(`${path} became longer while it was read`);
          await file.writeFile(chunk);
        }
        if (left > 0) throw new Changed(`${path} became shorter while it was read`);
        await file.chmod(node.mode & 0o777);
        const seconds = (node.mtimeMs + 0.5) / 1_000; // it is cut to what comes before, and must not become a millisecond less
        await file.utimes(seconds, seconds);
        written = fileNode(await file.stat({ bigint: true }));
      }
      await requireSame(target, path, expected);
      await fs.rename(temp, target);
      return written;
    } finally {
      await fs.rm(temp, { force: true });
    }
  }

  async symlink(path: string, expected: Node | null, target: string): Promise<void> {
    await using directory = await this.#directory(parentOf(path), 'make it');
    const place = directory.at(baseOf(path));
    await requireSame(place, path, expected);
    if (expected !== null) await fs.unlink(place);
    await fs.symlink(target, place);
  }

  async makeDirectory(path: string): Promise<void> {
    await using _ = await this.#directory(path, 'make it');
  }

  /** False: a directory that has something in it. */
  async remove(path: string, expected: Node): Promise<boolean> {
    await using directory = await this.#directory(parentOf(path), 'as it is').catch(gone);
    if (directory === null) return true;
    const place = directory.at(baseOf(path));
    await requireSame(place, path, expected);
    try {
      await (expected.type === 'directory' ? fs.rmdir(place) : fs.unlink(place));
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOTEMPTY') return false;
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#root.close();
  }

  /** Else all of it would be taken for removed. */
  async #requireThere(): Promise<void> {
    if ((await this.#root.stat()).nlink > 0) return;
    throw new HutchError({ code: 'failed_precondition', message: `there is no directory ${this.path} any more` });
  }

  async #directory(path: string, missing: 'as it is' | 'make it'): Promise<Opened> {
    const names = path === '' ? [] : path.split('/');
    if (!existsSync('/proc/self/fd')) return await this.#byLooking(names, missing);
    let current: fs.FileHandle = this.#root;
    for (const name of names) {
      const above = current;
      try {
        current = await openIn(above, name, missing);
      } finally {
        if (above !== this.#root) await above.close();
      }
    }
    const { fd } = current;
    return {
      at: (name) => `/proc/self/fd/${fd}/${name}`,
      [Symbol.asyncDispose]: async () => {
        if (current !== this.#root) await current.close();
      },
    };
  }

  /** Where a directory that is open has no path: each one on the way is looked at. */
  async #byLooking(names: readonly string[], missing: 'as it is' | 'make it'): Promise<Opened> {
    let dir = this.path;
    for (const name of names) {
      dir = join(dir, name);
      if (missing === 'make it') await fs.mkdir(dir).catch(exists);
      const info = await fs.lstat(dir);
      if (!info.isDirectory()) throw notADirectory(dir);
    }
    return { at: (name) => join(dir, name), [Symbol.asyncDispose]: async () => {} };
  }
}

async function openIn(above: fs.FileHandle, name: string, missing: 'as it is' | 'make it'): Promise<fs.FileHandle> {
  const path = `/proc/self/fd/${above.fd}/${name}`;
  try {
    return await fs.open(path, OPEN_DIR);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ELOOP' || code === 'ENOTDIR') throw notADirectory(name);
    if (code !== 'ENOENT' || missing === 'as it is') throw error;
    await fs.mkdir(path).catch(exists);
    return await fs.open(path, OPEN_DIR);
  }
}

/** Undefined: it is something else. */
async function lookAt(path: string): Promise<Node | null | undefined> {
  const info = await fs.lstat(path, { bigint: true }).catch(gone);
  if (info === null) return null;
  if (info.isDirectory()) return { type: 'directory' };
  if (info.isFile()) return fileNode(info);
  if (!info.isSymbolicLink()) return undefined;
  const target = await fs.readlink(path).catch(gone);
  return target === null ? null : { type: 'symlink', target };
}

function fileNode({ size, mtimeMs, mode }: { readonly size: bigint; readonly mtimeMs: bigint; readonly mode: bigint }) {
  return { type: 'file', size: Number(size), mtimeMs: Number(mtimeMs), mode: Number(mode) & 0o777 } as const;
}

async function requireSame(place: string, path: string, expected: Node | null): Promise<void> {
  const found = (await lookAt(place)) ?? null;
  if (!isSame(found, expected)) throw new Changed(`${path} was changed meanwhile`);
}

function notADirectory(path: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${path} is a link, or no directory: nothing is looked for behind it`), { code: 'ENOTDIR' });
}

function gone(error: unknown): null {
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'ENOENT' || code === 'ENOTDIR' || code === 'ELOOP') return null;
  throw error;
}

function exists(error: unknown): void {
  if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
}

function baseOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}
