// What a container uses, as its cgroup counts it, of version 1 or 2. Counters, in units; what the
// kernel does not count is null, never zero.
import * as z from 'zod';
import type { Operation } from '../../host/operation.ts';
import type { Usage } from '../backend.ts';
import type { Engine } from './engine.ts';

const count = z.number().nonnegative();
const answer = z.object({
  read: z.string(),
  pids_stats: z.object({ current: count.optional() }).nullish(),
  cpu_stats: z.object({ cpu_usage: z.object({ total_usage: count }) }),
  memory_stats: z.object({
    usage: count.optional(),
    limit: count.optional(),
    stats: z.record(z.string(), count).nullish(),
  }),
  blkio_stats: z.object({
    io_service_bytes_recursive: z.array(z.object({ op: z.string(), value: count })).nullish(),
  }),
  networks: z.record(z.string(), z.object({ rx_bytes: count, tx_bytes: count })).nullish(),
});
export type StatsAnswer = z.infer<typeof answer>;

export async function readUsage(op: Operation, engine: Engine, id: string): Promise<Usage> {
  return usageOf(
    await engine.json(op, answer, { method: 'GET', path: `/containers/${id}/stats`, query: { stream: false, 'one-shot': true } }),
  );
}

export function usageOf({ cpu_stats, memory_stats, blkio_stats, networks, pids_stats }: StatsAnswer): Usage {
  const { usage, limit, stats } = memory_stats;
  // Version 1 has its children's in total_*; version 2 has no total_*.
  const reclaimable = stats?.['total_inactive_file'] ?? stats?.['inactive_file'] ?? 0;
  const cacheBytes = stats?.['total_cache'] ?? stats?.['file'] ?? null;
  const usedBytes = usage === undefined ? null : Math.max(0, usage - reclaimable);
  return {
    cpuUs: Math.floor(cpu_stats.cpu_usage.total_usage / 1000),
    memory: usedBytes === null || limit === undefined ? null : { totalBytes: limit, usedBytes, cacheBytes: cacheBytes ?? 0 },
    disk: diskOf(blkio_stats.io_service_bytes_recursive ?? []),
    network: networkOf(networks ?? {}),
    processes: pids_stats?.current ?? null,
  };
}

/** Version 1 says `Read`, version 2 `read`. One entry for each device; none where the kernel does not count. */
function diskOf(entries: readonly { readonly op: string; readonly value: number }[]) {
  if (entries.length === 0) return null;
  const sum = (kind: string): number =>
    entries.filter((entry) => entry.op.toLowerCase() === kind).reduce((total, entry) => total + entry.value, 0);
  return { readBytes: sum('read'), writtenBytes: sum('write') };
}

function networkOf(networks: Readonly<Record<string, { readonly rx_bytes: number; readonly tx_bytes: number }>>) {
  const all = Object.values(networks);
  return {
    rxBytes: all.reduce((total, one) => total + one.rx_bytes, 0),
    txBytes: all.reduce((total, one) => total + one.tx_bytes, 0),
  };
}
