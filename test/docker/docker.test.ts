// Containers of a real Engine, from outside: what only this backend can get wrong. What all backends
// share is in test/conformance.
import { createHash, randomBytes } from 'node:crypto';
import { readdir, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { Hutch } from '../../src/sdk/hutch.ts';
import { eventually } from '../support/eventually.ts';
import { DockerWorld, refused } from './world.ts';

let world: DockerWorld;
beforeAll(async () => {
  world = await DockerWorld.start({ env: { HUTCH_DEVICES_ALLOW: '/dev/fuse' } });
}, 300_000);
afterAll(async () => {
  await world[Symbol.asyncDispose]();
}, 120_000);

afterEach(() => world.clear(), 120_000);

test('a container has a minimal set of capabilities, no new privileges, no namespace or device of the host, its limits, and labels', async () => {
  const { daemon, engine } = world;
  const { id, projectId } = await daemon.call('sandbox.create', { name: 'hard', cpus: 1, memoryMiB: 256 });
  const { Id } = await world.container(id);
  const { body } = (await engine.ask('GET', `/containers/${Id}/json`)) as {
    body: { Config: { Labels: object }; HostConfig: object; Mounts: { RW: boolean; Source: string }[] };
  };
  expect(body.HostConfig).toMatchObject({
    Privileged: false,
    CapDrop: ['ALL'],
    SecurityOpt: ['no-new-privileges:true'],
    NetworkMode: 'none',
    PidMode: '',
    IpcMode: 'private',
    UTSMode: '',
    UsernsMode: '',
    Memory: 256 * 2 ** 20,
    MemorySwap: 256 * 2 ** 20,
    NanoCpus: 1e9,
    PidsLimit: 2048,
    RestartPolicy: { Name: 'no' },
    LogConfig: { Type: 'none' },
  });
  expect(body.Mounts.every(({ RW, Source }) => !RW && !Source.includes('docker.sock'))).toBe(true);
  expect(body.Config.Labels).toMatchObject({ 'dev.hutch.sandbox': id, 'dev.hutch.project': projectId });
  const inside = await daemon.run(id, ['sh', '-c', 'hostname; grep -E "^(CapEff|NoNewPrivs)" /proc/self/status']);
  expect(inside.stdout).toBe('hard\nCapEff:\t00000000000405fb\nNoNewPrivs:\t1\n');
  const { stdout: its } = await daemon.run(id, ['sh', '-c', 'for kind in cgroup ipc mnt net pid uts; do readlink /proc/1/ns/$kind; done']);
  const hosts = await Promise.all(
    its
      .trim()
      .split('\n')
      .map((name) => readlink(`/proc/self/ns/${name.split(':')[0]}`)),
  );
  expect(hosts.filter((name) => its.includes(name))).toEqual([]);
  expect(hosts).toHaveLength(6);
  const devices = await daemon.run(id, ['sh', '-c', 'find /dev -type b -o -type c | sort | tr "\\n" " "']);
  expect(devices.stdout).toBe('/dev/full /dev/null /dev/pts/ptmx /dev/random /dev/tty /dev/urandom /dev/zero ');
  const raised = await daemon.run(id, ['sudo', '-n', 'id', '-u'], { user: 'user' });
  expect(raised).toMatchObject({ exitCode: 1, stdout: '', stderr: expect.stringMatching(/no new privileges/) });
  await world.gone(id);
});

test('a device is there when it is asked for and allowed, and no other', async () => {
  const { daemon } = world;
  const { id, devices } = await daemon.call('sandbox.create', { devices: ['/dev/fuse'] });
  expect(devices).toEqual(['/dev/fuse']);
  const { stdout } = await daemon.run(id, [
    'sh',
    '-c',
    'test -c /dev/fuse && exec 3<>/dev/fuse && echo open; find /dev -type b -o -type c | wc -l',
  ]);
  expect(stdout).toBe('open\n8\n');
  await world.gone(id);
  for (const [device, code, message] of [
    ['/dev/kmsg', 'permission_denied', 'devices.allow'],
    ['/dev/../etc/passwd', 'invalid_argument', 'devices'],
    ['/dev', 'invalid_argument', 'devices'],
    ['relative', 'invalid_argument', 'devices'],
  ] as const) {
    const { body } = await refused(daemon.call('sandbox.create', { devices: [device] }));
    expect(body, device).toMatchObject({ code, message: expect.stringContaining(message) });
  }
});

test('what is used is counted by the container’s cgroup, and the counters never go backwards', async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', { memoryMiB: 256 });
  const samples = [await daemon.call('sandbox.stats', { ref: id })];
  for (let n = 0; n < 3; n += 1) {
    await daemon.run(id, ['sh', '-c', 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 4000000 /dev/urandom > /tmp/x; sync']);
    samples.push(await daemon.call('sandbox.stats', { ref: id }));
  }
  for (const [n, sample] of samples.entries()) {
    // The limit of the container, not the memory of the machine.
    expect(sample.memory.totalBytes).toBe(256 * 2 ** 20);
    expect(sample.memory.usedBytes).toBeLessThan(sample.memory.totalBytes);
    const before = samples[n - 1];
    if (before === undefined) continue;
    expect(sample.cpu.usedUs).toBeGreaterThan(before.cpu.usedUs);
    expect(sample.host.cpuUs).toBeGreaterThanOrEqual(sample.cpu.usedUs);
    expect(sample.disk.writtenBytes).toBeGreaterThanOrEqual(before.disk.writtenBytes ?? Number.NaN);
  }
  await world.gone(id);
});

test('they are read on this machine, without a wait for the Engine, whose own figures are the same', { timeout: 60_000 }, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { memoryMiB: 256, network: 'allow' });
  const { Id } = await world.container(id);
  await daemon.run(id, ['sh', '-c', 'head -c 30000000 /dev/urandom > /tmp/x; cat /tmp/x > /dev/null']);
  await daemon.run(id, ['python3', '-c', 'import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(bytes(999), ("192.0.2.1", 9))']);
  type Figures = {
    readonly cpu_stats: { readonly cpu_usage: { readonly total_usage: number } };
    readonly memory_stats: { readonly limit: number; readonly usage: number; readonly stats: Readonly<Record<string, number>> };
    readonly networks: { readonly eth0: { readonly rx_bytes: number; readonly tx_bytes: number } };
    readonly pids_stats: { readonly current: number };
  };
  const asked = async () => (await engine.ask('GET', `/containers/${Id}/stats?stream=false&one-shot=true`)).body as Figures;
  await using door = await world.throughDoor();
  const before = await asked();
  using _ = door.lose(/\/stats\?/);
  const read = await daemon.call('sandbox.stats', { ref: id });
  expect(door.losses, 'nothing was asked that an Engine says once a second').toBe(0);
  const after = await asked();
  expect(read.cpu.usedUs).toBeGreaterThanOrEqual(Math.floor(before.cpu_stats.cpu_usage.total_usage / 1000));
  expect(read.cpu.usedUs).toBeLessThanOrEqual(Math.floor(after.cpu_stats.cpu_usage.total_usage / 1000));
  expect(read.memory.totalBytes).toBe(after.memory_stats.limit);
  const { usage, stats } = after.memory_stats;
  const used = usage - (stats['total_inactive_file'] ?? stats['inactive_file'] ?? 0);
  expect(Math.abs(read.memory.usedBytes - used)).toBeLessThan(8 * 2 ** 20);
  const cached = stats['total_cache'] ?? stats['file'] ?? 0;
  expect(cached).toBeGreaterThan(20 * 2 ** 20);
  expect(Math.abs(read.memory.cacheBytes - cached)).toBeLessThan(8 * 2 ** 20);
  expect(read.processes).toBe(after.pids_stats.current);
  for (const [way, figure] of [
    ['rx_bytes', read.network.rxBytes],
    ['tx_bytes', read.network.txBytes],
  ] as const) {
    expect(figure, way).toBeGreaterThanOrEqual(before.networks.eth0[way]);
    expect(figure, way).toBeLessThanOrEqual(after.networks.eth0[way]);
  }
  expect(read.network.txBytes).toBeGreaterThan(0);
  await world.gone(id);
});

test('a container that dies tells its exit code and whether it ran out of memory', async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', {});
  const { Id } = await world.container(id);
  await engine.ask('POST', `/containers/${Id}/kill?signal=KILL`);
  await eventually('the sandbox to be known as stopped', async () => (await world.state(id)) === 'stopped');
  expect(await daemon.call('sandbox.get', { ref: id })).toMatchObject({
    ended: { cause: 'host-stopped', oomKilled: false },
    openComputeSinceMs: null,
  });

  await daemon.call('sandbox.start', { ref: id });
  expect((await daemon.run(id, ['echo', 'again'])).stdout).toBe('again\n');
  await world.gone(id);

  const main = { argv: ['sh', '-c', 'exec head -c 400000000 /dev/zero | tail -c 400000000'] };
  const greedy = await daemon.call('sandbox.create', { memoryMiB: 128, main });
  const { sandbox } = await daemon.call('sandbox.wait', { ref: greedy.id });
  expect(sandbox).toMatchObject({ state: 'stopped', ended: { cause: 'exited', oomKilled: true } });
  await world.gone(greedy.id);
});

test('a first process that ignores SIGTERM is ended all the same, after the grace', async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', {
    main: { argv: ['sh', '-c', 'trap "" TERM; echo ready; while :; do sleep 1; done'] },
  });
  const stopped = await daemon.call('sandbox.stop', { ref: id, graceMs: 300 });
  expect(stopped).toMatchObject({ state: 'stopped', ended: { cause: 'stopped' } });
  await world.gone(id);
});

test('a killed daemon costs a container nothing: it is adopted, with its processes and its output', async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', {
    main: { argv: ['sh', '-c', 'n=0; while :; do n=$((n+1)); echo $n > /tmp/n; sleep 0.05; done'] },
  });
  const first = Number((await daemon.run(id, ['cat', '/tmp/n'])).stdout);
  await daemon.kill9();
  await daemon.startAgain();
  expect(await world.state(id)).toBe('running');
  await eventually('the process to have gone on', async () => Number((await daemon.run(id, ['cat', '/tmp/n'])).stdout) > first + 2);
  expect((await daemon.call('sandbox.get', { ref: id })).startCount).toBe(1);
  await world.gone(id);
});

test('a large file goes into a container and out of it where it lies, as the user who asks, and not through the daemon', {
  timeout: 120_000,
}, async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', { name: 'files' });
  using hutch = Hutch.connect({ url: `unix:${daemon.ready.socketPath}`, apiKey: daemon.key });
  const { files } = await hutch.sandbox(id);
  const content = randomBytes(24 * 2 ** 20 + 321);
  const sha256 = createHash('sha256').update(content).digest('hex');
  async function* pieces() {
    for (let at = 0; at < content.byteLength; at += 65_536) yield content.subarray(at, at + 65_536);
  }
  expect(await files.write('/srv/deep/file', pieces(), { mode: 0o640, mkdirs: true, user: 'nobody' }).catch(String)).toMatch(
    /permission|EACCES/i,
  );
  const written = await files.write('/tmp/file', pieces(), { mode: 0o640, user: 'nobody', mtimeMs: 1_000_000 });
  expect(written).toMatchObject({ size: content.byteLength, mode: 0o640, user: 'nobody', mtimeMs: 1_000_000 });
  expect((await daemon.run(id, ['sha256sum', '/tmp/file'])).stdout).toContain(sha256);
  expect(
    createHash('sha256')
      .update(await files.read('/tmp/file'))
      .digest('hex'),
  ).toBe(sha256);
  expect((await files.read('/tmp/file', { offset: 1_000_001, length: 2_000_003 })).equals(content.subarray(1_000_001, 3_000_004))).toBe(
    true,
  );
  expect(await files.read('/tmp/file', { user: 'daemon' }).catch(String)).toMatch(/permission|EACCES/i);

  // What was there stays until the new one is whole, and nothing else.
  await expect(
    files.write(
      '/tmp/file',
      (async function* () {
        yield content;
        throw new Error('the source is gone');
      })(),
    ),
  ).rejects.toThrow('the source is gone');
  await eventually('nothing is left beside it', async () => (await daemon.run(id, ['ls', '-A', '/tmp'])).stdout === 'file\n');
  expect((await daemon.run(id, ['sha256sum', '/tmp/file'])).stdout).toContain(sha256);

  const carried = (await daemon.log())
    .split('\n')
    .filter((line) => /"verb":"file\.(read|write)"/.test(line))
    .map((line) => JSON.parse(line) as { bytesIn: number; bytesOut: number });
  expect(carried.length).toBeGreaterThan(4);
  for (const { bytesIn, bytesOut } of carried) expect(bytesIn + bytesOut).toBeLessThan(100_000);
  // Nothing of it is held by the daemon once everybody has what he wanted.
  const held = async (): Promise<readonly string[]> => {
    const dir = `/proc/${daemon.pid}/fd`;
    const links = await Promise.all((await readdir(dir)).map((fd) => readlink(join(dir, fd)).catch(() => '')));
    return links.filter((link) => /\/tmp\/(file|\.hutch-)/.test(link));
  };
  await eventually('the daemon lets go of it', async () => (await held()).length === 0, 20_000);
  await world.gone(id);
});

test('what a container cannot do is refused by name, and a limit that would not hold is not dropped', async () => {
  const { daemon } = world;
  const { backends } = await daemon.call('backends.list', {});
  expect(backends.find(({ name }) => name === 'docker')?.can).toMatchObject({
    isolation: 'shared-kernel',
    securityBoundary: false,
    suspend: false,
    fork: false,
    limits: { cpu: 'enforced', memory: 'enforced', disk: 'no', processes: 'enforced' },
  });
  const disk = await refused(daemon.call('sandbox.create', { diskMiB: 1024 }));
  expect(disk.body).toMatchObject({
    code: 'failed_precondition',
    message: expect.stringMatching(/diskMiB cannot be limited by the backend docker/),
  });
});

test('thirty are made, used and removed at once, and nothing is left', { timeout: 300_000 }, async () => {
  const { daemon, engine } = world;
  const made = await Promise.all(
    Array.from({ length: 30 }, (_, n) => daemon.call('sandbox.create', { memoryMiB: 128, name: `many-${n}` })),
  );
  const names = await Promise.all(made.map(async ({ id }) => (await daemon.run(id, ['hostname'])).stdout.trim()));
  expect(names).toEqual(made.map(({ name }) => name));
  await world.gone(...made.map(({ id }) => id));
  expect(await engine.containers()).toEqual([]);
  expect(await daemon.leaks()).toEqual([]);
});
