// What a COPY or ADD puts into its stage: names and attributes, worked out in trees, without a file on this machine. The
// content comes when the layer is written (layer.ts).

import { ArchiveError, shown } from '../../domain/archive-error.ts';
import { globSource } from '../../domain/dockerignore.ts';
import type { Inode, Tree } from '../layers/tree.ts';
import { below, lookUp, partsOf } from './look.ts';

type Root = Pick<Tree, 'root'>;

export type Owner = { readonly uid: number; readonly gid: number };

export type CopyPlan = {
  readonly source: Root;
  /** Of the source that is not there for a build: `.dockerignore`, and `--exclude`. */
  readonly isIgnored: (path: string) => boolean;
  readonly sources: readonly string[];
  readonly target: string;
  readonly workdir: string;
  /** Null: as it is in the source. */
  readonly owner: Owner | null;
  readonly mode: ModeChange | null;
  readonly parents: boolean;
  readonly clampMtimeSeconds: number | null;
  /** Of a directory that is made for what is copied, where nothing of that says when it was written. */
  readonly nowSeconds: number;
  /** What becomes of a file that is an archive; null: it is a file like others. */
  readonly unpacked: ((inode: Inode) => Promise<Root | null>) | null;
};

/** By path in the source, for the key of the cache: the same gives the same files, wherever they go. */
export type Picked = {
  readonly path: string;
  readonly inode: Inode;
  /** What `--parents` keeps of the path: all of it, or what stands behind `/./`. */
  readonly below: string;
};

/** An octal number, or `u+x,g-w`. */
export type ModeChange = (mode: number, isDirectory: boolean) => number;

export class CopyError extends Error {}

/** What the sources of a COPY are. @throws CopyError naming one that is not there. */
export function pick(source: Root, sources: readonly string[], isIgnored: (path: string) => boolean): readonly (readonly Picked[])[] {
  return sources.map((text) => {
    const isPattern = /[*?[]/.test(text);
    // A pattern may fit nothing: `COPY package.json yarn.lock* ./` is written for that.
    if (isPattern) return matching(source, text, isIgnored);
    const found = exactly(source, text, isIgnored);
    if (found.length > 0) return found;
    throw new CopyError(`${shown(text)} is not there${isIgnored(partsOf(text).join('/')) ? ': .dockerignore leaves it out' : ''}`);
  });
}

function exactly(source: Root, text: string, isIgnored: (path: string) => boolean): Picked[] {
  const path = partsOf(text).join('/');
  const { inode } = lookUp(source, path, 'follow');
  const isGone =
    inode === null ||
    (path !== '' && isIgnored(path) && (inode.children === null || [...below(inode, path)].every(([each]) => isIgnored(each))));
  return isGone ? [] : [{ path, inode, below: behindPivot(text, path) }];
}

function matching(source: Root, text: string, isIgnored: (path: string) => boolean): Picked[] {
  const parts = partsOf(text);
  const fits = new RegExp(`^${globSource(parts.join('/'))}$`);
  const found: Picked[] = [];
  const deep = parts.includes('**');
  for (const [path, inode] of below(source.root)) {
    if (!deep && path.split('/').length !== parts.length) continue;
    if (fits.test(path) && !isIgnored(path)) {
      const led = inode.type === 'symlink' ? (lookUp(source, path, 'follow').inode ?? inode) : inode;
      found.push({ path, inode: led, below: behindPivot(text, path) });
    }
  }
  return found;
}

/** The part of a path that was found for `text`, behind its `/./`. */
function behindPivot(text: string, path: string): string {
  const at = text.indexOf('/./');
  return at < 0
    ? path
    : path
        .split('/')
        .slice(partsOf(text.slice(0, at)).length)
        .join('/');
}

/** The tree of a layer: what is copied, and the directories above it. `stage`: what is there before. */
export async function copyTree(stage: Root, plan: CopyPlan): Promise<LayerTree> {
  const picked = pick(plan.source, plan.sources, plan.isIgnored);
  const out = new LayerTree(stage, plan.owner ?? { uid: 0, gid: 0 }, timeOfMade(picked.flat(), plan));
  const target = plan.target.startsWith('/') ? plan.target : `${plan.workdir}/${plan.target}`;
  const files = picked.flat().length;
  const toDirectory = /(^|\/)\.{0,2}$/.test(plan.target) || lookUp(stage, target, 'follow').inode?.type === 'directory';
  if (files > 1 && !toDirectory) throw new CopyError(`several files go into a directory: end ${shown(plan.target)} with a /`);
  for (const { path, inode, below: kept } of picked.flat()) {
    const archive = inode.type === 'file' && plan.unpacked !== null ? await plan.unpacked(inode) : null;
    if (archive !== null) {
      for (const [name, entry] of below(archive.root)) out.place(`${target}/${name}`, entry, entry);
    } else if (plan.parents) {
      const at = `${target}/${kept}`;
      if (inode.children === null) out.place(at, null, changed(inode, plan));
      else copyBelow(out, at, path, inode, plan);
    } else if (inode.children !== null) {
      copyBelow(out, target, path, inode, plan);
    } else {
      const name = path.slice(path.lastIndexOf('/') + 1);
      out.place(toDirectory ? `${target}/${name}` : target, null, changed(inode, plan));
    }
  }
  return out;
}

/**
 * When a directory was written that is made for these, in seconds: with the newest of them, so that the same files give the same layer whenever they
 * are copied (docs/decisions/0056-when-a-directory-was-made.md).
 */
function timeOfMade(picked: readonly Picked[], { clampMtimeSeconds, isIgnored, nowSeconds }: CopyPlan): number {
  if (clampMtimeSeconds !== null) return clampMtimeSeconds;
  let newest = 0;
  for (const { path, inode } of picked) {
    if (inode.children === null) newest = Math.max(newest, inode.mtimeSeconds);
    else
      for (const [each, { type, mtimeSeconds }] of below(inode, path))
        if (type !== 'directory' && !isIgnored(each)) newest = Math.max(newest, mtimeSeconds);
  }
  return newest === 0 ? nowSeconds : newest;
}

function copyBelow(out: LayerTree, target: string, path: string, directory: Inode, plan: CopyPlan): void {
  out.directory(target);
  for (const [each, inode] of below(directory)) {
    if (plan.isIgnored(path === '' ? each : `${path}/${each}`)) continue;
    out.place(`${target}/${each}`, inode, changed(inode, plan));
  }
}

function changed(inode: Inode, { owner, mode, clampMtimeSeconds }: CopyPlan): Inode {
  const isLink = inode.type === 'symlink';
  return {
    ...inode,
    ...(owner ?? {}),
    mode: mode === null || isLink ? inode.mode : mode(inode.mode, inode.type === 'directory'),
    mtimeSeconds: clampMtimeSeconds === null ? inode.mtimeSeconds : Math.min(inode.mtimeSeconds, clampMtimeSeconds),
  };
}

/** A layer in the making. Directories that are there already keep what they are. */
export class LayerTree {
  readonly root: Tree['root'];
  readonly #stage: Root;
  readonly #owner: Owner;
  readonly #mtimeSeconds: number;
  /** One file that has two names keeps them. */
  readonly #copies = new Map<Inode, Inode>();

  /** `mtimeSeconds`: of the directories that it makes. */
  constructor(stage: Root, owner: Owner, mtimeSeconds: number) {
    this.#stage = stage;
    this.#owner = owner;
    this.#mtimeSeconds = mtimeSeconds;
    this.root = { ...stage.root, children: new Map() };
  }

  /** Whether nothing would be in the layer. */
  get isEmpty(): boolean {
    return this.root.children.size === 0;
  }

  directory(path: string): void {
    this.#open(lookUp(this.#stage, path, 'follow').path, path);
  }

  /** `of`: the file that it is a copy of, whose other names, if they come too, are names of one file here as well; null: one of its own. */
  place(path: string, of: Inode | null, inode: Inode): void {
    const at = path.lastIndexOf('/');
    const name = partsOf(path).at(-1);
    if (name === undefined) return;
    const parent = this.#open(lookUp(this.#stage, path.slice(0, at), 'follow').path, path);
    const before = parent.there?.children?.get(name)?.inode ?? null;
    const here = parent.inode.children?.get(name)?.inode ?? null;
    if (inode.children !== null) {
      // A symlink to a directory is what is copied into.
      const led = before?.type === 'symlink' ? lookUp(this.#stage, path, 'follow') : null;
      if (led?.inode?.type === 'directory') return;
      if (before !== null && before.type !== 'directory')
        throw new CopyError(`${shown(path)} is a file in the image, and a directory is to be copied there`);
      if (here === null) {
        const kept = before ?? inode;
        parent.inode.children?.set(name, { inode: { ...kept, children: new Map() }, layer: 0 });
      }
      return;
    }
    if (before?.type === 'directory' || here?.type === 'directory')
      throw new CopyError(`${shown(path)} is a directory in the image, and a file is to be copied there`);
    const copy = (of === null ? undefined : this.#copies.get(of)) ?? inode;
    if (of !== null) this.#copies.set(of, copy);
    parent.inode.children?.set(name, { inode: copy, layer: 0 });
  }

  #open(parts: readonly string[], asked: string): { inode: Inode; there: Inode | null } {
    let inode: Inode = this.root;
    let there: Inode | null = this.#stage.root;
    for (const part of parts) {
      const before: Inode | null = there?.children?.get(part)?.inode ?? null;
      if (before !== null && before.type !== 'directory') throw new CopyError(`${shown(asked)} lies below something that is no directory`);
      let next: Inode | undefined = inode.children?.get(part)?.inode;
      if (next !== undefined && next.children === null) throw new CopyError(`${shown(asked)} lies below something that is no directory`);
      if (next === undefined) {
        next = before === null ? this.#made() : { ...before, children: new Map() };
        inode.children?.set(part, { inode: next, layer: 0 });
      }
      inode = next;
      there = before;
    }
    return { inode, there };
  }

  #made(): Inode {
    return {
      ...{ type: 'directory', mode: 0o755, mtimeSeconds: this.#mtimeSeconds, sizeBytes: 0, link: '' },
      ...{ devMajor: 0, devMinor: 0, xattrs: null, place: null, children: new Map() },
      ...this.#owner,
    };
  }
}

/** `--chmod`. @throws CopyError */
export function modeChange(text: string): ModeChange {
  if (/^[0-7]{1,4}$/.test(text)) {
    const mode = Number.parseInt(text, 8);
    return () => mode;
  }
  const clauses = text.split(',').map((clause) => {
    const [, who = '', operator = '', what = ''] = /^([ugoa]*)([-+=])([rwxXst]*)$/.exec(clause) ?? [];
    if (operator === '') throw new CopyError(`--chmod=${text.slice(0, 40)} is no mode: write it like 755 or u+x`);
    return { who: who === '' || who.includes('a') ? 'ugo' : who, operator, what };
  });
  return (mode, isDirectory) => clauses.reduce((now, clause) => applyClause(now, clause, isDirectory), mode);
}

const SHIFT = { u: 6, g: 3, o: 0 } as const;

function applyClause(mode: number, { who, operator, what }: { who: string; operator: string; what: string }, isDirectory: boolean): number {
  let bits = 0;
  if (what.includes('r')) bits |= 4;
  if (what.includes('w')) bits |= 2;
  if (what.includes('x') || (what.includes('X') && (isDirectory || (mode & 0o111) !== 0))) bits |= 1;
  let [set, mask] = [0, 0];
  for (const each of who as Iterable<keyof typeof SHIFT>) {
    set |= bits << SHIFT[each];
    mask |= 7 << SHIFT[each];
  }
  if (what.includes('s')) set |= (who.includes('u') ? 0o4000 : 0) | (who.includes('g') ? 0o2000 : 0);
  if (what.includes('t')) set |= 0o1000;
  if (operator === '+') return mode | set;
  return operator === '-' ? mode & ~set : (mode & ~mask) | set;
}

/** A user or group by name, in the image's own lists. */
export function ownerOf(text: string, passwd: string, group: string): Owner {
  const [user = '', own] = text.split(':');
  const entry = (list: string, name: string) =>
    list
      .split('\n')
      .map((line) => line.split(':'))
      .find(([first]) => first === name);
  const numberOf = (value: string | undefined) => (value !== undefined && /^\d{1,9}$/.test(value) ? Number(value) : null);
  const account = entry(passwd, user);
  const uid = numberOf(user) ?? numberOf(account?.[2]);
  if (uid === null)
    throw new CopyError(
      `there is no user ${JSON.stringify(user.slice(0, 40))} in /etc/passwd of the image: write a number, or make the user first`,
    );
  // As Docker does it: a number alone is the group as well.
  if (own === undefined || own === '') return { uid, gid: numberOf(account?.[3]) ?? (numberOf(user) === null ? 0 : uid) };
  const gid = numberOf(own) ?? numberOf(entry(group, own)?.[2]);
  if (gid === null)
    throw new CopyError(
      `there is no group ${JSON.stringify(own.slice(0, 40))} in /etc/group of the image: write a number, or make the group first`,
    );
  return { uid, gid };
}

export function asCopyError(error: unknown): CopyError | null {
  if (error instanceof CopyError) return error;
  return error instanceof ArchiveError ? new CopyError(error.message) : null;
}
