// The private layer of a sandbox at two instants, and what changed between them: which paths a layer of an image must
// bring, and which it takes away. Overlayfs keeps what was changed since the sandbox began; a step of a build wants what was changed
// since the step before.
import { ArchiveError } from '../../domain/archive-error.ts';

export type Scanned = {
  readonly kind: 'f' | 'd' | 'l' | 'p' | 'c' | 'b' | 'w';
  /** All that changes when anything about it does. */
  readonly state: string;
  /** `-`: as it stands. `o`: hides what lower layers have there. `m`: seen through a directory that was moved. */
  readonly flag: '-' | 'o' | 'm';
};
/** By path, without a leading slash; '' is the root. Each character is one byte. */
export type Scan = ReadonlyMap<string, Scanned>;

export type LayerDiff = {
  /** What overlayfs, or the difference of two instants, says is gone. */
  readonly removed: readonly string[];
  /** Directories of which nothing of lower layers is left. */
  readonly opaque: readonly string[];
  /** What is to be packed, directories before what is in them. */
  readonly changed: readonly { readonly path: string; readonly from: 'u' | 'm' }[];
};

export const SCAN_ENTRIES_MAX = 2_000_000;
const KINDS = 'fdlpcbw';

/** Records of `hutch-agent --layer list`. @throws ArchiveError for what is none. */
export function parseScan(bytes: Buffer): Scan {
  const scan = new Map<string, Scanned>();
  for (let at = 0; at < bytes.byteLength; ) {
    const end = bytes.indexOf(0, at);
    if (end < 0) throw new ArchiveError('the list of a layer is cut off');
    const record = bytes.toString('latin1', at, end);
    at = end + 1;
    const match = /^([fdlpcbw]) ((?:-?\d+ ){7})([-om]) ([\s\S]*)$/.exec(record);
    if (match === null) throw new ArchiveError('the list of a layer is damaged');
    const [, kind = '', numbers = '', flag = '', path = ''] = match;
    if (!KINDS.includes(kind)) throw new ArchiveError('the list of a layer is damaged');
    scan.set(path, { kind: kind as Scanned['kind'], state: kind === 'd' ? withoutSize(numbers) : numbers, flag: flag as Scanned['flag'] });
    if (scan.size > SCAN_ENTRIES_MAX) throw new ArchiveError(`a layer has more than ${SCAN_ENTRIES_MAX} entries`);
  }
  return scan;
}

/** A directory's size says nothing. Fields: inode, ctime, mode, uid, gid, size, mtime. */
function withoutSize(numbers: string): string {
  const [inode, ctime, mode, uid, gid, , mtime] = numbers.split(' ');
  return `${inode} ${ctime} ${mode} ${uid} ${gid} ${mtime} `;
}

/** `isOutside`: what no layer keeps, whatever happened there. */
export function diffScans(before: Scan, after: Scan, isOutside: (path: string) => boolean): LayerDiff {
  const removed: string[] = [];
  const opaque: string[] = [];
  const changed: { path: string; from: 'u' | 'm' }[] = [];
  for (const [path, now] of [...after].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))) {
    if (isOutside(path)) continue;
    const was = before.get(path);
    if (now.kind === 'w') {
      if (was?.kind !== 'w') removed.push(path);
      continue;
    }
    const isNew = was === undefined || was.kind !== now.kind || was.state !== now.state || was.flag !== now.flag;
    if (!isNew) continue;
    if (now.flag === 'o' && was?.flag !== 'o') opaque.push(path);
    changed.push({ path, from: now.flag === 'm' ? 'm' : 'u' });
  }
  for (const [path, was] of before) {
    // Made in one step and removed in a later one: overlayfs forgets it, and the layer before has it.
    if (after.has(path) || isOutside(path) || was.kind === 'w') continue;
    if (goneWith(path, after)) continue;
    removed.push(path);
  }
  return { removed: [...new Set(removed)].sort(), opaque, changed };
}

/** Whether a directory above it is gone, or is something else now: then that says it. */
function goneWith(path: string, after: Scan): boolean {
  for (let at = path.lastIndexOf('/'); at > 0; at = path.lastIndexOf('/', at - 1)) {
    const above = after.get(path.slice(0, at));
    if (above === undefined || above.kind !== 'd') return true;
  }
  return false;
}
