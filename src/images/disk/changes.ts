// What differs between two private layers over one image, as a sandbox sees it: files that are there, not what a layer notes. Pure, but for
// content, which whoever asks compares.
import type { Inode } from './ext4.ts';

export const NODE_TYPES = ['file', 'directory', 'symlink', 'device', 'fifo', 'socket'] as const;
export type NodeType = (typeof NODE_TYPES)[number];

type Sized = { readonly sizeBytes: number };

/** `C`: what a file of a layer is read by. */
export type Node<C extends Sized = Inode> = {
  readonly type: NodeType;
  /** Permissions. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Of a symlink; which device it is. */
  readonly target: string;
  /** Null: of the image. */
  readonly inode: C | null;
};

/** By path, without a slash in front. */
export type Tree<C extends Sized = Inode> = ReadonlyMap<string, Node<C>>;

/** What a layer has: files of its own, names that it takes away, and directories that hide what the image has in them. */
export type Layer<C extends Sized = Inode> = {
  readonly nodes: Tree<C>;
  readonly gone: ReadonlySet<string>;
  readonly opaque: ReadonlySet<string>;
};

export const ASPECTS = ['type', 'content', 'mode', 'owner', 'target'] as const;
export type Aspect = (typeof ASPECTS)[number];

export type Change<C extends Sized = Inode> = {
  readonly path: string;
  readonly change: 'added' | 'removed' | 'changed';
  readonly before: Node<C> | null;
  readonly after: Node<C> | null;
  /** Of what is changed. */
  readonly what: readonly Aspect[];
};

/** As overlayfs joins them. */
export function joined<C extends Sized>(image: Tree<C>, { nodes, gone, opaque }: Layer<C>): Tree<C> {
  const isHidden = (path: string): boolean => {
    if (gone.has(path)) return true;
    for (let at = path.lastIndexOf('/'); at > 0; at = path.lastIndexOf('/', at - 1)) {
      const above = path.slice(0, at);
      const own = nodes.get(above);
      if (gone.has(above) || opaque.has(above) || (own !== undefined && own.type !== 'directory')) return true;
    }
    return false;
  };
  const found = new Map<string, Node<C>>();
  for (const [path, node] of image) if (!isHidden(path)) found.set(path, node);
  for (const [path, node] of nodes) found.set(path, node);
  return found;
}

/** In the order of their paths. `isSameContent` is asked of two files of which at least one is a layer's. */
export async function* changesBetween<C extends Sized>(
  before: Tree<C>,
  after: Tree<C>,
  isSameContent: (path: string, before: Node<C>, after: Node<C>) => Promise<boolean>,
): AsyncGenerator<Change<C>> {
  const paths = [...new Set([...before.keys(), ...after.keys()])].sort();
  for (const path of paths) {
    const [old, now] = [before.get(path) ?? null, after.get(path) ?? null];
    if (old === null || now === null) {
      yield { path, change: old === null ? 'added' : 'removed', before: old, after: now, what: [] };
      continue;
    }
    if (old.inode === null && now.inode === null) continue;
    const what = await aspects(path, old, now, isSameContent);
    if (what.length > 0) yield { path, change: 'changed', before: old, after: now, what };
  }
}

async function aspects<C extends Sized>(
  path: string,
  before: Node<C>,
  after: Node<C>,
  isSameContent: (path: string, before: Node<C>, after: Node<C>) => Promise<boolean>,
): Promise<Aspect[]> {
  if (before.type !== after.type) return ['type'];
  const isOther: readonly (readonly [Aspect, boolean])[] = [
    ['content', before.type === 'file' && !(await isSameContent(path, before, after))],
    ['mode', before.mode !== after.mode],
    ['owner', before.uid !== after.uid || before.gid !== after.gid],
    ['target', before.target !== after.target],
  ];
  return isOther.flatMap(([aspect, differs]) => (differs ? [aspect] : []));
}
