// Hutch's own files that saved sandboxes go on with, of whatever release: agents (agents.ts) and layers over images (over.ts), each
// once, under its digest. Which of them nobody needs any more is found by looking at what is saved and at what runs, not by
// counting, so it is also found after a crash.
import { basename, join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { GvisorConfig } from './config.ts';
import type { Overs } from './over.ts';
import { OVER_DIR } from './paths.ts';
import { MANIFEST, NOTE_BYTES_MAX, programsNamedIn, SAVING } from './saved.ts';

const KEPT = /^(?:agent|over)-([0-9a-f]{16})$/;
/** What is being removed: nobody finds it by this name. */
const GOING = '.seed-';
/** From a root to the notes below it. */
const DEPTH = 3;
const COMMAND_BYTES_MAX = 1024 * 1024;
/** The daemon looks every hour. */
const STRAY_AFTER_MS = 24 * 60 * 60_000;

export type Pruned = { readonly path: string; readonly bytes: number };

export class Kept {
  readonly #host: Host;
  readonly #dir: string;
  readonly #roots: readonly string[];
  readonly #overs: Overs;
  #begun = 0;
  #ended = 0;

  constructor({ host, basesDir, savedRoots }: Pick<GvisorConfig, 'host' | 'basesDir' | 'savedRoots'>, overs: Overs) {
    this.#host = host;
    this.#dir = basesDir;
    this.#roots = savedRoots;
    this.#overs = overs;
  }

  /** What is being saved or taken up may not be written down yet, nor run: until it is, nothing is removed. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    this.#begun += 1;
    try {
      return await work();
    } finally {
      this.#ended += 1;
    }
  }

  /** Removes what nothing saved and nothing that runs goes on with. */
  async prune(op: Operation): Promise<readonly Pruned[]> {
    const host = this.#host;
    const pruned: Pruned[] = [];
    const begun = this.#begun;
    const unused = await this.#unused(op);
    for (const path of unused) {
      // What began meanwhile may need it, and was not looked at.
      if (this.#begun !== begun) return pruned;
      const going = join(this.#dir, `${GOING}${basename(path)}`);
      await host.remove(op, going);
      await host.rename(op, path, going);
      const bytes = await sizeOf(op, host, going);
      await host.remove(op, going);
      pruned.push({ path, bytes });
    }
    return pruned;
  }

  /** What has lain there unused for longer than it may. */
  async strays(op: Operation): Promise<readonly string[]> {
    const host = this.#host;
    const strays: string[] = [];
    for (const path of await this.#unused(op)) {
      const info = await host.stat(op, path);
      if (info !== null && host.nowMs() - Number(info.changedNs / 1_000_000n) > STRAY_AFTER_MS) strays.push(path);
    }
    return strays;
  }

  async #unused(op: Operation): Promise<readonly string[]> {
    const host = this.#host;
    if (this.#begun !== this.#ended || (await host.stat(op, this.#dir)) === null) return [];
    const there = (await host.list(op, this.#dir)).filter((name) => KEPT.test(name));
    const own = `${OVER_DIR}${await this.#overs.name(op)}`;
    if (there.every((name) => name === own)) return [];
    const needed = new Set<string>();
    for (const root of this.#roots) await this.#addNamedBelow(op, root, DEPTH, needed);
    const running = await this.#running(op);
    return there
      .filter((name) => name !== own && !needed.has(KEPT.exec(name)?.[1] ?? '') && !running.some((line) => line.includes(name)))
      .map((name) => join(this.#dir, name));
  }

  async #addNamedBelow(op: Operation, dir: string, depth: number, found: Set<string>): Promise<void> {
    const host = this.#host;
    if ((await host.stat(op, dir))?.type !== 'directory') return;
    for (const note of [MANIFEST, SAVING]) {
      const path = join(dir, note);
      const info = await host.stat(op, path);
      // A larger one is not of this backend's making.
      if (info === null || info.type !== 'file' || info.sizeBytes > NOTE_BYTES_MAX) continue;
      const text = new TextDecoder().decode(await host.readFile(op, path, NOTE_BYTES_MAX));
      for (const name of programsNamedIn(text)) found.add(name);
    }
    if (depth === 0) return;
    for (const name of await host.list(op, dir)) await this.#addNamedBelow(op, join(dir, name), depth - 1, found);
  }

  /** What a sandbox goes on with is named on the command line of its shim. */
  async #running(op: Operation): Promise<readonly string[]> {
    const host = this.#host;
    const lines: string[] = [];
    for (const pid of await host.list(op, '/proc')) {
      if (!/^\d+$/.test(pid)) continue;
      try {
        const line = new TextDecoder().decode(await host.readFile(op, `/proc/${pid}/cmdline`, COMMAND_BYTES_MAX));
        if (line.includes(this.#dir)) lines.push(line);
      } catch (error) {
        // It has ended since, or is another user's.
        if (!(error instanceof HutchError) || error.code === 'cancelled' || error.code === 'deadline_exceeded') throw error;
      }
    }
    return lines;
  }
}

async function sizeOf(op: Operation, host: Host, path: string): Promise<number> {
  const info = await host.stat(op, path);
  if (info?.type !== 'directory') return info?.sizeBytes ?? 0;
  let bytes = 0;
  for (const name of await host.list(op, path)) bytes += await sizeOf(op, host, join(path, name));
  return bytes;
}
