// The directory in the sandbox, over the API. What it says is hostile: paths that lead elsewhere, listings without an end.
import { HutchError } from '../../domain/errors.ts';
import type { FileEntry, Files } from '../files.ts';
import { DEPTH_MAX } from './here.ts';
import { type Node, pathRefusal, type Tree } from './tree.ts';

const ENTRIES_MAX = 500_000;

type As = { readonly user?: string };

export class Guest {
  readonly files: Files;
  /** Absolute. */
  readonly root: string;
  readonly as: As;
  /** Before it was made: without it all that was in it is no removal. */
  readonly wasThere: boolean;
  readonly #isThere: boolean;
  readonly #isIgnored: (path: string) => boolean;
  readonly #onSkipped: (path: string, why: string) => void;

  private constructor(
    files: Files,
    root: string,
    { wasThere, isThere }: { readonly wasThere: boolean; readonly isThere: boolean },
    as: As,
    { isIgnored, onSkipped }: Pick<GuestOptions, 'isIgnored' | 'onSkipped'>,
  ) {
    this.files = files;
    this.root = root;
    this.#isThere = isThere;
    this.wasThere = wasThere;
    this.as = as;
    this.#isIgnored = isIgnored;
    this.#onSkipped = onSkipped;
  }

  /** Where it is; made when it is missing, unless nothing may be. */
  static async open(files: Files, path: string, options: GuestOptions): Promise<Guest> {
    const { as, signal, missing } = options;
    const there = await files.stat(path, { ...as, signal, follow: true }).catch((error: unknown) => {
      if (isNotFound(error)) return null;
      throw error;
    });
    const found = there ?? (missing === 'leave it' ? null : await files.mkdir(path, { ...as, signal, parents: true }));
    if (found !== null && found.type !== 'dir')
      throw new HutchError({ code: 'failed_precondition', message: `${path} in the sandbox is no directory` });
    return new Guest(
      files,
      (found?.path ?? path).replace(/\/+$/, '') || '/',
      { wasThere: there !== null, isThere: found !== null },
      as,
      options,
    );
  }

  at(path: string): string {
    return path === '' ? this.root : `${this.root === '/' ? '' : this.root}/${path}`;
  }

  /** Null: it is outside. */
  below(path: string): string | null {
    const prefix = this.root === '/' ? '/' : `${this.root}/`;
    if (path === this.root) return '';
    return path.startsWith(prefix) ? path.slice(prefix.length) : null;
  }

  async scan(path: string, tree: Tree, signal: AbortSignal): Promise<void> {
    try {
      if (path !== '') {
        const entry = await this.files.stat(this.at(path), { ...this.as, signal, follow: false });
        this.#add(path, entry, tree);
        if (entry.type !== 'dir') return;
      }
      for await (const entry of this.files.list(this.at(path), { ...this.as, signal, depth: DEPTH_MAX + 1 })) {
        const below = this.below(entry.path);
        if (below === null || below === '') continue;
        this.#add(below, entry, tree);
        if (tree.size > ENTRIES_MAX)
          throw new HutchError({
            code: 'resource_exhausted',
            message: `${this.root} in the sandbox has more than ${ENTRIES_MAX} files`,
            hint: 'leave some out: --exclude PATTERN',
          });
      }
    } catch (error) {
      if (!isNotFound(error) && !isNoDirectory(error)) throw error;
      // Else all of it would be taken for removed.
      if (path === '' && this.#isThere)
        throw new HutchError({
          code: 'failed_precondition',
          message: `there is no directory ${this.root} in the sandbox any more`,
          cause: error,
        });
    }
  }

  async look(path: string, signal: AbortSignal): Promise<Node | null> {
    const tree: Tree = new Map();
    try {
      this.#add(path, await this.files.stat(this.at(path), { ...this.as, signal, follow: false }), tree);
    } catch (error) {
      if (!isNotFound(error) && !isNoDirectory(error)) throw error;
    }
    return tree.get(path) ?? null;
  }

  #add(path: string, { type, size, mtimeMs, mode, target }: FileEntry, tree: Tree): void {
    if (this.#isIgnored(path)) return;
    const why = pathRefusal(path);
    if (why !== null) this.#onSkipped(path, why);
    else if (type === 'dir') tree.set(path, { type: 'directory' });
    else if (type === 'file') tree.set(path, { type: 'file', size, mtimeMs: Math.floor(mtimeMs), mode: mode & 0o777 });
    else if (type === 'symlink' && target !== null) tree.set(path, { type: 'symlink', target });
    else this.#onSkipped(path, 'it is neither a file nor a directory nor a link');
  }
}

export type GuestOptions = {
  readonly as: As;
  readonly signal: AbortSignal;
  readonly missing: 'make it' | 'leave it';
  readonly isIgnored: (path: string) => boolean;
  readonly onSkipped: (path: string, why: string) => void;
};

/** The file, not the sandbox. */
function isNotFound(error: unknown): boolean {
  return error instanceof HutchError && error.code === 'not_found' && !error.message.startsWith('there is no sandbox');
}

/** What was a directory is none any more. */
function isNoDirectory(error: unknown): boolean {
  return error instanceof HutchError && error.code === 'invalid_argument' && error.message.includes('ENOTDIR');
}
