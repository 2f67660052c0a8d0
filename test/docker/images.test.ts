// Images in an Engine: pulled by it, kept in it, and what is not in them.
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { pullsWithLogin } from './pull.ts';
import { type SmallWorld, startSmall } from './small-world.ts';
import { type DockerWorld, refused } from './world.ts';

let small: SmallWorld;
let world: DockerWorld;
beforeAll(async () => {
  small = await startSmall({}, ['sh', 'echo']);
  ({ world } = small);
}, 300_000);
afterAll(async () => await small?.[Symbol.asyncDispose](), 120_000);
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

test('the Engine’s copy of an image is counted, and goes once the image is no more and nothing stands on it', {
  timeout: 120_000,
}, async () => {
  const { daemon, engine } = world;
  const copies = async (): Promise<readonly string[]> => {
    const { body } = (await engine.ask('GET', '/images/json')) as { body: { RepoTags: string[] | null }[] };
    return body.flatMap(({ RepoTags }) => RepoTags ?? []).filter((name) => name.startsWith('hutch/img:'));
  };
  const others = await copies();
  const made = await daemon.call('sandbox.create', { image: small.image });
  const [copy = ''] = (await copies()).filter((name) => !others.includes(name));
  expect(copy).not.toBe('');
  const { unpacked } = await daemon.call('image.usage', {});
  expect(unpacked.count).toBe(others.length + 1);
  expect((await daemon.call('image.prune', { dryRun: true })).unpacked).toEqual([]);

  // Somebody else's, which has our labels from the image, and is not ours for that.
  const theirs = (await engine.ask('POST', '/containers/create?name=theirs', { Image: copy, Cmd: ['/bin/sh'] })).body as { Id: string };
  await world.gone(made.id);
  await daemon.call('image.remove', { image: small.image });
  const digest = `sha256:${copy.slice('hutch/img:'.length)}`;
  expect((await daemon.call('image.prune', { dryRun: true })).unpacked).toMatchObject([{ digest, why: 'its image is no more' }]);
  expect((await daemon.call('image.prune', {})).unpacked, 'a container stands on it').toEqual([]);
  expect(await copies()).toContain(copy);
  expect(await daemon.leaks()).toEqual([]);
  await engine.ask('DELETE', `/containers/${theirs.Id}`);

  expect((await daemon.call('image.prune', { stale: true })).unpacked, 'as each hour').toMatchObject([{ digest }]);
  expect(await copies()).toEqual(others);
  const again = await daemon.call('sandbox.create', { image: small.image });
  expect((await daemon.run(again.id, ['echo', 'again'])).stdout).toBe('again\n');
  await world.gone(again.id);
});
