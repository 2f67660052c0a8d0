// The first sandbox of a kind of machine, of which there is no template: it boots by itself, as nobody's copy, and can do all that others can.
import { statSync } from 'node:fs';
import { mkdir, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { SandboxPlan } from '../../src/backends/backend.ts';
import { newQemuBackend } from '../../src/backends/qemu/backend.ts';
import { greetGuest } from '../../src/daemon/warm.ts';
import type { Agent } from '../../src/guest/agent.ts';
import { filesIn } from '../faults/saved-files.ts';
import { testOperation } from '../support/operation.ts';
import { configuredAgent, qemuUnderTest, SHAPE, type UnderTest } from './fixture.ts';
import { outputOf } from './guest-command.ts';

const op = testOperation();
let it: UnderTest;

beforeAll(async () => {
  it = await qemuUnderTest({ greetAgent: greetGuest });
});
afterAll(() => it[Symbol.asyncDispose]());

/** Of another daemon, which has booted nothing yet. */
const anew = (): UnderTest => ({ ...it, backend: newQemuBackend(it.config) });

const templates = async (): Promise<string[]> => (await readdir(it.config.templatesDir)).filter((name) => /^[0-9a-f]{40}$/.test(name));
const commandLine = async (pid: number): Promise<string> => await readFile(`/proc/${pid}/cmdline`, 'utf8');
const said = async (agent: Agent, script: string): Promise<string> => (await outputOf(op, agent, ['sh', '-c', script])).stdout;

/** Of files that have no other name. */
const bytesOfOwn = (dir: string): number =>
  filesIn(dir)
    .map((path) => statSync(path))
    .reduce((sum, { nlink, blocks }) => sum + (nlink === 1 ? 512 * blocks : 0), 0);

async function begun(under: UnderTest, plan: SandboxPlan) {
  await under.backend.create(op, plan);
  return await under.backend.start(op, plan);
}

async function gone({ backend }: UnderTest, plan: SandboxPlan): Promise<void> {
  await backend.kill(op, plan, 'now');
  await backend.remove(op, plan);
}

test('it boots by itself, and whoever comes beside it or after it stands on a template', { timeout: 240_000 }, async () => {
  const under = anew();
  const [first, second] = [under.plan(), under.plan()];
  // Who has said first that it will boot is the one that does; the other makes the template meanwhile.
  await under.backend.create(op, first);
  const [booted, restored] = await Promise.all([under.backend.start(op, first), begun(under, second)]);
  expect(await commandLine(booted.evidence.pid)).toMatch(/-append/);
  expect(await commandLine(restored.evidence.pid)).toMatch(/-incoming/);
  expect(await templates()).toHaveLength(1);
  const third = under.plan();
  expect(await commandLine((await begun(under, third)).evidence.pid)).toMatch(/-incoming/);
  for (const plan of [second, third]) await gone(under, plan);

  // What it wrote is there when it starts from the template next time.
  using agent = await configuredAgent(op, under, first, booted);
  expect(await said(agent, 'echo kept >/root/note; sync; cat /root/note')).toBe('kept\n');
  await under.backend.kill(op, first, 'now');
  await under.backend.cleanUp(op, first);
  const again = await under.backend.start(op, first);
  expect(await commandLine(again.evidence.pid)).toMatch(/-incoming/);
  using later = await configuredAgent(op, under, first, again);
  expect(await said(later, 'cat /root/note')).toBe('kept\n');
  await gone(under, first);
});

test('it is written down, goes on and is copied as any other', { timeout: 240_000 }, async () => {
  const under = anew();
  const { checkpoints, snapshots } = under.backend;
  if (checkpoints === undefined || snapshots === undefined) throw new Error('nothing is written down here');
  const shape = { ...SHAPE, memoryMiB: 384 }; // of this one there is no template
  const plan = under.plan({ shape });
  const booted = await begun(under, plan);
  expect(await commandLine(booted.evidence.pid)).toMatch(/-append/);
  {
    using agent = await configuredAgent(op, under, plan, booted);
    await said(agent, 'head -c 20000000 /dev/urandom >/tmp/random; sha256sum </tmp/random >/tmp/sum');
  }
  const check = 'sha256sum </tmp/random | cmp - /tmp/sum && echo whole';
  const saved = join(it.home, 'saved');
  await mkdir(saved);
  const [first, second, memory] = ['first', 'second', 'memory'].map((name) => join(saved, name)) as [string, string, string];
  await snapshots.take(op, plan, first, { what: 'memory and disk', since: null });
  await snapshots.take(op, plan, second, { what: 'memory and disk', since: first });
  await snapshots.take(op, plan, join(saved, 'third'), { what: 'memory and disk', since: null });
  expect(bytesOfOwn(second)).toBeLessThan(bytesOfOwn(join(saved, 'third')) / 2); // it stands on the first
  await snapshots.check(op, second);

  const copy = under.plan({ shape });
  await snapshots.create(op, copy, second);
  using agent = await configuredAgent(op, under, copy, await snapshots.start(op, copy, second));
  expect(await said(agent, check)).toBe('whole\n');
  await gone(under, copy);

  await checkpoints.save(op, plan, memory);
  const resumed = await checkpoints.restore(op, plan, memory);
  using went = await configuredAgent(op, under, plan, resumed);
  expect(await said(went, check)).toBe('whole\n');
  await gone(under, plan);
});

test('where it does not boot, what makes templates tries it; a sandbox that is gone keeps nobody waiting', {
  timeout: 240_000,
}, async () => {
  let greetings = 0;
  const config = {
    ...it.config,
    greetAgent: async () => {
      greetings += 1;
      throw op.error('unavailable', 'the test wants none');
    },
  };
  const under = { ...it, config, backend: newQemuBackend(config) };
  const shape = { ...SHAPE, memoryMiB: 640 };
  const [gave, plan] = [under.plan({ shape }), under.plan({ shape })];
  await under.backend.create(op, gave);
  await under.backend.remove(op, gave);
  const started = await begun(under, plan);
  expect(greetings).toBe(1);
  expect(await commandLine(started.evidence.pid)).toMatch(/-incoming/);
  using agent = await configuredAgent(op, under, plan, started);
  expect(await said(agent, 'echo runs')).toBe('runs\n');
  await gone(under, plan);
  expect(await under.backend.leaks(op, new Set())).toEqual([]);
});
