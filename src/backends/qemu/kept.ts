// What the last fork of a machine has written down of its memory, for the next one: that then writes only what has changed since, of which
// the kernel has kept notes (rust/imprint). It is kept for a short while, and only as long as nobody else has asked the kernel for such
// notes; a daemon that has started since knows of none.
import type { SandboxId } from '../../domain/ids.ts';
import type { Operation } from '../../host/operation.ts';
import type { ProcessEvidence, SandboxPlan } from '../backend.ts';
import { type Layer, linkStore } from '../stored.ts';
import { type QemuConfig, RELEASE_MS } from './config.ts';
import { makeMemoryDir, mappedOf, type RunningMemory, removeMemoryDirs } from './running.ts';

/** Who forks again does it soon; until then the machine's first write to each page costs it some microseconds more. */
const KEPT_MS = 60_000;

/** Of which process, and which of its memory it has mapped. */
export type Origin = {
  readonly evidence: Extract<ProcessEvidence, { readonly alive: true }>;
  readonly mapped: RunningMemory;
  readonly bytes: number;
};

export type Kept = { readonly dir: string; readonly layers: readonly Layer[] };

type Entry = Kept & { readonly origin: Origin; readonly timer: NodeJS.Timeout };

export class KeptMemories {
  readonly #config: QemuConfig;
  readonly #kept = new Map<SandboxId, Entry>();
  /** Those whose time is over. Never rejects. */
  readonly #going = new Map<SandboxId, Promise<void>>();

  constructor(config: QemuConfig) {
    this.#config = config;
  }

  /**
   * The caller's from here on, who removes its directory: it is asked by everybody who has the kernel note what is written anew.
   * `usable` says whether it is of that process and what that has mapped.
   */
  async take({ id }: Pick<SandboxPlan, 'id'>, origin: Origin): Promise<(Kept & { readonly usable: boolean }) | null> {
    await this.#going.get(id);
    const entry = this.#kept.get(id);
    if (entry === undefined) return null;
    this.#kept.delete(id);
    clearTimeout(entry.timer);
    const { evidence, mapped } = entry.origin;
    const isSameProcess = evidence.pid === origin.evidence.pid && evidence.startTicks === origin.evidence.startTicks;
    return { dir: entry.dir, layers: entry.layers, usable: isSameProcess && mapped.dir === origin.mapped.dir };
  }

  /** From now on, where it is worth its place. `dir` has the memory with those layers, and may go. Nobody fails for want of it. */
  async keep(op: Operation, plan: SandboxPlan, origin: Origin, { dir, layers }: Kept): Promise<void> {
    const [first, ...later] = layers.slice(origin.mapped.layers.length);
    // What was written over again and again would take more room than the memory: then the next one begins anew.
    const isWorthIt = first !== undefined && later.reduce((sum, { bytes }) => sum + bytes, 0) <= first.bytes;
    if (!isWorthIt) return await this.forget(op, origin);
    const { host } = this.#config;
    let own: string;
    try {
      // What a daemon had kept that was killed.
      await removeMemoryDirs(op, host, plan, origin.mapped.dir);
      own = await makeMemoryDir(op, host, plan);
      await linkStore(op, host, dir, own, { layers: [...layers] });
    } catch (cause) {
      if (op.signal.aborted) throw cause;
      op.log.warn({ sandbox: plan.id, cause }, 'what a fork has written down is not kept for the next one');
      return await this.forget(op, origin);
    }
    const timer = setTimeout(() => this.#expire(op, plan), KEPT_MS);
    timer.unref();
    this.#kept.set(plan.id, { dir: own, layers, origin, timer });
  }

  /** Its process has ended, and its directories go with it. */
  drop({ id }: Pick<SandboxPlan, 'id'>): void {
    clearTimeout(this.#kept.get(id)?.timer);
    this.#kept.delete(id);
  }

  /** The kernel notes nothing for it any more. */
  async forget(op: Operation, { evidence, mapped, bytes }: Origin): Promise<void> {
    const { host, imprintPath = '' } = this.#config;
    // A process that has ended has nothing to forget.
    await host.run(op, [imprintPath, 'forget', `${evidence.pid}`, mappedOf(mapped), `${bytes}`]);
  }

  #expire(op: Operation, { id }: SandboxPlan): void {
    const entry = this.#kept.get(id);
    if (entry === undefined) return;
    this.#kept.delete(id);
    const gone = this.#end(op, entry)
      .catch((cause: unknown) => op.log.warn({ sandbox: id, cause }, 'what a fork had kept stays till its sandbox ends'))
      .finally(() => this.#going.delete(id));
    this.#going.set(id, gone);
  }

  async #end(op: Operation, { dir, origin }: Entry): Promise<void> {
    using late = op.releasing(RELEASE_MS);
    await this.forget(late, origin);
    await this.#config.host.remove(late, dir);
  }
}
