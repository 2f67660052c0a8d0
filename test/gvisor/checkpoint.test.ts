// Memory and processes that are written down and taken up again: at the backend itself, with the real runsc.
import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { appendFile, chmod, copyFile, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { afterAll, expect, onTestFinished, test } from 'vitest';
import type { SandboxPlan } from '../../src/backends/backend.ts';
import { newGvisorBackend } from '../../src/backends/gvisor/backend.ts';
import { Cgroups } from '../../src/backends/gvisor/cgroup.ts';
import type { GvisorConfig } from '../../src/backends/gvisor/config.ts';
import { newId } from '../../src/domain/ids.ts';
import { type Agent, connectAgent } from '../../src/guest/agent.ts';
import type { Host } from '../../src/host/host.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { withoutNetwork } from '../../src/network/network.ts';
import { realBootFiles } from '../qemu/fixture.ts';
import { outputOf } from '../qemu/guest-command.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';

const PREBUILT = resolve(import.meta.dirname, '../../prebuilt/x86_64');
const op = testOperation();
const host = nodeHost();
const shared = await mkdtemp(join(tmpdir(), 'hutch-gvisor-bases-'));
afterAll(() => rm(shared, { recursive: true }));

async function place(host: Host = nodeHost()) {
  const home = await mkdtemp(join(tmpdir(), 'hutch-gvisor-'));
  await chmod(home, 0o711);
  const config: GvisorConfig = {
    host,
    basesDir: join(shared, 'bases'), // unpacked once for both tests
    savedRoots: [home],
    workDir: join(home, 'work'),
    shimPath: join(PREBUILT, 'hutch-shim'),
    cellPath: join(PREBUILT, 'hutch-cell'),
    automountLibraryPath: join(PREBUILT, 'hutch-automount.so'),
    imprintPath: join(PREBUILT, 'hutch-imprint'),
    agentPath: join(PREBUILT, 'hutch-agent'),
    cgroupName: basename(home),
    runRoot: join(home, 'run'),
    network: withoutNetwork('the test wants none'),
    whyNoKvm: async () => 'not in this test',
  };
  const backend = newGvisorBackend(config);
  const id = newId('sbx', (count) => randomBytes(count));
  const plan: SandboxPlan = {
    ...{ id, name: id, projectId: null, shape: { cpus: 1, memoryMiB: 512, diskMiB: 8192 }, network: 'none', runAs: null },
    ...{ dataDir: join(home, 'data', id), runDir: join(home, 'run', id), logDir: join(home, 'log', id) },
    boot: { ...(await realBootFiles(op, host)), kind: 'root' },
  };
  const { checkpoints } = backend;
  if (checkpoints === undefined) throw new Error('gVisor makes checkpoints');
  onTestFinished(async () => {
    await backend.kill(op, plan, 'now');
    await backend.remove(op, plan);
    expect(await backend.leaks(op, new Set())).toEqual([]);
    await rm(home, { recursive: true });
  });
  return { home, config, backend, checkpoints, plan, checkpointDir: join(home, 'checkpoint') };
}

type Place = Awaited<ReturnType<typeof place>>;

async function agentOf({ backend, plan }: Place): Promise<Agent> {
  const agent = await connectAgent(op, await backend.dialAgent(op, plan));
  // The same generation as before the checkpoint changes nothing.
  await agent.configure(op, { generation: plan.id, hostname: 'test', clockMs: Date.now(), entropy: randomBytes(64), env: {}, secrets: {} });
  return agent;
}

async function letGo({ backend, plan }: Place, agent: Agent): Promise<void> {
  await backend.closeDoor?.(op, plan);
  await agent.prepareCheckpoint(op, 50);
  await eventually('the agent has let go', () => agent.lost.aborted);
}

/** What a shell script prints. */
const sh = async (agent: Agent, script: string): Promise<string> => (await outputOf(op, agent, ['sh', '-c', script])).stdout;

const isRoot = process.getuid?.() === 0;

test.skipIf(!isRoot)(
  'a checkpoint keeps memory and processes: after a restore they go on where they were',
  { timeout: 180_000 },
  async () => {
    const real = nodeHost();
    const told: string[] = [];
    const noting: Partial<Host> = {
      run: async (...args) => {
        told.push(...args[1].filter((word) => word === 'pause' || word === 'resume'));
        return await real.run(...args);
      },
    };
    const it = await place(Object.assign(Object.create(real) as Host, noting));
    const { backend, checkpoints, plan, checkpointDir, config } = it;
    await backend.create(op, plan);
    await backend.start(op, plan);
    const agent = await agentOf(it);
    await sh(agent, 'echo on disk > /root/a; (i=0; while :; do i=$((i+1)); echo $i $$ > /dev/shm/n; sleep 0.02; done) >/dev/null 2>&1 &');
    const counted = async (from: Agent): Promise<{ count: number; pid: number }> => {
      let [count, pid] = [0, 0];
      await eventually('it has counted', async () => {
        [count = 0, pid = 0] = (await sh(from, 'cat /dev/shm/n')).split(' ').map(Number);
        return count > 0;
      });
      return { count, pid };
    };
    const before = await counted(agent);
    await letGo(it, agent);
    expect(await checkpoints.save(op, plan, checkpointDir)).toMatchObject({ alive: false, proof: 'exit.json' });
    expect(await checkpoints.isWhole?.(op, checkpointDir)).toBe(true);
    expect(await backend.inspect(op, plan)).toMatchObject({ alive: false });
    await backend.cleanUp(op, plan);
    expect(existsSync(plan.runDir)).toBe(false);
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(plan.id);

    await checkpoints.restore(op, plan, checkpointDir);
    const again = await agentOf(it);
    const after = await counted(again);
    expect(after.pid).toBe(before.pid);
    expect(after.count).toBeGreaterThanOrEqual(before.count);
    await eventually('it goes on counting', async () => (await counted(again)).count > after.count);
    expect(await sh(again, 'cat /root/a; hostname')).toBe('on disk\ntest\n');

    // Its runtime may say nothing when such a one is to stand still: the kernel of the host is told.
    told.splice(0);
    await backend.pause(op, plan);
    const held = await new Cgroups(host, config.cgroupName).freeze(op, plan);
    expect(held).toBe(told.length === 0 ? 'was frozen' : 'cannot');
    await backend.resume(op, plan);
    expect(told).toEqual(held === 'cannot' ? ['pause', 'resume'] : []);
    const paused = await counted(again);
    await eventually('it goes on counting', async () => (await counted(again)).count > paused.count);
  },
);

test.skipIf(!isRoot)(
  'what a newer Hutch takes up goes on with the agent and the library that it was saved with, which are kept for as long, or is refused before it is touched',
  { timeout: 180_000 },
  async () => {
    const it = await place();
    const { home, config, backend, checkpoints, plan, checkpointDir } = it;
    await backend.create(op, plan);
    await backend.start(op, plan);
    const agent = await agentOf(it);
    await sh(agent, 'echo in memory > /dev/shm/kept; sleep 100000 > /dev/null 2>&1 & echo $! > /dev/shm/pid');
    const library = await sh(agent, 'cat /etc/ld.so.preload && sha256sum /etc/ld.so.hutch');
    await letGo(it, agent);
    await checkpoints.save(op, plan, checkpointDir);
    await backend.cleanUp(op, plan);

    // Another program: one that was taken for the old one would run on in the middle of it.
    await mkdir(join(home, 'newer'));
    const agentPath = join(home, 'newer', basename(config.agentPath));
    await copyFile(config.shimPath, agentPath);
    const bare = newGvisorBackend({ ...config, agentPath, basesDir: join(home, 'no-agents') });
    await expect(bare.checkpoints?.restore(op, plan, checkpointDir)).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('the agent in it is of another release of Hutch'),
    });
    expect(await checkpoints.isWhole?.(op, checkpointDir)).toBe(true);

    // It works as well, and is another file.
    const automountLibraryPath = join(home, 'newer', basename(config.automountLibraryPath));
    await copyFile(config.automountLibraryPath, automountLibraryPath);
    await appendFile(automountLibraryPath, 'newer');
    const withoutOld = newGvisorBackend({ ...config, automountLibraryPath, basesDir: join(home, 'no-libraries') });
    await expect(withoutOld.checkpoints?.restore(op, plan, checkpointDir)).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('a library in it is of another release of Hutch'),
    });
    const newer = newGvisorBackend({ ...config, agentPath, automountLibraryPath });
    onTestFinished(async () => {
      await newer.kill(op, plan, 'now');
      await newer.cleanUp(op, plan);
    });
    expect(await newer.tidy?.(op)).toEqual([]);
    await newer.checkpoints?.restore(op, plan, checkpointDir);
    const resumed = await agentOf({ ...it, backend: newer });
    expect(await sh(resumed, 'cat /dev/shm/kept; kill -0 $(cat /dev/shm/pid) && ls -d -l /dev/shm | wc -l')).toBe('in memory\n1\n');
    expect(await sh(resumed, 'cat /etc/ld.so.preload && sha256sum /etc/ld.so.hutch')).toBe(library);

    await rm(checkpointDir, { recursive: true });
    expect(await newer.tidy?.(op)).toEqual([]); // it runs
    await newer.kill(op, plan, 'now');
    await newer.cleanUp(op, plan);
    const tomorrow = Object.assign(Object.create(config.host) as Host, { nowMs: () => Date.now() + 25 * 60 * 60_000 });
    const later = newGvisorBackend({ ...config, host: tomorrow, agentPath, automountLibraryPath });
    const strays = (await later.leaks(op, new Set())).map(({ what }) => what).sort();
    expect(strays).toEqual([expect.stringMatching(/\/agent-[0-9a-f]{16}$/), expect.stringMatching(/\/over-[0-9a-f]{16}$/)]);
    expect(await newer.leaks(op, new Set())).toEqual([]); // the sweep has not had its time
    expect((await newer.tidy?.(op))?.map(({ path }) => path).sort()).toEqual(strays);
    expect(strays.filter((path) => existsSync(path))).toEqual([]);
    expect(await later.leaks(op, new Set())).toEqual([]);
  },
);

test.skipIf(!isRoot)('a checkpoint that cannot be made leaves the sandbox running, and nothing else', { timeout: 180_000 }, async () => {
  const real = nodeHost();
  const refusing: Partial<Host> = {
    run: async (...args) => {
      const [, argv] = args;
      if (!argv.includes('checkpoint')) return await real.run(...args);
      // As its shim says that a program could not be started.
      return { exitCode: 1, stdout: new TextEncoder().encode('{"error":"no space left on device"}'), stderr: new Uint8Array() };
    },
  };
  const it = await place(Object.assign(Object.create(real) as Host, refusing));
  const { backend, checkpoints, plan, checkpointDir } = it;
  await backend.create(op, plan);
  await backend.start(op, plan);
  const agent = await agentOf(it);
  await letGo(it, agent);
  await expect(checkpoints.save(op, plan, checkpointDir)).rejects.toMatchObject({
    code: 'unavailable',
    message: expect.stringContaining('no space left'),
  });
  expect(existsSync(checkpointDir)).toBe(false);
  const still = await agentOf(it);
  expect(await sh(still, 'echo still here')).toBe('still here\n');
  // What the runtime would end with is found before it is asked: also where it has another name, by which it is not open.
  const [gone, linked] = ['exec 3> /root/gone; rm /root/gone', 'exec 3> /root/one; ln /root/one /root/two; rm /root/one'];
  await sh(still, `(${gone}; exec sleep 1000) > /dev/null 2>&1 & (${linked}; exec sleep 1000) > /dev/null 2>&1 &`);
  await eventually('both are deleted', async () => (await sh(still, 'ls /root')) === 'two\n');
  await letGo(it, still);
  await expect(checkpoints.save(op, plan, checkpointDir)).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringMatching(/\/root\/(gone|one) and 1 more were deleted while they were in use/),
  });
  expect(await sh(await agentOf(it), 'echo still here')).toBe('still here\n');
  await host.makeDir(op, checkpointDir, 0o700);
  await expect(checkpoints.save(op, plan, checkpointDir)).rejects.toMatchObject({ code: 'conflict' });
  expect(existsSync(checkpointDir)).toBe(true);
});
