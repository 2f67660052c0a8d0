// What a sandbox's container uses: read where the kernel counts it if that is this machine, asked of its Engine where not.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { HostUse, SandboxPlan, Usage } from '../backend.ts';
import { DiskTraffic } from '../disk-traffic.ts';
import type { Engine } from './engine.ts';
import { readUsageHere } from './here.ts';
import type { KnownContainers } from './known.ts';
import { readUsage } from './usage.ts';

type Parts = { readonly host: Host; readonly engine: Engine; readonly known: KnownContainers };

export class ContainerUse {
  readonly #parts: Parts;
  readonly #traffic: DiskTraffic;

  constructor(parts: Parts) {
    this.#parts = parts;
    this.#traffic = new DiskTraffic(parts.host);
  }

  async usage(op: Operation, plan: SandboxPlan): Promise<Usage> {
    const { host, engine, known } = this.#parts;
    const container = await known.running(op, plan);
    const here = await readUsageHere(op, host, container);
    if (here === null) return await readUsage(op, engine, container.Id);
    if (here.disk !== null) return here;
    // By its processes: a cgroup of version 1 counts only where a limit is set.
    const root = await host.processRef(op, container.State.Pid);
    return { ...here, disk: root === null ? null : await this.#traffic.of(op, plan.id, root) };
  }

  async stats(op: Operation, plan: SandboxPlan, own: Usage | null = null): Promise<HostUse> {
    const { container } = await this.#parts.known.find(op, plan, 'with-size');
    const usage = container?.State.Running === true ? (own ?? (await this.usage(op, plan))) : null;
    return { pssBytes: usage?.memory?.usedBytes ?? 0, cpuUs: usage?.cpuUs ?? 0, diskAllocatedBytes: container?.SizeRw ?? 0 };
  }

  /** Of one that runs no more. */
  forget(id: SandboxPlan['id']): void {
    this.#traffic.forget(id);
  }
}
