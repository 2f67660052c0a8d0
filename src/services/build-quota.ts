// A build as quotas count it. Always true: a build that is counted as open has an operation under way, or the next start of a daemon closes it.
import type { BuildId, ProjectId } from '../domain/ids.ts';
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';

const RELEASE_MS = 60_000;
const MINUTE_MS = 60_000;
const TIMER_MS_MAX = 2 ** 31 - 1;

export class BuildQuota {
  readonly #core: Core;

  constructor(core: Core) {
    this.#core = core;
  }

  /** @throws HutchError `resource_exhausted` when its project has as many as it may. */
  async begin(op: Operation, id: BuildId, projectId: ProjectId): Promise<void> {
    const { store, host } = this.#core.deps;
    // What a power cut takes from the record is a build that it ended.
    await store.commit(op, [{ change: 'beginBuild', id, projectId, atMs: host.nowMs() }], 'relaxed');
  }

  /** What was no build does not count for its day. */
  async neverBegan(op: Operation, id: BuildId): Promise<void> {
    using late = op.releasing(RELEASE_MS);
    await this.#end(late, id, 'never-began');
  }

  /** What a power cut takes of it, the next start of a daemon says again. */
  async ended(op: Operation, id: BuildId): Promise<void> {
    await this.#end(op, id, 'ended');
  }

  /** Those of the daemon before. */
  async endAll(op: Operation): Promise<void> {
    const { store, host } = this.#core.deps;
    await store.commit(op, [{ change: 'endAllBuilds', atMs: host.nowMs() }]);
  }

  /** The same operation, for as long as builds of that project may take; null: as long as they like. */
  async timed(op: Operation, projectId: ProjectId): Promise<(Operation & Disposable) | null> {
    const { store, host } = this.#core.deps;
    const quotas = await store.query('quotas', { atMs: host.nowMs() });
    const minutes = quotas.find((quota) => quota.projectId === projectId)?.bounds.buildMinutes ?? null;
    if (minutes === null) return null;
    return op.within(Math.min(minutes * MINUTE_MS, TIMER_MS_MAX), `a build, which may take ${minutes} minutes (quota buildMinutes),`);
  }

  /** Whether what lies here of that project's images is counted. */
  async boundsImages(projectId: ProjectId): Promise<boolean> {
    return ((await this.#core.quotaBounds.of(projectId)).imageMiB ?? null) !== null;
  }

  async #end(op: Operation, id: BuildId, how: 'ended' | 'never-began'): Promise<void> {
    const { store, host } = this.#core.deps;
    await store
      .commit(op, [{ change: 'endBuild', id, atMs: host.nowMs(), how }], how === 'ended' ? 'relaxed' : 'durable')
      .catch((cause: unknown) => op.log.error({ build: id, err: cause }, 'a build that is over counts until the daemon starts again'));
  }
}
