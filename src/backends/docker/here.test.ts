import { expect, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import type { Host } from '../../host/host.ts';
import type { Container } from './container.ts';
import { cgroupDirs, readUsageHere } from './here.ts';

const ID = '2891d1eec14e9849d5b059a40ddaa122ef72532df1db70cb47ba82e91173f0d9';
const OTHER = ID.replace('2', '3');
const container = { Id: ID, State: { Pid: 7 } } as unknown as Container;

test('a container is found in the cgroups that its process is in, and in none that is not its own', () => {
  const one = (path: string): string =>
    `9:name=systemd:${path}\n8:pids:${path}\n4:memory:${path}\n2:cpu,cpuacct:${path}\n7:blkio:${path}\n0::/\n`;
  const all = ['cpuacct', 'memory', 'pids', 'blkio'];
  expect(cgroupDirs(one(`/docker/${ID}`), ID)).toEqual(all.map((name) => `/sys/fs/cgroup/${name}/docker/${ID}`));
  expect(cgroupDirs(one(`/system.slice/docker-${ID}.scope/made/inside`), ID)).toEqual(
    all.map((name) => `/sys/fs/cgroup/${name}/system.slice/docker-${ID}.scope`),
  );
  expect(cgroupDirs(`0::/system.slice/docker-${ID}.scope\n`, ID)).toEqual([`/sys/fs/cgroup/system.slice/docker-${ID}.scope`]);
  expect(cgroupDirs(`0::/docker/${OTHER}\n`, ID), 'another container’s process has its number').toBeNull();
  expect(cgroupDirs('0::/user.slice/session-1.scope\n', ID)).toBeNull();
  expect(cgroupDirs(`0::/../../docker/${ID}\n`, ID), 'above where we see cgroups from').toBeNull();
});

test('both versions of cgroups give the same figures, in the same units, and what is not counted is not zero', async () => {
  const machine = { '/proc/meminfo': 'MemTotal:       8000 kB\nMemFree: 1 kB\n' };
  const network = {
    '/proc/7/net/dev': `Inter-|   Receive\n face |bytes\n    lo: 99 1 0 0 0 0 0 0 99 1 0 0 0 0 0 0
  eth0:      10 1 0 0 0 0 0 0      20 1 0 0 0 0 0 0\n  eth1: 1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0\n`,
  };
  const v1 = '/sys/fs/cgroup';
  const one = await readUsageHere(
    testOperation(),
    filesOnly({
      ...machine,
      ...network,
      '/proc/7/cgroup': `8:pids:/docker/${ID}\n7:blkio:/docker/${ID}\n4:memory:/docker/${ID}\n2:cpuacct:/docker/${ID}\n0::/docker/${ID}\n`,
      [`${v1}/cpuacct/docker/${ID}/cpuacct.usage`]: '5000999\n',
      [`${v1}/memory/docker/${ID}/memory.usage_in_bytes`]: '1000\n',
      [`${v1}/memory/docker/${ID}/memory.limit_in_bytes`]: '9223372036854771712\n',
      [`${v1}/memory/docker/${ID}/memory.stat`]: 'cache 2\ninactive_file 1\ntotal_cache 400\ntotal_inactive_file 300\n',
      [`${v1}/pids/docker/${ID}/pids.current`]: '7\n',
      [`${v1}/blkio/docker/${ID}/blkio.throttle.io_service_bytes_recursive`]: '8:0 Read 5\n8:0 Write 6\n8:16 Read 50\nTotal 61\n',
    }),
    container,
  );
  const dir = `/sys/fs/cgroup/system.slice/docker-${ID}.scope`;
  const two = {
    ...machine,
    ...network,
    '/proc/7/cgroup': `0::/system.slice/docker-${ID}.scope\n`,
    [`${dir}/cpu.stat`]: 'usage_usec 5000\nuser_usec 1\n',
    [`${dir}/memory.current`]: '1000\n',
    [`${dir}/memory.max`]: 'max\n',
    [`${dir}/memory.stat`]: 'anon 1\nfile 400\ninactive_file 300\n',
    [`${dir}/pids.current`]: '7\n',
    [`${dir}/io.stat`]: '8:0 rbytes=5 wbytes=6 rios=1\n8:16 rbytes=50 wbytes=0 rios=1\n',
  };
  expect(one).toEqual({
    cpuUs: 5_000,
    memory: { totalBytes: 8_192_000, usedBytes: 700, cacheBytes: 400 },
    disk: { readBytes: 55, writtenBytes: 6 },
    network: { rxBytes: 11, txBytes: 22 },
    processes: 7,
  });
  expect(await readUsageHere(testOperation(), filesOnly(two), container)).toEqual(one);
  const { [`${dir}/io.stat`]: _, [`${dir}/memory.current`]: __, [`${dir}/pids.current`]: ___, ...blind } = two;
  expect(await readUsageHere(testOperation(), filesOnly(blind), container)).toMatchObject({ memory: null, processes: null, disk: null });
});

test('where its process is not to be seen, the Engine is to be asked', async () => {
  expect(await readUsageHere(testOperation(), filesOnly({}), container)).toBeNull();
  const unseen = { '/proc/7/net/dev': '', '/proc/meminfo': '', '/proc/7/cgroup': `0::/docker/${ID}\n` };
  expect(await readUsageHere(testOperation(), filesOnly(unseen), container), 'cgroups that are not mounted here').toBeNull();
});

/** A machine with just these files. */
function filesOnly(files: Readonly<Record<string, string>>): Host {
  return {
    readFile: async (op: ReturnType<typeof testOperation>, path: string) => {
      const text = files[path];
      if (text === undefined) throw op.error('not_found', `there is no ${path}`);
      return new TextEncoder().encode(text);
    },
  } as unknown as Host;
}
