// Limits and figures of both versions of cgroups, as their files are on Linux 6.1 and 6.18. The machine of the other tests has one of
// the two.
import { expect, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import { newId } from '../../domain/ids.ts';
import type { FileInfo, Host } from '../../host/host.ts';
import type { SandboxPlan } from '../backend.ts';
import { Cgroups } from './cgroup.ts';

const ROOT = '/sys/fs/cgroup';
const op = testOperation();
const plan = { id: newId('sbx', (count) => new Uint8Array(count)), shape: { cpus: 2, memoryMiB: 64, diskMiB: 1024 } } as SandboxPlan;
const path = `hutch/${plan.id}`;

/** Nothing but these files, as root sees them; what is appended to one is what it says. */
function machine(files: Record<string, string>): { readonly host: Host; readonly files: Record<string, string> } {
  const isIn = (dir: string) => (file: string) => file.startsWith(`${dir}/`);
  const host: Partial<Host> = {
    uid: 0,
    stat: async (_op, at) => {
      if (at in files) return { type: 'file' } as FileInfo;
      return Object.keys(files).some(isIn(at)) ? ({ type: 'directory' } as FileInfo) : null;
    },
    list: async (_op, dir) => [
      ...new Set(
        Object.keys(files)
          .filter(isIn(dir))
          .map((file) => file.slice(dir.length + 1).split('/')[0] ?? ''),
      ),
    ],
    readFile: async (_op, at) => {
      const content = files[at];
      if (content === undefined) throw op.error('not_found', `there is no ${at}`);
      return new TextEncoder().encode(content);
    },
    appendFile: async (_op, at, bytes) => {
      files[at] = new TextDecoder().decode(bytes);
    },
    makeDir: async () => {},
  };
  return { host: host as Host, files };
}

const UNIFIED = {
  [`${ROOT}/cgroup.controllers`]: 'cpuset cpu io memory hugetlb pids rdma misc\n',
  [`${ROOT}/cgroup.subtree_control`]: 'memory pids\n',
  [`${ROOT}/hutch/cgroup.subtree_control`]: '\n',
  [`${ROOT}/${path}/cpu.stat`]: 'usage_usec 5000\nuser_usec 4000\nsystem_usec 1000\nnr_periods 0\n',
  [`${ROOT}/${path}/memory.stat`]: 'anon 4096\nfile 800000\nkernel 1\nshmem 8192\nfile_mapped 0\n',
  [`${ROOT}/${path}/memory.events`]: 'low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n',
  [`${ROOT}/${path}/io.stat`]:
    '254:0 rbytes=5 wbytes=6 rios=1 wios=1 dbytes=0 dios=0\n7:0 rbytes=50 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n',
};
const SEPARATE = {
  ...Object.fromEntries(['memory', 'cpu', 'pids', 'cpuacct'].map((name) => [`${ROOT}/${name}/cgroup.procs`, ''])),
  [`${ROOT}/cpu/${path}/cpu.stat`]: 'nr_periods 0\nnr_throttled 0\nthrottled_time 0\n',
  [`${ROOT}/cpuacct/${path}/cpuacct.usage`]: '5000999\n',
  [`${ROOT}/memory/${path}/memory.stat`]: 'cache 808192\nrss 1\nshmem 8192\ntotal_cache 808192\ntotal_rss 4096\ntotal_shmem 8192\n',
  [`${ROOT}/memory/${path}/memory.oom_control`]: 'oom_kill_disable 0\nunder_oom 0\noom_kill 2\n',
  [`${ROOT}/blkio/${path}/blkio.throttle.io_service_bytes`]:
    '254:0 Read 5\n254:0 Write 6\n254:0 Total 11\n7:0 Read 50\n7:0 Write 0\nTotal 61\n',
};

test.each([
  ['version 2', UNIFIED],
  ['version 1', SEPARATE],
])('cgroups of %s tell processor time, memory, traffic and kills of a sandbox of gVisor, in the same units', async (_what, files) => {
  const cgroups = new Cgroups(machine({ ...files }).host, 'hutch');
  expect(await cgroups.use(op, plan)).toEqual({ cpuUs: 5_000, memoryBytes: 12_288 });
  expect(await cgroups.disk(op, plan)).toEqual({ readBytes: 55, writtenBytes: 6 });
  expect(await cgroups.oomKills(op, plan)).toBe(2);
});

test('a sandbox of gVisor is limited in the unified hierarchy, whose parents hand the controllers on; without one of them nothing is claimed', async () => {
  const limits = ['memory.max', 'memory.swap.max', 'cpu.max', 'cpu.max.burst', 'pids.max'].map((name) => `${ROOT}/${path}/${name}`);
  const { host, files } = machine({ ...UNIFIED, ...Object.fromEntries(limits.map((file) => [file, 'max\n'])) });
  // Until the parents hand them on they are not there.
  const handedOn: string[] = [];
  const stat: Host['stat'] = async (asking, at) => (at.endsWith('/memory.max') && handedOn.length < 2 ? null : await host.stat(asking, at));
  const appendFile: Host['appendFile'] = async (asking, at, bytes) => {
    if (at.endsWith('subtree_control')) handedOn.push(at);
    await host.appendFile(asking, at, bytes);
  };
  const cgroups = new Cgroups({ ...host, stat, appendFile }, 'hutch');
  expect(await cgroups.work(op)).toBe(true);
  await cgroups.make(op, plan);
  await cgroups.settle(op, plan);
  expect(handedOn).toEqual([`${ROOT}/cgroup.subtree_control`, `${ROOT}/hutch/cgroup.subtree_control`]);
  expect(files[`${ROOT}/cgroup.subtree_control`]).toBe('+memory +cpu +pids');
  expect(limits.map((file) => files[file])).toEqual([`${64 * 1024 * 1024}`, '0', '200000 100000', '200000', '8192']);

  const lacking = machine({ ...UNIFIED, [`${ROOT}/cgroup.controllers`]: 'cpu io pids\n' });
  expect(await new Cgroups(lacking.host, 'hutch').work(op)).toBe(false);
  expect(await new Cgroups(lacking.host, 'hutch').use(op, plan)).toBeNull();
});

test('what a sandbox of gVisor has left of its processors in one period it may have in a later one, where the kernel knows that', async () => {
  const cpu = (name: string): string => `${ROOT}/cpu/${path}/${name}`;
  const { host, files } = machine({ ...SEPARATE, [cpu('cpu.cfs_period_us')]: '', [cpu('cpu.cfs_quota_us')]: '' });
  await new Cgroups(host, 'hutch').settle(op, plan);
  expect([files[cpu('cpu.cfs_quota_us')], files[cpu('cpu.cfs_period_us')], files[cpu('cpu.cfs_burst_us')]]).toEqual([
    '200000',
    '100000',
    undefined,
  ]);
  files[cpu('cpu.cfs_burst_us')] = '0';
  await new Cgroups(host, 'hutch').settle(op, plan);
  // No more than the quota: the kernel refuses that.
  expect(files[cpu('cpu.cfs_burst_us')]).toBe('200000');
});
