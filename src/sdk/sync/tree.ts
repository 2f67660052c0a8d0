// What two directories that are kept alike hold, and what is to be done about each name. Pure. Always true:
//   1. What one side has and the other one never had is never removed.
//   2. What both sides have changed is never overwritten: the sandbox's is kept beside under another name.
//   3. Nothing is removed unless removals are to follow, and then only what has not been changed since it was alike.

export type Node =
  | { readonly type: 'file'; readonly size: number; readonly mtimeMs: number; readonly mode: number }
  | { readonly type: 'directory' }
  | { readonly type: 'symlink'; readonly target: string };

/** By path, relative, by slashes, without dots. */
export type Tree = Map<string, Node>;

export type Sides = { readonly here: Node | null; readonly guest: Node | null };

export type Directions = { readonly twoWay: boolean; readonly removes: boolean };

export type Decision =
  /** Either they are alike, or what differs is to stay as it is. */
  | 'nothing'
  /** They are alike, and it is to be remembered that they were. */
  | 'remember'
  | 'up'
  | 'down'
  | 'remove in the sandbox'
  | 'remove here'
  /** Both have another file of the same size: alike only if their bytes are. */
  | 'compare'
  /** Both were changed: the sandbox's is to be kept beside. */
  | 'conflict';

/** `before`: as both were when they were last alike; null where they never were. */
export function decide(before: Sides | null, { here, guest }: Sides, { twoWay, removes }: Directions): Decision {
  if (isSame(here, guest)) return 'remember';
  const isOurs = !isSame(here, before?.here ?? null);
  const isTheirs = !isSame(guest, before?.guest ?? null);
  if (isOurs && isTheirs) {
    if (guest === null) return 'up';
    if (here === null) return twoWay ? 'down' : 'nothing';
    return here.type === 'file' && guest.type === 'file' && here.size === guest.size ? 'compare' : 'conflict';
  }
  if (isOurs) {
    if (here !== null) return 'up';
    return removes ? 'remove in the sandbox' : 'nothing';
  }
  if (!isTheirs || !twoWay) return 'nothing';
  if (guest !== null) return 'down';
  return removes ? 'remove here' : 'nothing';
}

export function isSame(a: Node | null, b: Node | null): boolean {
  if (a === null || b === null) return a === b;
  if (a.type === 'file' && b.type === 'file') return a.size === b.size && a.mtimeMs === b.mtimeMs && a.mode === b.mode;
  if (a.type === 'symlink' && b.type === 'symlink') return a.target === b.target;
  return a.type === b.type;
}

/** Where what the sandbox had is kept: `notes.conflict-20260102T030405Z.txt`. */
export function conflictName(path: string, atMs: number, isTaken: (path: string) => boolean): string {
  const stamp = new Date(atMs).toISOString().replaceAll(/[-:]|\.\d+/g, '');
  const slash = path.lastIndexOf('/');
  const dot = path.lastIndexOf('.');
  const cut = dot > slash + 1 ? dot : path.length;
  for (let count = 1; ; count += 1) {
    const name = `${path.slice(0, cut)}.conflict-${stamp}${count === 1 ? '' : `-${count}`}${path.slice(cut)}`;
    if (!isTaken(name)) return name;
  }
}

/**
 * Why a link of the sandbox's is not made here; null: it leads to something within the directory, whatever other links of its
 * kind are on the way. `..` behind a name would be taken from where that name leads, so it stands at the beginning alone.
 */
export function linkRefusal(path: string, target: string): string | null {
  if (target.startsWith('/') || target === '' || target.includes('\0')) return 'it leads to an absolute path';
  const parts = target.split('/').filter((part) => part !== '' && part !== '.');
  const up = parts.findIndex((part) => part !== '..');
  const ups = up < 0 ? parts.length : up;
  if (parts.slice(ups).includes('..')) return 'it goes through .. behind a name';
  return ups >= path.split('/').length ? 'it leads out of the directory' : null;
}

const NAME_BYTES_MAX = 255;
const PATH_BYTES_MAX = 4_000;

/** Why a path of the sandbox's is none that can be had here; null: it can. */
export function pathRefusal(path: string): string | null {
  if (Buffer.byteLength(path) > PATH_BYTES_MAX) return 'its path is too long';
  for (const name of path.split('/')) {
    if (name === '' || name === '.' || name === '..') return 'its name leads elsewhere';
    if (name.includes('\0') || name.includes('\\')) return 'its name has a backslash, or is no UTF-8';
    if (Buffer.byteLength(name) > NAME_BYTES_MAX) return 'its name is too long';
  }
  return null;
}

export function parentOf(path: string): string {
  return path.slice(0, Math.max(0, path.lastIndexOf('/')));
}
