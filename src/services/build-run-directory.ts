// /run of a sandbox lies in memory, so what a step of a build writes there is in no private layer. Docker keeps it in the image
// (`mkdir /run/php`), so it is looked at beside the layer.

import { ArchiveError } from '../domain/archive-error.ts';
import { padding } from '../domain/tar/entry.ts';
import { TAR_END, tarHeader } from '../domain/tar/header.ts';
import { TarReader } from '../domain/tar/reader.ts';
import type { Agent } from '../guest/agent.ts';
import type { Operation } from '../host/operation.ts';

const BYTES_MAX = 32 * 1024 * 1024;
const DEPTH = 16;
/** Ours, and what is mounted for a command alone. */
const OURS = /^(hutch|hutch-build|hutch-layer|secrets|shm|user|udev|mount|credentials|netns)(\/|$)/;

export type RunChanges = { readonly removed: readonly string[]; readonly archive: AsyncIterable<Uint8Array> | null };

export class RunDirectory {
  /** Null: nobody has looked yet. */
  #known: ReadonlyMap<string, string> | null = null;

  /** What is there is not a step's doing. */
  async note(op: Operation, agent: Agent): Promise<void> {
    this.#known = await entriesOf(op, agent);
  }

  async noteFirst(op: Operation, agent: Agent): Promise<void> {
    if (this.#known === null) await this.note(op, agent);
  }

  async changes(op: Operation, agent: Agent): Promise<RunChanges> {
    const before = this.#known ?? new Map<string, string>();
    const now = await entriesOf(op, agent);
    this.#known = now;
    const removed = [...before.keys()].filter((path) => !now.has(path)).map((path) => `run/${path}`);
    const changed = new Set([...now].filter(([path, state]) => before.get(path) !== state).map(([path]) => path));
    if (changed.size === 0) return { removed, archive: null };
    return { removed, archive: only(await agent.tar.pack(op, { path: '/run', user: '0' }), changed) };
  }
}

async function entriesOf(op: Operation, agent: Agent): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for await (const entries of agent.file.list(op, { path: '/run', depth: DEPTH, user: '0' })) {
    for (const { path, type, mode, uid, gid, size, mtimeMs, inode } of entries) {
      const name = Buffer.from(path as string, 'utf8')
        .toString('latin1')
        .replace(/^\/run\/?/, '');
      if (name === '' || OURS.test(name) || type === 'socket') continue;
      found.set(name, [type, mode, uid, gid, type === 'dir' ? 0 : size, type === 'dir' ? 0 : mtimeMs, inode].join(' '));
    }
  }
  return found;
}

async function* only(archive: AsyncIterable<Uint8Array>, wanted: ReadonlySet<string>): AsyncGenerator<Uint8Array> {
  await using reader = new TarReader(archive);
  let total = 0;
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    const name = entry.path.replace(/^\.\//, '').replace(/\/$/, '');
    if (!wanted.has(name)) continue;
    total += entry.sizeBytes;
    if (total > BYTES_MAX) throw new ArchiveError(`a step left more than ${BYTES_MAX} bytes in /run`);
    const link = entry.type === 'hardlink' ? `run/${entry.link.replace(/^\.\//, '')}` : entry.link;
    yield tarHeader({ ...entry, path: `run/${name}${entry.type === 'directory' ? '/' : ''}`, link });
    if (entry.type !== 'file' || entry.sizeBytes === 0) continue;
    for await (const piece of reader.content()) yield Buffer.from(piece);
    yield Buffer.alloc(padding(entry.sizeBytes));
  }
  yield TAR_END;
}
