// Sandboxes of gVisor that are put away and taken up again: nothing of them is lost, whatever happens to the daemon, and what the
// runtime cannot save it is not asked to.
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { atPoints } from './points.ts';
import {
  all,
  COUNTER,
  countOf,
  expectInOrder,
  filesOf,
  isAlive,
  isLong,
  ledgerOf,
  numbers,
  options,
  pidOf,
  seed,
  shellOf,
  startDaemon,
} from './world.ts';

const TEST_MS = isLong ? 3_600_000 : 120_000;
const SAMPLES = 4;
const OWN = { HUTCH_SANDBOX_BACKEND: 'gvisor', HUTCH_SANDBOX_STOP_GRACE: '2s' };

const daemon = await startDaemon(OWN);
afterAll(() => daemon[Symbol.asyncDispose]());

const sh = shellOf(daemon);

const counted = (ref: string) => countOf(sh, ref);

test('a sandbox of gVisor that is suspended has no process, outlives the daemon, and goes on as itself', { timeout: TEST_MS }, async () => {
  const { id } = await daemon.call('sandbox.create', {
    name: 'web',
    labels: { for: 'test' },
    env: { PLAIN: 'p' },
    secrets: { HIDDEN: 'h' },
    timeoutMs: 3_600_000,
    main: { argv: ['sh', '-c', COUNTER] },
  });
  const look = 'cat /etc/machine-id; hostname; ip -o link show eth0; ip -o -4 addr show eth0; ip route';
  const before = { self: await sh('web', look), count: await counted('web') };
  await sh('web', 'echo disk > /root/a; echo memory > /dev/shm/a');
  const open = await daemon.exec('web', { argv: ['sh', '-c', 'echo begun; cat > /dev/null'], stdin: 'open' }, { execId: 'open' });
  await open.sawOutput('begun');
  const runtime = pidOf(daemon, id, 'vmm');

  const suspended = await daemon.call('sandbox.suspend', { ref: 'web' });
  expect(suspended).toMatchObject({ state: 'suspended', openComputeSinceMs: null, labels: { for: 'test' } });
  expect(isAlive(runtime)).toBe(false);
  expect(existsSync(join(daemon.home, 'run/sandboxes', id))).toBe(false);
  await open.closed;
  expect(open.message('error')).toMatchObject({ error: { message: expect.stringContaining('was suspended') } });
  await expect(daemon.run('web', ['true'])).rejects.toThrow(/suspended/);
  expect((await daemon.call('sandbox.fork', { ref: 'web', namePrefix: 'kid' })).stillMs).toBe(0);
  expect(await sh('kid-1', 'cat /root/a /dev/shm/a; hostname')).toBe('disk\nmemory\nkid-1\n');
  await daemon.call('sandbox.delete', { ref: 'kid-1', force: true });

  await daemon.kill9();
  // Another boot of the host.
  await daemon.startAgain(options({ ...OWN, HUTCH_TEST_BOOT_ID: '6f1d2f6e-0000-4000-8000-000000000001' }));
  await expectInOrder(daemon);
  expect(await all(daemon)).toMatchObject([{ id, state: 'suspended' }]);
  await daemon.terminate();
  await daemon.startAgain(options(OWN));

  const woken = await daemon.call('sandbox.resume', { ref: 'web' });
  expect(woken).toMatchObject({ id, state: 'running', startCount: 1, labels: { for: 'test' } });
  const [asked, said] = [Date.now(), Number(await sh('web', 'date +%s%3N'))];
  expect(said).toBeGreaterThan(asked - 1_000);
  expect(said).toBeLessThan(Date.now() + 1_000);
  expect(await sh('web', look)).toBe(before.self);
  expect(await sh('web', 'echo $PLAIN $HIDDEN; cat /root/a /dev/shm/a')).toBe('p h\ndisk\nmemory\n');
  const count = await counted('web');
  expect(count).toBeGreaterThanOrEqual(before.count);
  await eventually('it counts on', async () => (await counted('web')) > count);
  // A command that was open has not ended: whoever wants to follows it again.
  expect((await daemon.call('exec.list', { ref: 'web' })).execs.find(({ execId }) => execId === 'open')).toMatchObject({ running: true });
  expect(await ledgerOf(daemon, id)).toEqual([
    'vm.storage.start boot',
    'vm.compute.start boot',
    'vm.compute.stop hibernate',
    'vm.compute.start hibernate-wake',
  ]);
  expect(filesOf(daemon, id)).toEqual(['secrets.json', 'vm']);
  // The runtime has its network in its memory; a disk has none.
  await daemon.call('snapshot.create', { ref: 'web', name: 'wired' });
  await expect(daemon.call('sandbox.create', { from: 'wired', network: 'none' })).rejects.toMatchObject({
    body: {
      code: 'failed_precondition',
      message: expect.stringContaining('whether it has a network'),
      hint: expect.stringContaining('--disk-only'),
    },
  });
  await daemon.call('snapshot.create', { ref: 'web', name: 'disk', diskOnly: true });
  await daemon.call('sandbox.create', { from: 'disk', network: 'none', name: 'unwired' });
  expect(await sh('unwired', 'cat /root/a')).toBe('disk\n');
  for (const name of ['disk', 'wired']) await daemon.call('snapshot.remove', { snapshot: name, cascade: true });
  await expectInOrder(daemon);
  await daemon.deleteAll();
});

/** What two machines must not share. */
const UNLIKE = {
  'machine-id': 'cat /etc/machine-id',
  'getrandom in a new process': 'od -An -tx1 -N16 /dev/urandom',
  'hardware address': 'ip -o link show eth0',
  hostname: 'hostname',
  'host key': 'cat /etc/ssh/ssh_host_test',
} as const;

/** Says at once that nobody may go there, where the link is up. */
const REACH = `#!/usr/bin/env python3
import socket
try: socket.create_connection(("169.254.169.254", 80), 0.5)
except OSError as error: print(type(error).__name__)
`;

test('children of a running sandbox of gVisor are like it, and like no other where they must not be', { timeout: TEST_MS }, async () => {
  const parent = await daemon.call('sandbox.create', {
    name: 'web',
    env: { PLAIN: 'p' },
    secrets: { HIDDEN: 'h' },
    main: { argv: ['sh', '-c', COUNTER] },
  });
  await sh(
    'web',
    `echo disk > /root/a; echo memory > /dev/shm/a; mkdir -p /etc/ssh /etc/hutch/after-restore.d; echo old > /etc/ssh/ssh_host_test
     printf '#!/bin/sh\\nod -An -tx1 -N8 /dev/urandom > /etc/ssh/ssh_host_test\\n' > /usr/bin/ssh-keygen
     printf '#!/bin/sh\\nhostname > /root/told; /root/reach > /root/reached\\n' > /etc/hutch/after-restore.d/one
     printf %s '${REACH}' > /root/reach; chmod +x /root/reach /usr/bin/ssh-keygen /etc/hutch/after-restore.d/one`,
  );
  const stream = await daemon.exec('web', { argv: ['sh', '-c', 'while :; do echo tick; sleep 0.1; done'] }, { execId: 'ticks' });
  await stream.sawOutput('tick');
  const usedUs = async () => (await daemon.call('sandbox.stats', { ref: 'web' })).cpu.usedUs;
  const used = await usedUs();

  const forked = await daemon.call('sandbox.fork', { ref: 'web', count: 2, namePrefix: 'kid' });
  expect(forked).toMatchObject({ parentId: parent.id, failed: [] });
  expect(forked.stillMs).toBeGreaterThan(0);
  expect(readdirSync(join(daemon.home, 'data/forks'))).toEqual([]);
  // The parent goes on, as the same run: what follows it does too.
  const ticked = stream.stdout.byteLength;
  await eventually('the stream of the parent goes on', () => stream.stdout.byteLength > ticked);
  stream.socket.terminate();
  expect(await daemon.call('sandbox.get', { ref: 'web' })).toMatchObject({ state: 'running', startCount: 1 });
  expect(await usedUs()).toBeGreaterThanOrEqual(used);

  const look = `cat /root/a /dev/shm/a /root/told; echo $PLAIN $HIDDEN; ${Object.values(UNLIKE).join('; ')}; hostname > /root/a; hostname > /dev/shm/a`;
  const names = ['kid-1', 'kid-2'];
  const seen = await Promise.all(names.map(async (ref) => (await sh(ref, look)).trim().split('\n')));
  const own = (await sh('web', Object.values(UNLIKE).join('; '))).trim().split('\n');
  for (const [nth, name] of names.entries()) {
    expect(seen[nth]?.slice(0, 4)).toEqual(['disk', 'memory', name, 'p h']);
    // No packet went anywhere before it was itself.
    expect(await sh(name, 'cat /root/reached; /root/reach')).toBe('TimeoutError\nConnectionRefusedError\n');
    const count = await counted(name);
    await eventually('its main process goes on', async () => (await counted(name)) > count);
  }
  for (const [nth, what] of Object.keys(UNLIKE).entries()) {
    const values = [own[nth], ...seen.map((lines) => lines[4 + nth])];
    expect([what, new Set(values).size], values.join()).toEqual([what, 3]);
  }
  // What each wrote stayed its own.
  expect(await sh('web', 'cat /root/a /dev/shm/a')).toBe('disk\nmemory\n');
  for (const ref of names) expect(await sh(ref, 'cat /root/a /dev/shm/a')).toBe(`${ref}\n${ref}\n`);
  expect(await ledgerOf(daemon, forked.children[1]?.sandbox.id ?? '')).toEqual(['vm.storage.start clone', 'vm.compute.start clone']);
  expect(await ledgerOf(daemon, parent.id)).toEqual(['vm.storage.start boot', 'vm.compute.start boot']);
  await expectInOrder(daemon);
  await daemon.deleteAll();
});

test('what gVisor could not save is found before it is asked to, and the sandbox goes on', { timeout: TEST_MS }, async () => {
  await daemon.call('sandbox.create', { name: 'busy', network: 'none' });
  // Directories that nobody uses any more are no reason.
  await sh('busy', 'mkdir -p /root/gone/deep; rm -r /root/gone; (exec 3> /root/x; rm /root/x; exec sleep 1000) > /dev/null 2>&1 &');
  for (const verb of ['sandbox.suspend', 'sandbox.fork'] as const)
    await expect(daemon.call(verb, { ref: 'busy' })).rejects.toThrow('/root/x was deleted while it was in use');
  expect(await daemon.call('sandbox.get', { ref: 'busy' })).toMatchObject({ state: 'running', startCount: 1 });
  await sh('busy', 'pkill sleep');
  // What git writes is linked to its place and loses its first name: nothing of that is open.
  const commit =
    'git init -q /root/r; cd /root/r; date > file; git add .; git -c user.name=a -c user.email=a@b commit -qm one; rm .git/index';
  await sh('busy', commit);
  await daemon.call('sandbox.pause', { ref: 'busy' });
  expect(await daemon.call('sandbox.suspend', { ref: 'busy' })).toMatchObject({ state: 'suspended' });
  await daemon.call('sandbox.resume', { ref: 'busy' });
  expect(await sh('busy', 'cd /root/r; git reset -q; git status --short; git log --format=%s')).toBe('one\n');
  await expectInOrder(daemon);
  await daemon.deleteAll();
});

/** Calls to the host that each makes, about. */
const CALLS = [
  ['sandbox.suspend', 90],
  ['sandbox.resume', 60],
  ['sandbox.fork', 160],
  // Of one that is paused.
  ['snapshot.create', 180],
] as const;

const AFTER: Readonly<Record<string, readonly string[]>> = { 'sandbox.fork': ['running'], 'snapshot.create': ['paused'] };

test(`the daemon is killed, or the host fails, at ${isLong ? 'every' : 'some'} point of what saves a sandbox of gVisor (seed ${seed})`, {
  timeout: TEST_MS,
}, async () => {
  await daemon.call('sandbox.create', { name: 'tree', network: 'none' });
  let written = 0;
  await atPoints(daemon, OWN, { verbs: CALLS, samples: SAMPLES, random: numbers(seed + 1) }, async ({ verb, fault, strike }) => {
    written += 1;
    await sh('tree', `echo ${written} | tee /root/a > /dev/shm/a`);
    if (verb === 'sandbox.resume') await daemon.call('sandbox.suspend', { ref: 'tree' });
    if (verb === 'snapshot.create') await daemon.call('sandbox.pause', { ref: 'tree' });
    await strike(() => daemon.call(verb as (typeof CALLS)[number][0], { ref: 'tree' }));
    const { state } = await daemon.call('sandbox.get', { ref: 'tree' });
    expect(AFTER[verb] ?? ['running', 'suspended'], `${fault}\n${(await daemon.log()).slice(-3_000)}`).toContain(state);
    if (state !== 'running') await daemon.call('sandbox.resume', { ref: 'tree' });
    expect(await sh('tree', 'cat /root/a /dev/shm/a'), fault).toBe(`${written}\n${written}\n`);
    for (const { name } of await all(daemon)) if (name !== 'tree') await daemon.call('sandbox.delete', { ref: name, force: true });
    await expectInOrder(daemon);
  });
  await daemon.deleteAll();
});
