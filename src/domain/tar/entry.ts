// What an entry of a tar archive says. Names and links are bytes: each character is one of them
// (latin1), so that a name that is no UTF-8 stays what it is.

export type EntryType = 'file' | 'hardlink' | 'symlink' | 'character' | 'block' | 'directory' | 'fifo';

/** Where data stands in a file that is a hole elsewhere. */
export type DataPiece = { readonly offset: number; readonly length: number };

export type TarEntry = {
  readonly type: EntryType;
  /** As it is written: perhaps absolute, perhaps with `..`. */
  readonly path: string;
  /** Of a hard link or a symlink. */
  readonly link: string;
  /** Permissions with set-user-id, set-group-id and sticky. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeSeconds: number;
  /** Of the file as it is read, holes included; 0 of what is no file. */
  readonly sizeBytes: number;
  readonly devMajor: number;
  readonly devMinor: number;
  /** By name with its namespace, such as `security.capability`; null where there are none. */
  readonly xattrs: ReadonlyMap<string, Buffer> | null;
  /** Null: all of it is data. */
  readonly sparse: readonly DataPiece[] | null;
};

export const BLOCK_BYTES = 512;
/** PATH_MAX of Linux, without its final NUL. */
export const PATH_BYTES_MAX = 4_095;
export const NAME_BYTES_MAX = 255;

export function padding(length: number): number {
  return (BLOCK_BYTES - (length % BLOCK_BYTES)) % BLOCK_BYTES;
}
