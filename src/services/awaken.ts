// Sandboxes that are put away when nobody uses them, and are there again for whoever comes: the next call that needs what runs in
// one, or the next connection to a port of it.
import type { Sandbox } from '../domain/sandbox.ts';
import type { QueryMap } from '../store/contract.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import type { Run } from './run.ts';
import { ownCaller } from './supervisor.ts';
import type { Suspension } from './suspend.ts';

/** Whether nobody has to say so for it to go on. */
export function wakesByItself({ state, spec }: Sandbox): boolean {
  return state === 'suspended' && spec.idleAction === 'suspend';
}

export class Awaken {
  readonly #core: Core;
  readonly #suspension: Suspension;

  constructor(core: Core, suspension: Suspension) {
    this.#core = core;
    this.#suspension = suspension;
    core.publisher.onVisit = (id) => this.#visited(id);
  }

  /** The one that a reference means, awake where it is one that wakes by itself. The call then works on it. */
  async resolve(call: Call, ref: string): Promise<Sandbox> {
    const { sandboxes } = this.#core;
    const sandbox = await sandboxes.resolve(call.caller.projectId, ref);
    call.target(sandbox.id);
    return wakesByItself(sandbox) ? await this.#wake(call, sandbox) : sandbox;
  }

  async #wake(call: Call, { id, projectId }: Pick<Sandbox, 'id' | 'projectId'>): Promise<Sandbox> {
    const { operations, sandboxes, turns } = this.#core;
    // An operation of its own: it is done once for all who come at the same time, and is no part of what was asked.
    const ask = { verb: 'daemon.wake', caller: { ...ownCaller(this.#core), projectId }, reads: false } as const;
    call.op.progress({ step: 'taking up its memory' });
    return await operations.run(ask, async (own) => {
      own.target(id);
      return await turns.take(own.op, id, async () => {
        const now = await sandboxes.get(own.op, id);
        return wakesByItself(now) ? await this.#suspension.wakeUp(own, now) : now;
      });
    });
  }

  /** Somebody stands at a published port. Null: it does not run, and is to stay so. */
  async #visited(id: Sandbox['id']): Promise<Run | null> {
    const { operations, runs, sandboxes } = this.#core;
    const ask = { verb: 'daemon.wake', caller: ownCaller(this.#core), reads: true } as const;
    await operations.run(ask, async (call) => {
      const sandbox = await sandboxes.get(call.op, id);
      if (wakesByItself(sandbox)) await this.#wake(call, sandbox);
    });
    return runs.get(id);
  }

  /** At the start of the daemon: whoever comes to a port of one that is put away is to find it answered. */
  async attend(call: Call): Promise<void> {
    const { deps, publisher } = this.#core;
    for (let cursor: string | null = null; ; ) {
      const page: QueryMap['sandboxes']['result'] = await deps.store.query('sandboxes', { states: ['suspended'], cursor });
      for (const sandbox of page.sandboxes)
        if (wakesByItself(sandbox))
          await publisher
            .attend(call.op, sandbox.id)
            .catch((cause: unknown) => deps.log.warn({ sandbox: sandbox.id, cause }, 'ports of a suspended sandbox are not answered at'));
      cursor = page.nextCursor;
      if (cursor === null) return;
    }
  }
}
