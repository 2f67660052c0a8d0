// One sandbox through its life on a real VM: what a user relies on of start, pause, kill and start again.
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { SandboxPlan } from '../../src/backends/backend.ts';
import { newQemuBackend } from '../../src/backends/qemu/backend.ts';
import { shimRef } from '../../src/host/shim.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';
import { isRoot } from '../support/users.ts';
import { configuredAgent, qemuUnderTest, type UnderTest } from './fixture.ts';
import { outputOf } from './guest-command.ts';

const op = testOperation();
let it: UnderTest;

beforeAll(async () => {
  it = await qemuUnderTest();
  await it.backend.prepare(op, it.plan());
});
afterAll(() => it[Symbol.asyncDispose]());

/** A created sandbox that is gone, whatever happens, at the end of the test. */
async function created(options: Parameters<UnderTest['plan']>[0] = {}): Promise<SandboxPlan & AsyncDisposable> {
  const plan = it.plan(options);
  await it.backend.create(op, plan);
  return {
    ...plan,
    async [Symbol.asyncDispose]() {
      await it.backend.kill(op, plan, 'now');
      await it.backend.remove(op, plan);
    },
  };
}

test('a command runs in a VM of its own with the shape that was asked for', async () => {
  await using plan = await created({ shape: { cpus: 2, memoryMiB: 600, diskMiB: 2048 } });
  const started = await it.backend.start(op, plan);
  using agent = await configuredAgent(op, it, plan, started);
  const { stdout } = await outputOf(op, agent, [
    'sh',
    '-c',
    "nproc; awk '/MemTotal/ {print $2}' /proc/meminfo; df -m --output=size / | tail -1; uname -s",
  ]);
  const [cpus, memoryKiB, diskMiB, kernel] = stdout.trim().split(/\s+/);
  expect([cpus, kernel]).toEqual(['2', 'Linux']);
  // Rounded up to the step of 128 MiB; the kernel keeps some for itself.
  expect(Number(memoryKiB)).toBeGreaterThan(540 * 1024);
  expect(Number(memoryKiB)).toBeLessThan(640 * 1024);
  expect(Number(diskMiB)).toBeGreaterThan(1900);
});

test('the log of a main process is a file that the template has made already', async () => {
  await using plan = await created();
  using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
  const there = async () => (await outputOf(op, agent, ['sh', '-c', 'stat -c "%n %i %s" /var/log/hutch/*'])).stdout;
  const before = await there();
  expect(before).toMatch(/^\/var\/log\/hutch\/main-0+\.log \d+ 0\n$/);
  const { process } = await agent.process.start(op, { id: 'main', argv: ['true'], stdin: 'null', whenUnread: 'block', keepLog: true });
  const items = await Array.fromAsync(process.items(op));
  expect(items.at(-1)?.type).toBe('exit');
  expect(await there()).toBe(before);
});

test('a sandbox that was stopped starts again with its disk and a fresh memory', async () => {
  await using plan = await created();
  for (const [run, expected] of [
    [1, ''],
    [2, 'kept\n'],
  ] as const) {
    using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
    const { stdout, exit } = await outputOf(op, agent, [
      'sh',
      '-c',
      'cat /root/note /dev/shm/note 2>/dev/null; echo kept > /root/note; echo lost > /dev/shm/note',
    ]);
    expect([stdout, exit.code], `run ${run}`).toEqual([expected, 0]);
    await agent.sync(op);
    expect(await it.backend.kill(op, plan, 'now')).toMatchObject({ alive: false, proof: 'exit.json', signal: 'SIGKILL' });
    await it.backend.cleanUp(op, plan);
  }
});

test('a paused sandbox stands still and goes on where it was', async () => {
  await using plan = await created();
  using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
  await it.backend.pause(op, plan);
  const before = await it.backend.stats(op, plan);
  await expect(agent.hello(testOperation({ signal: AbortSignal.timeout(300) }))).rejects.toThrow();
  expect((await it.backend.stats(op, plan)).cpuUs - before.cpuUs).toBeLessThan(200_000);
  await it.backend.resume(op, plan);
  using again = await configuredAgentAgain(plan);
  expect((await outputOf(op, again, ['true'])).exit.code).toBe(0);
});

test('a backend that was just made takes over a sandbox that runs', async () => {
  await using plan = await created();
  const started = await it.backend.start(op, plan);
  (await configuredAgent(op, it, plan, started)).close();
  const other: UnderTest = { ...it, backend: newQemuBackend(it.config) };
  expect(await other.backend.inspect(op, plan)).toEqual(started.evidence);
  using agent = await configuredAgentAgain(plan, other);
  expect((await outputOf(op, agent, ['echo', 'adopted'])).stdout).toBe('adopted\n');
  const ended = other.backend.ended(op, plan);
  expect(await other.backend.kill(op, plan, 'gently')).toMatchObject({ proof: 'exit.json', exitCode: 0 });
  expect(await ended).toMatchObject({ alive: false, proof: 'exit.json' });
});

test('an end is told at once and proven, whoever ended it', async () => {
  for (const victim of ['vmm', 'shim'] as const) {
    await using plan = await created();
    const { evidence } = await it.backend.start(op, plan);
    const ended = it.backend.ended(op, plan);
    const shim = await shimRef(op, it.host, plan.runDir);
    process.kill(victim === 'vmm' ? evidence.pid : (shim?.pid ?? Number.NaN), 'SIGKILL');
    expect(await ended).toMatchObject(victim === 'vmm' ? { proof: 'exit.json', signal: 'SIGKILL' } : { proof: 'pid-gone', exitCode: null });
    expect(await it.backend.inspect(op, plan)).toMatchObject({ alive: false });
    await it.backend.cleanUp(op, plan);
    expect(await it.host.stat(op, plan.runDir)).toBeNull();
  }
});

test('a VMM that somebody asks to end is told from a guest that turns itself off', async () => {
  await using plan = await created();
  const { evidence } = await it.backend.start(op, plan);
  process.kill(evidence.pid, 'SIGTERM');
  const said = expect.stringContaining(`signal 15 of pid ${process.pid} (`);
  expect(await it.backend.ended(op, plan)).toMatchObject({ proof: 'exit.json', exitCode: 0, askedBy: said });
  using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
  await agent.shutdown(op, { graceMs: 0 });
  expect(await it.backend.ended(op, plan)).not.toHaveProperty('askedBy');
});

test('a VMM that is stopped hangs nobody, and can still be killed', async () => {
  await using plan = await created();
  const { evidence } = await it.backend.start(op, plan);
  process.kill(evidence.pid, 'SIGSTOP');
  using short = op.within(500, 'the test');
  await expect(it.backend.pause(short, plan)).rejects.toMatchObject({ code: 'deadline_exceeded' });
  expect(await it.backend.inspect(op, plan)).toEqual(evidence);
  expect(await it.backend.kill(op, plan, 'gently')).toMatchObject({ alive: false, signal: 'SIGKILL' });
});

test('a guest whose kernel panics ends, and its console says why', async () => {
  await using plan = await created();
  using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
  const ended = it.backend.ended(op, plan);
  await outputOf(op, agent, ['sh', '-c', 'echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger']).catch(() => {});
  expect(await ended).toMatchObject({ alive: false, proof: 'exit.json' });
  const console = Buffer.from(await it.host.readFile(op, join(plan.logDir, 'boot.log'), 1024 * 1024)).toString();
  expect(console).toMatch(/sysrq triggered crash|Kernel panic/i);
});

test('a guest that powers itself off ends with code 0', async () => {
  await using plan = await created();
  using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
  const ended = it.backend.ended(op, plan);
  await agent.shutdown(op, { graceMs: 500 });
  expect(await ended).toMatchObject({ proof: 'exit.json', exitCode: 0, signal: null });
});

test('starting a sandbox that runs is refused, and so is one without a disk', async () => {
  await using plan = await created();
  const { evidence } = await it.backend.start(op, plan);
  await expect(it.backend.start(op, plan)).rejects.toMatchObject({ code: 'conflict' });
  expect(await it.backend.inspect(op, plan)).toEqual(evidence);
  await expect(it.backend.start(op, it.plan())).rejects.toMatchObject({ code: 'failed_precondition' });
});

test('remove leaves nothing of a sandbox but its logs, and may be called again', async () => {
  const plan = it.plan();
  await it.backend.create(op, plan);
  const { evidence } = await it.backend.start(op, plan);
  await it.backend.kill(op, plan, 'now');
  for (let call = 0; call < 2; call += 1) await it.backend.remove(op, plan);
  expect([await it.host.stat(op, plan.dataDir), await it.host.stat(op, plan.runDir)]).toEqual([null, null]);
  await eventually('the process is gone', async () => !(await it.host.isAlive(op, evidence)));
  expect(await readdir(plan.logDir)).toContain('vmm.log');
});

test('a VMM has a ceiling of its own, where cgroups can be made, and leaves none behind', async () => {
  const parents = it.config.cgroups ?? [];
  expect(parents.length > 0).toBe(isRoot); // as root on any Linux of today
  await using plan = await created();
  const { evidence } = await it.backend.start(op, plan);
  for (const parent of parents) {
    const members = await readFile(join(parent, plan.id, 'cgroup.procs'), 'utf8');
    expect(members.split('\n'), parent).toContain(String(evidence.pid));
    const names = await readdir(join(parent, plan.id));
    for (const file of names.filter((name) => ['memory.limit_in_bytes', 'memory.max'].includes(name))) {
      expect(Number(await readFile(join(parent, plan.id, file), 'utf8'))).toBe((plan.shape.memoryMiB + 768) * 1024 * 1024);
    }
  }
  await it.backend.kill(op, plan, 'now');
  await it.backend.remove(op, plan);
  for (const parent of parents) expect(await it.host.stat(op, parent)).toBeNull();
});

async function configuredAgentAgain(plan: SandboxPlan, under: UnderTest = it): ReturnType<typeof configuredAgent> {
  const evidence = await under.backend.inspect(op, plan);
  if (!evidence.alive) throw new Error('it has ended');
  return await configuredAgent(op, under, plan, {
    evidence,
    network: null,
    disk: { device: '/dev/vdb', sizeBytes: plan.shape.diskMiB * 1024 * 1024 },
    stagesMs: {},
  });
}
