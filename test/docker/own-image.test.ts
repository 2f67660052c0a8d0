// An image that Hutch pulled itself, in a container: the Engine needs no registry and no login for it.
import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { image, tar } from '../images/archives.ts';
import { type FakeRegistry, fakeRegistry } from '../images/registry.ts';
import { DockerWorld } from './world.ts';

let world: DockerWorld;
let registry: FakeRegistry;
beforeAll(async () => {
  world = await DockerWorld.start();
  registry = await fakeRegistry();
}, 120_000);
afterAll(async () => {
  await registry?.[Symbol.asyncDispose]();
  await world?.[Symbol.asyncDispose]();
}, 120_000);

test('an image from a registry runs in a container as in a machine', { timeout: 120_000 }, async () => {
  const { daemon } = world;
  const rootfs = tar(
    { path: 'bin/busybox', mode: 0o755, content: await readFile('/bin/busybox') },
    ...['sh', 'cat', 'id', 'stat'].map((name) => ({ path: `bin/${name}`, type: 'symlink' as const, link: 'busybox' })),
    { path: 'etc/passwd', content: 'root:x:0:0::/:/bin/sh\nweb:x:70:71::/srv:/bin/sh\n' },
    { path: 'srv/', type: 'directory', uid: 70, gid: 71 },
    { path: 'srv/main', mode: 0o755, content: '#!/bin/sh\nexit "$CODE"\n' },
  );
  const config = { Entrypoint: ['/srv/main'], Env: ['CODE=7', 'PATH=/bin'], User: 'web', WorkingDir: '/srv' };
  registry.put('team/app', '1', image([rootfs], { config }));
  const name = `${registry.name}/team/app:1`;
  const { id } = await daemon.call('sandbox.create', { backend: 'docker', image: name, network: 'none', main: {} });
  const { sandbox } = await daemon.call('sandbox.wait', { ref: id });
  expect(sandbox).toMatchObject({ state: 'stopped', imageName: name, main: { argv: ['/srv/main'] }, ended: { exitCode: 7 } });
  const own = await daemon.call('sandbox.create', { backend: 'docker', image: name, network: 'none' });
  const done = await daemon.run(own.id, ['sh', '-c', 'id -u; pwd; stat -c %u:%g /srv']);
  expect(done.stdout).toBe('70\n/srv\n70:71\n');
  for (const ref of [id, own.id]) await daemon.call('sandbox.delete', { ref, force: true });
});
