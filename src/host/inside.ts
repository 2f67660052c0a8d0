// Files below a directory whose content is somebody else's, such as the root of a sandbox whose file system this host serves:
// opened without a symlink anywhere below it, and read and written where they lie. As with `borrowFile`, only a regular file on a
// file system that holds nothing but files is had.
import { constants } from 'node:fs';
import * as fs from 'node:fs/promises';
import { after } from '../domain/pieces.ts';
import { openPlain } from './borrow.ts';
import { heed } from './errors.ts';
import type { InsideFile } from './host.ts';
import type { Operation } from './operation.ts';

/** Opens nothing, but names what lies there (open(2)); Node.js has no name for it. */
const O_PATH = 0o10000000;
/** Directories on the way. */
const DEPTH_MAX = 128;

/** `path`: absolute, as seen from below `root`, with no `.` and `..`. Null where there is none, or it cannot be had. */
export function openInside(op: Operation, root: string, path: string, access: 'read' | 'write'): Promise<InsideFile | null> {
  return heed(
    op,
    `open ${path} in ${root}`,
    () => open(root, path, access),
    (late) => void late?.[Symbol.asyncDispose](),
  );
}

async function open(root: string, path: string, access: 'read' | 'write'): Promise<InsideFile | null> {
  const names = path.split('/').slice(1);
  if (!path.startsWith('/') || names.length > DEPTH_MAX || names.some((name) => name === '' || name === '.' || name === '..')) return null;
  await using found = await find(root, names);
  if (found === null || !(await found.stat()).isFile()) return null;
  const file = await openPlain(through(found), access);
  return file === null ? null : insideFile(file);
}

/** Each step from the directory before it: whatever is renamed meanwhile, it stays below the root. */
async function find(root: string, names: readonly string[]): Promise<fs.FileHandle | null> {
  let at: fs.FileHandle | null = null;
  try {
    at = await fs.open(root, O_PATH | constants.O_DIRECTORY);
    for (const [index, name] of names.entries()) {
      const isLast = index === names.length - 1;
      const next: fs.FileHandle = await fs.open(
        `${through(at)}/${name}`,
        O_PATH | constants.O_NOFOLLOW | (isLast ? 0 : constants.O_DIRECTORY),
      );
      await at.close();
      at = next;
    }
    return at;
  } catch (error) {
    await at?.close();
    if (error instanceof Error && 'code' in error) return null;
    throw error;
  }
}

function through({ fd }: fs.FileHandle): string {
  return `/proc/${process.pid}/fd/${fd}`;
}

function insideFile(file: fs.FileHandle): InsideFile {
  return {
    async stat() {
      const { size, mode, uid, gid } = await file.stat();
      return { sizeBytes: size, mode, uid, gid };
    },
    read: async (into, at) => (await file.read(into, 0, into.byteLength, at)).bytesRead,
    async write(chunks, at) {
      let written = 0;
      for (let rest = chunks; rest.length > 0; ) {
        const { bytesWritten } = await file.writev(rest, at + written);
        written += bytesWritten;
        rest = after(rest, bytesWritten);
      }
      return written;
    },
    sync: () => file.datasync(),
    // What runs goes on to its end first.
    [Symbol.asyncDispose]: () => file.close(),
  };
}
