// Files and directories. What is written atomically is durable when the call returns, and is never
// seen half-written; a failed or aborted call removes what it had begun.
import { createHash, randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import * as fs from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { errnoOf, heed, systemError, throwIfAborted } from './errors.ts';
import type { FileInfo, FileSystemInfo, Reads } from './host.ts';
import type { Operation } from './operation.ts';

const CHUNK_BYTES = 256 * 1024;
const PROC_CHUNK_BYTES = 4096;
const BLOCK_BYTES = 512; // the unit of st_blocks, whatever the file system's own block size

/** What a crash may leave beside a file that was being written; safe to remove once no writer lives. */
export const TEMP_NAME = /^\.hutch-tmp-[0-9a-f]{16}$/;

export function tempPathBeside(path: string): string {
  return join(dirname(path), `.hutch-tmp-${randomBytes(8).toString('hex')}`);
}

export function readFile(op: Operation, path: string, bytesMax: number): Promise<Uint8Array> {
  return heed(op, `read ${path}`, async () => {
    await using file = await fs.open(path, 'r');
    const { size } = await file.stat();
    if (size > bytesMax) throw tooLarge(op, path, bytesMax);
    // To the end, whatever the size was: files in /proc say 0, and a log may have grown since.
    const chunks: Buffer[] = [];
    for (let total = 0; ; ) {
      throwIfAborted(op, `read ${path}`);
      const chunk = Buffer.allocUnsafe(Math.min(Math.max(size - total, PROC_CHUNK_BYTES), bytesMax - total) + 1);
      const { bytesRead } = await file.read(chunk, 0, chunk.byteLength, null);
      if (bytesRead === 0) return Buffer.concat(chunks);
      total += bytesRead;
      if (total > bytesMax) throw tooLarge(op, path, bytesMax);
      chunks.push(chunk.subarray(0, bytesRead));
      // There was room for one byte more than it said that it has, and none came.
      if (total === size && bytesRead < chunk.byteLength) return Buffer.concat(chunks);
    }
  });
}

function tooLarge(op: Operation, path: string, bytesMax: number): Error {
  return op.error('payload_too_large', `${path} is larger than ${bytesMax} bytes`);
}

export function writeFileAtomic(op: Operation, path: string, content: Uint8Array | string, mode: number): Promise<void> {
  return heed(op, `write ${path}`, () =>
    throughTemp(op, path, async (temp) => {
      await using file = await fs.open(temp, 'wx', mode);
      await file.writeFile(content);
      await file.chmod(mode); // the umask had its say in open
      throwIfAborted(op, `write ${path}`);
      await file.sync();
    }).then(() => syncPath(dirname(path))),
  );
}

/** Makes a file under a temporary name beside `path`, then renames it there; removes it on any failure. */
export async function throughTemp(op: Operation, path: string, make: (temp: string) => Promise<void>): Promise<void> {
  const temp = tempPathBeside(path);
  try {
    await make(temp);
    throwIfAborted(op, `write ${path}`);
    await fs.rename(temp, path);
  } catch (error) {
    await fs.rm(temp, { force: true }).catch((cause: unknown) => op.log.warn({ path: temp, cause }, 'temporary file left behind'));
    throw error;
  }
}

async function syncPath(path: string): Promise<void> {
  await using handle = await fs.open(path, 'r');
  await handle.sync();
}

export function appendFile(op: Operation, path: string, content: Uint8Array): Promise<void> {
  return heed(op, `append to ${path}`, () => fs.appendFile(path, content, { mode: 0o600 }));
}

export async function appendStream(op: Operation, path: string, chunks: AsyncIterable<Uint8Array>): Promise<number> {
  const what = `append to ${path}`;
  await using file = await heed(
    op,
    what,
    () => fs.open(path, 'a', 0o600),
    (late) => void late.close(),
  );
  let total = 0;
  for await (const chunk of chunks) {
    await heed(op, what, () => file.writeFile(chunk));
    total += chunk.byteLength;
  }
  return total;
}

export function writeAt(op: Operation, path: string, offset: number, bytes: Uint8Array): Promise<void> {
  return heed(op, `write to ${path}`, async () => {
    await using file = await fs.open(path, 'r+');
    for (let done = 0; done < bytes.byteLength; ) {
      done += (await file.write(bytes, done, bytes.byteLength - done, offset + done)).bytesWritten;
    }
  });
}

export function readRange(op: Operation, path: string, offset: number, length: number): Promise<Uint8Array> {
  return heed(op, `read ${path}`, async () => {
    await using file = await fs.open(path, 'r');
    // A range may be far longer than its file: memory is taken for what is there, and for what has come since.
    const { size } = await file.stat();
    const chunks: Buffer[] = [];
    for (let filled = 0; filled < length; ) {
      throwIfAborted(op, `read ${path}`);
      const chunk = Buffer.allocUnsafeSlow(Math.min(length - filled, Math.max(size - offset - filled, PROC_CHUNK_BYTES)));
      const { bytesRead } = await file.read(chunk, 0, chunk.byteLength, offset + filled);
      if (bytesRead === 0) break; // the file ends before the range does
      filled += bytesRead;
      chunks.push(chunk.subarray(0, bytesRead));
    }
    const [only] = chunks;
    const read = chunks.length === 1 && only !== undefined ? only : Buffer.concat(chunks);
    return new Uint8Array(read.buffer, read.byteOffset, read.byteLength);
  });
}

export async function* readStream(op: Operation, path: string, offset = 0, reads: Reads = 'fresh'): AsyncGenerator<Uint8Array> {
  const what = `read ${path}`;
  await using file = await heed(
    op,
    what,
    () => fs.open(path, 'r'),
    (late) => void late.close(),
  );
  const { size } = await heed(op, what, () => file.stat());
  const own = reads === 'in-place' && offset < size ? Buffer.allocUnsafeSlow(Math.min(CHUNK_BYTES, size - offset)) : null;
  for (let at = offset; at < size; ) {
    const chunk = own?.subarray(0, size - at) ?? Buffer.allocUnsafe(Math.min(CHUNK_BYTES, size - at));
    const { bytesRead } = await heed(op, what, () => file.read(chunk, 0, chunk.byteLength, at));
    if (bytesRead === 0) return; // truncated since
    yield new Uint8Array(chunk.buffer, chunk.byteOffset, bytesRead);
    at += bytesRead;
  }
}

export function stat(op: Operation, path: string): Promise<FileInfo | null> {
  return heed(op, `stat ${path}`, async () => {
    try {
      const info = await fs.lstat(path, { bigint: true });
      return {
        type: info.isFile()
          ? 'file'
          : info.isDirectory()
            ? 'directory'
            : info.isSymbolicLink()
              ? 'symlink'
              : info.isSocket()
                ? 'socket'
                : 'other',
        sizeBytes: Number(info.size),
        allocatedBytes: Number(info.blocks) * BLOCK_BYTES,
        mode: Number(info.mode) & 0o7777,
        uid: Number(info.uid),
        gid: Number(info.gid),
        inode: info.ino,
        device: info.dev,
        modifiedNs: info.mtimeNs,
        changedNs: info.ctimeNs,
      };
    } catch (error) {
      if (isAbsence(error)) return null;
      throw error;
    }
  });
}

/** Nothing is there: no such entry, or a parent that is a file. */
function isAbsence(error: unknown): boolean {
  const errno = errnoOf(error);
  return errno === 'ENOENT' || errno === 'ENOTDIR';
}

export function readLink(op: Operation, path: string): Promise<string> {
  return heed(op, `read link ${path}`, () => fs.readlink(path));
}

export function realPath(op: Operation, path: string): Promise<string> {
  return heed(op, `resolve ${path}`, () => fs.realpath(path));
}

export function list(op: Operation, path: string): Promise<readonly string[]> {
  return heed(op, `list ${path}`, async () => (await fs.readdir(path)).sort());
}

export function makeDir(op: Operation, path: string, mode: number): Promise<void> {
  return heed(op, `make directory ${path}`, async () => {
    if (await makeDirs(path, mode)) await fs.chmod(path, mode); // the umask had its say in mkdir
  });
}

/** Whether it was made. Node's own `recursive` never ends where a file system refuses with ENOENT, as /proc does. */
async function makeDirs(path: string, mode: number): Promise<boolean> {
  for (let hasParent = false; ; hasParent = true) {
    try {
      await fs.mkdir(path, { mode });
      return true;
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === 'EEXIST' && (await fs.stat(path)).isDirectory()) return false;
      if (errno !== 'ENOENT' || hasParent) throw error;
      await makeDirs(dirname(path), mode);
    }
  }
}

export function remove(op: Operation, path: string): Promise<void> {
  return heed(op, `remove ${path}`, () => fs.rm(path, { recursive: true, force: true }));
}

export function removeEmptyDir(op: Operation, path: string): Promise<boolean> {
  return heed(op, `remove directory ${path}`, async () => {
    try {
      await fs.rmdir(path);
      return true;
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === 'ENOENT') return true;
      if (errno === 'ENOTEMPTY' || errno === 'EBUSY') return false;
      throw error;
    }
  });
}

export function rename(op: Operation, from: string, to: string): Promise<void> {
  return heed(op, `rename ${from} to ${to}`, async () => {
    await fs.rename(from, to);
    await syncPath(dirname(to));
  });
}

export function link(op: Operation, from: string, to: string): Promise<void> {
  return heed(op, `link ${from} to ${to}`, () => fs.link(from, to));
}

export function symlink(op: Operation, target: string, path: string): Promise<void> {
  return heed(op, `make the link ${path} to ${target}`, () => fs.symlink(target, path));
}

export function chmod(op: Operation, path: string, mode: number): Promise<void> {
  return heed(op, `change the mode of ${path}`, () => fs.chmod(path, mode));
}

/** Never through a symlink: what a sandbox's user owns it could have replaced by one. */
export function chown(op: Operation, path: string, uid: number, gid: number): Promise<void> {
  return heed(op, `change the owner of ${path}`, () => fs.lchown(path, uid, gid));
}

/** Makes the file if there is none: an empty sparse disk is one call. */
export function truncate(op: Operation, path: string, sizeBytes: number): Promise<void> {
  return heed(op, `truncate ${path}`, async () => {
    await using file = await fs.open(path, constants.O_WRONLY | constants.O_CREAT, 0o600);
    await file.truncate(sizeBytes);
  });
}

export function sync(op: Operation, path: string): Promise<void> {
  return heed(op, `sync ${path}`, () => syncPath(path));
}

/** `f_type` of statfs(2), for people: what doctor prints. */
const FILE_SYSTEMS: Readonly<Record<number, string>> = {
  61267: 'ext4',
  1481003842: 'xfs',
  2435016766: 'btrfs',
  16914836: 'tmpfs',
  2240043254: 'ramfs',
  2035054128: 'overlay',
  801189825: 'zfs',
  4076150800: 'f2fs',
  26985: 'nfs',
  3393526350: 'bcachefs',
  1702057286: 'fuse',
};

export function fileSystem(op: Operation, path: string): Promise<FileSystemInfo> {
  return heed(op, `stat the file system of ${path}`, async () => {
    const info = await fs.statfs(path);
    return {
      totalBytes: info.blocks * info.bsize,
      freeBytes: info.bavail * info.bsize,
      type: fileSystemName(info.type),
    };
  });
}

export function fileSystemName(magic: number): string {
  return FILE_SYSTEMS[magic] ?? `0x${magic.toString(16)}`;
}

export async function sha256(op: Operation, path: string): Promise<string> {
  const hash = createHash('sha256');
  try {
    for await (const chunk of readStream(op, path, 0, 'in-place')) hash.update(chunk);
  } catch (error) {
    throw systemError(op, `hash ${path}`, error);
  }
  return hash.digest('hex');
}
