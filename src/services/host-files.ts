// Large files of a sandbox whose disk this host mounts and serves itself. They are not carried through its agent, a kernel in user
// space and the sockets between: the agent opens the file, with the rights of the user who asks, and the daemon reads or writes it
// where it lies. It alone has it open, and lets go of it before the disk is to be let go of: a client's descriptor could hold that for ever.
//
// What the daemon opens by its path must be what the agent has open. Of a new file that is shown by a size that nobody guesses, which
// the agent gives it for a moment; of one that is there by its path before and after, its rights and its size, where nothing else is
// mounted on the way. Whatever is in doubt goes through the agent.
import type { RootOnHost } from '../backends/backend.ts';
import type { Agent } from '../guest/agent.ts';
import type { ReadSpec, WriteSpec } from '../guest/agent-files.ts';
import type { Entry } from '../guest/messages.ts';
import { abortError } from '../host/errors.ts';
import type { Host, InsideFile } from '../host/host.ts';
import { wholePages } from '../host/inside.ts';
import { LARGE_BYTES_MAX, letGo, takeBuffer } from '../host/large-buffers.ts';
import type { Operation } from '../host/operation.ts';
import type { Run } from './run.ts';

/** Smaller ones are there sooner than they are found. */
const FROM_BYTES = 4 * 1024 * 1024;
/** Each waits for the disk, which is the quicker the more it has at once. */
const WRITE_BYTES = 4 * 1024 * 1024;
/** So much is written before the disk is asked to begin with it. */
const SYNC_EVERY_BYTES = 32 * 1024 * 1024;
const PIECES_AHEAD = 4;
const MOUNTS_BYTES_MAX = 256 * 1024;
/** Above what anybody would give a file, below what file systems can. */
const [SHOWN_MIN_BYTES, SHOWN_SPREAD_BYTES] = [2 ** 33, 2n ** 40n];
/** It is the entry process, whose descriptors root sees. */
const AGENT_PID = 1;
const ROOT = '0';

type Bytes = AsyncGenerator<Uint8Array, unknown, undefined>;
export type Read = { readonly entry: Entry; readonly bytes: Bytes };

/** Those that a daemon has open of one run. */
export class HostFiles {
  readonly #open = new Set<HostFile>();
  #under = 0;
  #holds = 0;
  #changed = Promise.withResolvers<void>();

  keep(file: InsideFile): HostFile {
    const kept = new HostFile(this, file, () => this.#open.delete(kept));
    this.#open.add(kept);
    return kept;
  }

  /** Nothing is read or written until that is disposed; who wants to waits. Resolves when nothing is under way. */
  async hold(): Promise<Disposable> {
    this.#holds += 1;
    let isHeld = true;
    while (this.#under > 0) await this.#changed.promise;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        this.#holds -= 1;
        this.#tell();
      },
    };
  }

  /** Lets go of all of them: who reads or writes one is refused from now on. */
  async close(): Promise<void> {
    await Promise.all([...this.#open].map((file) => file[Symbol.asyncDispose]()));
  }

  async through<T>(op: Operation, work: () => Promise<T>): Promise<T> {
    while (this.#holds > 0) {
      if (op.signal.aborted) throw abortError(op, 'waiting for a sandbox that stands still');
      await this.#changed.promise;
    }
    this.#under += 1;
    try {
      return await work();
    } finally {
      this.#under -= 1;
      this.#tell();
    }
  }

  #tell(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

class HostFile implements AsyncDisposable {
  readonly #files: HostFiles;
  readonly #file: InsideFile;
  readonly #onClosed: () => void;
  #closing: Promise<void> | undefined;

  constructor(files: HostFiles, file: InsideFile, onClosed: () => void) {
    this.#files = files;
    this.#file = file;
    this.#onClosed = onClosed;
  }

  stat(op: Operation): ReturnType<InsideFile['stat']> {
    return this.#with(op, (file) => file.stat());
  }

  read(op: Operation, into: Uint8Array, at: number): Promise<number> {
    return this.#with(op, (file) => file.read(into, at));
  }

  write(op: Operation, block: Uint8Array, at: number): Promise<void> {
    return this.#with(op, (file) => file.write(block, at));
  }

  sync(op: Operation): Promise<void> {
    return this.#with(op, (file) => file.sync());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= Promise.resolve(this.#file[Symbol.asyncDispose]()).finally(this.#onClosed);
    await this.#closing;
  }

  #with<T>(op: Operation, work: (file: InsideFile) => Promise<T>): Promise<T> {
    return this.#files.through(op, async () => {
      if (this.#closing !== undefined) throw op.error('unavailable', 'the sandbox does not run any more');
      return await work(this.#file);
    });
  }
}

/** As the agent's own `read`. */
export async function readOnHost(host: Host, op: Operation, run: Run, agent: Agent, spec: ReadSpec): Promise<Read> {
  const found = await agent.file.readLent(op, spec);
  if ('bytes' in found) return found;
  using lent = found.lent;
  const { entry } = found;
  const file = entry.size < FROM_BYTES ? null : await openThere(host, op, run, agent, entry, lent.descriptor);
  return file === null ? await agent.file.read(op, spec) : { entry, bytes: pieces(op, file, spec) };
}

/** As the agent's own `write`. */
export async function writeOnHost(
  host: Host,
  op: Operation,
  run: Run,
  agent: Agent,
  spec: WriteSpec,
  source: AsyncIterable<Uint8Array>,
): Promise<Entry> {
  let lent: number | null = null;
  const content = async function* (): AsyncGenerator<Uint8Array, void, undefined> {
    const chunks = source[Symbol.asyncIterator]();
    try {
      const first: Uint8Array[] = [];
      let isAll = false;
      for (let bytes = 0; bytes < FROM_BYTES && !isAll; ) {
        const { done = false, value } = await chunks.next();
        isAll = done;
        if (value === undefined) continue;
        first.push(value);
        bytes += value.byteLength;
      }
      const file = lent === null || isAll ? null : await openNew(host, op, run, agent, lent);
      if (file === null || lent === null) {
        yield* first;
        for (let next = isAll ? null : await chunks.next(); next !== null && next.done !== true; next = await chunks.next())
          yield next.value;
        return;
      }
      await using _ = file;
      // It hears of its size at the end: what it is told of the file until then is not true.
      await agent.file.truncate(op, { path: ownPath(lent), size: await fill(op, file, first, chunks), user: ROOT });
    } finally {
      await chunks.return?.();
    }
  };
  return await agent.file.write(op, spec, content(), async (descriptor) => {
    lent = descriptor;
  });
}

const ownPath = (descriptor: number): string => `/proc/${AGENT_PID}/fd/${descriptor}`;

/** One that the agent has open to be read. */
async function openThere(host: Host, op: Operation, run: Run, agent: Agent, entry: Entry, descriptor: number): Promise<HostFile | null> {
  const [root, path, mountinfo] = await Promise.all([rootOf(op, run), pathOf(op, agent, descriptor), mountsOf(op, agent)]);
  if (root === null || path === null || mountinfo === null || !isBare(mountinfo, path, root.shown)) return null;
  const file = await openAt(host, op, run, root.path, path, 'read');
  if (file === null) return null;
  await using undo = new AsyncDisposableStack();
  undo.use(file);
  const there = await file.stat(op);
  const isSame = there.sizeBytes === entry.size && there.uid === entry.uid && there.gid === entry.gid;
  if (!isSame || (there.mode & 0o7777) !== (entry.mode & 0o7777)) return null;
  // It had that name before it was opened by it, and has it now.
  if ((await pathOf(op, agent, descriptor)) !== path) return null;
  undo.move();
  return file;
}

/** One that the agent has just made. Where it is had or not, it is empty. */
async function openNew(host: Host, op: Operation, run: Run, agent: Agent, descriptor: number): Promise<HostFile | null> {
  const [root, path] = await Promise.all([rootOf(op, run), pathOf(op, agent, descriptor)]);
  if (root === null || path === null) return null;
  const random = new DataView(Uint8Array.from(host.randomBytes(8)).buffer).getBigUint64(0);
  const size = SHOWN_MIN_BYTES + Number(random % SHOWN_SPREAD_BYTES);
  const resize = (to: number) => agent.file.truncate(op, { path: ownPath(descriptor), size: to, user: ROOT });
  await using undo = new AsyncDisposableStack();
  let file: HostFile | null;
  try {
    await resize(size);
    file = await openAt(host, op, run, root.path, path, 'write');
    if (file !== null) undo.use(file);
    if (file !== null && (await file.stat(op)).sizeBytes !== size) file = null;
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    op.log.debug({ sandbox: run.id, cause }, 'a new file was not found on the host');
    file = null;
  }
  await resize(0);
  if (file !== null) undo.move();
  return file;
}

async function openAt(host: Host, op: Operation, run: Run, root: string, path: string, access: 'read' | 'write'): Promise<HostFile | null> {
  const file = await host.openInside(op, root, path, access);
  return file === null ? null : run.hostFiles.keep(file);
}

async function rootOf(op: Operation, { backend, plan }: Run): Promise<RootOnHost | null> {
  return (await backend.rootOnHost?.(op, plan)) ?? null;
}

/** By which the sandbox knows it now; null where that is no text. One that was removed has another word behind it, and is not found. */
async function pathOf(op: Operation, agent: Agent, descriptor: number): Promise<string | null> {
  const { target } = await agent.file.stat(op, { path: ownPath(descriptor), follow: false, user: ROOT });
  return typeof target === 'string' ? target : null;
}

/** The mounts that there are; null where they are too many to look at. */
async function mountsOf(op: Operation, agent: Agent): Promise<string | null> {
  const { bytes } = await agent.file.read(op, { path: `/proc/${AGENT_PID}/mountinfo`, length: MOUNTS_BYTES_MAX, user: ROOT });
  const read: Uint8Array[] = [];
  for await (const piece of bytes) read.push(Uint8Array.from(piece));
  const text = Buffer.concat(read);
  return text.byteLength === MOUNTS_BYTES_MAX ? null : text.toString();
}

/** Whether a path leads to the root's own file: nothing else is mounted on the way. `mountinfo`: as in proc(5). */
export function isBare(mountinfo: string, path: string, shown: readonly string[]): boolean {
  const lines = mountinfo.split('\n').filter((line) => line !== '');
  const octal = (_: string, digits: string): string => String.fromCharCode(Number.parseInt(digits, 8));
  const points = lines.map((line) => (line.split(' ')[4] ?? '').replaceAll(/\\([0-7]{3})/g, octal));
  // What comes twice has something over it.
  const isRoot = (point: string): boolean => shown.includes(point) && points.filter((each) => each === point).length === 1;
  return isRoot('/') && points.every((point) => isRoot(point) || (path !== point && !path.startsWith(`${point}/`)));
}

async function* pieces(
  op: Operation,
  file: HostFile,
  { offset = 0, length = Number.POSITIVE_INFINITY }: Pick<ReadSpec, 'offset' | 'length'>,
): AsyncGenerator<Uint8Array, void, undefined> {
  await using _ = file;
  type Ahead = { readonly at: number; readonly into: Uint8Array; readonly read: Promise<number> };
  let ahead: Ahead[] = [];
  const end = offset + length;
  for (let asked = offset; ; ) {
    while (ahead.length < PIECES_AHEAD && asked < end) {
      const into = takeBuffer(Math.min(LARGE_BYTES_MAX, end - asked));
      const read = file.read(op, into, asked);
      read.catch(() => {}); // told when its turn has come
      ahead.push({ at: asked, into, read });
      asked += into.byteLength;
    }
    const first = ahead.shift();
    if (first === undefined) return;
    const count = await first.read;
    if (count === 0) return;
    if (count === first.into.byteLength) yield first.into;
    else {
      // The end, or what was the end: what was asked for behind it may have come there since.
      await Promise.allSettled(ahead.map(({ read }) => read));
      ahead = [];
      asked = first.at + count;
      yield first.into.subarray(0, count);
    }
  }
}

/**
 * How many bytes it was. They are copied into two blocks that are used again, from which the disk takes them, and their own memory is
 * let go of at once: left to the collector, it would cost a round over the whole heap for every few megabytes.
 */
async function fill(op: Operation, file: HostFile, first: readonly Uint8Array[], rest: AsyncIterator<Uint8Array>): Promise<number> {
  let [block, other] = [wholePages(WRITE_BYTES), wholePages(WRITE_BYTES)];
  let [held, at, synced] = [0, 0, 0];
  let writing: Promise<unknown> = Promise.resolve();
  let syncing: Promise<unknown> | null = null;
  const write = async (): Promise<void> => {
    await writing;
    writing = file.write(op, block.subarray(0, held), at);
    writing.catch(() => {}); // told by who waits for it next
    at += held;
    held = 0;
    [block, other] = [other, block];
    if (syncing !== null || at - synced < SYNC_EVERY_BYTES) return;
    // The disk works while more comes. What it says, it says again to whoever syncs last.
    synced = at;
    syncing = file
      .sync(op)
      .catch(() => {})
      .finally(() => {
        syncing = null;
      });
  };
  const take = async (chunk: Uint8Array): Promise<void> => {
    for (let taken = 0; taken < chunk.byteLength; ) {
      const part = chunk.subarray(taken, taken + WRITE_BYTES - held);
      block.set(part, held);
      taken += part.byteLength;
      held += part.byteLength;
      if (held === WRITE_BYTES) await write();
    }
    letGo(chunk);
  };
  try {
    for (const chunk of first) await take(chunk);
    for (let next = await rest.next(); next.done !== true; next = await rest.next()) await take(next.value);
    await write();
    await writing;
    return at;
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
    if (code === 'ENOSPC' || code === 'EDQUOT') throw op.error('resource_exhausted', `the disk of the sandbox is full: ${code}`, { cause });
    throw cause;
  } finally {
    await Promise.allSettled([writing, syncing]);
    for (const each of [block, other]) letGo(each);
  }
}
