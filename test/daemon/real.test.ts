// The daemon as it is shipped, over real virtual machines: what the reference backend cannot show.
import { execFile } from 'node:child_process';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { realBootFiles } from '../qemu/fixture.ts';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';

const ROOT = join(import.meta.dirname, '../..');
const run = promisify(execFile);

let daemon: DaemonUnderTest;
beforeAll(async () => {
  await realBootFiles(testOperation(), nodeHost()); // made once for all tests
  daemon = await DaemonUnderTest.start({
    entry: join(ROOT, 'src/daemon/main.ts'),
    async before(home) {
      await mkdir(join(home, 'data'), { mode: 0o711 });
      for (const part of ['images', 'kernels', 'initramfs']) await run('cp', ['-al', join(ROOT, '.tools/data', part), join(home, 'data')]);
    },
  });
}, 600_000);
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

async function vmmOf(id: string): Promise<number> {
  return (JSON.parse(await readFile(`${daemon.home}/run/sandboxes/${id}/shim.json`, 'utf8')) as { pid: number }).pid;
}

test('a sandbox is a computer of its own', async () => {
  const made = await daemon.call('sandbox.create', { name: 'vm', cpus: 1, memoryMiB: 512, env: { GREETING: 'hi' } });
  expect(made).toMatchObject({ state: 'running', imageName: 'debian' });
  const { stdout } = await daemon.run('vm', ['sh', '-c', 'hostname; uname -r; id -un; echo $GREETING; python3 -c "print(2**100)"']);
  expect(stdout).toMatch(/^vm\n\d+\.\d+\.\S+\nroot\nhi\n1267650600228229401496703205376\n$/);
  const stats = await daemon.call('sandbox.stats', { ref: 'vm' });
  expect(stats.host.pssBytes).toBeGreaterThan(1_000_000);
});

test('two sandboxes share nothing that must not be shared', async () => {
  const ids = (await Promise.all([1, 2].map(() => daemon.call('sandbox.create', {})))).map(({ id }) => id);
  const told = await Promise.all(
    ids.map(async (id) =>
      (await daemon.run(id, ['sh', '-c', 'cat /etc/machine-id; hostname; head -c 16 /dev/urandom | md5sum; date +%s'])).stdout.split('\n'),
    ),
  );
  for (const line of [0, 1, 2]) expect(told[0]?.[line]).not.toBe(told[1]?.[line]);
  expect(Math.abs(Number(told[0]?.[3]) - Date.now() / 1000)).toBeLessThan(10);
  await Promise.all(ids.map((id) => daemon.call('sandbox.delete', { ref: id, force: true })));
});

test('a killed daemon costs a machine nothing', async () => {
  const client = await daemon.exec(
    'vm',
    { argv: ['sh', '-c', 'i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); sleep 0.02; done'] },
    { execId: 'walker' },
  );
  await client.sawOutput('10\n');
  await daemon.kill9();
  await client.closed;
  await daemon.startAgain();
  const again = await daemon.attach('vm', 'walker', { stdoutOffset: String(client.stdout.byteLength) });
  expect((await again.exit()).exitCode).toBe(0);
  expect(Buffer.concat([client.stdout, again.stdout]).toString()).toBe(Array.from({ length: 100 }, (_, index) => `${index}\n`).join(''));
});

test('a paused machine stands still and goes on', async () => {
  const counter = await daemon.exec('vm', { argv: ['sh', '-c', 'while :; do echo tick; sleep 0.02; done'] }, { execId: 'counter' });
  await counter.sawOutput('tick');
  await daemon.call('sandbox.pause', { ref: 'vm' });
  expect((await daemon.call('sandbox.get', { ref: 'vm' })).state).toBe('paused');
  await daemon.call('sandbox.resume', { ref: 'vm' });
  const before = counter.stdout.byteLength;
  await eventually('it ticks on', () => counter.stdout.byteLength > before + 20);
  counter.socket.terminate();
  await daemon.call('exec.signal', { ref: 'vm', execId: 'counter', signal: 'KILL' });
});

test('the disk outlives a stop and a start, and the log has the runs', async () => {
  await daemon.run('vm', ['sh', '-c', 'echo kept > /root/file']);
  const stopped = await daemon.call('sandbox.stop', { ref: 'vm' });
  expect(stopped.ended).toMatchObject({ cause: 'stopped' });
  expect((await daemon.call('why.get', { ref: 'vm' })).sentence).toMatch(/^vm is stopped: .* stopped it just now\.$/);
  await daemon.call('sandbox.start', { ref: 'vm' });
  expect((await daemon.run('vm', ['cat', '/root/file'])).stdout).toBe('kept\n');
});

test('a main process ends its machine', async () => {
  const made = await daemon.call('sandbox.create', {
    main: { argv: ['sh', '-c', 'echo from inside; exit 3'], attach: true },
    autoRemove: true,
  });
  const client = await daemon.attach(made.id, 'main');
  expect((await client.exit()).exitCode).toBe(3);
  expect(client.stdout.toString()).toBe('from inside\n');
  await daemon.until(made.id, 'deleted');
});

test('QEMU killed is a crash; a guest that powers off is none', async () => {
  process.kill(await vmmOf((await daemon.call('sandbox.get', { ref: 'vm' })).id), 'SIGKILL');
  expect((await daemon.until('vm', 'stopped')).ended).toMatchObject({ cause: 'crashed', actor: 'host' });
  await daemon.call('sandbox.start', { ref: 'vm' });
  await daemon.exec('vm', { argv: ['sh', '-c', 'echo o > /proc/sysrq-trigger'] });
  expect((await daemon.until('vm', 'stopped')).ended).toMatchObject({ cause: 'guest-shutdown' });
});

test('a machine whose processor stands still is unavailable in time, and can be forced to end', async () => {
  const { id } = await daemon.call('sandbox.create', {});
  process.kill(await vmmOf(id), 'SIGSTOP');
  const refused = await daemon.call('file.stat', { ref: id, path: '/' }).then(
    () => 'ok',
    (error: unknown) => (error as { code: string }).code,
  );
  expect(['unavailable', 'deadline_exceeded']).toContain(refused);
  expect((await daemon.call('sandbox.delete', { ref: id, force: true })).state).toBe('deleted');
});

test('the boot log can be read', async () => {
  const answer = await daemon.send('GET', '/v1/sandboxes/vm/logs?source=vmm');
  expect(answer.status).toBe(200);
});
