// Whatever call to the host fails, nothing is left behind and the next try works. The points are
// walked in rotation: a short run takes some, chosen by the seed; HUTCH_TEST_LONG takes all.
import { spawnSync } from 'node:child_process';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { SandboxPlan } from '../../src/backends/backend.ts';
import { newQemuBackend } from '../../src/backends/qemu/backend.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { eventually } from '../support/eventually.ts';
import { countCalls, failNthCall } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { isRoot } from '../support/users.ts';
import { configuredAgent, qemuUnderTest, type UnderTest } from './fixture.ts';
import { outputOf } from './guest-command.ts';

const POINTS_SHORT = 8;
const seed = Number(process.env['HUTCH_TEST_SEED'] ?? 1);
const long = process.env['HUTCH_TEST_LONG'] !== undefined;
const op = testOperation();
let it: UnderTest;

beforeAll(async () => {
  it = await qemuUnderTest();
  await it.backend.prepare(op, it.plan());
});
afterAll(() => it[Symbol.asyncDispose]());

/** All numbers up to `count`, or a sample of them that moves with the seed. */
function points(count: number): number[] {
  const all = Array.from({ length: count }, (_, index) => index + 1);
  const step = Math.max(1, Math.floor(count / POINTS_SHORT));
  return long ? all : all.filter((n) => n % step === seed % step);
}

/** Processes that name a directory of this test. */
function processes(plan: SandboxPlan): string[] {
  const { stdout } = spawnSync('ps', ['-eo', 'stat,pid,args'], { encoding: 'utf8' });
  return stdout.split('\n').filter((line) => line.includes(plan.id) && !line.startsWith('Z'));
}

async function leftovers(plan: SandboxPlan): Promise<string[]> {
  await eventually('its processes are gone', () => processes(plan).length === 0);
  const run = await it.host.stat(op, plan.runDir);
  const data = (await it.host.stat(op, plan.dataDir)) === null ? [] : await readdir(plan.dataDir);
  return [
    ...(run === null ? [] : [plan.runDir]),
    ...data.filter((name) => name !== 'disk.img' && name !== 'fresh').map((name) => join(plan.dataDir, name)),
  ];
}

test(`start leaves nothing behind, whichever host call fails (seed ${seed})`, { timeout: 600_000 }, async () => {
  const counted = countCalls(nodeHost());
  const warm = it.plan();
  await it.backend.create(op, warm);
  const counting = newQemuBackend({ ...it.config, host: counted });
  await counting.start(op, warm);
  const calls = counted.calls.length;
  await it.backend.kill(op, warm, 'now');
  await it.backend.remove(op, warm);
  for (const nth of points(calls)) {
    const plan = it.plan();
    await it.backend.create(op, plan);
    const host = failNthCall(nodeHost(), nth);
    const backend = newQemuBackend({ ...it.config, host });
    const what = () => `call ${nth}: ${host.hit?.method} ${JSON.stringify(host.hit?.args.slice(1))}`;
    const outcome = await backend.start(op, plan).then(
      () => 'started',
      () => 'failed',
    );
    if (outcome === 'failed') expect(await leftovers(plan), what()).toEqual([]);
    else await it.backend.kill(op, plan, 'now');
    // And what failed once works the next time.
    const started = await it.backend.start(op, plan);
    using agent = await configuredAgent(op, it, plan, started);
    expect((await outputOf(op, agent, ['true'])).exit.code, what()).toBe(0);
    await it.backend.kill(op, plan, 'now');
    await it.backend.remove(op, plan);
    expect(await it.backend.leaks(op, new Set()), what()).toEqual([]);
  }
});

test('create leaves no half-made disk, whichever host call fails', async () => {
  for (let nth = 1; ; nth += 1) {
    const plan = it.plan();
    const host = failNthCall(nodeHost(), nth);
    const outcome = await newQemuBackend({ ...it.config, host })
      .create(op, plan)
      .then(
        () => 'made',
        () => 'failed',
      );
    if (host.hit === undefined) {
      expect([outcome, nth > 3]).toEqual(['made', true]);
      return await it.backend.remove(op, plan);
    }
    if (outcome === 'failed') expect(await it.host.stat(op, plan.dataDir), `call ${nth}: ${host.hit.method}`).toBeNull();
    await it.backend.remove(op, plan); // what could do without that call was made
  }
});

test('a process and a cgroup that nobody knows are found', async () => {
  const plan = it.plan();
  await it.backend.create(op, plan);
  try {
    await it.backend.start(op, plan);
    expect(await it.backend.leaks(op, new Set([plan.id]))).toEqual([]);
    const kinds = new Set((await it.backend.leaks(op, new Set())).map(({ kind }) => kind));
    expect(kinds).toEqual(new Set(['process', ...(isRoot ? ['cgroup'] : [])]));
  } finally {
    await it.backend.kill(op, plan, 'now');
    await it.backend.remove(op, plan);
  }
  expect(await it.backend.leaks(op, new Set())).toEqual([]);
});
