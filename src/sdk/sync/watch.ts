// Which paths may have changed since they were last looked at, on either side. Bounded: of too many at once, all are looked at.
import { type FSWatcher, watch } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const PATHS_MAX = 2_000;
/** What is written comes in pieces. */
const SETTLE_MS = 60;
/** Where the kernel watches no more directories for us. */
const LOOK_EVERY_MS = 2_000;

export class Dirty {
  #all = true;
  #paths = new Set<string>();
  #wake: () => void = () => {};
  #failure: { readonly error: unknown } | null = null;

  add(path: string): void {
    if (path === '' || this.#paths.size >= PATHS_MAX) this.#all = true;
    if (!this.#all) this.#paths.add(path);
    else this.#paths.clear();
    this.#wake();
  }

  fail(error: unknown): void {
    this.#failure ??= { error };
    this.#wake();
  }

  get isEmpty(): boolean {
    return !this.#all && this.#paths.size === 0;
  }

  /** Null: everything. Without paths that lie in others. */
  take(): readonly string[] | null {
    const paths = this.#all ? null : [...this.#paths].filter((path) => !this.#hasAbove(path));
    this.#all = false;
    this.#paths = new Set();
    return paths;
  }

  #hasAbove(path: string): boolean {
    for (let at = path.indexOf('/'); at >= 0; at = path.indexOf('/', at + 1)) if (this.#paths.has(path.slice(0, at))) return true;
    return false;
  }

  /** Until something may have changed, and a moment longer. */
  async wait(signal: AbortSignal): Promise<void> {
    while (this.isEmpty && this.#failure === null) {
      signal.throwIfAborted();
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        signal.addEventListener('abort', () => resolve(), { once: true });
      });
    }
    if (this.#failure !== null) throw this.#failure.error;
    await sleep(SETTLE_MS, undefined, { signal });
  }
}

/** Each directory by a watch of its own, which stands before the directory is read. */
export class HereWatch implements Disposable {
  readonly #root: string;
  readonly #dirty: Dirty;
  readonly #watchers = new Map<string, FSWatcher>();
  #timer: NodeJS.Timeout | null = null;

  constructor(root: string, dirty: Dirty) {
    this.#root = root;
    this.#dirty = dirty;
  }

  add(path: string): void {
    if (this.#watchers.has(path) || this.#timer !== null) return;
    let watcher: FSWatcher;
    try {
      watcher = watch(join(this.#root, path));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT' || code === 'ENOTDIR') return; // it went: its parent says so
      if (code !== 'ENOSPC' && code !== 'EMFILE') throw error;
      this.#lookInstead();
      return;
    }
    this.#watchers.set(path, watcher);
    watcher.on('change', (_, name) => {
      const text = name?.toString() ?? '';
      this.#dirty.add(path === '' ? text : text === '' ? path : `${path}/${text}`);
    });
    const forget = (): void => {
      watcher.close();
      this.#watchers.delete(path);
    };
    watcher.on('error', forget);
  }

  /** What lay there is not there any more, or is something else. */
  drop(path: string): void {
    for (const [watched, watcher] of this.#watchers) {
      if (watched !== path && !watched.startsWith(`${path}/`)) continue;
      watcher.close();
      this.#watchers.delete(watched);
    }
  }

  #lookInstead(): void {
    this.#close();
    this.#timer = setInterval(() => this.#dirty.add(''), LOOK_EVERY_MS);
  }

  #close(): void {
    for (const watcher of this.#watchers.values()) watcher.close();
    this.#watchers.clear();
  }

  [Symbol.dispose](): void {
    this.#close();
    if (this.#timer !== null) clearInterval(this.#timer);
  }
}
