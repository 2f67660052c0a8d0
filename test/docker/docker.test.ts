// Containers of a real Engine, from outside: what only this backend can get wrong. What all backends
// share is in test/conformance.
import { createHash, randomBytes } from 'node:crypto';
import { readdir, readlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { Hutch } from '../../src/sdk/hutch.ts';
import type { SandboxView } from '../support/daemon-under-test.ts';
import { ApiError } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { pullsWithLogin } from './pull.ts';
import { DockerWorld } from './world.ts';

let world: DockerWorld;
beforeAll(async () => {
  world = await DockerWorld.start({ env: { HUTCH_DEVICES_ALLOW: '/dev/fuse' } });
}, 300_000);
afterAll(async () => {
  await world[Symbol.asyncDispose]();
}, 120_000);

/** What a test that failed has left must not fail the next one. */
afterEach(async () => {
  const { daemon, engine } = world;
  const { sandboxes } = await daemon.call('sandbox.list', {});
  await Promise.allSettled(sandboxes.map(({ id }) => daemon.call('sandbox.delete', { ref: id, force: true })));
  for (const { Id } of await engine.containers()) await engine.ask('DELETE', `/containers/${Id}?force=1`);
}, 120_000);

async function state(id: string): Promise<SandboxView['state']> {
  return (await world.daemon.call('sandbox.get', { ref: id })).state;
}

async function refused(call: Promise<unknown>): Promise<ApiError> {
  const error = await call.then(
    () => null,
    (cause: unknown) => cause,
  );
  if (error instanceof ApiError) return error;
  throw new Error(`it was not refused: ${String(error)}`);
}

async function gone(...ids: readonly string[]): Promise<void> {
  await Promise.all(ids.map((id) => world.daemon.call('sandbox.delete', { ref: id, force: true })));
}

test('a container has a minimal set of capabilities, no new privileges, no namespace or device of the host, its limits, and labels', async () => {
  const { daemon, engine } = world;
  const { id, projectId } = await daemon.call('sandbox.create', { name: 'hard', cpus: 1, memoryMiB: 256 });
  const { Id } = await world.container(id);
  const { body } = (await engine.ask('GET', `/containers/${Id}/json`)) as {
    body: { Config: { Labels: object }; HostConfig: object; Mounts: { RW: boolean; Source: string }[] };
  };
  expect(body.HostConfig).toMatchObject({
    Privileged: false,
    CapDrop: ['ALL'],
    SecurityOpt: ['no-new-privileges:true'],
    NetworkMode: 'none',
    PidMode: '',
    IpcMode: 'private',
    UTSMode: '',
    UsernsMode: '',
    Memory: 256 * 2 ** 20,
    MemorySwap: 256 * 2 ** 20,
    NanoCpus: 1e9,
    PidsLimit: 2048,
    RestartPolicy: { Name: 'no' },
    LogConfig: { Type: 'none' },
  });
  expect(body.Mounts.every(({ RW, Source }) => !RW && !Source.includes('docker.sock'))).toBe(true);
  expect(body.Config.Labels).toMatchObject({ 'dev.hutch.sandbox': id, 'dev.hutch.project': projectId });
  const inside = await daemon.run(id, ['sh', '-c', 'hostname; grep -E "^(CapEff|NoNewPrivs)" /proc/self/status']);
  expect(inside.stdout).toBe('hard\nCapEff:\t00000000000405fb\nNoNewPrivs:\t1\n');
  const { stdout: its } = await daemon.run(id, ['sh', '-c', 'for kind in cgroup ipc mnt net pid uts; do readlink /proc/1/ns/$kind; done']);
  const hosts = await Promise.all(
    its
      .trim()
      .split('\n')
      .map((name) => readlink(`/proc/self/ns/${name.split(':')[0]}`)),
  );
  expect(hosts.filter((name) => its.includes(name))).toEqual([]);
  expect(hosts).toHaveLength(6);
  const devices = await daemon.run(id, ['sh', '-c', 'find /dev -type b -o -type c | sort | tr "\\n" " "']);
  expect(devices.stdout).toBe('/dev/full /dev/null /dev/pts/ptmx /dev/random /dev/tty /dev/urandom /dev/zero ');
  const raised = await daemon.run(id, ['sudo', '-n', 'id', '-u'], { user: 'user' });
  expect(raised).toMatchObject({ exitCode: 1, stdout: '', stderr: expect.stringMatching(/no new privileges/) });
  await gone(id);
});

test('a device is there when it is asked for and allowed, and no other', async () => {
  const { daemon } = world;
  const { id, devices } = await daemon.call('sandbox.create', { devices: ['/dev/fuse'] });
  expect(devices).toEqual(['/dev/fuse']);
  const { stdout } = await daemon.run(id, [
    'sh',
    '-c',
    'test -c /dev/fuse && exec 3<>/dev/fuse && echo open; find /dev -type b -o -type c | wc -l',
  ]);
  expect(stdout).toBe('open\n8\n');
  await gone(id);
  for (const [device, code, message] of [
    ['/dev/kmsg', 'permission_denied', 'devices.allow'],
    ['/dev/../etc/passwd', 'invalid_argument', 'devices'],
    ['/dev', 'invalid_argument', 'devices'],
    ['relative', 'invalid_argument', 'devices'],
  ] as const) {
    const { body } = await refused(daemon.call('sandbox.create', { devices: [device] }));
    expect(body, device).toMatchObject({ code, message: expect.stringContaining(message) });
  }
});

test('what is used is counted by the container’s cgroup, and the counters never go backwards', async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', { memoryMiB: 256 });
  const samples = [await daemon.call('sandbox.stats', { ref: id })];
  for (let n = 0; n < 3; n += 1) {
    await daemon.run(id, ['sh', '-c', 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 4000000 /dev/urandom > /tmp/x; sync']);
    samples.push(await daemon.call('sandbox.stats', { ref: id }));
  }
  for (const [n, sample] of samples.entries()) {
    // The limit of the container, not the memory of the machine.
    expect(sample.memory.totalBytes).toBe(256 * 2 ** 20);
    expect(sample.memory.usedBytes).toBeLessThan(sample.memory.totalBytes);
    const before = samples[n - 1];
    if (before === undefined) continue;
    expect(sample.cpu.usedUs).toBeGreaterThan(before.cpu.usedUs);
    expect(sample.host.cpuUs).toBeGreaterThanOrEqual(sample.cpu.usedUs);
    expect(sample.disk.writtenBytes).toBeGreaterThanOrEqual(before.disk.writtenBytes ?? Number.NaN);
  }
  await gone(id);
});

test('a container that dies tells its exit code and whether it ran out of memory', async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', {});
  const { Id } = await world.container(id);
  await engine.ask('POST', `/containers/${Id}/kill?signal=KILL`);
  await eventually('the sandbox to be known as stopped', async () => (await state(id)) === 'stopped');
  expect(await daemon.call('sandbox.get', { ref: id })).toMatchObject({
    ended: { cause: 'crashed', oomKilled: false },
    openComputeSinceMs: null,
  });

  await daemon.call('sandbox.start', { ref: id });
  expect((await daemon.run(id, ['echo', 'again'])).stdout).toBe('again\n');
  await gone(id);

  const main = { argv: ['sh', '-c', 'exec head -c 400000000 /dev/zero | tail -c 400000000'] };
  const greedy = await daemon.call('sandbox.create', { memoryMiB: 128, main });
  const { sandbox } = await daemon.call('sandbox.wait', { ref: greedy.id });
  expect(sandbox).toMatchObject({ state: 'stopped', ended: { cause: 'exited', oomKilled: true } });
  await gone(greedy.id);
});

test('a container that somebody else removed puts its sandbox in error with the cause, running or not', async () => {
  const { daemon, engine } = world;
  const [running, stopped] = await Promise.all([daemon.call('sandbox.create', {}), daemon.call('sandbox.create', {})]);
  await daemon.call('sandbox.stop', { ref: stopped.id, force: true });
  for (const { id } of [running, stopped]) await engine.ask('DELETE', `/containers/${(await world.container(id)).Id}?force=1`);
  await eventually('the sandbox to be in error', async () => (await state(running.id)) === 'error');
  const lost = await daemon.call('sandbox.get', { ref: running.id });
  expect(lost).toMatchObject({ errorCause: expect.stringMatching(/somebody else removed/), openComputeSinceMs: null });
  for (const { id } of [running, stopped]) {
    const start = await refused(daemon.call('sandbox.start', { ref: id }));
    expect(start.body).toMatchObject({ code: 'failed_precondition', message: expect.stringMatching(/removed by somebody else/) });
  }
  await gone(running.id, stopped.id);
  expect(await state(running.id)).toBe('deleted');
});

test('one that somebody else renamed is still found, and one that was paused goes on when it is unpaused', async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', {});
  const { Id } = await world.container(id);
  await engine.ask('POST', `/containers/${Id}/rename?name=called-otherwise`);
  expect((await daemon.run(id, ['echo', 'here'])).stdout).toBe('here\n');
  await engine.ask('POST', `/containers/${Id}/pause`);
  await daemon.call('sandbox.pause', { ref: id });
  expect(await state(id)).toBe('paused');
  await daemon.call('sandbox.resume', { ref: id });
  expect((await daemon.run(id, ['echo', 'on'])).stdout).toBe('on\n');
  await daemon.call('sandbox.stop', { ref: id, force: true });
  await daemon.call('sandbox.start', { ref: id });
  await gone(id);
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
  await eventually('it to be shown as paused', async () => (await state(id)) === 'paused');
  const exec = await refused(daemon.call('sandbox.stats', { ref: id }));
  expect(exec.body).toMatchObject({ code: 'failed_precondition', message: expect.stringMatching(/is paused/) });
  await outside('unpause');
  await eventually('it to be shown as running', async () => (await state(id)) === 'running');
  expect((await daemon.run(id, ['echo', 'on'])).stdout).toBe('on\n');

  await daemon.kill9();
  await outside('pause');
  await daemon.startAgain();
  await eventually('the next daemon to know', async () => (await state(id)) === 'paused');
  await outside('unpause');
  await eventually('the next daemon to know that too', async () => (await state(id)) === 'running');
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
  await gone(id);
});

test('a first process that ignores SIGTERM is ended all the same, after the grace', async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', {
    main: { argv: ['sh', '-c', 'trap "" TERM; echo ready; while :; do sleep 1; done'] },
  });
  const stopped = await daemon.call('sandbox.stop', { ref: id, graceMs: 300 });
  expect(stopped).toMatchObject({ state: 'stopped', ended: { cause: 'stopped' } });
  await gone(id);
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
  await gone(id);
  await daemon.kill9();
  await daemon.startAgain();
  const left = await engine.containers();
  expect(left.find((container) => container.Id === Id)?.State).toBe('running');
  expect(left.map((container) => container.Id)).not.toContain(own.Id);
  await engine.ask('DELETE', `/containers/${Id}?force=1`);
});

test('a killed daemon costs a container nothing: it is adopted, with its processes and its output', async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', {
    main: { argv: ['sh', '-c', 'n=0; while :; do n=$((n+1)); echo $n > /tmp/n; sleep 0.05; done'] },
  });
  const first = Number((await daemon.run(id, ['cat', '/tmp/n'])).stdout);
  await daemon.kill9();
  await daemon.startAgain();
  expect(await state(id)).toBe('running');
  await eventually('the process to have gone on', async () => Number((await daemon.run(id, ['cat', '/tmp/n'])).stdout) > first + 2);
  expect((await daemon.call('sandbox.get', { ref: id })).startCount).toBe(1);
  await gone(id);
});

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
  await gone(second);

  await engine.stop();
  await engine.startAgain();
  await eventually('the end that came with the Engine’s to be known', async () => (await state(id)) === 'stopped', 30_000);
  await daemon.call('sandbox.start', { ref: id });
  expect((await daemon.run(id, ['echo', 'back'])).stdout).toBe('back\n');
  await gone(id);
});

test('an Engine that is killed in the middle of operations: each fails as unavailable, leaves nothing, and works when it is back', {
  timeout: 180_000,
}, async () => {
  const { daemon, engine } = world;
  await using door = await world.throughDoor();
  const [stopping, deleting, pausing, measured, starting] = (
    await Promise.all(Array.from({ length: 5 }, (_, n) => daemon.call('sandbox.create', { name: `in-${n}`, start: n < 4 })))
  ).map(({ id }) => id) as [string, string, string, string, string];
  const calls = {
    create: () => daemon.call('sandbox.create', { name: 'lost' }),
    start: () => daemon.call('sandbox.start', { ref: starting }),
    stop: () => daemon.call('sandbox.stop', { ref: stopping }),
    pause: () => daemon.call('sandbox.pause', { ref: pausing }),
    stats: () => daemon.call('sandbox.stats', { ref: measured }),
    delete: () => daemon.call('sandbox.delete', { ref: deleting, force: true }),
  };
  engine.freeze();
  const under = Object.entries(calls).map(async ([what, call]) => ({ what, error: await refused(call()) }));
  await eventually('all of them to wait for the Engine', () => door.underWay.filter((line) => !/events/.test(line)).length >= 6);
  expect((await daemon.run(measured, ['echo', 'alive'])).stdout).toBe('alive\n');
  await engine.kill9();
  for (const { what, error } of await Promise.all(under)) {
    expect(error.body, what).toMatchObject({ code: 'unavailable', retryable: true, message: expect.stringMatching(/Docker Engine/) });
  }
  expect(await Promise.all([stopping, deleting, pausing, measured, starting].map(state))).toEqual([
    ...Array.from({ length: 4 }, () => 'running'),
    'created',
  ]);
  await engine.startAgain();
  // It has ended what it found running: nobody told, and it is known all the same.
  await eventually('the ends that came with its start to be known', async () =>
    (await Promise.all([stopping, deleting, pausing, measured].map(state))).every((now) => now === 'stopped'),
  );
  for (const ref of [stopping, deleting, pausing, measured]) await daemon.call('sandbox.start', { ref });
  for (const [what, call] of Object.entries(calls)) await call().catch((error: unknown) => expect.fail(`${what}: ${String(error)}`));
  expect(await Promise.all([stopping, deleting, pausing, measured, starting].map(state))).toEqual([
    'stopped',
    'deleted',
    'paused',
    'running',
    'running',
  ]);
  const { id: lost } = await daemon.call('sandbox.get', { ref: 'lost' });
  await gone(stopping, pausing, measured, starting, lost);
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
      expect(await state(id)).toBe('created');
    }
    door.cut(); // and here it is again
    await eventually(`${requests}: what it did to be taken back`, async () => {
      const left = await engine.containers();
      return left.length === 1 && left[0]?.State !== 'running';
    });
  }
  expect((await daemon.call('sandbox.start', { ref: id })).state).toBe('running');
  expect((await daemon.run(id, ['echo', 'up'])).stdout).toBe('up\n');
  await gone(id);
  expect(await daemon.leaks()).toEqual([]);
});

test('one connection hears of all containers; when it is lost, what happened meanwhile is found out', { timeout: 120_000 }, async () => {
  const { daemon, engine } = world;
  await using door = await world.throughDoor();
  const made = await Promise.all(Array.from({ length: 4 }, () => daemon.call('sandbox.create', {})));
  const [dying, pausing] = made.map(({ id }) => id) as [string, string];
  await eventually('all to be watched', () => door.underWay.length === 1);
  expect(door.underWay).toEqual([expect.stringMatching(/^GET \S+\/events/)]);
  const containers = await Promise.all([dying, pausing].map(async (id) => (await world.container(id)).Id));
  {
    using _ = door.lose(/events/);
    door.cut();
    await engine.ask('POST', `/containers/${containers[0]}/kill?signal=KILL`);
    await engine.ask('POST', `/containers/${containers[1]}/pause`);
    expect([await state(dying), await state(pausing)], 'nobody has told').toEqual(['running', 'running']);
  }
  door.cut();
  await eventually('its end to be known', async () => (await state(dying)) === 'stopped');
  await eventually('its pause to be known', async () => (await state(pausing)) === 'paused');
  await gone(...made.map(({ id }) => id));
  await eventually('nobody to listen any more', () => door.underWay.length === 0);
});

test('an image that somebody removed from the Engine is brought in again; one of its name that is not ours is refused, not used', {
  timeout: 120_000,
}, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { start: false });
  const own = await world.container(id);
  const { body } = await engine.ask('GET', `/containers/${own.Id}/json`);
  const name = (body as { Config: { Image: string } }).Config.Image;
  await gone(id);
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
  await gone(again.id);
});

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
  await gone(id, child.id);
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
  await gone(id);
  await daemon.call('image.remove', { image: image.id });
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
  await gone(id);
  expect((await engine.containers()).map((container) => container.Id)).toEqual([Id]);
  await engine.ask('DELETE', `/containers/${Id}?force=1`);
});

test('a large file goes into a container and out of it where it lies, as the user who asks, and not through the daemon', {
  timeout: 120_000,
}, async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', { name: 'files' });
  using hutch = Hutch.connect({ url: `unix:${daemon.ready.socketPath}`, apiKey: daemon.key });
  const { files } = await hutch.sandbox(id);
  const content = randomBytes(24 * 2 ** 20 + 321);
  const sha256 = createHash('sha256').update(content).digest('hex');
  async function* pieces() {
    for (let at = 0; at < content.byteLength; at += 65_536) yield content.subarray(at, at + 65_536);
  }
  expect(await files.write('/srv/deep/file', pieces(), { mode: 0o640, mkdirs: true, user: 'nobody' }).catch(String)).toMatch(
    /permission|EACCES/i,
  );
  const written = await files.write('/tmp/file', pieces(), { mode: 0o640, user: 'nobody', mtimeMs: 1_000_000 });
  expect(written).toMatchObject({ size: content.byteLength, mode: 0o640, user: 'nobody', mtimeMs: 1_000_000 });
  expect((await daemon.run(id, ['sha256sum', '/tmp/file'])).stdout).toContain(sha256);
  expect(
    createHash('sha256')
      .update(await files.read('/tmp/file'))
      .digest('hex'),
  ).toBe(sha256);
  expect((await files.read('/tmp/file', { offset: 1_000_001, length: 2_000_003 })).equals(content.subarray(1_000_001, 3_000_004))).toBe(
    true,
  );
  expect(await files.read('/tmp/file', { user: 'daemon' }).catch(String)).toMatch(/permission|EACCES/i);

  // What was there stays until the new one is whole, and nothing else.
  await expect(
    files.write(
      '/tmp/file',
      (async function* () {
        yield content;
        throw new Error('the source is gone');
      })(),
    ),
  ).rejects.toThrow('the source is gone');
  await eventually('nothing is left beside it', async () => (await daemon.run(id, ['ls', '-A', '/tmp'])).stdout === 'file\n');
  expect((await daemon.run(id, ['sha256sum', '/tmp/file'])).stdout).toContain(sha256);

  const carried = (await daemon.log())
    .split('\n')
    .filter((line) => /"verb":"file\.(read|write)"/.test(line))
    .map((line) => JSON.parse(line) as { bytesIn: number; bytesOut: number });
  expect(carried.length).toBeGreaterThan(4);
  for (const { bytesIn, bytesOut } of carried) expect(bytesIn + bytesOut).toBeLessThan(100_000);
  // Nothing of it is held by the daemon once everybody has what he wanted.
  const held = async (): Promise<readonly string[]> => {
    const dir = `/proc/${daemon.pid}/fd`;
    const links = await Promise.all((await readdir(dir)).map((fd) => readlink(join(dir, fd)).catch(() => '')));
    return links.filter((link) => /\/tmp\/(file|\.hutch-)/.test(link));
  };
  await eventually('the daemon lets go of it', async () => (await held()).length === 0, 20_000);
  await gone(id);
});

test('what a container cannot do is refused by name, and a limit that would not hold is not dropped', async () => {
  const { daemon } = world;
  const { backends } = await daemon.call('backends.list', {});
  expect(backends.find(({ name }) => name === 'docker')?.can).toMatchObject({
    isolation: 'shared-kernel',
    securityBoundary: false,
    suspend: false,
    fork: false,
    limits: { cpu: 'enforced', memory: 'enforced', disk: 'no', processes: 'enforced' },
  });
  const disk = await refused(daemon.call('sandbox.create', { diskMiB: 1024 }));
  expect(disk.body).toMatchObject({
    code: 'failed_precondition',
    message: expect.stringMatching(/diskMiB cannot be limited by the backend docker/),
  });
});

test('thirty are made, used and removed at once, and nothing is left', { timeout: 300_000 }, async () => {
  const { daemon, engine } = world;
  const made = await Promise.all(
    Array.from({ length: 30 }, (_, n) => daemon.call('sandbox.create', { memoryMiB: 128, name: `many-${n}` })),
  );
  const names = await Promise.all(made.map(async ({ id }) => (await daemon.run(id, ['hostname'])).stdout.trim()));
  expect(names).toEqual(made.map(({ name }) => name));
  await gone(...made.map(({ id }) => id));
  expect(await engine.containers()).toEqual([]);
  expect(await daemon.leaks()).toEqual([]);
});
