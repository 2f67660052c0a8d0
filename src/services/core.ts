// What the services share among each other: made once, by `newServices`.
import type { SandboxId, SnapshotId } from '../domain/ids.ts';
import type { Operation } from '../host/operation.ts';
import type { Deps } from './deps.ts';
import { placesOf } from './deps.ts';
import type { Held } from './held.ts';
import { MainLog } from './main-log.ts';
import type { Operations } from './operations.ts';
import type { Presenter } from './present.ts';
import type { Publisher } from './publisher.ts';
import type { QuotaBounds } from './quotas.ts';
import type { Runs } from './runs.ts';
import type { Sandboxes } from './sandboxes.ts';
import type { StartGate } from './start-gate.ts';
import type { StatsReader } from './stats.ts';
import type { Templates } from './templates.ts';
import type { Turns } from './turns.ts';
import type { WarmSandboxes } from './warm.ts';

export type Core = {
  readonly deps: Deps;
  readonly operations: Operations;
  readonly sandboxes: Sandboxes;
  readonly runs: Runs;
  readonly turns: Turns;
  readonly presenter: Presenter;
  readonly publisher: Publisher;
  readonly logs: MainLogs;
  readonly stats: StatsReader;
  readonly templates: Templates;
  readonly startGate: StartGate;
  readonly warm: WarmSandboxes;
  readonly quotaBounds: QuotaBounds;
  /** Whose files are being read, or removed. */
  readonly snapshotFiles: Held<SnapshotId>;
};

/** The logs of main processes, one object per sandbox while anybody uses it: who reads hears who writes. */
export class MainLogs {
  readonly #deps: Pick<Deps, 'host' | 'places'>;
  readonly #logs = new Map<SandboxId, { readonly log: Promise<MainLog>; users: number }>();

  constructor(deps: Pick<Deps, 'host' | 'places'>) {
    this.#deps = deps;
  }

  /** Dispose it when it is not used any more. */
  async use(
    op: Operation,
    id: SandboxId,
    dir: string = placesOf(this.#deps.places, id).logDir,
  ): Promise<{ readonly log: MainLog } & Disposable> {
    const entry = this.#logs.get(id) ?? { log: this.#open(op, dir), users: 0 };
    this.#logs.set(id, entry);
    entry.users += 1;
    const release = (): void => {
      entry.users -= 1;
      if (entry.users === 0 && this.#logs.get(id) === entry) this.#logs.delete(id);
    };
    try {
      const log = await entry.log;
      return { log, [Symbol.dispose]: release };
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Whoever reads goes on reading where the files lie now. */
  async moved(id: SandboxId, dir: string): Promise<void> {
    (await this.#logs.get(id)?.log)?.moved(dir);
  }

  /** For all its users: the first one's patience must not decide. */
  async #open(op: Operation, dir: string): Promise<MainLog> {
    using limited = op.releasing(OPEN_MS);
    return await MainLog.open(limited, this.#deps.host, dir);
  }
}

/** A log of tens of megabytes is looked through. */
const OPEN_MS = 30_000;
