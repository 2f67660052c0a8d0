// Over the real host, with a program in place of hutch-imprint that notes what it is asked.
import { readdirSync, readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import { newId } from '../../domain/ids.ts';
import { nodeHost } from '../../host/node-host.ts';
import type { SandboxPlan } from '../backend.ts';
import type { QemuConfig } from './config.ts';
import { KeptMemories, type Origin } from './kept.ts';

const MINUTE_MS = 60_000;

async function place() {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-kept-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  const [host, op] = [nodeHost(), testOperation()];
  const dataDir = join(dir, 'vm');
  const taken = join(dir, 'taken');
  const asked = join(dir, 'asked');
  const imprintPath = join(dir, 'imprint');
  for (const each of [dataDir, taken]) await mkdir(each);
  for (const name of ['base', '1', 'map']) await writeFile(join(taken, name), name);
  await writeFile(asked, '');
  await writeFile(imprintPath, `#!/bin/sh\necho "$*" >> ${asked}\n`, { mode: 0o755 });
  const plan = { id: newId('sbx', (count) => host.randomBytes(count)), dataDir } as SandboxPlan;
  const origin: Origin = {
    evidence: { alive: true, pid: process.pid, startTicks: 7 } as Origin['evidence'],
    mapped: { dir: join(dataDir, 'memory-mapped'), base: null, layers: [] },
    bytes: 4096,
  };
  const kept = new KeptMemories({ host, imprintPath } as QemuConfig);
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  onTestFinished(() => void vi.useRealTimers());
  const layers = [{ number: 1, id: 'a', pages: 1, bytes: 4096, hash: null }];
  await kept.keep(op, plan, origin, { dir: taken, layers });
  return { kept, plan, origin, dirs: () => readdirSync(dataDir), forgets: () => readFileSync(asked, 'utf8') };
}

test('what a fork has kept is the next one’s within a minute, of the same process alone', async () => {
  const { kept, plan, origin, dirs } = await place();
  vi.advanceTimersByTime(MINUTE_MS - 1);
  expect(dirs()).toHaveLength(1);
  expect(await kept.take(plan, origin)).toMatchObject({ usable: true, layers: [{ number: 1 }] });
  expect(await kept.take(plan, origin)).toBeNull(); // it is the first one's

  const other = await place();
  const anew = { ...other.origin, evidence: { ...other.origin.evidence, startTicks: 8 } };
  expect(await other.kept.take(other.plan, anew)).toMatchObject({ usable: false });
});

test('after a minute it goes, and the kernel notes nothing for it any more', async () => {
  const { kept, plan, origin, dirs, forgets } = await place();
  expect([dirs().length, forgets()]).toEqual([1, '']);
  vi.advanceTimersByTime(MINUTE_MS);
  // Whoever asks meanwhile waits till it has gone.
  expect(await kept.take(plan, origin)).toBeNull();
  expect([dirs(), forgets()]).toEqual([[], `forget ${process.pid} ${origin.mapped.dir}/base 4096\n`]);
});
