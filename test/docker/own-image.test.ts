// An image that Hutch pulled itself, in a container: the Engine needs no registry and no login for it.
import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { image, TYPES, tar } from '../images/archives.ts';
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

test('what an Engine pulls and is not what its digest says is refused for that, and nothing of it is kept', {
  timeout: 120_000,
}, async () => {
  const { daemon, engine } = world;
  const made = image([tar({ path: 'bin/busybox', mode: 0o755, content: await readFile('/bin/busybox') })], {
    config: { Cmd: ['/bin/busybox'] },
  });
  const digest = registry.put('team/forged', '1', made);
  const { config, layers } = JSON.parse(made.manifest.toString()) as { config: { digest: string }; layers: { digest: string }[] };
  const forged = Buffer.from(made.manifest.toString().replace('{', '{ '));
  const lies: readonly [what: string, name: string, bytes: (as: string) => Buffer | null][] = [
    ['the manifest', digest, () => forged],
    ['the config', config.digest, () => Buffer.from('{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}')],
    ['a layer', layers[0]?.digest ?? '', (as) => Buffer.alloc(made.blobs.get(as)?.byteLength ?? 0, 7)],
  ];
  for (const [what, name, bytes] of lies) {
    registry.answer = (request, response) => {
      const isOurs = request.url?.endsWith(`/${name}`) === true && request.url.includes('team/forged');
      if (!isOurs) return undefined;
      response.writeHead(200, { 'Content-Type': TYPES.manifest, 'Docker-Content-Digest': name }).end(bytes(name));
      return true;
    };
    await expect(
      daemon.call('sandbox.create', { backend: 'docker', image: `docker://${registry.name}/team/forged@${digest}`, network: 'none' }),
      what,
    ).rejects.toMatchObject({
      code: 'failed_precondition',
      body: { message: expect.stringContaining('is not what its digest says'), hint: expect.stringContaining('nothing of it was kept') },
    });
    expect(JSON.stringify((await engine.ask('GET', '/images/json')).body), what).not.toContain('team/forged');
  }
  expect((await daemon.call('sandbox.list', {})).sandboxes).toEqual([]);
  registry.answer = null;
  const { id } = await daemon.call('sandbox.create', {
    image: `docker://${registry.name}/team/forged@${digest}`,
    network: 'none',
    main: {},
  });
  expect((await daemon.call('sandbox.wait', { ref: id })).exitCode).toBe(0);
  await daemon.call('sandbox.delete', { ref: id, force: true });
});
