// Templates on disk: one directory each, complete or absent. Whoever needs one that is missing, or
// that is not what was built, builds it; everybody else who wants the same waits for that.
import { join } from 'node:path';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { joined } from '../asked.ts';
import { pause } from '../wait.ts';
import { RELEASE_MS } from './config.ts';
import { checkTemplate, filesIdentity, MEMORY_FILE, type Sound } from './manifest.ts';
import type { TemplateKey, TemplateRecipe } from './template-key.ts';

/** Building, with a wait for a slow machine's boot and for somebody else's build. */
const LOCKED_AGAIN_MS = 100;

/** A template's last use is written down so often. */
const MARK_EVERY_MS = 60 * 60_000;
const KEY = /^[0-9a-f]{40}$/;
const BUILDING = '.building-';

/** Templates whose state and disk are kept in memory, some 300 KiB each. */
const KEPT_MAX = 8;

export type Template = Sound & { readonly memoryPath: string };

/** Makes `memory` and the state in `dir`; the caller hashes and publishes them. */
export type BuildTemplate = (op: Operation, recipe: TemplateRecipe, dir: string) => Promise<void>;

export class TemplateShelf {
  readonly #host: Host;
  readonly #dir: string;
  readonly #build: BuildTemplate;
  readonly #underWay = new Map<TemplateKey, Promise<Template>>();
  /** What was read and found right, as long as the files are the same. */
  readonly #kept = new Map<TemplateKey, { readonly identity: string; readonly template: Template }>();

  constructor(host: Host, dir: string, build: BuildTemplate) {
    this.#host = host;
    this.#dir = dir;
    this.#build = build;
  }

  /** When this daemon used each of them last. */
  readonly #usedAtMs = new Map<TemplateKey, number>();

  /** Somebody is making it. */
  isUnderWay(key: TemplateKey): boolean {
    return this.#underWay.has(key);
  }

  /** The template, checked; built first where it is missing or refused. */
  async take(op: Operation, recipe: TemplateRecipe): Promise<Template> {
    const { key } = recipe;
    const nowMs = this.#host.nowMs();
    const isMarked = nowMs - (this.#usedAtMs.get(key) ?? 0) < MARK_EVERY_MS;
    if (!isMarked) this.#usedAtMs.set(key, nowMs);
    const template = await this.#take(op, recipe);
    if (!isMarked) await this.#markUse(op, key);
    return template;
  }

  /**
   * Removes those that nobody has used for so long. One that is wanted again is built again; who runs on one that is
   * removed keeps it.
   */
  async prune(
    op: Operation,
    unusedMs: number,
    how: 'remove' | 'only-list' = 'remove',
  ): Promise<readonly { readonly template: string; readonly bytes: number }[]> {
    const host = this.#host;
    if ((await host.stat(op, this.#dir)) === null) return [];
    const removed: { template: string; bytes: number }[] = [];
    for (const name of await host.list(op, this.#dir)) {
      if (how === 'remove' && name.startsWith(BUILDING)) await this.#removeAbandoned(op, name);
      if (!KEY.test(name)) continue;
      const key = name as TemplateKey;
      const usedAtMs = await this.#lastUse(op, key);
      if (host.nowMs() - usedAtMs <= unusedMs) continue;
      const bytes = (await host.stat(op, join(this.#dir, key, MEMORY_FILE)))?.allocatedBytes ?? 0;
      if (how === 'only-list') {
        removed.push({ template: key, bytes });
        continue;
      }
      // Held while it goes: who wants it meanwhile waits and builds it.
      await using lock = await host.lockFile(op, join(this.#dir, `.lock-${key}`));
      const going = join(this.#dir, `${BUILDING}${key}`); // as what a builder left that died: found by whoever looks
      if (lock !== null) await host.remove(op, going);
      // Asked last, and nothing happens between this and the rename: what was taken since stays.
      if (lock === null || host.nowMs() - (this.#usedAtMs.get(key) ?? 0) <= unusedMs) continue;
      this.#kept.delete(key);
      await host.rename(op, join(this.#dir, key), going);
      await Promise.all([host.remove(op, going), host.remove(op, this.#usePath(key))]);
      removed.push({ template: key, bytes });
    }
    return removed;
  }

  /** Of those that are here. Who runs on one of them has one more name of it, as has what is saved of that. */
  async memories(op: Operation): Promise<readonly string[]> {
    if ((await this.#host.stat(op, this.#dir)) === null) return [];
    return (await this.#host.list(op, this.#dir)).filter((name) => KEY.test(name)).map((key) => join(this.#dir, key, MEMORY_FILE));
  }

  /** Removes what builders have left that died. */
  async sweep(op: Operation): Promise<void> {
    if ((await this.#host.stat(op, this.#dir)) === null) return;
    for (const name of await this.#host.list(op, this.#dir)) if (name.startsWith(BUILDING)) await this.#removeAbandoned(op, name);
  }

  /** Of a builder, or a removal, that was cut short: nobody holds its lock. */
  async #removeAbandoned(op: Operation, name: string): Promise<void> {
    await using lock = await this.#host.lockFile(op, join(this.#dir, name.replace(BUILDING, '.lock-')));
    if (lock !== null) await this.#host.remove(op, join(this.#dir, name));
  }

  #usePath(key: TemplateKey): string {
    return join(this.#dir, `.used-${key}`);
  }

  /** Its time is what counts. Only a hint: a use that is not written down costs a template too early. */
  async #markUse(op: Operation, key: TemplateKey): Promise<void> {
    try {
      await this.#host.appendFile(op, this.#usePath(key), new TextEncoder().encode('.'));
    } catch (cause) {
      if (op.signal.aborted) throw cause;
      op.log.warn({ template: key, cause }, 'that a template was used could not be written down');
    }
  }

  async #lastUse(op: Operation, key: TemplateKey): Promise<number> {
    const infos = await Promise.all([this.#usePath(key), join(this.#dir, key)].map((path) => this.#host.stat(op, path)));
    const times = infos.map((info) => (info === null ? 0 : Number(info.modifiedNs / 1_000_000n)));
    return Math.max(...times, this.#usedAtMs.get(key) ?? 0);
  }

  async #take(op: Operation, recipe: TemplateRecipe): Promise<Template> {
    const there = await this.look(op, recipe.key);
    if (there !== null) return there;
    const { key } = recipe;
    if (this.isUnderWay(key)) op.progress({ step: 'template', detail: 'it is being made' });
    return await joined(
      op,
      'wait for a template that is being built',
      () => this.#underWay.get(key),
      () => this.#begin(op, recipe),
    );
  }

  async #begin(op: Operation, recipe: TemplateRecipe): Promise<Template> {
    const building = this.#make(op, recipe);
    this.#underWay.set(recipe.key, building);
    try {
      return await building;
    } finally {
      this.#underWay.delete(recipe.key);
    }
  }

  /** Hashes everything. What is found wrong is removed, so that the next start builds it again. */
  async verify(op: Operation, key: TemplateKey): Promise<{ readonly ok: true } | { readonly ok: false; readonly why: string }> {
    this.#kept.delete(key);
    const checked = await checkTemplate(op, this.#host, join(this.#dir, key), key, 'full');
    if (!checked.ok) await this.#host.remove(op, join(this.#dir, key));
    return checked.ok ? { ok: true } : checked;
  }

  /** As it is there now, checked; null when it is not, or is refused. */
  async look(op: Operation, key: TemplateKey): Promise<Template | null> {
    const dir = join(this.#dir, key);
    const before = await filesIdentity(op, this.#host, dir);
    if (before === null) {
      if ((await this.#host.stat(op, dir)) === null) return null;
    } else {
      const kept = this.#kept.get(key);
      if (kept?.identity === before) return kept.template;
    }
    const checked = await checkTemplate(op, this.#host, dir, key, 'quick');
    if (checked.ok) {
      const template = { memoryPath: join(dir, MEMORY_FILE), id: checked.id, state: checked.state, disk: checked.disk };
      // Of before they were read: what was changed meanwhile is read again. The first check may set the memory's mode.
      if (before !== null) this.#keep(key, before, template);
      return template;
    }
    op.log.warn({ template: key, why: checked.why }, 'template refused; it is built again');
    return null;
  }

  #keep(key: TemplateKey, identity: string, template: Template): void {
    this.#kept.delete(key);
    const [oldest] = this.#kept.keys();
    if (this.#kept.size >= KEPT_MAX && oldest !== undefined) this.#kept.delete(oldest);
    this.#kept.set(key, { identity, template });
  }

  async #make(op: Operation, recipe: TemplateRecipe): Promise<Template> {
    const { key } = recipe;
    await this.#host.makeDir(op, this.#dir, 0o711);
    await using _lock = await this.#locked(op, key);
    // Another daemon may have built it while we waited for the lock.
    const there = await this.look(op, key);
    if (there !== null) return there;
    const staging = join(this.#dir, `${BUILDING}${key}`);
    await this.#host.remove(op, staging); // of a builder that died: the lock says that there is none now
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      using release = op.releasing(RELEASE_MS);
      await this.#host.remove(release, staging);
    });
    await this.#host.makeDir(op, staging, 0o711);
    await this.#build(op, recipe, staging);
    // A running sandbox keeps the refused one's memory mapped: it is unlinked, never written.
    await this.#host.remove(op, join(this.#dir, key));
    await this.#host.rename(op, staging, join(this.#dir, key));
    const made = await this.look(op, key);
    if (made === null) throw op.error('internal', `the template ${key} is not what was just built`);
    return made;
  }

  async #locked(op: Operation, key: TemplateKey): Promise<AsyncDisposable> {
    for (;;) {
      const lock = await this.#host.lockFile(op, join(this.#dir, `.lock-${key}`));
      if (lock !== null) return lock;
      op.progress({ step: 'template', detail: 'another process is preparing it' });
      await pause(op, LOCKED_AGAIN_MS);
    }
  }
}
