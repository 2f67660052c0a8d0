// Which ways of running a program are tried out: over the real host, with a runtime that only writes down
// how it was called.
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import { nodeHost } from '../../host/node-host.ts';
import type { GvisorConfig } from './config.ts';
import { findPlatform } from './platform.ts';

/** What the machine is like, as a test changes it. `device`: whose mode /dev/kvm has. */
type Now = { bootId: string; device: string; version: string };

/** Finds the platform; gives it with the platforms that programs were really run under. */
async function found(
  whyNoKvm: string | null,
  ends = 0,
  then: (tries: () => Promise<readonly string[]>, now: Now) => Promise<void> = async () => {},
) {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-platform-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  const path = join(dir, 'runsc');
  await writeFile(path, `#!/bin/sh\necho "$*" >> ${dir}/calls\ncase "$*" in *platform=kvm*) exit 1;; esac\nexit ${ends}\n`);
  await chmod(path, 0o755);
  const host = nodeHost();
  const now: Now = { bootId: host.bootId(), device: '/dev/null', version: '1' };
  const here: Partial<typeof host> = {
    stat: async (op, file) => await host.stat(op, file === '/dev/kvm' ? now.device : file),
    bootId: () => now.bootId,
  };
  const config = {
    host: Object.assign(Object.create(host) as typeof host, here),
    workDir: dir,
    cellPath: path,
    whyNoKvm: async () => whyNoKvm,
  } as unknown as GvisorConfig;
  const runtime = () => ({
    path,
    version: now.version,
    platforms: ['kvm', 'ptrace'],
    options: [],
    always: [],
    saving: [],
    canIgnoreCgroups: false,
    hasPanicLog: false,
  });
  const rights = {
    argv: (argv: readonly string[]) => argv,
    argvOf: (_pid: number, argv: readonly string[]) => argv,
    cellArgs: [],
    userId: null,
  };
  const find = () => findPlatform(testOperation(), config, runtime(), rights);
  const platform = await find();
  expect(await find()).toMatchObject(platform);
  const tries = async () => [...(await readFile(join(dir, 'calls'), 'utf8')).matchAll(/--platform=(\w+)/g)].map((match) => match[1] ?? '');
  const tried = await tries();
  await then(async () => {
    await writeFile(join(dir, 'calls'), '');
    await find();
    return await tries();
  }, now);
  return { platform, tried };
}

test('kvm is not tried where a guest is known not to run under it, and the answer says why; it is asked for once', async () => {
  const { platform, tried } = await found('a small guest did not run');
  expect(tried).toEqual(['ptrace']);
  expect(platform).toMatchObject({ name: 'ptrace', notes: ['not kvm: a small guest did not run'] });
});

test('kvm is tried where nothing is known against it', async () => {
  const { platform, tried } = await found(null);
  expect(tried).toEqual(['kvm', 'ptrace']);
  expect(platform.notes).toEqual(['not kvm: it ended with 1']);
});

test.each([
  [0, 'taken', 'counted'],
  [3, 'refused', 'counted'],
  [4, 'taken', 'missed'],
  [5, 'refused', 'missed'],
] as const)('a program that ends with %i has seen that flag %s and processes %s', async (ends, automount, processes) => {
  const { platform } = await found('a small guest did not run', ends);
  expect(platform).toMatchObject({ name: 'ptrace', automount, processes });
});

test('what was found is kept until the host boots, the runtime is another one, or others may open /dev/kvm', async () => {
  await found(null, 0, async (tries, now) => {
    expect(await tries()).toEqual([]);
    for (const change of [{ bootId: 'another' }, { version: '2' }, { device: '/etc/hostname' }]) {
      Object.assign(now, change);
      expect(await tries(), JSON.stringify(change)).toEqual(['kvm', 'ptrace']);
      expect(await tries()).toEqual([]);
    }
  });
});
