// What a sandbox's private layer takes on the disk. Adding it up means to look at every file in it, so
// an answer counts for a while.
import type { SandboxId } from '../../domain/ids.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { layerDir } from './paths.ts';
import type { RightsFinder } from './rights.ts';

const GOOD_FOR_MS = 10_000;
const LOOK_MS = 30_000;

type Layer = Pick<SandboxPlan, 'id' | 'dataDir'>;

export class DiskUse {
  readonly #host: Host;
  readonly #rights: RightsFinder;
  readonly #known = new Map<SandboxId, { readonly atMs: number; readonly bytes: number }>();

  constructor(host: Host, rights: RightsFinder) {
    this.#host = host;
    this.#rights = rights;
  }

  async of(op: Operation, plan: Layer): Promise<number> {
    const host = this.#host;
    const known = this.#known.get(plan.id);
    if (known !== undefined && host.monotonicMs() - known.atMs < GOOD_FOR_MS) return known.bytes;
    if ((await host.stat(op, layerDir(plan))) === null) return 0;
    using limited = op.within(LOOK_MS, 'adding up a private layer');
    // Files vanish while it looks: what it printed counts all the same.
    const rights = await this.#rights.find(op);
    const adding = rights.argv(['du', '--summarize', '--block-size=1', '--one-file-system', layerDir(plan)]);
    const { stdout, stderr } = await host.run(limited, adding);
    const bytes = /^(\d+)\t/.exec(new TextDecoder().decode(stdout))?.[1];
    if (bytes === undefined) throw op.error('internal', `du says nothing of a private layer: ${new TextDecoder().decode(stderr).trim()}`);
    this.#known.set(plan.id, { atMs: host.monotonicMs(), bytes: Number(bytes) });
    return Number(bytes);
  }

  forget(plan: Pick<Layer, 'id'>): void {
    this.#known.delete(plan.id);
  }
}
