// An Engine that sees neither our files nor our network, as one on another machine or one beside a Hutch
// that itself runs in a container; and images that only an Engine has.
import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { SshServer } from './ssh-server.ts';
import { importTool } from './tool-image.ts';
import { DockerWorld, refused, withImages } from './world.ts';

const IMAGE = 'local/tool:1';
const ROOT = join(import.meta.dirname, '../..');
const run = promisify(execFile);

let world: DockerWorld;
beforeAll(async () => {
  world = await DockerWorld.start({ elsewhere: true });
}, 300_000);
afterAll(async () => {
  await world[Symbol.asyncDispose]();
}, 120_000);

// What a test that failed has left is not the next one's failure.
afterEach(async () => {
  world.engine.thaw();
  await world.engine.removeContainers();
});

/** The processes of this machine in whose PATH the directory is. */
async function withPath(dir: string): Promise<readonly string[]> {
  const found: string[] = [];
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const environment = await readFile(join('/proc', pid, 'environ'), 'latin1').catch(() => '');
    if (environment.split('\0').some((line) => line.startsWith(`PATH=${dir}:`))) found.push(pid);
  }
  return found;
}

test('what an Engine cannot show, as it does not see our files, is not claimed, and refused by name', { timeout: 120_000 }, async () => {
  const { daemon, engine } = world;
  // It was not asked yet, and has no image that could be looked through.
  expect((await engine.ask('GET', '/images/json?all=1')).body).toEqual([]);
  const { backends } = await daemon.call('backends.list', {});
  const can = backends.find(({ name }) => name === 'docker')?.can;
  expect(can).toMatchObject({ hostDirectories: false, volumes: false });
  expect(can?.notes.join('\n')).toContain('does not see the files of this machine');
  const { body } = await refused(daemon.call('sandbox.create', { mounts: [{ source: daemon.home, target: '/mnt', readOnly: true }] }));
  expect(body).toMatchObject({ code: 'failed_precondition', message: expect.stringContaining('hostDirectories') });
  // Whoever looks leaves nothing.
  expect(await engine.containers()).toEqual([]);
  expect((await engine.ask('GET', '/images/json?all=1')).body).toEqual([]);
});

test('the agent is put in and speaks over the attached container: commands, files, floods, and a killed daemon', {
  timeout: 180_000,
}, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { name: 'far' });
  const found = (await world.container(id)).Id;
  const { body } = (await engine.ask('GET', `/containers/${found}/json`)) as {
    body: { Mounts: unknown[]; HostConfig: { LogConfig: object } };
  };
  expect(body.Mounts).toEqual([]);
  expect(body.HostConfig.LogConfig).toMatchObject({ Type: 'none' });

  expect(await daemon.run(id, ['sh', '-c', 'hostname; cat; echo err >&2; exit 3'], { stdin: 'null' })).toMatchObject({
    exitCode: 3,
    stdout: 'far\n',
    stderr: 'err\n',
  });
  // Longer than any buffer on the way, and every byte value.
  const flood = await daemon.run(id, ['sh', '-c', 'head -c 8000000 /dev/urandom > /tmp/x; sha256sum < /tmp/x; wc -c < /tmp/x']);
  expect(flood.stdout).toMatch(/\n8000000\n$/);
  const sum = flood.stdout.split(' ')[0];
  const copy = await daemon.send('GET', `/v1/sandboxes/${id}/files?path=/tmp/x`);
  expect(copy.body.byteLength).toBe(8_000_000);
  expect(createHash('sha256').update(copy.body).digest('hex')).toBe(sum);

  await daemon.kill9();
  await daemon.startAgain();
  expect((await daemon.run(id, ['echo', 'adopted'])).stdout).toBe('adopted\n');
  await daemon.call('sandbox.pause', { ref: id });
  await daemon.call('sandbox.resume', { ref: id });
  await daemon.call('sandbox.restart', { ref: id });
  expect((await daemon.run(id, ['sh', '-c', 'wc -c < /tmp/x'])).stdout).toBe('8000000\n');

  // Its disk can be kept there: what begins with it has an agent of its own put in.
  const { id: snapshot } = await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  await daemon.run(id, ['rm', '/tmp/x']);
  const begun = await daemon.call('sandbox.create', { from: snapshot });
  await daemon.call('sandbox.restore', { ref: id, snapshot });
  for (const ref of [begun.id, id]) {
    expect((await daemon.run(ref, ['sh', '-c', 'wc -c < /tmp/x'])).stdout).toBe('8000000\n');
    await daemon.call('sandbox.delete', { ref, force: true });
  }
  await daemon.call('snapshot.remove', { snapshot, cascade: true });
  expect(JSON.stringify((await engine.ask('GET', '/images/json')).body)).not.toContain('hutch/snapshot');
  expect(await engine.containers()).toEqual([]);
});

test('an Engine that hangs while it carries the streams of agents is told as that, and what waits for them goes on when it is back', {
  timeout: 120_000,
}, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', {});
  for (const call of [() => daemon.run(id, ['true']), () => daemon.call('sandbox.stats', { ref: id })]) {
    engine.freeze();
    const { body } = await refused(call());
    engine.thaw();
    expect(body.code).toBe('unavailable');
    expect(body.message, JSON.stringify(body)).toMatch(/Docker Engine has not answered in \d s/);
    await eventually('its agent to answer', async () => (await daemon.run(id, ['echo', 'on']).catch(() => null))?.stdout === 'on\n');
  }
  await daemon.call('sandbox.delete', { ref: id, force: true });
});

test('a container that runs is changed at once; what does not fit is refused, and changes nothing', { timeout: 120_000 }, async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', { cpus: 1, memoryMiB: 256 });
  const holds = async () => {
    const files = 'cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes pids/pids.max cpu.max memory.max pids.max';
    const { stdout } = await daemon.run(id, ['sh', '-c', `cd /sys/fs/cgroup; cat ${files} 2>/dev/null; true`]);
    const [quota, memory, pids] = stdout.trim().split('\n');
    return { cpus: Number(quota?.split(' ')[0]) / 100_000, memoryMiB: Number(memory) / 2 ** 20, pids: Number(pids) };
  };
  const { now, sandbox } = await daemon.call('sandbox.set', { ref: id, cpus: 2, memoryMiB: 320, pids: 100 });
  expect(now).toEqual(['cpus', 'memoryMiB', 'pids']);
  expect(sandbox.shape).toMatchObject({ cpus: 2, memoryMiB: 320, pids: 100 });
  expect(await holds()).toEqual({ cpus: 2, memoryMiB: 320, pids: 100 });

  const hog = await daemon.exec(id, {
    argv: ['python3', '-c', 'x = b"x" * (200 << 20); print("has it", flush=True); input()'],
    stdin: 'open',
  });
  await hog.sawOutput('has it');
  const { body } = await refused(daemon.call('sandbox.set', { ref: id, cpus: 1, memoryMiB: 128 }));
  expect(body).toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('128'),
    hint: expect.stringContaining('stopped'),
  });
  expect((await daemon.call('sandbox.get', { ref: id })).shape).toMatchObject({ cpus: 2, memoryMiB: 320, pids: 100 });
  expect(await holds()).toEqual({ cpus: 2, memoryMiB: 320, pids: 100 });

  const many = await daemon.exec(id, { argv: ['sh', '-c', 'i=0; while [ $i -lt 20 ]; do sleep 300 & i=$((i+1)); done; echo all; wait'] });
  await many.sawOutput('all');
  await daemon.call('sandbox.set', { ref: id, pids: 16 });
  const { error } = await (await daemon.exec(id, { argv: ['true'] })).exit();
  expect(error).toMatchObject({ code: 'resource_exhausted', hint: expect.stringContaining('hutch set --pids') });
  await daemon.call('sandbox.set', { ref: id, pids: 100 });

  await daemon.call('sandbox.stop', { ref: id });
  expect((await daemon.call('sandbox.set', { ref: id, memoryMiB: 128 })).atNextStart).toEqual(['memoryMiB']);
  await daemon.call('sandbox.start', { ref: id });
  expect(await holds()).toEqual({ cpus: 2, memoryMiB: 128, pids: 100 });
  await daemon.call('sandbox.delete', { ref: id, force: true });
});

test('where the Engine sees the agent’s program and not its socket, the agent is put in: each directory is tried', {
  timeout: 120_000,
}, async () => {
  const usual = process.env['TMPDIR'];
  process.env['TMPDIR'] = '/var/tmp'; // which this Engine sees
  try {
    await using daemon = await DaemonUnderTest.start({
      entry: join(ROOT, 'src/daemon/main.ts'),
      env: { ...world.engine.env, HUTCH_SANDBOX_BACKEND: 'docker', HUTCH_SANDBOX_NETWORK: 'none', HUTCH_SANDBOX_STOP_GRACE: '2s' },
      async before(home) {
        await withImages(home);
        await mkdir(join(home, 'run'), { mode: 0o711 });
        await world.engine.hide(join(home, 'run'));
      },
    });
    const { id } = await daemon.call('sandbox.create', {});
    const { body } = await world.engine.ask('GET', `/containers/${(await world.container(id)).Id}/json`);
    expect(body).toMatchObject({ Mounts: [] });
    await daemon.call('sandbox.stop', { ref: id });
    await daemon.call('sandbox.start', { ref: id });
    expect((await daemon.run(id, ['echo', 'here'])).stdout).toBe('here\n');
    await daemon.call('sandbox.delete', { ref: id, force: true });
  } finally {
    if (usual === undefined) delete process.env['TMPDIR'];
    else process.env['TMPDIR'] = usual;
  }
});

test('an Engine behind ssh runs sandboxes through docker system dial-stdio; what ssh complains of is told', {
  timeout: 180_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  const dir = await mkdtemp('/tmp/hutch-ssh-');
  stack.defer(async () => await rm(dir, { recursive: true }));
  // In place of a machine behind ssh: what ssh would run there runs here, where docker finds another Engine by itself.
  // Replaced whole: a shell reads its script as it goes, and the daemon calls again by itself.
  const put = async (script: string) => {
    await writeFile(join(dir, 'ssh.new'), `#!/bin/sh\necho "$*" >>${dir}/asked\n${script}\n`, { mode: 0o755 });
    await rename(join(dir, 'ssh.new'), join(dir, 'ssh'));
  };
  const there = `while [ "$1" != -- ]; do shift; done; shift 2; DOCKER_HOST=unix://${world.engine.socketPath} exec sh -c "$*"`;
  await put(there);
  {
    await using daemon = await DaemonUnderTest.start({
      entry: join(ROOT, 'src/daemon/main.ts'),
      env: {
        ...{ DOCKER_HOST: 'ssh://me@far.example:2222', HUTCH_SANDBOX_BACKEND: 'docker', HUTCH_SANDBOX_NETWORK: 'none' },
        ...{ PATH: `${dir}:${process.env['PATH']}`, HUTCH_SANDBOX_STOP_GRACE: '2s' },
      },
      before: withImages,
    });
    const { backends } = await daemon.call('backends.list', {});
    expect(backends.find(({ name }) => name === 'docker')?.can?.notes.join(' ')).toContain('from DOCKER_HOST');
    const { id } = await daemon.call('sandbox.create', { name: 'behind' });
    const bytes = randomBytes(3_000_000);
    await daemon.send('PUT', `/v1/sandboxes/${id}/files?path=/tmp/x`, { body: bytes });
    expect((await daemon.run(id, ['sha256sum', '/tmp/x'])).stdout).toContain(createHash('sha256').update(bytes).digest('hex'));
    expect((await daemon.send('GET', `/v1/sandboxes/${id}/files?path=/tmp/x`)).body.equals(bytes)).toBe(true);
    expect((await refused(daemon.call('sandbox.create', { network: 'allow' }))).code).toBe('failed_precondition');
    await daemon.kill9();
    await daemon.startAgain();
    expect((await daemon.run(id, ['hostname'])).stdout).toBe('behind\n');

    for (const [script, code, message] of [
      ['echo "me@far.example: Permission denied (publickey)." >&2; exit 255', 'permission_denied', 'Permission denied (publickey)'],
      ['echo "Host key verification failed." >&2; exit 255', 'failed_precondition', 'the host key of far.example is not known'],
      ['echo "ssh: connect to host far.example port 2222: Connection refused" >&2; exit 255', 'unavailable', 'Connection refused'],
      ['echo "sh: 1: docker: not found" >&2; exit 127', 'failed_precondition', 'no docker command'],
      ['exit 0', 'unavailable', 'ssh://me@far.example:2222'],
    ] as const) {
      await put(script);
      const { body } = await refused(daemon.call('sandbox.create', {}));
      expect(body).toMatchObject({
        code,
        message: expect.stringContaining(message),
        hint: expect.stringContaining('ssh -p 2222 me@far.example'),
      });
    }
    await put(there);
    await daemon.call('sandbox.delete', { ref: id, force: true });
    await daemon.terminate();
    expect(await readFile(join(dir, 'asked'), 'utf8')).toMatch(
      /^-T -o BatchMode=yes .*-l me -p 2222 -- far\.example docker system dial-stdio$/m,
    );
  }
  expect(await world.engine.containers()).toEqual([]);
  // What it ran, with this test's directory in its environment; others may dial an Engine as well.
  await eventually('no process of it is left', async () => (await withPath(dir)).length === 0);
});

test('an Engine behind a real ssh server runs sandboxes, and goes on with them after its daemon was killed', {
  timeout: 240_000,
}, async () => {
  await using server = await SshServer.start({ DOCKER_HOST: `unix://${world.engine.socketPath}` });
  {
    await using daemon = await DaemonUnderTest.start({
      entry: join(ROOT, 'src/daemon/main.ts'),
      env: {
        ...{ DOCKER_HOST: server.url, HUTCH_SANDBOX_BACKEND: 'docker', HUTCH_SANDBOX_NETWORK: 'none' },
        ...{ PATH: `${server.dir}:${process.env['PATH']}`, HUTCH_SANDBOX_STOP_GRACE: '2s' },
      },
      before: withImages,
    });
    const { id } = await daemon.call('sandbox.create', { name: 'behind' });
    const bytes = randomBytes(3_000_000);
    await daemon.send('PUT', `/v1/sandboxes/${id}/files?path=/tmp/x`, { body: bytes });
    expect((await daemon.run(id, ['sha256sum', '/tmp/x'])).stdout).toContain(createHash('sha256').update(bytes).digest('hex'));
    expect((await daemon.send('GET', `/v1/sandboxes/${id}/files?path=/tmp/x`)).body.equals(bytes)).toBe(true);
    await daemon.kill9();
    await daemon.startAgain();
    expect((await daemon.run(id, ['hostname'])).stdout).toBe('behind\n');
    expect(server.logins()).toBeGreaterThan(0);
    await daemon.call('sandbox.delete', { ref: id, force: true });
    await daemon.terminate();
  }
  expect(await world.engine.containers()).toEqual([]);
});

test('where its networks are not on this machine, a sandbox gets none rather than one without rules', async () => {
  const { daemon } = world;
  const { backends } = await daemon.call('backends.list', {});
  const can = backends.find(({ name }) => name === 'docker')?.can;
  expect(can?.networks).toEqual(['none']);
  expect(can?.notes.join('\n')).toMatch(/no network: the networks of this Docker Engine are not on this machine/);
  for (const network of ['allow', 'allow-lan'] as const)
    expect((await refused(daemon.call('sandbox.create', { network }))).body).toMatchObject({
      code: 'failed_precondition',
      message: expect.stringMatching(/does not work on this machine/),
      hint: expect.stringMatching(/--no-net/),
    });
  expect(await world.engine.containers()).toEqual([]);
  // Whoever looks leaves nothing.
  expect((await world.engine.ask('GET', '/networks?filters={"type":["custom"]}')).body).toEqual([]);
});

/** The same with a signal that asks it to stop: an import takes none, a commit does. */
async function commitWithStopSignal(tag: string, signal: string): Promise<void> {
  const made = await world.engine.ask('POST', '/containers/create', { Image: IMAGE, StopSignal: signal, NetworkDisabled: true });
  const { Id } = made.body as { Id: string };
  const committed = await world.engine.ask('POST', `/commit?container=${Id}&repo=local/tool&tag=${tag}`);
  expect(committed.status).toBe(201);
  await world.engine.ask('DELETE', `/containers/${Id}`);
}

test('an image that only an Engine has runs with its environment, user and directory; a command given runs as it is', {
  timeout: 120_000,
}, async () => {
  const { daemon } = world;
  await importTool(world.engine, 'local/tool', '1');
  const main = { argv: ['sh', '-c', 'id -u; pwd; echo $FROM_IMAGE'] };
  const made = await daemon.call('sandbox.create', { image: `docker://${IMAGE}`, main });
  const { sandbox } = await daemon.call('sandbox.wait', { ref: made.id });
  expect(sandbox.ended).toMatchObject({ cause: 'exited', exitCode: 0 });
  const log = (await daemon.send('GET', `/v1/sandboxes/${made.id}/logs`)).body.toString('latin1');
  expect(log).toContain('1234\n');
  expect(log).toContain('/work\n');
  expect(log).toContain('yes\n');
  await daemon.call('sandbox.start', { ref: made.id });
  await daemon.call('sandbox.delete', { ref: made.id, force: true });

  const idle = await daemon.call('sandbox.create', { image: `docker://${IMAGE}` });
  expect(idle).toMatchObject({ state: 'running', main: null });
  await daemon.call('sandbox.delete', { ref: idle.id, force: true });

  const qemu = await refused(daemon.call('sandbox.create', { image: `docker://${IMAGE}`, backend: 'qemu' }));
  expect(qemu.body).toMatchObject({ code: 'failed_precondition', message: expect.stringMatching(/backend qemu cannot run docker:/) });
  const wrong = await refused(daemon.call('sandbox.create', { image: 'docker://No Such Name' }));
  expect(wrong.body).toMatchObject({ code: 'invalid_argument' });
  const nowhere = await refused(daemon.call('sandbox.create', { image: 'docker://127.0.0.1:1/nowhere/image:1' }));
  expect(['not_found', 'unavailable']).toContain(nowhere.code);
  expect(nowhere.body.message).toContain('127.0.0.1:1/nowhere/image:1');
});

test('without a command an image runs what it is made for; inspect shows what it says, and its stop signal is sent', {
  timeout: 120_000,
}, async () => {
  const { daemon } = world;
  await importTool(world.engine, 'local/tool', '1');
  await commitWithStopSignal('2', 'SIGUSR1');
  const image = 'docker://local/tool:2';
  const cli = [join(import.meta.dirname, '../../src/cli/main.ts'), 'run', '--rm', '--backend', 'docker', '--image', image];
  const env = { PATH: process.env['PATH'], HOME: daemon.home, HUTCH_HOME: daemon.home, HUTCH_DAEMON_LISTEN: 'off' };
  const { stdout, stderr } = await run(process.execPath, cli, { env });
  expect({ stdout, stderr }).toEqual({ stdout: 'tool:x:1234:1234::/work:/bin/sh\n', stderr: '' });

  const made = await daemon.call('sandbox.create', { image, main: {} });
  expect(made.main?.argv).toEqual(['/bin/cat', '/etc/passwd']);
  expect(made.imageRules).toMatchObject({ main: { from: 'image' }, user: { from: 'image' }, stopSignal: { from: 'image' } });
  expect(made.imageConfig).toMatchObject({
    entrypoint: ['/bin/cat'],
    command: ['/etc/passwd'],
    env: { FROM_IMAGE: 'yes' },
    workdir: '/work',
    user: 'tool',
    stopSignal: 'SIGUSR1',
    exposedPorts: ['80/tcp'],
  });
  expect((await daemon.call('sandbox.wait', { ref: made.id })).exitCode).toBe(0);
  await daemon.call('sandbox.delete', { ref: made.id });

  // One that hears nothing else.
  const script = 'trap "exit 7" USR1; trap "" TERM; echo ready; while :; do sleep 0.1; done';
  const { id } = await daemon.call('sandbox.create', { image, main: { argv: ['sh', '-c', script] } });
  await eventually('its traps to be set', async () =>
    (await daemon.send('GET', `/v1/sandboxes/${id}/logs`)).body.toString('latin1').includes('ready'),
  );
  const stopped = await daemon.call('sandbox.stop', { ref: id, graceMs: 30_000 });
  expect(stopped).toMatchObject({ state: 'stopped', ended: { cause: 'stopped', exitCode: 7 } });
  await daemon.call('sandbox.delete', { ref: id });

  const nothing = await refused(daemon.call('sandbox.create', { main: {} }));
  expect(nothing.body).toMatchObject({
    code: 'invalid_argument',
    message: expect.stringMatching(/main\.argv.*neither ENTRYPOINT nor CMD/),
  });
});
