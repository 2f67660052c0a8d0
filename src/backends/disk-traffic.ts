// What a sandbox's processes moved to and from disks, as the host's kernel counts it for each process: for
// kernels whose cgroups do not count it (version 1 does only where a limit is set).
import type { SandboxId } from '../domain/ids.ts';
import type { Host, ProcessRef } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

export type Traffic = { readonly readBytes: number; readonly writtenBytes: number };

export class DiskTraffic {
  readonly #host: Host;
  readonly #last = new Map<SandboxId, Traffic & ProcessRef>();

  constructor(host: Host) {
    this.#host = host;
  }

  /**
   * Of the processes under `root`, since it began; null when it is gone, or no such count is to be had. A process that
   * ends between two looks is missing from one of them, until its parent has its count: what was said is never taken back.
   */
  async of(op: Operation, id: SandboxId, root: ProcessRef): Promise<Traffic | null> {
    const now = await this.#host.processTraffic(op, root);
    const before = this.#last.get(id);
    if (now === null) return null;
    const isSame = before?.pid === root.pid && before.startTicks === root.startTicks;
    const most = (kind: keyof Traffic) => Math.max(now[kind], isSame ? before[kind] : 0);
    const traffic = { readBytes: most('readBytes'), writtenBytes: most('writtenBytes') };
    this.#last.set(id, { ...root, ...traffic });
    return traffic;
  }

  forget(id: SandboxId): void {
    this.#last.delete(id);
  }
}
