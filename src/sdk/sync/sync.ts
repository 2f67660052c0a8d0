// A directory of this machine and one in a sandbox, kept alike: looked at, what differs decided (tree.ts), and done; with `watch`
// again and again, as either side says that something has changed.
import { HutchError } from '../../domain/errors.ts';
import type { CallOptions } from '../client.ts';
import { backOff } from '../retry.ts';
import type { Sandbox } from '../sandbox.ts';
import { Guest } from './guest.ts';
import { Changed, Here } from './here.ts';
import { newIgnore } from './ignore.ts';
import { memoryPath, readMemory, writeMemory } from './memory.ts';
import { Round, type SyncEvent } from './round.ts';
import { Dirty, HereWatch } from './watch.ts';

export type { SyncEvent } from './round.ts';

export type SyncOptions = Pick<CallOptions, 'signal'> & {
  /** What was changed in the sandbox comes here too. */
  readonly twoWay?: boolean;
  /** What was removed on one side, and has not been changed on the other one since, is removed there. */
  readonly removes?: boolean;
  readonly exclude?: readonly string[];
  /** Only tell what would be done. */
  readonly dryRun?: boolean;
  /** Goes on until the signal aborts. */
  readonly watch?: boolean;
  /** As whom, in the sandbox. */
  readonly user?: string;
  /** A larger file of the sandbox's stays there. Default 1 GiB. */
  readonly fileBytesMax?: number;
  /** Where what was alike is remembered; absent: nowhere, so each first look takes what differs for changed on both sides. */
  readonly memoryDir?: string;
  readonly onEvent?: (event: SyncEvent) => void | Promise<void>;
};

export type SyncResult = {
  readonly up: number;
  readonly down: number;
  readonly removed: number;
  readonly conflicts: number;
  readonly failed: number;
};

const FILE_BYTES_MAX = 1024 ** 3;
const ROUNDS_MAX = 5;
/** How long a daemon that is away is waited for. */
const AWAY_MS = 10 * 60_000;

export async function syncDirectory(sandbox: Sandbox, dir: string, guestPath: string, options: SyncOptions = {}): Promise<SyncResult> {
  const { signal = new AbortController().signal, watch = false, dryRun = false, onEvent = () => {} } = options;
  const counts = { up: 0, down: 0, removed: 0, conflicts: 0, failed: 0 };
  const told = new Set<string>();
  const tell = async (event: SyncEvent): Promise<void> => {
    // What is left out is left out each time that it is looked at.
    if (event.type === 'skipped' || event.type === 'failed') {
      const what = JSON.stringify(event);
      if (told.has(what) || told.size >= TOLD_MAX) return;
      told.add(what);
    }
    if (event.type === 'up' || event.type === 'down' || event.type === 'failed') counts[event.type] += 1;
    else if (event.type === 'conflict') counts.conflicts += 1;
    else if (event.type === 'removed') counts.removed += 1;
    await onEvent(event);
  };
  let telling = Promise.resolve();
  const onSkipped = (path: string, why: string): void => {
    telling = telling.then(() => tell({ type: 'skipped', path, why }));
  };
  const isIgnored = newIgnore(options.exclude ?? []);
  const as = options.user === undefined ? {} : { user: options.user };
  await using here = await Here.open(dir, { isIgnored, onSkipped });
  const guest = await Guest.open(sandbox.files, guestPath, { as, signal, missing: dryRun ? 'leave it' : 'make it', isIgnored, onSkipped });
  const statePath = options.memoryDir === undefined ? null : memoryPath(options.memoryDir, sandbox.id, here.path, guest.root);
  const memory = await readMemory(guest.wasThere ? statePath : null);
  const dirty = new Dirty();
  const ending = new AbortController();
  using watcher = watch ? new HereWatch(here.path, dirty) : null;
  using _ = { [Symbol.dispose]: () => ending.abort() };
  const { twoWay = false, removes = false, fileBytesMax = FILE_BYTES_MAX } = options;
  const away = new Away(sandbox, signal, dirty);
  const round = new Round({ here, guest, memory, directions: { twoWay, removes }, fileBytesMax, dryRun, signal, watcher, tell });
  if (watch && twoWay) void watchGuest(sandbox, guest, dirty, AbortSignal.any([signal, ending.signal]));
  try {
    for (let rounds = 1; ; rounds += 1) {
      try {
        const again = await round.run(dirty.take());
        away.over();
        for (const path of again) dirty.add(path);
        await telling;
        if (!dryRun) await writeMemory(statePath, memory);
        if (!watch && (again.length === 0 || dryRun || rounds === ROUNDS_MAX)) return counts;
        if (watch && dirty.isEmpty) await tell({ type: 'alike' });
      } catch (error) {
        if (error instanceof Changed) dirty.add('');
        else await away.comeBack(error);
      }
      if (watch) await dirty.wait(signal);
    }
  } finally {
    if (!dryRun) await writeMemory(statePath, memory);
  }
}

const TOLD_MAX = 10_000;

/** A daemon that is gone, ends or cannot reach the sandbox now: it is waited for, and then everything is looked at once more. */
class Away {
  readonly #sandbox: Sandbox;
  readonly #signal: AbortSignal;
  readonly #dirty: Dirty;
  #sinceMs: number | null = null;
  #attempt = 0;

  constructor(sandbox: Sandbox, signal: AbortSignal, dirty: Dirty) {
    this.#sandbox = sandbox;
    this.#signal = signal;
    this.#dirty = dirty;
  }

  /** It has done again what was asked of it. */
  over(): void {
    this.#sinceMs = null;
    this.#attempt = 0;
  }

  /** @throws the error that is another one, or the last one when it has been away for too long. */
  async comeBack(error: unknown): Promise<void> {
    const signal = this.#signal;
    this.#sinceMs ??= performance.now();
    for (let last = error; ; ) {
      const isAway = last instanceof HutchError && last.code === 'unavailable';
      if (!isAway || signal.aborted || performance.now() - this.#sinceMs > AWAY_MS) throw last;
      this.#attempt += 1;
      await backOff(this.#attempt, signal);
      try {
        await this.#sandbox.refresh({ signal });
        return this.#dirty.add('');
      } catch (again) {
        last = again;
      }
    }
  }
}

async function watchGuest(sandbox: Sandbox, guest: Guest, dirty: Dirty, signal: AbortSignal): Promise<void> {
  const away = new Away(sandbox, signal, dirty);
  const onOpId = (): void => {
    away.over();
    dirty.add('');
  };
  for (;;) {
    try {
      const changes = sandbox.files.watch(guest.root, { ...guest.as, recursive: true, signal, onOpId });
      for await (const { kind, path, to } of changes) {
        if (kind === 'overflow') dirty.add('');
        for (const changed of [path, to]) {
          const below = changed === null ? null : guest.below(changed);
          if (below !== null) dirty.add(below);
        }
      }
      // The directory went: the next look says so.
      dirty.add('');
      await backOff(5, signal);
    } catch (error) {
      if (signal.aborted) return;
      const failed = await away.comeBack(error).then(
        () => null,
        (again: unknown) => ({ again }),
      );
      if (failed !== null) return dirty.fail(failed.again);
    }
  }
}
