// Bad days of a fork: many at once, of a sandbox that floods or is out of memory, of one that is ended meanwhile; and what two machines
// that were one must not share with each other: connections and the time.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { names as namesIn, portsOf, watchFrames } from '../network/frames.ts';
import { ECHO_PORT, neighbours, PUBLIC } from '../network/neighbours.ts';
import { ApiError, type DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { clockOffset } from './guest-clock.ts';
import { removeAll } from './saved-files.ts';
import { all, expectInOrder, isLong, numbers, pidOf, seed, shellOf, startDaemon, works } from './world.ts';

const TEST_MS = isLong ? 1_800_000 : 240_000;
/** In all, and of how many calls at once. */
const [CHILDREN, CALLS] = isLong ? [30, 30] : [4, 2];
const WRONG_MS_MAX = 50;

const frames = watchFrames();
const daemon = await startDaemon({
  HUTCH_SANDBOX_BACKEND: 'qemu',
  HUTCH_SANDBOX_STOP_GRACE: '2s',
  HUTCH_SANDBOX_WARM: '0',
  HUTCH_TEST_PATH: frames.path,
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
  frames[Symbol.dispose]();
});
afterEach(() => removeAll(daemon));

const sh = shellOf(daemon);
const forksLeft = (): string[] => readdirSync(join(daemon.home, 'data/forks'));

test(`${CHILDREN} children at once, and ${CALLS} forks at once, are each another machine, and share what they had alone`, {
  timeout: TEST_MS,
}, async () => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  await sh(
    'web',
    'head -c 3000000 /dev/urandom > /dev/shm/big; sha256sum /dev/shm/big > /dev/shm/sum; cp /dev/shm/big /root/big; echo 0 > /root/calls',
  );
  const together = await daemon.call('sandbox.fork', { ref: 'web', count: CHILDREN, namePrefix: 'one' });
  expect(together.failed).toEqual([]);
  const calls = Array.from({ length: CALLS }, (_, nth) => daemon.call('sandbox.fork', { ref: 'web', namePrefix: `call${nth}` }));
  const apart = await Promise.all(calls);
  const names = [together, ...apart].flatMap(({ children }) => children.map(({ sandbox }) => sandbox.name));
  expect(new Set(names).size).toBe(CHILDREN + CALLS);
  // Each writes over what it has from the parent, and sees what it wrote and nothing else.
  const own = 'cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname; od -An -tx1 -N16 /dev/urandom';
  const seen = await Promise.all(
    ['web', ...names].map(async (ref) =>
      (await sh(ref, `sha256sum -c /dev/shm/sum > /dev/null; cmp /dev/shm/big /root/big; ${own}`)).trim().split('\n'),
    ),
  );
  for (const nth of [0, 1, 2, 3]) expect(new Set(seen.map((lines) => lines[nth])).size, own).toBe(CHILDREN + CALLS + 1);
  await Promise.all(
    names.map((ref) => sh(ref, 'hostname > /root/calls; hostname | dd of=/dev/shm/big bs=1 seek=4096 conv=notrunc 2>/dev/null')),
  );
  expect(await sh('web', 'sha256sum -c /dev/shm/sum; cat /root/calls')).toBe('/dev/shm/big: OK\n0\n');
  for (const ref of names)
    expect(await sh(ref, `dd if=/dev/shm/big bs=1 skip=4096 count=${ref.length} 2>/dev/null; echo; cat /root/calls`)).toBe(
      `${ref}\n${ref}\n`,
    );
  expect(forksLeft()).toEqual([]);
  await expectInOrder(daemon);
});

/** One after the other until the machine has no memory left, over and over. */
const GLUTTON = 'while :; do python3 -c "held = []\nwhile True: held.append(bytearray(4 << 20))"; done';
const FLOOD = 'i=0; while :; do i=$((i+1)); echo $i; done';

test.each([
  ['floods its output', FLOOD],
  ['is out of memory', GLUTTON],
])('a sandbox that %s is forked, and goes on with it', { timeout: TEST_MS }, async (_, script) => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  const wild = await daemon.exec('web', { argv: ['sh', '-c', script] }, { execId: 'wild' });
  await wild.saw('started');
  const isFlood = script === FLOOD;
  const kills = async (ref: string): Promise<number> => (await daemon.call('sandbox.stats', { ref })).oomKills ?? 0;
  if (isFlood) await eventually('it floods', () => wild.stdout.byteLength > 1e5);
  else await eventually('its memory is out', async () => (await kills('web')) > 0, 120_000);
  const { children } = await daemon.call('sandbox.fork', { ref: 'web', namePrefix: 'kid' });
  expect(children.map(({ sandbox }) => sandbox.state)).toEqual(['running']);
  const before = isFlood ? wild.stdout.byteLength : await kills('web');
  await eventually(
    'the parent goes on',
    async () => (isFlood ? wild.stdout.byteLength > before + 1e5 : (await kills('web')) > before),
    120_000,
  );
  for (const ref of ['web', 'kid-1']) await works(daemon, ref);
  if (isFlood) {
    // Nothing of the stream is lost or doubled by the stop in its middle.
    const lines = wild.stdout.toString('latin1').split('\n').slice(0, -1);
    expect(lines.findIndex((line, at) => line !== String(at + 1))).toBe(-1);
  }
  wild.socket.terminate();
  await expectInOrder(daemon);
});

test(`the parent is ended in the middle of a fork (seed ${seed})`, { timeout: TEST_MS }, async () => {
  const random = numbers(seed + 11);
  const ends: readonly (readonly [string, (id: string) => unknown])[] = [
    ['deleted', (ref) => daemon.call('sandbox.delete', { ref, force: true })],
    ['killed', (ref) => process.kill(pidOf(daemon, ref, 'vmm'), 'SIGKILL')],
    ['its shim killed', (ref) => process.kill(pidOf(daemon, ref, 'shim'), 'SIGKILL')],
    ['stopped', (ref) => daemon.call('sandbox.stop', { ref, force: true })],
  ];
  const from = Math.floor(random.next().value * ends.length);
  for (let nth = 0; nth < (isLong ? 40 : 2); nth += 1) {
    const [how, end] = ends[(from + nth) % ends.length] as (typeof ends)[number];
    const { id } = await daemon.call('sandbox.create', { name: 'web', network: 'none' });
    await sh('web', 'echo memory > /dev/shm/a');
    const asked = daemon.call('sandbox.fork', { ref: 'web', count: 2, namePrefix: 'kid' }).then(
      () => 'done',
      (error: unknown) => (error instanceof ApiError ? error.code : String(error)),
    );
    const afterMs = random.next().value * 150;
    await new Promise((resolve) => setTimeout(resolve, afterMs));
    await Promise.resolve(end(id));
    const outcome = await asked;
    const where = `${how} after ${afterMs} ms: ${outcome}`;
    expect(['done', 'unavailable', 'failed_precondition', 'conflict', 'cancelled', 'not_found'], where).toContain(outcome);
    await eventually(`the parent is over: ${where}`, async () =>
      (await all(daemon)).every(({ name, state }) => name !== 'web' || state === 'stopped'),
    );
    // A child that is there is whole, and needs nothing of its parent.
    for (const { name } of await all(daemon)) if (name !== 'web') expect(await sh(name, 'cat /dev/shm/a'), where).toBe('memory\n');
    expect(forksLeft(), where).toEqual([]);
    await expectInOrder(daemon);
    await daemon.deleteAll();
  }
});

/**
 * Two connections, one that talks and one that waits to hear something; what becomes of them is in a file. The one that
 * waits has talked once: passt was seen to reset one on which nothing had been said.
 */
const CONNECTED = `
import socket, threading, time
def note(line):
    with open('/dev/shm/log', 'a') as log: log.write(line + '\\n')
def talk():
    try:
        s = socket.create_connection(('${PUBLIC}', ${ECHO_PORT}), 30)
        for n in range(100000):
            s.sendall(b'x'); s.settimeout(60)
            if s.recv(1) != b'x': return note('talk: over')
            note('talk: %d' % n); time.sleep(0.1)
    except OSError as error: note('talk: ' + type(error).__name__)
def listen():
    try:
        s = socket.create_connection(('${PUBLIC}', ${ECHO_PORT}), 30)
        s.sendall(b'y'); s.recv(1); s.settimeout(None)
        note('listen: waits')
        note('listen: over' if s.recv(1) == b'' else 'listen: heard')
    except OSError as error: note('listen: ' + type(error).__name__)
for each in (talk, listen): threading.Thread(target=each).start()
while True: time.sleep(60)
`;

/** Before its link goes up, and long enough for what talks each tenth of a second: when it was over, by the guest's clock. */
const HOOK = `#!/bin/sh
sleep 1; date +%s%3N > /dev/shm/told`;
/** From one port, for as long as it is; what it hears goes into its log. */
const DATAGRAMS = `
import os, socket, threading, time
s = socket.socket(type=socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 45671))
name = os.environ['SAYS'].encode()
def hear():
    while True:
        heard = s.recv(64)
        with open('/dev/shm/log', 'a') as log: log.write(heard.decode() + '\\n')
threading.Thread(target=hear, daemon=True).start()
while True:
    s.sendto(name, ('${PUBLIC}', ${ECHO_PORT}))
    time.sleep(0.2)`;
/** Clones of one that talks, beside the one that begins at a snapshot of it. */
const TALKERS = isLong ? 20 : 2;
const NEW = `import socket; s = socket.create_connection(('${PUBLIC}', ${ECHO_PORT}), 30); s.sendall(b'new'); print(s.recv(3).decode())`;

// Only root may make neighbours.
describe.runIf(process.getuid?.() === 0)('with a network', () => {
  const log = async (ref: string): Promise<string> => await sh(ref, 'cat /dev/shm/log 2>/dev/null || true');
  const said = async (ref: string, what: RegExp): Promise<void> => {
    let seen = '';
    const look = async (): Promise<boolean> => {
      seen = await log(ref);
      return what.test(seen);
    };
    await eventually(`${ref} says ${what}`, look, 60_000).catch((cause: unknown) => {
      throw new Error(`${ref} says no ${what}, but ${seen.slice(-300)}`, { cause });
    });
  };
  const talking = async (name: string, backend: 'qemu' | 'gvisor'): Promise<string> => {
    const main = { argv: ['python3', '-c', CONNECTED] };
    const { id } = await daemon.call('sandbox.create', { name, backend, network: 'allow', main });
    await sh(
      name,
      `mkdir -p /etc/hutch/after-restore.d; echo '${HOOK}' > /etc/hutch/after-restore.d/one; chmod +x /etc/hutch/after-restore.d/one`,
    );
    await said(name, /talk: 3\n/);
    await said(name, /listen: waits/);
    return id;
  };
  const macOf = async (ref: string): Promise<string> => /ether ([0-9a-f:]+)/.exec(await sh(ref, 'ip -o link show eth0'))?.[1] ?? '';
  /** From where it talks. */
  const portsIn = (id: string): ReadonlySet<number> =>
    new Set(
      frames
        .of(id)
        .map(portsOf)
        .filter((ports) => ports?.to === ECHO_PORT)
        .map((ports) => ports?.from ?? 0),
    );

  test(`${TALKERS} children, and what begins at a snapshot: connections are cut, no packet leaves too early, and the parent’s live on`, {
    timeout: TEST_MS,
  }, async () => {
    await using _around = await neighbours();
    const id = await talking('web', 'qemu');
    const mac = await macOf('web');
    const { children, failed } = await daemon.call('sandbox.fork', { ref: 'web', count: TALKERS, namePrefix: 'kid' });
    expect(failed).toEqual([]);
    const talked = (await log('web')).match(/^talk: \d+$/gm)?.length ?? 0;
    await daemon.call('snapshot.create', { ref: 'web', name: 'talks' });
    const begun = await daemon.call('sandbox.create', { from: 'talks', name: 'begun' });
    const clones = [...children.map(({ sandbox }) => sandbox), begun];
    await said('web', new RegExp(`^talk: ${talked + 10}$`, 'm'));
    expect(await log('web')).not.toMatch(/over|Error|heard/);
    const old = portsIn(id);
    expect(old.size).toBe(2);
    expect(frames.of(id).some((frame) => namesIn(frame, mac))).toBe(true);
    for (const { id: clone, name } of clones) {
      await said(name, /^talk: (over|\w+Error)$/m);
      await said(name, /^listen: (over|\w+Error)$/m);
      // A new one of its own works.
      expect((await daemon.run(name, ['python3', '-c', NEW])).stdout).toBe('new\n');
      const [own, told] = [await macOf(name), Number(await sh(name, 'cat /dev/shm/told'))];
      expect(own).not.toBe(mac);
      const seen = frames.of(clone);
      expect(
        seen.some((frame) => namesIn(frame, own)),
        name,
      ).toBe(true);
      expect(
        seen.filter((frame) => namesIn(frame, mac)),
        `${name} sends as its parent`,
      ).toEqual([]);
      expect(
        [...portsIn(clone)].filter((port) => old.has(port)),
        `${name} goes on talking`,
      ).toEqual([]);
      expect(Math.min(...seen.map(({ atMs }) => atMs)), `${name} sends before it is itself`).toBeGreaterThan(told - WRONG_MS_MAX);
    }
    await expectInOrder(daemon);
  });

  test('what comes to a port that a sandbox sends from is its own: another that sends from the same one gets none of it', {
    timeout: TEST_MS,
  }, async () => {
    await using _around = await neighbours();
    const speaker = async (name: string, backend: 'qemu' | 'gvisor') =>
      await daemon.call('sandbox.create', {
        name,
        backend,
        network: 'allow',
        env: { SAYS: name },
        main: { argv: ['python3', '-c', DATAGRAMS] },
      });
    await speaker('one', 'qemu');
    await said('one', /^(one\n){5}/);
    await speaker('two', 'gvisor');
    await daemon.call('sandbox.fork', { ref: 'one', namePrefix: 'kid' });
    const heard = (await log('one')).length;
    await eventually('one is answered as ever', async () => (await log('one')).length > heard + 40 * 'one\n'.length, 60_000);
    expect(await log('one')).toMatch(/^(one\n)+$/);
    expect(await log('two')).toBe('');
    // Nobody uses it any more: who asks for it has it.
    for (const ref of ['one', 'kid-1']) await daemon.call('sandbox.delete', { ref, force: true });
    await said('two', /^(two\n){5}/);
    expect(await log('two')).toMatch(/^(two\n)+$/);
    await expectInOrder(daemon);
    await daemon.deleteAll();
  });

  test('gvisor: nothing that a child sends is of its parent, and nobody’s connections are in the way', { timeout: TEST_MS }, async () => {
    await using _around = await neighbours();
    const id = await talking('web', 'gvisor');
    const mac = await macOf('web');
    const { children, failed } = await daemon.call('sandbox.fork', { ref: 'web', count: 1, namePrefix: 'kid' });
    expect(failed).toEqual([]);
    const old = portsIn(id);
    expect(old.size).toBe(2);
    for (const { sandbox } of children) {
      expect((await daemon.run(sandbox.id, ['python3', '-c', NEW])).stdout).toBe('new\n');
      expect(await macOf(sandbox.id)).not.toBe(mac);
      const seen = frames.of(sandbox.id);
      expect(seen.length).toBeGreaterThan(0);
      expect(seen.filter((frame) => namesIn(frame, mac))).toEqual([]);
      expect([...portsIn(sandbox.id)].filter((port) => old.has(port))).toEqual([]);
    }
    // Its programs are told, in both.
    for (const ref of ['web', 'kid-1']) {
      await said(ref, /^talk: (over|\w+Error)$/m);
      await said(ref, /^listen: (over|\w+Error)$/m);
    }
    expect((await daemon.run('web', ['python3', '-c', NEW])).stdout).toBe('new\n');
    await expectInOrder(daemon);
  });
});

/** Whether its clock is right; on a machine that has no time for anybody there may be none to tell it. */
async function isRight(of: DaemonUnderTest, ref: string): Promise<boolean> {
  const { atLeastMs, atMostMs } = await clockOffset(of, ref);
  return atMostMs > -WRONG_MS_MAX && atLeastMs < WRONG_MS_MAX;
}

test(`the time is right within ${WRONG_MS_MAX} ms after whatever stops a sandbox, in it and in what is made of it`, {
  timeout: TEST_MS,
}, async () => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  await daemon.call('snapshot.create', { ref: 'web', name: 'ready' });
  let made = 0;
  const child = async (make: (name: string) => Promise<unknown>): Promise<string> => {
    made += 1;
    await make(`kid${made}`);
    return (await all(daemon)).find(({ name }) => name.startsWith(`kid${made}`))?.name ?? 'none';
  };
  const itself = async (...verbs: readonly ('sandbox.pause' | 'sandbox.suspend' | 'sandbox.resume')[]): Promise<string> => {
    for (const verb of verbs) {
      await daemon.call(verb, { ref: 'web' });
      if (verb !== 'sandbox.resume') await new Promise((resolve) => setTimeout(resolve, 4 * WRONG_MS_MAX)); // what it would be late by
    }
    return 'web';
  };
  const cases: Readonly<Record<string, () => Promise<string>>> = {
    'a pause': () => itself('sandbox.pause', 'sandbox.resume'),
    'a suspend': () => itself('sandbox.suspend', 'sandbox.resume'),
    'a restore': async () => (await daemon.call('sandbox.restore', { ref: 'web', snapshot: 'ready' })).name,
    'a fork, in the child': () => child((namePrefix) => daemon.call('sandbox.fork', { ref: 'web', namePrefix })),
    'a fork, in the parent': async () => 'web',
    'a start at a snapshot': () => child((name) => daemon.call('sandbox.create', { name, from: 'ready' })),
    'a snapshot': async () => (await daemon.call('snapshot.create', { ref: 'web' })).sandboxName,
  };
  for (const [what, act] of Object.entries(cases)) {
    let right = false;
    for (let tries = 0; tries < 3 && !right; tries += 1) right = await isRight(daemon, await act());
    expect(right, what).toBe(true);
  }
});
