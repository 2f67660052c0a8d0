// Room that is kept for taking things away. What fills a disk is as a rule a sandbox, an image or a build, and to remove that takes
// a record in the store, which lies on the same disk: without these bytes `hutch rm` would fail for want of the room that it makes.
import { HutchError } from '../domain/errors.ts';
import type { Host } from '../host/host.ts';
import { newOperation, type Operation } from '../host/operation.ts';
import type { Committer, Store } from '../store/contract.ts';

/** What the records of some removals take in the store's log, many times. */
const RESERVE_BYTES = 1024 * 1024;
/** With less than this free it is not taken from whoever needs it. */
const FREE_BYTES_MIN = 32 * RESERVE_BYTES;
const AGAIN_MS = 60_000;
const WORK_MS = 30_000;
/** Verbs that take away; the rest would only fill the reserve too. */
const GIVES_ROOM = /\.(delete|remove|prune|stop|cancel|collect)$/;

/** The same store, whose commits of verbs that give room get that of the file at `path` when there is no other. */
export async function withReserve(
  op: Operation,
  store: Store,
  { host, path, dir }: { readonly host: Host; readonly path: string; readonly dir: string },
): Promise<Store> {
  let isThere = false;
  let triedAtMs = Number.NEGATIVE_INFINITY;

  async function keep(): Promise<void> {
    triedAtMs = host.monotonicMs();
    using limited = newOperation({ id: op.id, actor: 'daemon', log: op.log }).within(WORK_MS, 'keeping room for removals');
    isThere = (await host.stat(limited, path))?.sizeBytes === RESERVE_BYTES;
    if (isThere || (await host.fileSystem(limited, dir)).freeBytes < FREE_BYTES_MIN) return;
    // No zeros: a file system may keep these nowhere.
    await host.writeFileAtomic(limited, path, host.randomBytes(RESERVE_BYTES), 0o600);
    isThere = true;
  }

  async function giveUp(): Promise<void> {
    isThere = false;
    triedAtMs = host.monotonicMs();
    using limited = op.releasing(WORK_MS);
    await host.remove(limited, path);
  }

  const kept = (error: unknown): void => op.log.warn({ path, cause: error }, 'no room is kept for removals');

  async function tried<T>(by: Committer & { readonly verb?: string }, commit: () => Promise<T>): Promise<T> {
    try {
      const done = await commit();
      if (!isThere && host.monotonicMs() - triedAtMs > AGAIN_MS) void keep().catch(kept);
      return done;
    } catch (error) {
      const isFull = error instanceof HutchError && error.code === 'resource_exhausted' && error.message.startsWith('the disk is full');
      if (!isFull || !isThere || !GIVES_ROOM.test(by.verb ?? '')) throw error;
      op.log.warn({ path, verb: by.verb }, 'the disk is full; the room that is kept for removals is given up');
      await giveUp();
      return await commit();
    }
  }

  await keep().catch(kept);
  return {
    path: store.path,
    defaultProjectId: store.defaultProjectId,
    schemaVersion: store.schemaVersion,
    lastClose: store.lastClose,
    commit: (by, changes, durability) => tried(by, () => store.commit(by, changes, durability)),
    claim: (by, claim, changes, durability) => tried(by, () => store.claim(by, claim, changes, durability)),
    query: (name, args) => store.query(name, args),
    onCommit: (listener) => store.onCommit(listener),
    copyInto: (by, into) => store.copyInto(by, into),
    close: () => store.close(),
  };
}
