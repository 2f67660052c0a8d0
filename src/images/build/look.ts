// Paths looked up in the tree of an image, as a process that has it for its root would: symlinks lead nowhere else.
import type { Inode, Tree } from '../layers/tree.ts';

const LINKS_FOLLOWED_MAX = 40;

export type Found = {
  /** Null: nothing is there. */
  readonly inode: Inode | null;
  /** Where it really is, or would be: no symlinks before the last name. */
  readonly path: readonly string[];
};

type Root = Pick<Tree, 'root'>;

export function partsOf(path: string): string[] {
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '' && part !== '.') parts.push(part);
  }
  return parts;
}

/** What a path leads to. What is missing in its middle is as it is written. */
export function lookUp({ root }: Root, path: string, last: 'follow' | 'as-it-is'): Found {
  const left = namesOf(path).reverse();
  let stack: { readonly name: string; readonly inode: Inode | null }[] = [];
  let followed = 0;
  for (let name = left.pop(); name !== undefined; name = left.pop()) {
    if (name === '..') {
      stack.pop();
      continue;
    }
    const here = stack.length === 0 ? root : (stack.at(-1)?.inode ?? null);
    const inode = here?.children?.get(name)?.inode ?? null;
    if (inode?.type === 'symlink' && (left.length > 0 || last === 'follow')) {
      followed += 1;
      if (followed > LINKS_FOLLOWED_MAX) return { inode: null, path: [...stack.map((each) => each.name), name] };
      if (inode.link.startsWith('/')) stack = [];
      left.push(...namesOf(inode.link).reverse());
      continue;
    }
    stack.push({ name, inode });
  }
  return { inode: stack.length === 0 ? root : (stack.at(-1)?.inode ?? null), path: stack.map(({ name }) => name) };
}

function namesOf(path: string): string[] {
  return path.split('/').filter((part) => part !== '' && part !== '.');
}

/** All that is below a directory, in the order of names; itself not. */
export function* below(inode: Inode, prefix = ''): Generator<[path: string, inode: Inode]> {
  const stack: { readonly prefix: string; readonly names: Iterator<string>; readonly inode: Inode }[] = [];
  const enter = (directory: Inode, at: string) =>
    stack.push({ prefix: at, names: [...(directory.children?.keys() ?? [])].sort().values(), inode: directory });
  enter(inode, prefix);
  for (let top = stack.at(-1); top !== undefined; top = stack.at(-1)) {
    const { value: name, done } = top.names.next();
    if (done === true) {
      stack.pop();
      continue;
    }
    const child = top.inode.children?.get(name)?.inode;
    if (child === undefined) continue;
    const path = top.prefix === '' ? name : `${top.prefix}/${name}`;
    yield [path, child];
    if (child.children !== null) enter(child, path);
  }
}
