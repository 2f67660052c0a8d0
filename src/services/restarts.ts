// Sandboxes that are started again by themselves (`--restart`): after an end that their policy names, with a growing wait
// between starts that do not last, and at the start of the daemon, which is the host's when it is a service. What is to be
// started is told by the records alone: a daemon that dies meanwhile leaves it to the next.
import type { SandboxId } from '../domain/ids.ts';
import { LASTED_MS, restartDelayMs, wantsRestart } from '../domain/restart.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { QueryMap } from '../store/contract.ts';
import type { Core } from './core.ts';
import type { Starter } from './start-again.ts';
import { ownCaller } from './supervisor.ts';

type Known = { failures: number; startedAtMs: number | null; timer: NodeJS.Timeout | null };

export class Restarts implements Disposable {
  readonly #core: Core;
  readonly #starter: Starter;
  readonly #known = new Map<SandboxId, Known>();
  readonly #listening: Disposable;
  /** The daemon has brought in order what the last one left. */
  #begun = false;
  #over = false;

  constructor(core: Core, starter: Starter) {
    this.#core = core;
    this.#starter = starter;
    this.#listening = core.sandboxes.onAnyChange((sandbox) => this.#changed(sandbox));
  }

  /** Call once, when what the last daemon left is in order. */
  async begin(op: Operation): Promise<void> {
    this.#begun = true;
    for (let cursor: string | null = null; ; ) {
      const page: QueryMap['sandboxes']['result'] = await this.#core.deps.store.query('sandboxes', { states: ['stopped'], cursor });
      for (const sandbox of page.sandboxes) if (wantsRestart(sandbox)) this.#again(sandbox, 0);
      cursor = page.nextCursor;
      if (cursor === null || op.signal.aborted) return;
    }
  }

  #changed(sandbox: Sandbox): void {
    if ((sandbox.spec.restart ?? 'no') === 'no') {
      this.#forget(sandbox.id);
      return;
    }
    const known = this.#known.get(sandbox.id) ?? { failures: 0, startedAtMs: null, timer: null };
    this.#known.set(sandbox.id, known);
    if (sandbox.state === 'running' && sandbox.openComputeSinceMs !== null) known.startedAtMs = sandbox.openComputeSinceMs;
    if (wantsRestart(sandbox)) {
      if (!this.#begun || known.timer !== null) return;
      const ranMs = known.startedAtMs === null ? 0 : sandbox.ended.atMs - known.startedAtMs;
      known.failures = ranMs >= LASTED_MS ? 0 : known.failures + 1;
      known.startedAtMs = null;
      this.#again(sandbox, restartDelayMs(Math.max(0, known.failures - 1)));
      return;
    }
    if (known.timer !== null) clearTimeout(known.timer);
    known.timer = null;
    // What somebody does to it is a new beginning.
    if (sandbox.state !== 'running') this.#forget(sandbox.id);
  }

  #forget(id: SandboxId): void {
    const timer = this.#known.get(id)?.timer ?? null;
    if (timer !== null) clearTimeout(timer);
    this.#known.delete(id);
  }

  #again(sandbox: Sandbox, waitMs: number): void {
    const known = this.#known.get(sandbox.id) ?? { failures: 0, startedAtMs: null, timer: null };
    this.#known.set(sandbox.id, known);
    known.timer ??= setTimeout(() => {
      known.timer = null;
      void this.#start(sandbox, known);
    }, waitMs);
  }

  async #start({ id, projectId }: Sandbox, known: Known): Promise<void> {
    const { operations, turns, sandboxes, deps } = this.#core;
    if (this.#over) return;
    try {
      await operations.run({ verb: 'daemon.restart', caller: { ...ownCaller(this.#core), projectId }, reads: false }, async (call) => {
        call.target(id);
        await turns.take(call.op, id, async () => {
          const now = await sandboxes.get(call.op, id);
          if (wantsRestart(now)) await this.#starter.start(call, now, 'restart');
        });
      });
    } catch (err) {
      known.failures += 1;
      const waitMs = restartDelayMs(known.failures);
      deps.log.warn({ sandbox: id, waitMs, err }, 'a sandbox could not be started again; it is tried again');
      const now = await deps.store.query('sandbox', { id }).catch(() => null);
      if (now !== null && wantsRestart(now) && !this.#over) this.#again(now, waitMs);
    }
  }

  [Symbol.dispose](): void {
    this.#over = true;
    this.#listening[Symbol.dispose]();
    for (const id of [...this.#known.keys()]) this.#forget(id);
  }
}
