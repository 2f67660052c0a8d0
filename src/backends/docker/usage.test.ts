import { expect, test } from 'vitest';
import { usageOf } from './usage.ts';

const common = {
  read: '2026-01-01T00:00:00Z',
  pids_stats: { current: 7 },
  cpu_stats: { cpu_usage: { total_usage: 5_000_999 } },
  networks: { eth0: { rx_bytes: 10, tx_bytes: 20 }, eth1: { rx_bytes: 1, tx_bytes: 2 } },
};

test('both versions of cgroups give the same figures, and what is not counted is not zero', () => {
  const one = usageOf({
    ...common,
    memory_stats: { usage: 1000, limit: 4000, stats: { inactive_file: 1, total_inactive_file: 300, total_cache: 400, cache: 2 } },
    blkio_stats: {
      io_service_bytes_recursive: [
        { op: 'Read', value: 5 },
        { op: 'Write', value: 6 },
        { op: 'Read', value: 50 },
        { op: 'Total', value: 61 },
      ],
    },
  });
  const two = usageOf({
    ...common,
    memory_stats: { usage: 1000, limit: 4000, stats: { inactive_file: 300, file: 400 } },
    blkio_stats: {
      io_service_bytes_recursive: [
        { op: 'read', value: 55 },
        { op: 'write', value: 6 },
      ],
    },
  });
  expect(one).toEqual({
    cpuUs: 5_000,
    memory: { totalBytes: 4000, usedBytes: 700, cacheBytes: 400 },
    disk: { readBytes: 55, writtenBytes: 6 },
    network: { rxBytes: 11, txBytes: 22 },
    processes: 7,
  });
  expect(two).toEqual(one);
  const blind = usageOf({ ...common, pids_stats: {}, memory_stats: {}, blkio_stats: { io_service_bytes_recursive: null } });
  expect(blind).toMatchObject({ memory: null, processes: null, disk: null });
});
