// Writes cpio archives of the "newc" form, which the kernel unpacks as its initramfs. The same
// entries always give the same bytes: no times, no owners but root, inodes counted from 1.

export type CpioEntry =
  | { readonly type: 'directory'; readonly path: string; readonly mode: number }
  | { readonly type: 'file'; readonly path: string; readonly mode: number; readonly content: Uint8Array }
  | { readonly type: 'symlink'; readonly path: string; readonly target: string }
  | { readonly type: 'character-device'; readonly path: string; readonly mode: number; readonly major: number; readonly minor: number };

const TYPE_BITS = { directory: 0o040000, file: 0o100000, symlink: 0o120000, 'character-device': 0o020000 } as const;
/** The size field has 8 hex digits. */
const FILE_BYTES_MAX = 0xffff_ffff;
/** Archives end at a multiple of this, as `cpio` writes them. */
const BLOCK_BYTES = 512;

/** Parents must come before what they hold; paths are relative, without `..`. */
export function cpioArchive(entries: readonly CpioEntry[]): Uint8Array {
  const parts: Uint8Array[] = [];
  entries.forEach((entry, index) => {
    if (!isSafePath(entry.path)) throw new Error(`not a path for an archive: ${entry.path}`);
    addEntry(parts, index + 1, entry.path, entry);
  });
  addEntry(parts, 0, 'TRAILER!!!', null);
  const bytes = parts.reduce((sum, part) => sum + part.byteLength, 0);
  parts.push(new Uint8Array((BLOCK_BYTES - (bytes % BLOCK_BYTES)) % BLOCK_BYTES));
  return Buffer.concat(parts);
}

function isSafePath(path: string): boolean {
  return path !== '' && path.split('/').every((part) => part !== '' && part !== '.' && part !== '..') && !path.includes('\0');
}

function addEntry(parts: Uint8Array[], inode: number, path: string, entry: CpioEntry | null): void {
  const content = contentOf(entry);
  if (content.byteLength > FILE_BYTES_MAX) throw new Error(`too large for an archive: ${path}`);
  const name = Buffer.from(`${path}\0`);
  const device = entry?.type === 'character-device' ? entry : { major: 0, minor: 0 };
  const fields = [
    inode,
    entry === null ? 0 : TYPE_BITS[entry.type] | (entry.type === 'symlink' ? 0o777 : entry.mode),
    0, // uid
    0, // gid
    entry?.type === 'directory' ? 2 : 1, // links
    0, // mtime
    content.byteLength,
    0, // device of the archived file
    0,
    device.major,
    device.minor,
    name.byteLength,
    0, // checksum: not in this form
  ];
  const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`, 'latin1');
  parts.push(header, name, padding(header.byteLength + name.byteLength), content, padding(content.byteLength));
}

function contentOf(entry: CpioEntry | null): Uint8Array {
  if (entry?.type === 'file') return entry.content;
  return entry?.type === 'symlink' ? Buffer.from(entry.target) : new Uint8Array();
}

function padding(bytes: number): Uint8Array {
  return new Uint8Array((4 - (bytes % 4)) % 4);
}
