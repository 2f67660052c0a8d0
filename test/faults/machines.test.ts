// What goes wrong in or under one machine: its processes are killed or stopped, its kernel panics, its
// memory runs out. Each is told for what it is, in time, and costs no other sandbox anything.
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ApiError, type DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { expectInOrder, expectMain, expectNoLeaks, expectSoundLedger, isAlive, pidOf, startDaemon, works } from './world.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await startDaemon();
});
afterAll(() => daemon[Symbol.asyncDispose]());

/** A new one whose main process never ends. */
async function endless(): Promise<string> {
  const name = `it-${randomBytes(4).toString('hex')}`;
  return (await daemon.call('sandbox.create', { name, main: { argv: ['sleep', '100000'] } })).id;
}

async function remove(...ids: string[]): Promise<void> {
  for (const ref of ids) await daemon.call('sandbox.delete', { ref, force: true });
  await expectNoLeaks(daemon);
}

/** How the ledger has its last end. */
async function lastEnd(id: string): Promise<unknown> {
  const entries: { kind: string; sandboxId: string }[] = [];
  for await (const entry of daemon.lines('ledger.list', {})) entries.push(entry as { kind: string; sandboxId: string });
  return entries.findLast(({ kind, sandboxId }) => sandboxId === id && kind === 'vm.compute.stop');
}

/** What a command that was running hears when its machine goes. */
async function lostBy(id: string, act: () => unknown): Promise<ApiError> {
  const client = await daemon.exec(id, { argv: ['sleep', '100000'] });
  await client.saw('started');
  await act();
  const error = await client.exit().then(
    (exit) => Promise.reject(new Error(`it has an exit: ${JSON.stringify(exit)}`)),
    (reason: unknown) => reason,
  );
  if (!(error instanceof ApiError)) throw error;
  return error;
}

describe('a machine that dies:', () => {
  const ways: [name: string, act: (id: string) => unknown][] = [
    ['QEMU killed', (id) => process.kill(pidOf(daemon, id, 'vmm'), 'SIGKILL')],
    ['QEMU aborted', (id) => process.kill(pidOf(daemon, id, 'vmm'), 'SIGABRT')],
    ['shim killed', (id) => process.kill(pidOf(daemon, id, 'shim'), 'SIGKILL')],
  ];

  test.each(ways)('%s: a crash, its commands lost and not ended, and it starts again', async (_name, act) => {
    const [id, other] = [await endless(), await endless()];
    const vmm = pidOf(daemon, id, 'vmm');
    expect((await lostBy(id, () => act(id))).code).toBe('unavailable');
    expect((await daemon.until(id, 'stopped')).ended).toMatchObject({ cause: 'crashed', actor: 'host', exitCode: null });
    expect(isAlive(vmm)).toBe(false);
    await expectMain(daemon, other);
    await expectSoundLedger(daemon);
    await daemon.call('sandbox.start', { ref: id });
    await expectMain(daemon, id);
    await works(daemon, id);
    await remove(id, other);
  });

  test('its kernel panics', async () => {
    const id = await endless();
    const panic = async () =>
      (await daemon.exec(id, { argv: ['sh', '-c', 'echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger'] })).closed;
    expect((await lostBy(id, panic)).code).toBe('unavailable');
    const { ended } = await daemon.until(id, 'stopped');
    expect(ended).toMatchObject({ cause: 'crashed', actor: 'guest', exitCode: null, oomKilled: false });
    expect((await daemon.call('why.get', { ref: id })).sentence).toContain("the guest's kernel panicked: sysrq triggered crash");
    expect(await lastEnd(id)).toMatchObject({ kind: 'vm.compute.stop', reason: 'stop-crash' });
    expect((await daemon.send('GET', `/v1/sandboxes/${id}/logs?source=boot`)).body.toString('latin1')).toContain('panic');
    await daemon.call('sandbox.start', { ref: id });
    await works(daemon, id);
    // What it panicked of before is of before.
    await (await daemon.exec(id, { argv: ['sh', '-c', 'echo 1 > /proc/sys/kernel/sysrq; echo o > /proc/sysrq-trigger'] })).closed;
    expect((await daemon.until(id, 'stopped')).ended).toMatchObject({ cause: 'guest-shutdown', actor: 'guest' });
    expect(await lastEnd(id)).toMatchObject({ kind: 'vm.compute.stop', reason: 'stop-user' });
    await remove(id);
  });

  test('killed while no daemon runs', async () => {
    const id = await endless();
    const [vmm, shim] = [pidOf(daemon, id, 'vmm'), pidOf(daemon, id, 'shim')];
    await daemon.kill9();
    process.kill(vmm, 'SIGKILL');
    await eventually('shim and machine are gone', () => !isAlive(vmm) && !isAlive(shim));
    await daemon.startAgain();
    expect((await daemon.call('sandbox.get', { ref: id })).ended).toMatchObject({ cause: 'crashed' });
    await expectInOrder(daemon);
    await remove(id);
  });
});

test('passt that dies costs the network and nothing else, until the next start', async () => {
  const id = await endless();
  process.kill(pidOf(daemon, id, 'passt'), 'SIGKILL');
  await works(daemon, id);
  await daemon.call('sandbox.restart', { ref: id, graceMs: 0 });
  expect(pidOf(daemon, id, 'passt')).toBeGreaterThan(0);
  await remove(id);
});

test('a machine that is stopped is unavailable in time, slows no other, and goes on where it was', { timeout: 180_000 }, async () => {
  const [id, other] = [await endless(), await endless()];
  const vmm = pidOf(daemon, id, 'vmm');
  process.kill(vmm, 'SIGSTOP');
  try {
    const stuck = Promise.all(
      [() => daemon.run(id, ['true']), () => daemon.call('exec.list', { ref: id }), () => daemon.call('port.list', { ref: id })].map(
        (ask) =>
          ask().then(
            () => 'answered',
            (error: unknown) => (error instanceof ApiError ? error.code : String(error)),
          ),
      ),
    );
    let isStuck = true;
    void stuck.finally(() => {
      isStuck = false;
    });
    for (let count = 0; count < 10; count += 1) await works(daemon, other);
    await daemon.call('sandbox.list', {});
    const third = await endless();
    await remove(third);
    expect(isStuck).toBe(true); // all of that came first
    expect(await stuck).toEqual(['unavailable', 'unavailable', 'unavailable']);
    expect((await daemon.call('sandbox.get', { ref: id })).state).toBe('running');
  } finally {
    process.kill(vmm, 'SIGCONT');
  }
  await eventually(
    'it answers again',
    () =>
      daemon.run(id, ['true']).then(
        () => true,
        () => false,
      ),
    60_000,
  );
  await expectMain(daemon, id);
  await expectInOrder(daemon);
  await remove(id, other);
});

test('a machine that is stopped is ended all the same', { timeout: 180_000 }, async () => {
  const [forced, asked] = [await endless(), await endless()];
  for (const id of [forced, asked]) process.kill(pidOf(daemon, id, 'vmm'), 'SIGSTOP');
  expect((await daemon.call('sandbox.stop', { ref: forced, force: true })).ended).toMatchObject({ cause: 'stopped' });
  expect((await daemon.call('sandbox.stop', { ref: asked, graceMs: 500 })).ended).toMatchObject({ cause: 'stopped' });
  await expectInOrder(daemon);
  await remove(forced, asked);
});

test('a daemon starts while a machine is stopped, and has it when it goes on', { timeout: 180_000 }, async () => {
  const [id, other] = [await endless(), await endless()];
  const vmm = pidOf(daemon, id, 'vmm');
  process.kill(vmm, 'SIGSTOP');
  try {
    await daemon.kill9();
    await daemon.startAgain();
    await works(daemon, other);
    expect((await daemon.call('sandbox.get', { ref: id })).state).toBe('running');
  } finally {
    process.kill(vmm, 'SIGCONT');
  }
  await eventually(
    'it answers again',
    () =>
      daemon.run(id, ['true']).then(
        () => true,
        () => false,
      ),
    60_000,
  );
  await expectInOrder(daemon);
  await remove(id, other);
});

test('files larger than the memory are written in every way, and nothing is killed for it', { timeout: 240_000 }, async () => {
  const { id } = await daemon.call('sandbox.create', { memoryMiB: 128, network: 'none', main: { argv: ['sleep', '100000'] } });
  const mebibytes = 192;
  async function* zeros(): AsyncGenerator<Uint8Array> {
    for (let count = 0; count < mebibytes; count += 1) yield new Uint8Array(1 << 20);
  }
  async function* archive(): AsyncGenerator<Uint8Array> {
    yield tarHeader('from-tar', mebibytes << 20);
    yield* zeros();
    yield new Uint8Array(1024);
  }
  const sizes = `stat -c %s /root/from-tar /root/written /root/copied`;
  for (const [path, body] of [
    ['files?path=/root/written', zeros()],
    ['archive?path=/root', archive()],
  ] as const)
    expect((await daemon.send('PUT', `/v1/sandboxes/${id}/${path}`, { body })).status).toBe(200);
  await daemon.run(id, ['dd', 'if=/dev/zero', 'of=/root/copied', 'bs=1M', `count=${mebibytes}`]);
  expect((await daemon.run(id, ['sh', '-c', sizes])).stdout).toBe(`${mebibytes << 20}\n`.repeat(3));
  // With this, such writes made the kernel panic now and then: too seldom for a test to see it.
  const ttl = 'cat /sys/kernel/mm/lru_gen/min_ttl_ms 2>/dev/null || echo 0';
  expect((await daemon.run(id, ['sh', '-c', ttl])).stdout).toBe('0\n');
  await expectMain(daemon, id);
  expect((await daemon.call('sandbox.stats', { ref: id })).oomKills).toBe(0);
  await works(daemon, id);
  await remove(id);
});

/** One file's, in the oldest form. */
function tarHeader(name: string, bytes: number): Buffer {
  const header = Buffer.alloc(512);
  const octal = (value: number, digits: number): string => value.toString(8).padStart(digits, '0');
  header.write(name, 0);
  header.write(`${octal(0o644, 7)}\0${octal(0, 7)}\0${octal(0, 7)}\0${octal(bytes, 11)}\0${octal(0, 11)}\0        0`, 100);
  header.write(
    `${octal(
      header.reduce((sum, byte) => sum + byte, 0),
      6,
    )}\0 `,
    148,
  );
  return header;
}

test('a guest of the least memory goes on when all its file systems in memory are full', { timeout: 240_000 }, async () => {
  const { id } = await daemon.call('sandbox.create', { memoryMiB: 128, network: 'none', main: { argv: ['sleep', '100000'] } });
  const fill =
    'for dir in /dev/shm /run /dev; do ! dd if=/dev/zero of=$dir/fill bs=64k 2>/dev/null || exit 1; done; df --output=pcent /dev/shm /run';
  expect((await daemon.run(id, ['sh', '-c', fill])).stdout).toMatch(/^Use%\n100%\n100%\n$/);
  // Programs larger than what they take at once: they live from the room that is left.
  const programs = 'ls -R /usr/lib > /dev/null && git --version > /dev/null && python3 -c "print(2**10)"';
  for (let round = 0; round < 3; round += 1) expect((await daemon.run(id, ['sh', '-c', programs])).stdout).toBe('1024\n');
  expect((await daemon.call('sandbox.stats', { ref: id })).oomKills).toBe(0);
  expect(await daemon.run(id, ['rm', '/dev/shm/fill', '/run/fill', '/dev/fill'])).toMatchObject({ exitCode: 0 });
  await expectMain(daemon, id);
  await remove(id);
});

const GLUTTON = ['python3', '-c', 'held = []\nwhile True: held.append(bytearray(4 << 20))'];

test('when the guest’s memory runs out its workload is killed, never the agent, and an event says so', { timeout: 180_000 }, async () => {
  const id = await endless();
  const client = await daemon.exec(id, { argv: GLUTTON });
  expect(await client.exit()).toMatchObject({ exitCode: 137, signal: 'KILL', oomKilled: true });
  await works(daemon, id);
  await expectMain(daemon, id);
  await eventually('the event is there', async () => {
    for await (const event of daemon.lines('event.list', { sandbox: id })) if (event.type === 'sandbox.oom') return true;
    return false;
  });
  await remove(id);
});

test('a main process that takes all memory ends its sandbox as out of memory', { timeout: 180_000 }, async () => {
  const { id } = await daemon.call('sandbox.create', { main: { argv: GLUTTON } });
  await eventually('it has ended', async () => (await daemon.call('sandbox.get', { ref: id })).state === 'stopped', 120_000);
  expect((await daemon.call('sandbox.get', { ref: id })).ended).toMatchObject({ cause: 'exited', exitCode: 137, oomKilled: true });
  await remove(id);
});
