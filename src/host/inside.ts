// Files below a directory whose content is somebody else's, such as the root of a sandbox whose file system this host serves:
// opened without a symlink anywhere below it, and read and written where they lie. As with `borrowFile`, only a regular file on a
// file system that holds nothing but files is had.
import { constants } from 'node:fs';
import * as fs from 'node:fs/promises';
import { openPlain } from './borrow.ts';
import { heed } from './errors.ts';
import type { InsideFile } from './host.ts';
import type { Operation } from './operation.ts';

/** Opens nothing, but names what lies there (open(2)); Node.js has no name for it. */
const O_PATH = 0o10000000;
/** Directories on the way. */
const DEPTH_MAX = 128;
/** Disks have blocks of this size, or of a part of it. */
const DIRECT_BYTES = 4096;

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
  if (file === null) return null;
  if (access === 'read') return insideFile(file, null);
  const past = await fs.open(through(file), constants.O_WRONLY | constants.O_DIRECT).catch(() => null); // not every file system has it
  return insideFile(file, past);
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

/**
 * `past`: the same file, written past the host's cache. Its pages cost the processor several times what the disk does, and more again
 * on a machine that is one of many on another, which has to find the memory for them.
 */
function insideFile(file: fs.FileHandle, past: fs.FileHandle | null): InsideFile {
  let direct = past;
  return {
    async stat() {
      const { size, mode, uid, gid } = await file.stat();
      return { sizeBytes: size, mode, uid, gid };
    },
    read: async (into, at) => (await file.read(into, 0, into.byteLength, at)).bytesRead,
    async write(block, at) {
      for (let written = 0; written < block.byteLength; ) {
        const rest = block.subarray(written);
        const isWhole = [rest.byteOffset, rest.byteLength, at + written].every((each) => each % DIRECT_BYTES === 0);
        if (direct !== null && isWhole) {
          try {
            written += (await direct.write(rest, 0, rest.byteLength, at + written)).bytesWritten;
            continue;
          } catch (error) {
            if (!(error instanceof Error && 'code' in error && error.code === 'EINVAL')) throw error;
            direct = null; // not this file system, or not this memory
          }
        }
        written += (await file.write(rest, 0, rest.byteLength, at + written)).bytesWritten;
      }
    },
    sync: () => file.datasync(),
    // What runs goes on to its end first.
    async [Symbol.asyncDispose]() {
      await Promise.all([file.close(), past?.close()]);
    },
  };
}

/** Memory that a disk can be written from without a copy: it begins with a page. */
export function wholePages(length: number): Uint8Array {
  // What could grow lies in pages of its own; anything else is a part of the heap.
  return new Uint8Array(new ArrayBuffer(length, { maxByteLength: length }));
}
