// An image that Hutch pulled itself, on gVisor; and that no device in it becomes one of this machine's.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { Subject } from '../conformance/subject.ts';
import { image, tar } from '../images/archives.ts';
import { fakeRegistry } from '../images/registry.ts';
import { eventually } from '../support/eventually.ts';

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
    { path: 'zeros', type: 'character', mode: 0o666, devMajor: 1, devMinor: 5 },
    // Each of them, if it can be read, is another end.
    { path: 'main', mode: 0o755, content: '#!/bin/sh\nfor at in /disk /zeros; do head -c 1 "$at" && exit 9; done\nexit "$CODE"\n' },
  );
  registry.put('app', '1', image([rootfs], { config: { Cmd: ['/main'], Env: ['CODE=7', 'PATH=/bin'] } }));
  const made = { backend: 'gvisor' as const, image: `${registry.name}/app:1`, network: 'none' as const };
  const { id } = await daemon.call('sandbox.create', { ...made, main: {} });
  const { sandbox } = await daemon.call('sandbox.wait', { ref: id });
  expect(sandbox).toMatchObject({ state: 'stopped', ended: { exitCode: 7 } });
  const bases = join(daemon.home, 'data/bases');
  const unpacked = existsSync(bases) ? readdirSync(bases, { recursive: true, withFileTypes: true }) : [];
  expect(unpacked.filter((entry) => entry.isBlockDevice() || entry.isCharacterDevice())).toEqual([]);
  await daemon.call('sandbox.delete', { ref: id, force: true });
});

test('sandboxes of one image have it from this machine’s memory once, and nothing of it is left when they end', {
  timeout: 120_000,
}, async (context) => {
  if (typeof subject === 'string') return context.skip(subject);
  if (process.getuid?.() !== 0) return context.skip('an image is mounted by root; others unpack it');
  await using registry = await fakeRegistry();
  const { daemon } = subject;
  const rootfs = tar(
    { path: 'bin/busybox', mode: 0o755, content: readFileSync('/bin/busybox') },
    { path: 'etc', type: 'directory', mode: 0o755 },
  );
  registry.put('shared', '1', image([rootfs], { config: { Cmd: ['/bin/busybox', 'sleep', '1000'] } }));
  const made = { backend: 'gvisor' as const, image: `${registry.name}/shared:1`, network: 'none' as const, main: {} };
  const { id: one } = await daemon.call('sandbox.create', made);
  const { digest } = (await daemon.call('image.list', {})).images.find(({ name }) => name === made.image) ?? { digest: '' };
  const file = join(daemon.home, 'data/images', digest.replace('sha256:', ''), 'rootfs.squashfs');
  const devices = () =>
    readdirSync('/sys/block').filter((name) => {
      const shown = `/sys/block/${name}/loop/backing_file`;
      return existsSync(shown) && readFileSync(shown, 'utf8').trim() === file;
    });
  if (devices().length === 0) return context.skip('no squashfs in a file can be mounted here');
  const { id: two } = await daemon.call('sandbox.create', made);
  expect(devices()).toHaveLength(1);
  for (const id of [one, two]) await daemon.call('sandbox.delete', { ref: id, force: true });
  await eventually('the device goes with the last sandbox', () => devices().length === 0);
});
