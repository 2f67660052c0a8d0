// A machine that is written down and goes on elsewhere: at the backend itself, with the real QEMU.
import { copyFileSync, openSync, readdirSync, readSync, renameSync, statSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, onTestFinished, test } from 'vitest';
import type { SandboxPlan } from '../../src/backends/backend.ts';
import type { Agent } from '../../src/guest/agent.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';
import { configuredAgent, qemuUnderTest, SHAPE } from './fixture.ts';
import { outputOf } from './guest-command.ts';

const op = testOperation();
const it = await qemuUnderTest();
afterAll(() => it[Symbol.asyncDispose]());
const { checkpoints } = it.backend;
if (checkpoints === undefined) throw new Error('QEMU makes checkpoints');

const sh = async (agent: Agent, script: string): Promise<string> => (await outputOf(op, agent, ['sh', '-c', script])).stdout;

async function started(shape = SHAPE): Promise<{ plan: SandboxPlan; agent: Agent; dir: string }> {
  const plan = it.plan({ shape });
  onTestFinished(async () => {
    await it.backend.kill(op, plan, 'now');
    await it.backend.remove(op, plan);
  });
  await it.backend.create(op, plan);
  const agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
  return { plan, agent, dir: join(it.home, `saved-${plan.id}`) };
}

const COUNTING = '(i=0; while :; do i=$((i+1)); echo $i $$ > /dev/shm/n; sleep 0.02; done) >/dev/null 2>&1 &';

async function counted(agent: Agent): Promise<{ count: number; pid: number }> {
  const [count = 0, pid = 0] = (await sh(agent, 'until [ -s /dev/shm/n ]; do sleep 0.01; done; cat /dev/shm/n')).split(' ').map(Number);
  return { count, pid };
}

/** What lies in a bundle's memory, but for the base. */
function layersOf(dir: string): { readonly name: string; readonly bytes: number }[] {
  const memory = readdirSync(dir).find((name) => name.startsWith('memory-')) ?? '';
  return readdirSync(join(dir, memory))
    .filter((name) => /^\d+$/.test(name))
    .map((name) => ({ name: join(memory, name), bytes: statSync(join(dir, memory, name)).blocks * 512 }));
}

test('a machine that was written down goes on at its next instruction, with its memory, processes and disk', {
  timeout: 120_000,
}, async () => {
  const { plan, agent, dir } = await started();
  await sh(
    agent,
    `echo on disk > /root/a; head -c 20000000 /dev/urandom > /dev/shm/big; sha256sum /dev/shm/big > /dev/shm/sum; ${COUNTING}`,
  );
  const [before, bootId] = [await counted(agent), await sh(agent, 'cat /proc/sys/kernel/random/boot_id')];
  agent.close();
  expect(await checkpoints.save(op, plan, dir)).toMatchObject({ alive: false });
  await it.backend.cleanUp(op, plan);
  expect(readdirSync(plan.dataDir)).toEqual(['disk.img']);
  // What the guest never touched is not stored: it has 512 MiB.
  const [layer] = layersOf(dir);
  expect(layer?.bytes).toBeGreaterThan(20_000_000);
  expect(layer?.bytes).toBeLessThan(120_000_000);

  const again = await configuredAgent(op, it, plan, await checkpoints.restore(op, plan, dir));
  const after = await counted(again);
  expect(after.pid).toBe(before.pid);
  expect(after.count).toBeGreaterThanOrEqual(before.count);
  await eventually('it goes on counting', async () => (await counted(again)).count > after.count);
  expect(await sh(again, 'cat /root/a; sha256sum -c /dev/shm/sum')).toBe('on disk\n/dev/shm/big: OK\n');
  expect(await sh(again, 'cat /proc/sys/kernel/random/boot_id')).toBe(bootId);
  // Once more: only what was written since is stored, and what was stored before is still needed.
  await sh(again, 'echo more > /root/b');
  again.close();
  const second = `${dir}-2`;
  await checkpoints.save(op, plan, second);
  await it.backend.cleanUp(op, plan);
  const layers = layersOf(second);
  expect(layers).toHaveLength(2);
  expect(layers[1]?.bytes).toBeLessThan((layers[0]?.bytes ?? 0) - 10_000_000);
  const third = await configuredAgent(op, it, plan, await checkpoints.restore(op, plan, second));
  expect((await counted(third)).pid).toBe(before.pid);
  expect(await sh(third, 'cat /root/a /root/b; sha256sum -c /dev/shm/sum')).toBe('on disk\nmore\n/dev/shm/big: OK\n');
});

/** The same file with one byte changed, where there are bytes. */
function flip(path: string): void {
  const file = openSync(path, 'r+');
  const { size } = statSync(path);
  const bytes = Buffer.alloc(1 << 20);
  for (let at = 0; at < size; at += bytes.length) {
    const found = bytes.subarray(0, readSync(file, bytes, 0, bytes.length, at)).findIndex((byte) => byte !== 0);
    if (found >= 0) return void writeSync(file, Buffer.from([(bytes[found] ?? 0) ^ 1]), 0, 1, at + found);
  }
  throw new Error(`nothing but zeros in ${path}`);
}

test('what was damaged is refused by name, and can go on once it is whole again', { timeout: 120_000 }, async () => {
  const { plan, agent, dir } = await started();
  await sh(agent, 'echo here > /dev/shm/a');
  agent.close();
  await checkpoints.save(op, plan, dir);
  await it.backend.cleanUp(op, plan);
  const files = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  expect(files.map(({ name }) => name).sort()).toEqual(['1', 'base', 'manifest.json', 'map', 'state']);
  let hasRun = false;
  for (const { name, parentPath } of files) {
    for (const how of [flip, (path: string) => truncateSync(path, statSync(path).size - 1)]) {
      const path = join(parentPath, name);
      renameSync(path, `${path}.whole`); // the base is the template's: it is not this test's to change
      copyFileSync(`${path}.whole`, path);
      how(path);
      const refused = await checkpoints
        .restore(op, plan, dir, async () => {
          hasRun = true;
        })
        .catch((error: unknown) => error);
      expect(refused, path).toMatchObject({
        code: 'failed_precondition',
        message: expect.stringContaining('what was saved cannot be used'),
      });
      renameSync(`${path}.whole`, path);
    }
  }
  expect(hasRun).toBe(false);
  expect(readdirSync(plan.dataDir)).toEqual(['disk.img']);
  const again = await configuredAgent(op, it, plan, await checkpoints.restore(op, plan, dir));
  expect(await sh(again, 'cat /dev/shm/a')).toBe('here\n');
});

test('a machine of another shape is refused with the reason', { timeout: 120_000 }, async () => {
  const { plan, agent, dir } = await started();
  agent.close();
  await checkpoints.save(op, plan, dir);
  await it.backend.cleanUp(op, plan);
  const other = { ...plan, shape: { ...plan.shape, memoryMiB: 768 } };
  await expect(checkpoints.restore(op, other, dir)).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('the memory (512 then, 768 now)'),
  });
});
