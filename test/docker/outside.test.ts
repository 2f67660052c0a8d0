// What somebody else does in the Engine: to containers and images of ours, and beside them.
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { DockerWorld, refused } from './world.ts';

let world: DockerWorld;
beforeAll(async () => {
  world = await DockerWorld.start();
}, 300_000);
afterAll(async () => {
  await world[Symbol.asyncDispose]();
}, 120_000);
afterEach(() => world.clear(), 120_000);

test('a container that somebody else removed puts its sandbox in error with the cause, running or not', async () => {
  const { daemon, engine } = world;
  const [running, stopped] = await Promise.all([daemon.call('sandbox.create', {}), daemon.call('sandbox.create', {})]);
  await daemon.call('sandbox.stop', { ref: stopped.id, force: true });
  for (const { id } of [running, stopped]) await engine.ask('DELETE', `/containers/${(await world.container(id)).Id}?force=1`);
  await eventually('the sandbox to be in error', async () => (await world.state(running.id)) === 'error');
  const lost = await daemon.call('sandbox.get', { ref: running.id });
  expect(lost).toMatchObject({ errorCause: expect.stringMatching(/somebody else removed/), openComputeSinceMs: null });
  for (const { id } of [running, stopped]) {
    const start = await refused(daemon.call('sandbox.start', { ref: id }));
    expect(start.body).toMatchObject({ code: 'failed_precondition', message: expect.stringMatching(/removed by somebody else/) });
  }
  await world.gone(running.id, stopped.id);
  expect(await world.state(running.id)).toBe('deleted');
});

test('a container that somebody stops is told as stopped from outside, one that ends itself is not', async () => {
  const { daemon, engine } = world;
  const main = { argv: ['sh', '-c', 'trap "exit 3" TERM; touch /ready; while :; do sleep 0.1; done'] };
  const [stopped, itself] = await Promise.all([daemon.call('sandbox.create', { main }), daemon.call('sandbox.create', {})]);
  const isReady = async () => (await daemon.run(stopped.id, ['test', '-e', '/ready'])).exitCode === 0;
  await eventually('its main process to have its trap', isReady);
  await engine.ask('POST', `/containers/${(await world.container(stopped.id)).Id}/stop`);
  await eventually('its end to be known', async () => (await world.state(stopped.id)) === 'stopped');
  expect((await daemon.call('sandbox.get', { ref: stopped.id })).ended).toMatchObject({
    cause: 'host-stopped',
    actor: 'host',
    exitCode: 3,
  });
  await daemon.call('sandbox.start', { ref: stopped.id });
  await engine.ask('POST', `/containers/${(await world.container(stopped.id)).Id}/kill`);
  await eventually('its second end to be known', async () => (await world.state(stopped.id)) === 'stopped');
  expect((await daemon.call('sandbox.get', { ref: stopped.id })).ended).toMatchObject({ cause: 'host-stopped', actor: 'host' });
  await daemon.exec(itself.id, { argv: ['sh', '-c', 'kill -TERM 1'] });
  await eventually('the other end to be known', async () => (await world.state(itself.id)) === 'stopped');
  expect((await daemon.call('sandbox.get', { ref: itself.id })).ended).toMatchObject({ cause: 'guest-shutdown', actor: 'guest' });
  await world.gone(stopped.id, itself.id);
});

test('one that somebody else renamed is still found, and one that was paused goes on when it is unpaused', async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', {});
  const { Id } = await world.container(id);
  await engine.ask('POST', `/containers/${Id}/rename?name=called-otherwise`);
  expect((await daemon.run(id, ['echo', 'here'])).stdout).toBe('here\n');
  await engine.ask('POST', `/containers/${Id}/pause`);
  await daemon.call('sandbox.pause', { ref: id });
  expect(await world.state(id)).toBe('paused');
  await daemon.call('sandbox.resume', { ref: id });
  expect((await daemon.run(id, ['echo', 'on'])).stdout).toBe('on\n');
  await daemon.call('sandbox.stop', { ref: id, force: true });
  await daemon.call('sandbox.start', { ref: id });
  await world.gone(id);
  expect((await engine.containers()).map(({ Id: left }) => left)).not.toContain(Id);
});

test('a container that somebody else pauses is shown as paused, and as running when it goes on, also by the next daemon', async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', {});
  const { Id } = await world.container(id);
  const outside = async (what: 'pause' | 'unpause'): Promise<void> => {
    expect((await engine.ask('POST', `/containers/${Id}/${what}`)).status).toBe(204);
  };
  await outside('pause');
  await eventually('it to be shown as paused', async () => (await world.state(id)) === 'paused');
  const exec = await refused(daemon.call('sandbox.stats', { ref: id }));
  expect(exec.body).toMatchObject({ code: 'failed_precondition', message: expect.stringMatching(/is paused/) });
  await outside('unpause');
  await eventually('it to be shown as running', async () => (await world.state(id)) === 'running');
  expect((await daemon.run(id, ['echo', 'on'])).stdout).toBe('on\n');

  await daemon.kill9();
  await outside('pause');
  await daemon.startAgain();
  await eventually('the next daemon to know', async () => (await world.state(id)) === 'paused');
  await outside('unpause');
  await eventually('the next daemon to know that too', async () => (await world.state(id)) === 'running');
  expect((await daemon.run(id, ['echo', 'again'])).stdout).toBe('again\n');
  const followed = async (): Promise<number> => {
    const { operations } = await daemon.call('operation.list', { all: true });
    return operations.filter(({ verb, targetId }) => verb === 'daemon.pause' && targetId === id).length;
  };
  expect(await followed(), 'one operation for each change').toBe(4);

  // Ours are no news.
  await daemon.call('sandbox.pause', { ref: id });
  await daemon.call('sandbox.resume', { ref: id });
  expect((await daemon.run(id, ['echo', 'ours'])).stdout).toBe('ours\n');
  expect(await followed()).toBe(4);
  await world.gone(id);
});

test('containers that are not Hutch’s are never touched, not even one that carries a sandbox’s name', async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { start: false });
  const own = await world.container(id);
  const image = ((await engine.ask('GET', `/containers/${own.Id}/json`)).body as { Config: { Image: string } }).Config.Image;
  const foreign = {
    Image: image,
    Entrypoint: ['sleep', '1000'],
    Labels: { 'dev.hutch.sandbox': id, 'dev.hutch.instance': 'somebody-else' },
  };
  // Somebody takes the name that a sandbox's container had.
  await engine.ask('POST', `/containers/${own.Id}/rename?name=moved-away`);
  const made = await engine.ask('POST', `/containers/create?name=hutch-${id}`, foreign);
  expect(made.status).toBe(201);
  const { Id } = made.body as { Id: string };
  await engine.ask('POST', `/containers/${Id}/start`);

  await daemon.call('sandbox.start', { ref: id });
  await daemon.call('sandbox.stop', { ref: id, force: true });
  await world.gone(id);
  await daemon.kill9();
  await daemon.startAgain();
  const left = await engine.containers();
  expect(left.find((container) => container.Id === Id)?.State).toBe('running');
  expect(left.map((container) => container.Id)).not.toContain(own.Id);
  await engine.ask('DELETE', `/containers/${Id}?force=1`);
});

test('an image that somebody removed from the Engine is brought in again; one of its name that is not ours is refused, not used', {
  timeout: 120_000,
}, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { start: false });
  const own = await world.container(id);
  const { body } = await engine.ask('GET', `/containers/${own.Id}/json`);
  const name = (body as { Config: { Image: string } }).Config.Image;
  await world.gone(id);
  expect((await engine.ask('DELETE', `/images/${name}?force=1`)).status).toBe(200);
  const [repository = '', tag = ''] = name.split(':');
  expect(await engine.import(repository, tag)).toMatch(/^sha256:/);
  const error = await refused(daemon.call('sandbox.create', {}));
  expect(error.body).toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining(`${name} that Hutch has not made`),
    hint: expect.stringContaining(`docker rmi ${name}`),
  });
  expect((await engine.ask('DELETE', `/images/${name}?force=1`)).status).toBe(200);
  const again = await daemon.call('sandbox.create', {});
  expect((await daemon.run(again.id, ['echo', 'here'])).stdout).toBe('here\n');
  await world.gone(again.id);
});

test('a foreign container that takes the name of one that was removed is not taken for it, and is left alone', async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { start: false });
  const { body } = await engine.ask('GET', `/containers/${(await world.container(id)).Id}/json`);
  const { Image } = (body as { Config: { Image: string } }).Config;
  const labels = { 'dev.hutch.sandbox': id, 'dev.hutch.instance': 'somebody-else' };
  await engine.ask('DELETE', `/containers/${(await world.container(id)).Id}?force=1`);
  const made = await engine.ask('POST', `/containers/create?name=hutch-${id}`, { Image, Entrypoint: ['sleep', '1000'], Labels: labels });
  expect(made.status).toBe(201);
  const { Id } = made.body as { Id: string };
  const error = await refused(daemon.call('sandbox.start', { ref: id }));
  expect(error.body).toMatchObject({ code: 'failed_precondition', message: expect.stringMatching(/removed by somebody else/) });
  await world.gone(id);
  expect((await engine.containers()).map((container) => container.Id)).toEqual([Id]);
  await engine.ask('DELETE', `/containers/${Id}?force=1`);
});
