// One look at both sides, and what follows from it: removals first, then what goes up as one archive, then what comes down.
import { HutchError } from '../../domain/errors.ts';
import { ConnectionError } from '../errors.ts';
import type { Guest } from './guest.ts';
import { Changed, type Here } from './here.ts';
import type { Memory } from './memory.ts';
import { conflictName, type Decision, type Directions, decide, linkRefusal, type Node, parentOf, type Sides, type Tree } from './tree.ts';
import { tarOf } from './up.ts';
import type { HereWatch } from './watch.ts';

export type SyncEvent =
  | { readonly type: 'up' | 'down'; readonly path: string; readonly bytes: number }
  | { readonly type: 'removed'; readonly path: string; readonly where: 'here' | 'sandbox' }
  /** Both had changed it: ours has the name, the sandbox's is at `kept`. */
  | { readonly type: 'conflict'; readonly path: string; readonly kept: string }
  | { readonly type: 'skipped' | 'failed'; readonly path: string; readonly why: string }
  /** With `watch`: nothing more is to be done for now. */
  | { readonly type: 'alike' };

type Parts = {
  readonly here: Here;
  readonly guest: Guest;
  readonly memory: Memory;
  readonly directions: Directions;
  readonly fileBytesMax: number;
  readonly dryRun: boolean;
  readonly signal: AbortSignal;
  readonly watcher: HereWatch | null;
  readonly tell: (event: SyncEvent) => Promise<void>;
};

type Todo = { readonly path: string; readonly sides: Sides };

const NONE: Sides = { here: null, guest: null };

export class Round {
  readonly #parts: Parts;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** Null: everything. Gives what is to be looked at once more. */
  async run(paths: readonly string[] | null): Promise<readonly string[]> {
    const { memory } = this.#parts;
    const [ours, theirs] = await this.#look(paths);
    const isLookedAt = (path: string): boolean => paths === null || paths.some((top) => path === top || path.startsWith(`${top}/`));
    const names = new Set([...ours.keys(), ...theirs.keys(), ...[...memory.keys()].filter(isLookedAt)]);
    const todo = new Map<Decision, Todo[]>();
    for (const path of names) {
      const sides = { here: ours.get(path) ?? null, guest: theirs.get(path) ?? null };
      const decision = decide(memory.get(path) ?? null, sides, this.#parts.directions);
      todo.set(decision, [...(todo.get(decision) ?? []), { path, sides }]);
    }
    return await this.#act((decision) => (todo.get(decision) ?? []).sort((a, b) => (a.path < b.path ? -1 : 1)), theirs);
  }

  async #look(paths: readonly string[] | null): Promise<readonly [Tree, Tree]> {
    const { here, guest, watcher, signal } = this.#parts;
    const [ours, theirs]: readonly [Tree, Tree] = [new Map(), new Map()];
    for (const path of paths ?? ['']) {
      await here.scan(path, ours, (directory) => watcher?.add(directory));
      if (path !== '' && ours.get(path)?.type !== 'directory') watcher?.drop(path);
      await guest.scan(path, theirs, signal);
    }
    return [ours, theirs];
  }

  async #act(of: (decision: Decision) => readonly Todo[], theirs: Tree): Promise<readonly string[]> {
    const { signal } = this.#parts;
    const again: string[] = [];
    for (const { path, sides } of of('remember')) this.#remember(path, sides);
    const conflicts = [...of('conflict')];
    for (const item of of('compare')) {
      if (await this.#haveSameBytes(item.path)) this.#remember(item.path, item.sides);
      else conflicts.push(item);
    }
    // What lies in a directory goes before it.
    for (const item of of('remove in the sandbox').toReversed()) await this.#try(item, again, () => this.#removeInGuest(item));
    for (const item of of('remove here').toReversed()) await this.#try(item, again, () => this.#removeHere(item));
    for (const item of conflicts) await this.#try(item, again, async () => void again.push(...(await this.#keepBeside(item, theirs))));
    signal.throwIfAborted();
    await this.#up(of('up'), again);
    for (const item of of('down')) await this.#try(item, again, () => this.#down(item));
    return again;
  }

  #remember(path: string, sides: Sides): void {
    const { memory, dryRun } = this.#parts;
    if (dryRun) return;
    if (sides.here === null && sides.guest === null) memory.delete(path);
    else memory.set(path, sides);
  }

  /** What concerns one path only is told, and all others go on. */
  async #try({ path }: Todo, again: string[], work: () => Promise<void>): Promise<void> {
    this.#parts.signal.throwIfAborted();
    try {
      await work();
    } catch (error) {
      if (error instanceof ConnectionError || this.#parts.signal.aborted) throw error;
      if (error instanceof Changed) return void again.push(path);
      const { code } = error as NodeJS.ErrnoException;
      if (!(error instanceof HutchError) && code === undefined) throw error;
      if (error instanceof HutchError && ['unauthenticated', 'internal'].includes(error.code)) throw error;
      await this.#parts.tell({ type: 'failed', path, why: (error as Error).message });
    }
  }

  async #removeInGuest({ path, sides }: Todo): Promise<void> {
    const { guest, dryRun, signal, tell } = this.#parts;
    if (!dryRun) {
      try {
        await guest.files.remove(guest.at(path), { ...guest.as, signal, recursive: false });
      } catch (error) {
        if (sides.guest?.type === 'directory' && error instanceof HutchError) return; // the sandbox has something of its own in it
        throw error;
      }
    }
    this.#remember(path, NONE);
    await tell({ type: 'removed', path, where: 'sandbox' });
  }

  async #removeHere({ path, sides }: Todo): Promise<void> {
    const { here, dryRun, tell } = this.#parts;
    if (sides.here === null || (!dryRun && !(await here.remove(path, sides.here)))) return;
    this.#remember(path, NONE);
    await tell({ type: 'removed', path, where: 'here' });
  }

  /** Afterwards the name is ours alone, so that it goes up, and the other one is new. */
  async #keepBeside({ path }: Todo, theirs: Tree): Promise<readonly string[]> {
    const { guest, dryRun, memory, signal, tell } = this.#parts;
    const kept = conflictName(path, Date.now(), (name) => theirs.has(name));
    await tell({ type: 'conflict', path, kept });
    if (dryRun) return [];
    await guest.files.rename(guest.at(path), guest.at(kept), { ...guest.as, signal });
    memory.delete(path);
    return [path, kept];
  }

  async #up(items: readonly Todo[], again: string[]): Promise<void> {
    const { here, guest, dryRun, directions, signal, tell } = this.#parts;
    const [first] = items;
    if (first === undefined) return;
    if (dryRun) {
      for (const { path, sides } of items) await tell({ type: 'up', path, bytes: sizeOf(sides.here) });
      return;
    }
    for (const { path, sides } of items) {
      if (sides.guest?.type !== 'directory' || !directions.removes) continue;
      await guest.files.remove(guest.at(path), { ...guest.as, signal, recursive: false }).catch(() => {}); // not empty: it is told below
    }
    const nodes = items.flatMap(({ path, sides }) => (sides.here === null ? [] : [[path, sides.here] as const]));
    const { stream, travelled } = tarOf(here, nodes);
    try {
      await guest.files.unpack(guest.root, stream, { ...guest.as, signal, mkdirs: true });
    } catch (error) {
      if (error instanceof ConnectionError || signal.aborted) throw error;
      if (items.length === 1) return await this.#try(first, again, () => Promise.reject(error));
      const half = Math.ceil(items.length / 2);
      await this.#up(items.slice(0, half), again);
      return await this.#up(items.slice(half), again);
    }
    for (const { path } of items) {
      const node = travelled.get(path);
      if (node === undefined) again.push(path);
      else {
        this.#remember(path, { here: node, guest: node });
        await tell({ type: 'up', path, bytes: sizeOf(node) });
      }
    }
  }

  async #down({ path, sides: { here: ours, guest: node } }: Todo): Promise<void> {
    const { dryRun, fileBytesMax, tell } = this.#parts;
    if (node === null) return;
    if (node.type === 'file' && node.size > fileBytesMax)
      return await tell({ type: 'skipped', path, why: `it has more than ${fileBytesMax} bytes` });
    if (node.type === 'symlink') {
      const why = linkRefusal(path, node.target);
      if (why !== null) return await tell({ type: 'skipped', path, why });
    }
    // What was put there, not what is there now: who has changed it meanwhile is to be seen by the next look.
    const put = dryRun ? node : await this.#put(path, ours, node);
    this.#remember(path, { here: put, guest: node });
    await tell({ type: 'down', path, bytes: sizeOf(node) });
  }

  /** Of other file systems times are coarser, and modes others: gives what it has become. */
  async #put(path: string, ours: Node | null, node: Node): Promise<Node> {
    const { here, guest, signal } = this.#parts;
    if (ours?.type === 'directory') throw new HutchError({ code: 'conflict', message: `${path} is a directory here` });
    if (parentOf(path) !== '') await here.makeDirectory(parentOf(path));
    if (node.type === 'file') {
      const bytes = await guest.files.readStream(guest.at(path), { ...guest.as, signal, length: node.size + 1 });
      return await here.write(path, ours, node, bytes);
    }
    if (node.type === 'directory') await here.makeDirectory(path);
    else await here.symlink(path, ours, node.target);
    return node;
  }

  /** Read from both; a file of the sandbox's may end early or late. */
  async #haveSameBytes(path: string): Promise<boolean> {
    const { here, guest, signal } = this.#parts;
    await using file = await here.read(path);
    if (file === null) return false;
    const theirs = await guest.files.readStream(guest.at(path), { ...guest.as, signal, length: file.node.size + 1 });
    const ours = file.bytes();
    let held: Uint8Array = new Uint8Array();
    for await (const chunk of theirs) {
      for (let at = 0; at < chunk.byteLength; ) {
        if (held.byteLength === 0) {
          const next = await ours.next();
          if (next.done === true) return false;
          held = next.value;
        }
        const count = Math.min(held.byteLength, chunk.byteLength - at);
        if (Buffer.compare(held.subarray(0, count), chunk.subarray(at, at + count)) !== 0) return false;
        held = held.subarray(count);
        at += count;
      }
    }
    return held.byteLength === 0 && (await ours.next()).done === true;
  }
}

function sizeOf(node: Node | null): number {
  return node?.type === 'file' ? node.size : 0;
}
