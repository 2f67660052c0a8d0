// Images in an Engine: pulled by it, kept in it, and what is not in them.
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { pullsWithLogin } from './pull.ts';
import { DockerWorld, refused } from './world.ts';

let world: DockerWorld;
beforeAll(async () => {
  world = await DockerWorld.start();
}, 300_000);
afterAll(async () => {
  await world[Symbol.asyncDispose]();
}, 120_000);
afterEach(() => world.clear(), 120_000);

test(
  'an image of a registry is pulled with progress and the login that the user’s Docker has, or refused with what to do',
  {
    timeout: 120_000,
  },
  () => pullsWithLogin(world),
);

test('the disk of a stopped sandbox is kept in the Engine until its image is removed, which spares those made of it', async () => {
  const { daemon, engine } = world;
  const kept = async (): Promise<readonly string[]> => {
    const { body } = (await engine.ask('GET', '/images/json')) as { body: { RepoTags: string[] | null }[] };
    return body.flatMap(({ RepoTags }) => RepoTags ?? []).filter((name) => name.startsWith('hutch/disk:'));
  };
  const { id } = await daemon.call('sandbox.create', {});
  await daemon.run(id, ['sh', '-c', 'echo kept > /root/x']);
  await daemon.call('sandbox.stop', { ref: id, force: true });
  const image = await daemon.call('image.commit', { ref: id });
  expect(await kept()).toEqual([`hutch/disk:${image.digest.replace('sha256:', '')}`]);
  const child = await daemon.call('sandbox.create', { image: image.id });
  const error = await refused(daemon.call('image.remove', { image: image.id }));
  expect(error.body).toMatchObject({ code: 'failed_precondition', message: expect.stringContaining(child.name) });
  expect((await daemon.run(child.id, ['cat', '/root/x'])).stdout).toBe('kept\n');
  const elsewhere = await refused(daemon.call('sandbox.create', { image: image.id, backend: 'qemu' }));
  expect(elsewhere.code).toBe('failed_precondition');
  await world.gone(id, child.id);
  await daemon.call('image.remove', { image: image.id });
  expect(await kept()).toEqual([]);
});

test('no image has files of its owner’s that were put into a sandbox, unless that is said', async () => {
  const { daemon } = world;
  await writeFile(join(daemon.home, 'token'), 't0ken');
  const { id } = await daemon.call('sandbox.create', { fileSync: [{ host: '~/token', guest: '~/.token' }] });
  const error = await refused(daemon.call('image.commit', { ref: id }));
  expect(error.body).toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('the image would have them: ~/.token'),
  });
  expect((await daemon.run(id, ['cat', '/root/.token'])).stdout).toBe('t0ken');
  const image = await daemon.call('image.commit', { ref: id, withFiles: true });
  await world.gone(id);
  await daemon.call('image.remove', { image: image.id });
});
