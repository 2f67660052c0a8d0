// What a first start did without is made behind it: the templates of backends whose first sandbox of a kind boots by itself
// (`Backend.startsUnprepared`). One at a time, when nobody is starting anything; who wants one before that makes it at once.
import type { Backend, Mounted } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import type { Shape } from '../domain/sandbox.ts';
import type { Boot, Deps } from './deps.ts';
import { noSpace } from './free-space.ts';
import type { Operations } from './operations.ts';
import type { StartGate } from './start-gate.ts';
import { ownCaller } from './supervisor.ts';
import { noRoom } from './warm-member.ts';

type Needs = { readonly deps: Deps; readonly operations: Operations; readonly startGate: StartGate };

export type Wanted = { readonly backend: Backend; readonly shape: Shape; readonly boot: Boot; readonly mounted: Mounted };

/** Somebody has just started a sandbox, and most likely runs something in it now. */
const QUIET_MS = 500;
/** A machine that has too little memory or disk to spare is asked again. */
const AGAIN_MS = 60_000;

export class TemplatesBehind {
  readonly #core: Needs;
  readonly #againMs: number;
  readonly #over = new AbortController();
  readonly #wanted = new Map<string, { readonly wanted: Wanted; readonly made: () => void }>();
  #timer: NodeJS.Timeout | null = null;
  /** Never rejects. */
  #making: Promise<void> | null = null;

  constructor(core: Needs, againMs: number = AGAIN_MS) {
    this.#core = core;
    this.#againMs = againMs;
  }

  /** `made` is called when it is there. One that cannot be made is left to whoever wants it next. */
  want(key: string, wanted: Wanted, made: () => void): void {
    this.#wanted.set(key, { wanted, made });
    this.#lookIn(QUIET_MS);
  }

  /** The daemon ends: none is begun any more, and the one that is being made is given up. */
  stop(): void {
    this.#over.abort(new HutchError({ code: 'unavailable', message: 'the daemon is shutting down' }));
    if (this.#timer !== null) clearTimeout(this.#timer);
  }

  /** After `stop`: nothing of it is left. */
  async close(): Promise<void> {
    await this.#making;
  }

  #lookIn(ms: number): void {
    if (this.#over.signal.aborted) return;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.#look();
    }, ms);
    this.#timer.unref();
  }

  #look(): void {
    const [next] = this.#wanted;
    if (next === undefined || this.#making !== null) return;
    const { idleMs } = this.#core.startGate;
    if (idleMs < QUIET_MS) {
      this.#lookIn(QUIET_MS - idleMs);
      return;
    }
    const [key, { wanted, made }] = next;
    this.#wanted.delete(key);
    this.#making = this.#make(wanted).then((outcome) => {
      this.#making = null;
      if (outcome === 'put off') this.#wanted.set(key, { wanted, made });
      if (outcome === 'made') made();
      this.#lookIn(outcome === 'put off' ? this.#againMs : 0);
    });
  }

  /** Never rejects. */
  async #make({ backend, shape, boot, mounted }: Wanted): Promise<'made' | 'put off' | 'failed'> {
    const { deps, operations } = this.#core;
    const ask = { verb: 'daemon.behind', caller: ownCaller(this.#core), reads: true, signal: this.#over.signal } as const;
    try {
      return await operations.run(ask, async ({ op }) => {
        const why = (await noRoom(deps, op, shape.memoryMiB)) ?? (await noSpace(deps, op));
        if (why !== null) {
          op.log.info({ why }, 'the template of a kind of sandbox is put off');
          return 'put off';
        }
        await backend.prepare(op, { shape, boot: boot.files, mounted });
        return 'made';
      });
    } catch (cause) {
      if (!this.#over.signal.aborted)
        deps.log.warn({ err: cause }, 'a template could not be made; the next start of its kind tries it again');
      return 'failed';
    }
  }
}
