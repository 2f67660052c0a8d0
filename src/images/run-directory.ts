// What an image has in /run. Guests have memory there, which hides it: so it lies beside the image as an archive of its own, and is put
// there at each start, as a container finds it (`mkdir /run/sshd`).
import { join } from 'node:path';
import { ArchiveError } from '../domain/archive-error.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { applyLayer, flattened, type LayerSource } from './build/flatten.ts';
import { lookUp } from './build/look.ts';
import { imageDir } from './image.ts';
import { type Inode, Tree } from './layers/tree.ts';
import type { ImagePaths } from './layout.ts';
import { readOutside } from './outside-reader.ts';

const RUN_ARCHIVE = 'run.tar';
/** It takes memory of the guest, and time of each start. */
const ENTRIES_MAX = 1_000;
const BYTES_MAX = 4 * 1024 * 1024;
/** With its headers. */
const TAR_BYTES_MAX = 2 * BYTES_MAX;
const RELEASE_MS = 60_000;
/** What Hutch itself has there. */
const OURS = /^hutch/;

export function runArchive(paths: ImagePaths, digest: string): string {
  return join(imageDir(paths, digest), RUN_ARCHIVE);
}

/** Into the directory of an image that is being made of these layers. Nothing, where there is nothing or too much. */
export async function keepRunDirectory(
  op: Operation,
  host: Host,
  dir: string,
  tree: Pick<Tree, 'root'>,
  layers: readonly LayerSource[],
): Promise<void> {
  const { inode } = lookUp(tree, '/run', 'as-it-is');
  if (inode?.children == null) return;
  const budget = { entries: 0, bytes: 0 };
  const root = { ...inode, children: kept(inode.children, budget, true) };
  if (root.children.size === 0) return;
  if (budget.entries > ENTRIES_MAX || budget.bytes > BYTES_MAX) {
    op.log.warn({ ...budget }, 'an image has too much in /run: sandboxes begin with an empty one');
    return;
  }
  // Sandboxes of an image that is here already may look for it now.
  const part = join(dir, `${RUN_ARCHIVE}.part-${op.id}`);
  await host.remove(op, part);
  await host.appendStream(op, part, flattened({ root } as Tree, layers));
  await host.rename(op, part, join(dir, RUN_ARCHIVE));
}

/** Of an image that is a squashfs file, which nobody here has unpacked. Nothing, where there is nothing, too much, or none to be read. */
export async function keepRunOfSquashfs(op: Operation, host: Host, dir: string, path: string): Promise<void> {
  const whole = join(dir, `${RUN_ARCHIVE}.whole-${op.id}`);
  try {
    const argv = ['sqfs2tar', '--subdir', 'run', '--keep-as-dir', '/dev/stdin'];
    await readOutside(op, host, argv, { from: path, to: whole, bytesMax: TAR_BYTES_MAX, what: '/run of the image' });
    const source: LayerSource = () => host.readStream(op, whole);
    const tree = new Tree();
    await applyLayer(tree, 0, source);
    await keepRunDirectory(op, host, dir, tree, [source]);
  } catch (error) {
    if (!(error instanceof ArchiveError)) throw error;
    op.log.info({ path, why: error.message }, 'of what an image has in /run nothing is kept');
  } finally {
    using late = op.releasing(RELEASE_MS);
    await host.remove(late, whole).catch((cause: unknown) => late.log.warn({ whole, cause }, 'left beside an image'));
  }
}

/** Directories, files and links; devices and pipes are made by those who use them. */
function kept(
  children: NonNullable<Inode['children']>,
  budget: { entries: number; bytes: number },
  isTop: boolean,
): NonNullable<Inode['children']> {
  const found: NonNullable<Inode['children']> = new Map();
  for (const [name, { inode, layer }] of children) {
    if (isTop && OURS.test(name)) continue;
    budget.entries += 1;
    budget.bytes += inode.sizeBytes;
    if (inode.children !== null) found.set(name, { layer, inode: { ...inode, children: kept(inode.children, budget, false) } });
    else if (inode.type === 'file' || inode.type === 'symlink') found.set(name, { layer, inode });
  }
  return found;
}
