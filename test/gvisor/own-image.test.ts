// An image that Hutch pulled itself, on gVisor; and that no device in it becomes one of this machine's.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { Subject } from '../conformance/subject.ts';
import { image, tar } from '../images/archives.ts';
import { fakeRegistry } from '../images/registry.ts';

const subject = await Subject.start('gvisor');
afterAll(async () => {
  if (typeof subject !== 'string') await subject[Symbol.asyncDispose]();
}, 60_000);

test('an image from a registry runs on gVisor, and brings no device to this machine', { timeout: 120_000 }, async (context) => {
  if (typeof subject === 'string') return context.skip(subject);
  await using registry = await fakeRegistry();
  const { daemon } = subject;
  const rootfs = tar(
    { path: 'bin/busybox', mode: 0o755, content: readFileSync('/bin/busybox') },
    { path: 'bin/sh', type: 'symlink', link: 'busybox' },
    { path: 'disk', type: 'block', mode: 0o666, devMajor: 259, devMinor: 0 },
    { path: 'main', mode: 0o755, content: '#!/bin/sh\nexit "$CODE"\n' },
  );
  registry.put('app', '1', image([rootfs], { config: { Cmd: ['/main'], Env: ['CODE=7', 'PATH=/bin'] } }));
  const made = { backend: 'gvisor' as const, image: `${registry.name}/app:1`, network: 'none' as const };
  const { id } = await daemon.call('sandbox.create', { ...made, main: {} });
  const { sandbox } = await daemon.call('sandbox.wait', { ref: id });
  expect(sandbox).toMatchObject({ state: 'stopped', ended: { exitCode: 7 } });
  const bases = join(daemon.home, 'data/bases');
  const unpacked = readdirSync(bases, { recursive: true, withFileTypes: true });
  expect(unpacked.map(({ name }) => name)).toContain('busybox');
  expect(unpacked.filter((entry) => entry.isBlockDevice() || entry.isCharacterDevice())).toEqual([]);
  await daemon.call('sandbox.delete', { ref: id, force: true });
});
