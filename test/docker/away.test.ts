// An Engine that is stopped, killed, frozen or lost, while the daemon runs and while it does not.
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
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

test('an Engine that is stopped, killed and restarted: calls fail as unavailable at once, and recover by themselves', {
  timeout: 180_000,
}, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', {});
  await engine.kill9();
  const began = performance.now();
  for (const call of [() => daemon.call('sandbox.create', {}), () => daemon.call('sandbox.stats', { ref: id })]) {
    expect((await refused(call())).body).toMatchObject({
      code: 'unavailable',
      message: expect.stringMatching(/Docker Engine/),
      hint: expect.stringMatching(/start/),
    });
  }
  expect(performance.now() - began, 'a refusal is not a timeout').toBeLessThan(15_000);
  // The container has nothing to do with its Engine's end, nor has our way to its agent.
  expect((await daemon.run(id, ['echo', 'alive'])).stdout).toBe('alive\n');
  await engine.startAgain();
  const { id: second } = await daemon.call('sandbox.create', {});
  await world.gone(second);
  const { id: busy } = await daemon.call('sandbox.create', { main: { argv: ['sleep', '1000'] } });

  await engine.stop();
  await engine.startAgain();
  for (const each of [id, busy]) {
    await eventually('the end that came with the Engine’s to be known', async () => (await world.state(each)) === 'stopped', 30_000);
    expect((await daemon.call('sandbox.get', { ref: each })).ended).toMatchObject({ cause: 'host-stopped', actor: 'host' });
  }
  expect((await daemon.call('why.get', { ref: busy })).sentence).toMatch(
    /its Docker Engine, or somebody who uses that, stopped its container/,
  );
  await world.gone(busy);
  await daemon.call('sandbox.start', { ref: id });
  expect((await daemon.run(id, ['echo', 'back'])).stdout).toBe('back\n');
  await world.gone(id);
});

test('an Engine that is killed in the middle of operations: each fails as unavailable, leaves nothing, and works when it is back', {
  timeout: 180_000,
}, async () => {
  const { daemon, engine } = world;
  await using door = await world.throughDoor();
  const [starting, stopping, deleting, pausing, measured, kept, resized, resting] = (
    await Promise.all(Array.from({ length: 8 }, (_, n) => daemon.call('sandbox.create', { name: `in-${n}`, start: n > 0 })))
  ).map(({ id }) => id) as [string, string, string, string, string, string, string, string];
  await daemon.call('sandbox.pause', { ref: resting });
  const running = [stopping, deleting, pausing, measured, kept, resized];
  const calls = {
    create: () => daemon.call('sandbox.create', { name: 'lost' }),
    start: () => daemon.call('sandbox.start', { ref: starting }),
    stop: () => daemon.call('sandbox.stop', { ref: stopping }),
    pause: () => daemon.call('sandbox.pause', { ref: pausing }),
    stats: () => daemon.call('sandbox.stats', { ref: measured }),
    commit: () => daemon.call('image.commit', { ref: kept, name: 'kept' }),
    set: () => daemon.call('sandbox.set', { ref: resized, memoryMiB: 256 }),
    resume: () => daemon.call('sandbox.resume', { ref: resting }),
    delete: () => daemon.call('sandbox.delete', { ref: deleting, force: true }),
  };
  engine.freeze();
  const under = Object.entries(calls).map(async ([what, call]) => ({ what, error: await refused(call()) }));
  await eventually(
    'all of them to wait for the Engine',
    () => door.underWay.filter((line) => !/events/.test(line)).length >= Object.keys(calls).length,
  );
  expect((await daemon.run(measured, ['echo', 'alive'])).stdout).toBe('alive\n');
  await engine.kill9();
  for (const { what, error } of await Promise.all(under)) {
    expect(error.body, what).toMatchObject({ code: 'unavailable', retryable: true, message: expect.stringMatching(/Docker Engine/) });
  }
  const states = (ids: readonly string[]) => Promise.all(ids.map((id) => world.state(id)));
  expect(await states([starting, resting, ...running])).toEqual(['created', 'paused', ...running.map(() => 'running')]);
  await engine.startAgain();
  // It has ended what it found running: nobody told, and it is known all the same.
  await eventually('the ends that came with its start to be known', async () =>
    (await states([resting, ...running])).every((now) => now === 'stopped'),
  );
  for (const ref of [resting, ...running]) await daemon.call('sandbox.start', { ref });
  await daemon.call('sandbox.pause', { ref: resting });
  for (const [what, call] of Object.entries(calls)) await call().catch((error: unknown) => expect.fail(`${what}: ${String(error)}`));
  expect(await states([stopping, deleting, pausing])).toEqual(['stopped', 'deleted', 'paused']);
  expect(await states([starting, measured, kept, resized, resting])).toEqual(Array.from({ length: 5 }, () => 'running'));
  expect((await daemon.call('sandbox.get', { ref: resized })).shape.memoryMiB).toBe(256);
  const { id: lost } = await daemon.call('sandbox.get', { ref: 'lost' });
  await world.gone(stopping, pausing, measured, starting, kept, resized, resting, lost);
  await daemon.call('image.remove', { image: 'kept' });
  expect(await engine.containers()).toEqual([]);
  expect(await daemon.leaks()).toEqual([]);
});

test('what an Engine did whose answer was lost is taken back, at once or when it answers again', { timeout: 120_000 }, async () => {
  const { daemon, engine } = world;
  await using door = await world.throughDoor();
  const { id } = await daemon.call('sandbox.create', { start: false });
  for (const [requests, call] of [
    [/^POST \S+\/containers\/create/, () => daemon.call('sandbox.create', {})],
    [/^POST \S+\/start/, () => daemon.call('sandbox.start', { ref: id })],
    // Nothing else gets through either: the connection is gone for good.
    [/^(POST \S+\/containers\/create|GET \S+\/containers\/hutch|DELETE)/, () => daemon.call('sandbox.create', {})],
    [/^POST \S+\/(start|kill)/, () => daemon.call('sandbox.start', { ref: id })],
  ] as const) {
    const before = door.losses;
    {
      using _ = door.lose(requests);
      expect((await refused(call())).body, String(requests)).toMatchObject({ code: 'unavailable' });
      expect(door.losses).toBeGreaterThan(before);
      expect(await world.state(id)).toBe('created');
    }
    door.cut(); // and here it is again
    await eventually(`${requests}: what it did to be taken back`, async () => {
      const left = await engine.containers();
      return left.length === 1 && left[0]?.State !== 'running';
    });
  }
  expect((await daemon.call('sandbox.start', { ref: id })).state).toBe('running');
  expect((await daemon.run(id, ['echo', 'up'])).stdout).toBe('up\n');
  await world.gone(id);
  expect(await daemon.leaks()).toEqual([]);
});

test('one connection hears of all containers; when it is lost, what happened meanwhile is found out', { timeout: 120_000 }, async () => {
  const { daemon, engine } = world;
  await using door = await world.throughDoor();
  const made = await Promise.all(Array.from({ length: 4 }, () => daemon.call('sandbox.create', {})));
  const [dying, pausing] = made.map(({ id }) => id) as [string, string];
  let quiet = 0; // looks in a row: between two requests there is none under way either
  const isAllThereIs = () => door.underWay.length === 1 && /^GET \S+\/events/.test(door.underWay[0] ?? '');
  await eventually('all to be watched, over one connection', () => {
    quiet = isAllThereIs() ? quiet + 1 : 0;
    return quiet >= 10;
  });
  const containers = await Promise.all([dying, pausing].map(async (id) => (await world.container(id)).Id));
  {
    using _ = door.lose(/events/);
    door.cut();
    await engine.ask('POST', `/containers/${containers[0]}/kill?signal=KILL`);
    await engine.ask('POST', `/containers/${containers[1]}/pause`);
    expect([await world.state(dying), await world.state(pausing)], 'nobody has told').toEqual(['running', 'running']);
  }
  door.cut();
  await eventually('its end to be known', async () => (await world.state(dying)) === 'stopped');
  await eventually('its pause to be known', async () => (await world.state(pausing)) === 'paused');
  await world.gone(...made.map(({ id }) => id));
  await eventually('nobody to listen any more', () => door.underWay.length === 0);
});

test('a daemon begins while its Engine is away: what answers is what it was, what does not is in error, and all is settled when it is back', {
  timeout: 240_000,
}, async () => {
  const { daemon, engine } = world;
  const names = ['lives', 'paused', 'unpaused', 'dies', 'removed', 'doomed'] as const;
  const made = await Promise.all(names.map((name) => daemon.call('sandbox.create', { name })));
  const ids = Object.fromEntries(made.map(({ name, id }) => [name, id])) as Record<(typeof names)[number], string>;
  const passing = await daemon.call('sandbox.create', { name: 'passing', autoRemove: true, main: { argv: ['sleep', '1000'] } });
  const containers = new Map(
    await Promise.all([...made, passing].map(async ({ name, id }) => [name, (await world.container(id)).Id] as const)),
  );
  for (const name of ['paused', 'unpaused'] as const) await daemon.call('sandbox.pause', { ref: ids[name] });
  const act = (name: string, how: string) => engine.ask('POST', `/containers/${containers.get(name)}/${how}`);
  const causeOf = async (id: string) => (await daemon.call('sandbox.get', { ref: id })).errorCause;

  // A removal that was begun, and cut short with its daemon.
  {
    await using door = await world.throughDoor();
    door.hold(/^POST \S+\/kill/);
    const deleting = daemon.call('sandbox.delete', { ref: ids.doomed, force: true }).catch(() => {});
    await eventually('the removal to be begun', () => door.underWay.some((line) => /\/kill/.test(line)));
    await daemon.kill9();
    await deleting;
  }
  {
    await using _ = await world.withoutSocket();
    for (const name of ['dies', 'passing']) await act(name, 'kill?signal=KILL');
    await engine.ask('DELETE', `/containers/${containers.get('removed')}?force=1`);
    await act('unpaused', 'unpause');
    await daemon.startAgain();
    expect((await daemon.run(ids.lives, ['echo', 'alive'])).stdout).toBe('alive\n');
    for (const name of ['paused', 'dies', 'removed'] as const) {
      await eventually(`${name}: nobody knows`, async () => (await world.state(ids[name])) === 'error', 30_000);
      expect(await causeOf(ids[name])).toMatch(/Docker Engine .* what became of it is known when that answers again/);
    }
    expect((await refused(daemon.call('sandbox.stop', { ref: ids.lives }))).body).toMatchObject({ code: 'unavailable' });
    expect(await world.state(ids.lives)).toBe('running');
  }
  await eventually('what was left to be in order', async () => (await world.state(ids.doomed)) === 'deleted', 30_000);
  const states = () => Promise.all(names.map((name) => world.state(ids[name])));
  await eventually(
    'each to be what became of it',
    async () => `${await states()}` === 'running,paused,running,stopped,error,deleted',
    30_000,
  ).catch(async () => expect(await states()).toEqual(['running', 'paused', 'running', 'stopped', 'error', 'deleted']));
  expect((await daemon.call('sandbox.get', { ref: ids.dies })).ended).toMatchObject({ cause: 'host-stopped' });
  expect(await causeOf(ids.removed)).toMatch(/somebody else removed/);
  await eventually('what removes itself to be gone', async () => (await world.state(passing.id)) === 'deleted');
  for (const name of ['lives', 'unpaused'] as const) expect((await daemon.run(ids[name], ['echo', name])).stdout).toBe(`${name}\n`);

  // One that says nothing at all does not keep a daemon from beginning; and what answered by itself is watched.
  engine.freeze();
  await daemon.kill9();
  await daemon.startAgain();
  expect((await daemon.run(ids.lives, ['echo', 'still'])).stdout).toBe('still\n');
  engine.thaw();
  // One that falls silent later is told after seconds too, and not after what the call would take.
  await daemon.call('sandbox.stats', { ref: ids.lives });
  engine.freeze();
  const silent = await Promise.all([refused(daemon.call('sandbox.create', {})), refused(daemon.call('sandbox.stats', { ref: ids.lives }))]);
  engine.thaw();
  for (const { body } of silent) {
    expect(body.code).toBe('unavailable');
    expect(body.message, JSON.stringify(body)).toMatch(/Docker Engine has not answered in \d s/);
  }
  await act('lives', 'kill?signal=KILL');
  await eventually('its end to be known', async () => (await world.state(ids.lives)) === 'stopped', 30_000);
  await world.gone(...(['lives', 'paused', 'unpaused', 'dies', 'removed'] as const).map((name) => ids[name]));
  expect(await engine.containers()).toEqual([]);
  expect(await daemon.leaks()).toEqual([]);
});

test('a daemon that is started with another Engine than before knows that a container is not removed, and finds it when it is asked for in its own', {
  timeout: 120_000,
}, async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', {});
  await daemon.kill9();
  const path = join(daemon.home, 'data/sandboxes', id, 'vm/container.json');
  const mark = await readFile(path, 'utf8');
  const elsewhere = { engine: { identity: 'another', address: 'tcp://10.0.0.9:2376' }, containerId: '0'.repeat(64) };
  await writeFile(path, JSON.stringify({ ...JSON.parse(mark), ...elsewhere }));
  await daemon.startAgain();
  expect((await refused(daemon.call('sandbox.pause', { ref: id }))).body).toMatchObject({
    code: 'unavailable',
    message: expect.stringMatching(
      /its container is in the Docker Engine at tcp:\/\/10\.0\.0\.9:2376, and unix:\S+ \(from DOCKER_HOST\) is asked/,
    ),
    hint: expect.stringContaining('DOCKER_HOST=tcp://10.0.0.9:2376'),
  });
  // Its agent answers all the same.
  expect((await daemon.run(id, ['echo', 'here'])).stdout).toBe('here\n');
  await writeFile(path, mark);
  await daemon.kill9();
  await daemon.startAgain();
  await eventually('it to be found', async () => (await world.state(id)) === 'running', 30_000);
  expect((await daemon.run(id, ['echo', 'there'])).stdout).toBe('there\n');
  await world.gone(id);
});
