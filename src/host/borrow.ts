// Files that another process has open, opened once more through its descriptor in /proc. That process is not
// trusted: what it names must be a regular file on a file system that holds nothing but files.
import { constants } from 'node:fs';
import * as fs from 'node:fs/promises';
import { heed } from './errors.ts';
import { fileSystemName } from './files.ts';
import type { BorrowedFile } from './host.ts';
import type { Operation } from './operation.ts';

/** Not /proc, /sys and their like, where a file that we may write is more than a file that a guest may write. */
const PLAIN: ReadonlySet<string> = new Set(['overlay', 'ext4', 'xfs', 'btrfs']);

/** Null where it cannot be had: another way must be taken. */
export function borrowFile(op: Operation, path: string, access: 'read' | 'write'): Promise<BorrowedFile | null> {
  return heed(
    op,
    `open ${path}`,
    () => open(path, access),
    (late) => void late?.[Symbol.asyncDispose](),
  );
}

async function open(path: string, access: 'read' | 'write'): Promise<BorrowedFile | null> {
  const file = await openPlain(path, access);
  if (file === null) return null;
  await using undo = new AsyncDisposableStack();
  undo.use(file);
  const stat = await file.stat({ bigint: true });
  const kept = undo.move();
  return {
    ...{ path: ownPath(file), device: String(stat.dev), inode: String(stat.ino) },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  };
}

/** A regular file on a file system that holds nothing but files; null where it is none, or is not to be had. */
export async function openPlain(path: string, access: 'read' | 'write'): Promise<fs.FileHandle | null> {
  // Without waiting: it may be a pipe, until it was looked at.
  const flags = (access === 'read' ? constants.O_RDONLY : constants.O_WRONLY) | constants.O_NONBLOCK | constants.O_NOCTTY;
  let file: fs.FileHandle;
  try {
    file = await fs.open(path, flags);
  } catch (error) {
    if (error instanceof Error && 'code' in error) return null;
    throw error;
  }
  await using undo = new AsyncDisposableStack();
  undo.use(file);
  if (!(await file.stat()).isFile() || !PLAIN.has(fileSystemName((await fs.statfs(ownPath(file))).type))) return null;
  undo.move();
  return file;
}

function ownPath({ fd }: fs.FileHandle): string {
  return `/proc/${process.pid}/fd/${fd}`;
}
